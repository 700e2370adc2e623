"""Kill everybody everywhere: the full form of the chaos test, on a Docker engine of its own; prints its table.

python -m benchmarks.chaos [--isolation process|engine] ["whole Airflow" …]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from llem_airflow.text.wording import counted
from tests.chaos.kill import Outcome, kill_side_by_side
from tests.chaos.points import POINTS
from tests.chaos.world import IMPATIENT, World, copy_image, start_engine
from tests.parts import build_image

AT_ONCE = 3


def row(outcome: Outcome) -> str:
    """One line of the table."""
    actor, moment = outcome.point.actor, outcome.point.moment.name
    recovered = "adopted" if outcome.adopted else f"try {outcome.tries}"
    stop = ", teardown done" if outcome.point.session else ""
    seen = (
        f"{counted(outcome.results, 'result')}, {len(outcome.left)} left{stop}"
        if outcome.good
        else f"FAILED: {outcome}"
    )
    return f"| {actor} | {moment} | {recovered} | {seen} | {outcome.recovery_s:.0f} |"


def main(arguments: list[str] | None = None) -> int:
    """Run the points; 0 when every guarantee held."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--isolation",
        choices=list(POINTS),
        default="container",
        help="around cycles in containers of their own (default), or in a session, as processes or by one engine",
    )
    parser.add_argument("words", nargs="*", help="only the points that contain one of these; default: all")
    options = parser.parse_args(arguments)
    known = POINTS[options.isolation]
    points = [
        point for point in known if not options.words or any(word in str(point) for word in options.words)
    ]
    if not points:
        parser.error(
            f"no point contains {' or '.join(options.words)}; there are: {', '.join(map(str, known))}"
        )
    folder = Path(tempfile.mkdtemp(prefix="llem-chaos-"))
    socket, home = folder / "e" / "docker.sock", folder / "home"
    failures, whole = 0, False
    try:
        start_engine(socket.parent)
        image = build_image("debian")
        copy_image(image, socket)
        home.mkdir()
        with World(home, socket, image, IMPATIENT, start_engine=lambda: start_engine(socket.parent)) as world:
            print("| killed (SIGKILL) | when | the result is of | found after recovery | recovery_s |")
            print("| --- | --- | --- | --- | --- |", flush=True)
            for outcome in kill_side_by_side(world, points, AT_ONCE):
                failures += not outcome.good
                print(row(outcome), flush=True)
            left = world.left_on_worker()
        whole = True
    finally:
        start_engine(socket.parent, "stop")
        if whole and not failures:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"Airflow's logs and results are in {home}", file=sys.stderr)
    print(
        f"\n{len(points)} kill points, {failures} failed; left in the worker's temporary folder: {left or 'nothing'}"
    )
    return 1 if failures or left else 0


if __name__ == "__main__":
    sys.exit(main())
