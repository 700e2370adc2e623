"""A worker that runs attempts with GPUs as processes and says what each was given, and when."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker

from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.base import Wait
from llem_airflow.runners.failures import AttemptFailedError
from llem_airflow.runners.process import ProcessRunner, ProcessSettings
from llem_airflow.study import GpuRequest
from tests.runners.programs import HASH, SPEC, program, see_through

_PROGRAM = """
begin = time.monotonic_ns()
while time.monotonic_ns() < begin + {hold_s} * 1e9:
    print("still here", flush=True)
    time.sleep(0.05)
told = json.load(open(os.environ["LLEM_CONFIG_PATH"]))
seen = {{name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")}}
said = {{"begin": begin, "end": time.monotonic_ns(), "meter": told["meter"]["gpus"], **seen}}
open(out + "/ran.json", "w").write(json.dumps(said))
result()
"""


def main(asked: dict[str, Any]) -> None:
    """Run the attempts; a line of JSON for each."""
    said_request: dict[str, Any] = {"count": None, **asked.get("request", {})}
    request = GpuRequest(**said_request)
    engine = docker.APIClient() if asked.get("docker") else None
    settings = ProcessSettings(
        gpu_request=request,
        gpu_quota=asked.get("quota"),
        engine=engine,
        silence_s=asked.get("silence_s"),
        gpu_idle_s=asked.get("gpu_idle_s"),
    )
    spec = replace(SPEC, meter=replace(SPEC.meter, kind=str(asked.get("meter", "none"))))
    with tempfile.TemporaryDirectory() as folder:
        text = program(Path(folder), _PROGRAM.format(hold_s=asked.get("hold_s", 0.1)))
        for index in range(int(asked.get("times", 1))):
            who = Attempt("claims", f"{os.getpid()}", str(index), -1, "claim", HASH, 1, 1, "tests")
            target = Path(folder) / str(index)
            said: dict[str, object]
            lines: list[str] = []
            try:
                runner = ProcessRunner(who, settings, folder=target, on_line=lines.append, bundle=text)
                wait = Wait(float(asked.get("wait_s", 60)))
                collected = see_through(runner, target, spec=spec, wait=wait)
                said = {
                    "gpus": collected.gpus,
                    "host": collected.host,
                    "told": [line for line in lines if line != "still here"],
                    **json.loads((target / "ran.json").read_text()),
                }
            except AttemptFailedError as error:
                said = {
                    "error": error.headline,
                    "category": error.failure.category,
                    "again": error.failure.retryable,
                    "hint": error.failure.hint,
                }
            sys.stdout.write(json.dumps(said) + "\n")
            sys.stdout.flush()
    if engine is not None:
        engine.close()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
