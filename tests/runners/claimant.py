"""A process that runs boxes with GPUs one after another and says when each of them ran on which."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import docker

from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.base import Wait
from llem_airflow.runners.container_spec import ContainerSettings
from llem_airflow.study import GpuRequest
from tests.runners.programs import HASH, in_container, program

_PROGRAM = """
begin = time.monotonic_ns()
time.sleep(0.2)
open(out + "/ran.json", "w").write(json.dumps([begin, time.monotonic_ns(), os.environ["NVIDIA_VISIBLE_DEVICES"]]))
result()
"""


def main(image: str, name: str, counts: list[int]) -> None:
    """Run one box for each count; prints a JSON list of what ran."""
    ran = []
    with docker.APIClient() as api, tempfile.TemporaryDirectory() as folder:
        for index, count in enumerate(counts):
            asked_s = time.monotonic()
            collected = in_container(
                api,
                Attempt("claims", name, str(index), -1, "claim", HASH, 1, 1, "tests"),
                ContainerSettings(image, gpu_request=GpuRequest(count)),
                Path(folder) / str(index),
                program(Path(folder), _PROGRAM),
                wait=Wait(400.0),
            )
            begin_ns, end_ns, visible = json.loads((collected.folder / "ran.json").read_text())
            assert set(visible.split(",")) == set(collected.gpus)
            ran.append([begin_ns, end_ns, list(collected.gpus), begin_ns / 1e9 - asked_s])
    sys.stdout.write(json.dumps(ran) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], [int(count) for count in sys.argv[3].split(",")])
