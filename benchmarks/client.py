"""What the load client sustains, beside vLLM's own (`vllm bench serve`) and AIPerf, on the same stub server in one run.

    python -m benchmarks.client [--rates 500 1000 2000] [--seconds 10] [--vllm-image IMAGE | --vllm-python PROGRAM]
                                [--aiperf PROGRAM]

Every tool sends at a constant rate, so that the stub, a process of its own, knows when each request was due: lateness
is its arrival there after the grid of the rate, from the earliest on. The stub's own lateness and CPU time stand
beside, as proof that it was not the limit. CPU time a request stands as a ratio to ours at the same rate: unlike
lateness it compares on a busy machine, too. AIPerf belongs into a venv of its own:
`uv venv V && uv pip install -p V aiperf`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from llem_airflow.measurement.load.arrivals import arrival_times
from llem_airflow.measurement.load.plan import LoadPlan, LoadPrompt
from llem_airflow.measurement.load.process import LoadProcess

HERE = Path(__file__).parent
MODEL = HERE.parent / "build/models/tiny-llama-random"
TTFT_MS, ITL_MS, CHUNKS = 20.0, 10.0, 16

VLLM = """\
import argparse, asyncio, resource, sys
from vllm.benchmarks import serve

def cpu_s():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

async def benchmark(*args, **named):
    before_s = cpu_s()
    try:
        return await original(*args, **named)
    finally:
        print(f"CLIENT_CPU_S {cpu_s() - before_s:.3f}", flush=True)

original, serve.benchmark = serve.benchmark, benchmark
options = argparse.ArgumentParser()
serve.add_cli_args(options)
serve.main(options.parse_args())
"""


class Run(NamedTuple):
    """What a tool says of itself: CPU time in seconds, median TTFT in ms where it tells it."""

    cpu_s: float
    ttft_p50_ms: float | None
    said: str = ""


class Stub:
    """The stub server while a tool runs."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._arrivals = folder / "arrivals"
        self._process = subprocess.Popen(
            [str(program), str(TTFT_MS), str(ITL_MS), str(CHUNKS), str(self._arrivals)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self._began_s = time.monotonic()

    def end(self) -> tuple[list[int], dict[str, Any], float]:
        """When each request came, in monotonic ns; what the stub says of itself; how long it ran, in s."""
        took_s = time.monotonic() - self._began_s
        said, _ = self._process.communicate()
        return [int(line) for line in self._arrivals.read_text().split()], json.loads(said), took_s


def ours(rate: float, seconds: float, port: int, folder: Path) -> Run:
    due_s = arrival_times("constant", rate_per_s=rate, duration_s=seconds, seed=1)
    plan = LoadPlan(
        endpoint=f"http://127.0.0.1:{port}",
        model="stub",
        prompts=tuple(LoadPrompt(CHUNKS, text=f"{index} " + "word " * 15) for index in range(100)),
        start_mono_ns=time.monotonic_ns() + 2_000_000_000,
        timeout_s=60.0,
        due_s=tuple(due_s),
    )
    rows_jsonl = folder / f"rows-{rate:g}.jsonl"
    facts = LoadProcess(plan, folder / "plan.json", rows_jsonl).wait(seconds + 90)
    rows = [json.loads(line) for line in rows_jsonl.read_text().splitlines()]
    bad = [row for row in rows if row["status"] != "ok" or row["output_tokens"] != CHUNKS]
    ttft_ms = statistics.median(
        (row["t_first_mono_ns"] - row["t_due_mono_ns"]) / 1e6 for row in rows if row not in bad
    )
    return Run(facts.cpu_s, ttft_ms, f"own lateness p99 {facts.lateness_p99_ms:.2f} ms, {len(bad)} not ok")


def vllm_bench(python: list[str], rate: float, seconds: float, port: int) -> Run:
    done = subprocess.run(
        [
            *(*python, "-c", VLLM),
            *("--backend", "openai", "--base-url", f"http://127.0.0.1:{port}", "--model", "stub"),
            *("--tokenizer", str(MODEL), "--dataset-name", "random", "--random-input-len", "16"),
            *("--random-output-len", str(CHUNKS), "--num-prompts", str(round(rate * seconds))),
            *("--request-rate", str(rate), "--burstiness", "inf", "--disable-tqdm"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    cpu_s = re.search(r"CLIENT_CPU_S ([\d.]+)", done.stdout)
    if cpu_s is None:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    ttft = re.search(r"Median TTFT \(ms\): +([\d.]+)", done.stdout)
    failed = re.search(r"Failed requests: +(\d+)", done.stdout)
    return Run(float(cpu_s[1]), float(ttft[1]) if ttft else None, f"{failed[1] if failed else '?'} not ok")


def aiperf(
    program: Path, rate: float, seconds: float, port: int, folder: Path, started_s: float = 0.0
) -> Run:
    before_s = children_cpu_s() + started_s
    done = subprocess.run(
        [
            *(str(program), "profile", "-m", "stub", "--url", f"http://127.0.0.1:{port}"),
            *(
                "--endpoint-type",
                "completions",
                "--streaming",
                "--tokenizer",
                str(MODEL),
                "--use-server-token-count",
            ),
            *("--request-rate", str(rate), "--arrival-pattern", "constant"),
            *("--request-count", str(round(rate * seconds)), "--synthetic-input-tokens-mean", "16"),
            *("--output-tokens-mean", str(CHUNKS), "--ui", "none", "--artifact-dir", str(folder / "aiperf")),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": "", "AIPERF_LOG_LEVEL": "WARNING"},
        cwd=folder,
    )
    found = sorted((folder / "aiperf").rglob("profile_export_aiperf.json"))
    if not found:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    told = json.loads(found[-1].read_text())
    ttft = told.get("time_to_first_token") or {}
    return Run(children_cpu_s() - before_s, ttft.get("p50"))


def start_of_aiperf(program: Path, server: Path, folder: Path) -> float:
    """CPU time that AIPerf spends before and after its requests, in seconds: that of ten requests in all."""
    stub = Stub(server, folder)
    ran = aiperf(program, 10.0, 1.0, stub.port, folder)
    stub.end()
    return ran.cpu_s


def children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def lateness_ms(arrivals_ns: list[int], rate: float) -> list[float]:
    """How long after the grid of the rate each request came, counted from the one that was earliest on it."""
    off_ms = [came_ns / 1e6 - index * 1e3 / rate for index, came_ns in enumerate(sorted(arrivals_ns))]
    return sorted(ms - min(off_ms) for ms in off_ms)


def main() -> None:
    """Print one row for each tool and rate."""
    options = argparse.ArgumentParser(description="What the load client sustains.")
    options.add_argument("--rates", type=float, nargs="+", default=[500, 1000, 2000])
    options.add_argument("--seconds", type=float, default=10.0)
    vllm = options.add_mutually_exclusive_group()
    vllm.add_argument("--vllm-image")
    vllm.add_argument("--vllm-python", help="a Python that has vLLM")
    options.add_argument("--aiperf", type=Path)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = folder / "stub_server"
        subprocess.run(["cc", "-O2", "-o", str(program), str(HERE / "stub_server.c")], check=True)
        tools: dict[str, Callable[[float, float, int], Run]] = {
            "llem-airflow": lambda rate, seconds, port: ours(rate, seconds, port, folder)
        }
        if chosen.vllm_image or chosen.vllm_python:
            inside = (
                "docker",
                "run",
                "--rm",
                "--network",
                "host",
                "-v",
                f"{MODEL}:{MODEL}:ro",
                chosen.vllm_image,
            )
            python = [*inside, "python3"] if chosen.vllm_image else [chosen.vllm_python]
            tools["vllm bench serve"] = lambda rate, s, port: vllm_bench(python, rate, s, port)
        if chosen.aiperf:
            started = start_of_aiperf(chosen.aiperf, program, folder)
            tools["AIPerf"] = lambda rate, s, port: aiperf(chosen.aiperf, rate, s, port, folder, started)
        print(
            f"Answers of {CHUNKS} chunks, TTFT {TTFT_MS:g} ms, ITL {ITL_MS:g} ms; {os.cpu_count()} cores, load "
            f"{os.getloadavg()[0]:.1f} before.\n"
        )
        print(
            "| tool | offered | reached the stub | lateness there p50 / p99 | TTFT p50 over the stub's "
            "| CPU of the client | beside ours | stub: CPU, own lateness p99 | notes |\n"
            f"{'|---' * 9}|"
        )
        for rate in chosen.rates:
            ours_us: float | None = None
            for tool, run in tools.items():
                cpu_us, cells = row(rate, chosen.seconds, run, Stub(program, folder))
                ours_us = ours_us or cpu_us
                print(f"| {tool} | {cells[0]} | {cpu_us / ours_us:.2f} | {cells[1]} |", flush=True)


def row(
    rate: float, seconds: float, run: Callable[[float, float, int], Run], stub: Stub
) -> tuple[float, tuple[str, str]]:
    """CPU time a request in us, and the cells before and after its ratio."""
    ran = run(rate, seconds, stub.port)
    arrivals_ns, said, _ = stub.end()
    arrivals_ns = sorted(arrivals_ns)[-round(rate * seconds) :]  # before them: the tool's own trial requests
    reached = (len(arrivals_ns) - 1) / ((arrivals_ns[-1] - arrivals_ns[0]) / 1e9)
    late_ms = lateness_ms(arrivals_ns, rate)
    over = "?" if ran.ttft_p50_ms is None else f"{ran.ttft_p50_ms - TTFT_MS:.2f} ms"
    cpu_us = ran.cpu_s / len(arrivals_ns) * 1e6
    before = (
        f"{rate:g}/s | {reached:.0f}/s | {late_ms[len(late_ms) // 2]:.2f} / "
        f"{late_ms[len(late_ms) * 99 // 100]:.2f} ms | {over} | {cpu_us:.0f} us a request"
    )
    return cpu_us, (before, f"{said['cpu_s'] / seconds:.0%}, {said['late_p99_ms']:.2f} ms | {ran.said}")


if __name__ == "__main__":
    main()
