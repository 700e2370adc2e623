"""What a container costs: one trivial attempt by several ways, interleaved, in one run on one engine.

Ways: the CLI's ``docker run --rm``, bare and with the isolation and the volume that ours has; docker-py (create,
start, logs, wait, remove); Airflow's plain DockerOperator; and ours (volume, create, hand in, start, stream, collect,
remove). Ours does more: it brings a bundle in and results out; as root on the engine's host through the volume's own
folder, elsewhere by the archive API.

    python -m benchmarks.box [ROUNDS] [IMAGE]
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import docker
from airflow.providers.docker.operators.docker import DockerOperator

from llem_airflow.runners.container_spec import ContainerSettings
from tests.runners.programs import HASH, RESULT, attempt, in_container

SHELL = f"printf %s '{RESULT}' > $LLEM_OUTPUT_DIR/{HASH}_result.json"
FLOOD_BYTES = 200_000_000

ISOLATION = [
    "--init", "--read-only", "--tmpfs=/tmp:rw,exec,nosuid,nodev,mode=1777", "--cap-drop=ALL",
    "--security-opt=no-new-privileges", "--pids-limit=4096", "--user=65532:65532", "--volume=/run/llem",
]  # fmt: skip


def cli(image: str, options: Sequence[str] = ()) -> None:
    subprocess.run(
        ["docker", "run", "--rm", "--network", "none", *options, image, "sh", "-c", ":"],
        check=True,
        capture_output=True,
    )


def docker_py(api: docker.APIClient, image: str) -> None:
    config = api.create_host_config(network_mode="none")
    identity = api.create_container(image, ["sh", "-c", ":"], host_config=config)["Id"]
    api.start(identity)
    for _ in api.logs(identity, stream=True, follow=True):
        pass
    api.wait(identity)
    api.remove_container(identity)


def operator(image: str) -> None:
    one = DockerOperator(
        task_id="bench",
        image=image,
        command="sh -c :",
        network_mode="none",
        mount_tmp_dir=False,
        auto_remove="force",
    )
    one.execute({})


def ours(api: docker.APIClient, image: str, folder: Path, bundle: Path, *, direct: bool) -> None:
    settings = ContainerSettings(image, entrypoint=("sh",), direct_volume=direct)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        in_container(api, attempt(), settings, Path(out), bundle)


def timed_s(call: Callable[[], None]) -> float:
    begin_s = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        call()
    return time.perf_counter() - begin_s


def flood_mb(api: docker.APIClient, image: str, folder: Path) -> tuple[float, float]:
    """Growth of this process's memory, in MB, and the time, in s, of an attempt that prints 200 MB."""
    program = folder / "flood.sh"
    line = "x" * 99
    program.write_text(f"yes {line} | head -c {FLOOD_BYTES}; {SHELL}\n")
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    duration_s = timed_s(lambda: ours(api, image, folder, program, direct=True))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1e3, duration_s


def main(rounds: int, image: str) -> None:
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("AIRFLOW__CORE__UNIT_TEST_MODE", "True")
    with docker.APIClient(version="auto") as api, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = folder / "bundle.sh"
        bundle.write_text(SHELL + "\n")
        ways: dict[str, Callable[[], None]] = {
            "docker run --rm": lambda: cli(image),
            "docker run --rm, isolated": lambda: cli(image, ISOLATION),
            "docker-py": lambda: docker_py(api, image),
            "DockerOperator.execute": lambda: operator(image),
            "ours": lambda: ours(api, image, folder, bundle, direct=True),
            "ours, by the archive API": lambda: ours(api, image, folder, bundle, direct=False),
        }
        for call in ways.values():
            timed_s(call)
        taken_s: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, call in ways.items():
                taken_s[way].append(timed_s(call))
        mine_s = statistics.median(taken_s["ours"])
        print(
            f"{'way':26} {'median_ms':>9} {'min_ms':>7} {'max_ms':>7} {'ours/way':>8}   n={rounds} each, interleaved"
        )
        for way, times_s in taken_s.items():
            median_s = statistics.median(times_s)
            print(
                f"{way:26} {median_s * 1e3:9.0f} {min(times_s) * 1e3:7.0f} {max(times_s) * 1e3:7.0f}"
                f" {mine_s / median_s:8.2f}"
            )
        grown_mb, duration_s = flood_mb(api, image, folder)
        print(f"a log of {FLOOD_BYTES / 1e6:.0f} MB: worker memory +{grown_mb:.0f} MB, {duration_s:.1f} s")


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 15,
        (sys.argv[2:] or ["llem-airflow/debian-python:bookworm"])[0],
    )
