"""Asked inside a vLLM image: our load client and vLLM's ``bench serve``, in turn, on one server.

``python two_clients.py MODEL OUT AGREE``: one user at a time, prompts of one length. The two ask in pairs, either one
first in turn, so that what the machine does meanwhile is in both; the ratio of their medians is taken within a pair,
and the median over the pairs counts. Pairs are added until it is within AGREE of one for both latencies, or there are
enough. Prints nothing; OUT gets what was seen as JSON.
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

INPUT_TOKENS, OUTPUT_TOKENS = 64, 4
REQUESTS = 16
"""Of vLLM's client in a pair."""
LEAST_S = 3.0
"""Our client asks so long in a pair, at least, and as long as vLLM's did in the one before."""
PAIRS = range(3, 13)
"""Fewest and most pairs."""


def ours(port: int, folder: Path, name: str, duration_s: float) -> list[dict[str, Any]]:
    """One user of ours; without the first answer, of a server that was idle: vLLM's client asks once before, too."""
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
        duration_s=duration_s,
        sampling={"min_tokens": OUTPUT_TOKENS, "ignore_eos": True, "temperature": 0.0},
    )
    load = LoadProcess(plan, folder / f"{name}.json", rows)
    load.wait(180.0)
    told = [json.loads(line) for line in rows.read_text().splitlines()]
    return [row for row in told if row["status"] == "ok"][1:]


def theirs(port: int, model: str, folder: Path) -> dict[str, Any]:
    """``vllm bench serve`` with one request at a time."""
    from vllm.benchmarks.serve import add_cli_args, main  # noqa: PLC0415  # only there
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415  # only there

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    arguments = (
        f"--host 127.0.0.1 --port {port} --model {model} --served-model-name llem --dataset-name random "
        f"--random-input-len {INPUT_TOKENS} --random-output-len {OUTPUT_TOKENS} --num-prompts {REQUESTS} "
        f"--max-concurrency 1 --ignore-eos --temperature 0 --percentile-metrics ttft,e2el --disable-tqdm --save-result "
        f"--result-dir {folder} --result-filename theirs.json"
    )
    main(parser.parse_args(arguments.split()))
    found: dict[str, Any] = json.loads((folder / "theirs.json").read_text())
    return found


def medians_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """What our client saw, in ms."""
    return {
        name: statistics.median((row[f"t_{end}_mono_ns"] - row["t_due_mono_ns"]) / 1e6 for row in rows)
        for name, end in (("ttft", "first"), ("e2el", "last"))
    }


def compare(model: str, out: Path, agree: float) -> None:
    """Start the server, ask it by both clients in pairs, write what was seen."""
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
    done: list[dict[str, Any]] = []
    pairs: list[dict[str, float]] = []
    found: dict[str, float] = {}
    try:
        server.wait_ready(300.0, lambda: None)
        duration_s = float(theirs(port, model, folder)["duration"])
        mine: list[dict[str, Any]] = []
        while len(pairs) < PAIRS.stop:
            name = str(len(pairs))
            if len(pairs) % 2:
                mine = ours(port, folder, name, max(LEAST_S, duration_s))
            other = theirs(port, model, folder)
            duration_s = float(other["duration"])
            if not len(pairs) % 2:
                mine = ours(port, folder, name, max(LEAST_S, duration_s))
            done += mine
            pairs.append({of: value / other[f"median_{of}_ms"] - 1 for of, value in medians_of(mine).items()})
            found = {of: statistics.median(pair[of] for pair in pairs) for of in ("ttft", "e2el")}
            if len(pairs) >= PAIRS.start and all(abs(ratio) <= agree for ratio in found.values()):
                break
    finally:
        server.stop()
    out.write_text(
        json.dumps(
            {
                "found": found,
                "pairs": pairs,
                "requests": len(done),
                "tokens": sorted({row["output_tokens"] for row in done}),
                "input_tokens": sorted({row["input_tokens"] for row in done}),
            }
        )
    )


if __name__ == "__main__":
    compare(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
