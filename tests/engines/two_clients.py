"""Asked inside a vLLM image: our load client and vLLM's ``bench serve``, one after the other, on one server.

``python two_clients.py MODEL OUT``: one user at a time, prompts of one length, in the order ours, theirs, ours, so that
a slow drift of the machine is in both. Prints nothing; OUT gets the medians of both as JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from llem_airflow.measurement.load.plan import LoadPlan, LoadPrompt
from llem_airflow.measurement.load.process import LoadProcess
from llem_airflow.measurement.server.process import ServerProcess, free_port

INPUT_TOKENS, OUTPUT_TOKENS = 64, 8
REQUESTS = 8


def ours(port: int, folder: Path, name: str) -> list[dict[str, Any]]:
    """One user of ours, for about so many requests."""
    rows = folder / f"{name}.jsonl"
    prompts = tuple(
        LoadPrompt(
            OUTPUT_TOKENS, token_ids=tuple(100 + (k * 37 + i * 11) % 20_000 for i in range(INPUT_TOKENS))
        )
        for k in range(REQUESTS)
    )
    plan = LoadPlan(
        endpoint=f"http://127.0.0.1:{port}",
        model="llem",
        prompts=prompts,
        start_mono_ns=time.monotonic_ns() + 1_500_000_000,
        timeout_s=120.0,
        users=1,
        duration_s=REQUESTS * 1.0,
        sampling={"min_tokens": OUTPUT_TOKENS, "ignore_eos": True, "temperature": 0.0},
    )
    load = LoadProcess(plan, folder / f"{name}.json", rows)
    load.wait(180.0)
    return [json.loads(line) for line in rows.read_text().splitlines()]


def theirs(port: int, model: str, folder: Path) -> dict[str, Any]:
    """``vllm bench serve`` with one request at a time."""
    from vllm.benchmarks.serve import add_cli_args, main  # noqa: PLC0415  # only there
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415  # only there

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    arguments = (
        f"--host 127.0.0.1 --port {port} --model {model} --served-model-name llem --dataset-name random "
        f"--random-input-len {INPUT_TOKENS} --random-output-len {OUTPUT_TOKENS} --num-prompts {2 * REQUESTS} "
        f"--max-concurrency 1 --ignore-eos --temperature 0 --percentile-metrics ttft,e2el --disable-tqdm --save-result "
        f"--result-dir {folder} --result-filename theirs.json"
    )
    main(parser.parse_args(arguments.split()))
    found: dict[str, Any] = json.loads((folder / "theirs.json").read_text())
    return found


def compare(model: str, out: Path) -> None:
    """Start the server, ask it by both clients, write the medians."""
    folder = out.parent
    port = free_port()
    command = (
        *(
            sys.executable,
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            model,
            "--host",
            "127.0.0.1",
        ),
        *("--port", str(port), "--served-model-name", "llem", "--dtype", "float32", "--enforce-eager"),
        *(
            "--max-model-len",
            "256",
            "--max-num-seqs",
            "2",
            "--no-enable-prefix-caching",
            "--disable-uvicorn-access-log",
        ),
    )
    server = ServerProcess(command, port, folder / "server.log")
    try:
        server.wait_ready(300.0, lambda: None)
        ours(port, folder, "warm")
        first = ours(port, folder, "first")
        other = theirs(port, model, folder)
        rows = [*first, *ours(port, folder, "second")]
    finally:
        server.stop()
    done = [row for row in rows if row["status"] == "ok"]
    out.write_text(
        json.dumps(
            {
                "requests": len(done),
                "ours_ttft_ms": statistics.median(
                    (row["t_first_mono_ns"] - row["t_due_mono_ns"]) / 1e6 for row in done
                ),
                "ours_e2el_ms": statistics.median(
                    (row["t_last_mono_ns"] - row["t_due_mono_ns"]) / 1e6 for row in done
                ),
                "theirs_ttft_ms": other["median_ttft_ms"],
                "theirs_e2el_ms": other["median_e2el_ms"],
                "theirs_requests": other["completed"],
                "tokens": sorted({row["output_tokens"] for row in done}),
                "input_tokens": sorted({row["input_tokens"] for row in done}),
            }
        )
    )


if __name__ == "__main__":
    compare(sys.argv[1], Path(sys.argv[2]))
