"""What the load upon a server is, and what its requests come to: by hand, without a server."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.measurement.load.arrivals import arrival_times
from llem_airflow.measurement.server.traffic import (
    Traffic,
    WindowTotals,
    answered,
    sort_by_due_time,
    traffic_of,
)
from tests.measurement.running import spec_of

SECOND_NS = 10**9
TRAFFIC = {
    "rate": 4,
    "arrival": "gamma",
    "burstiness": 2.0,
    "window_seconds": 30,
    "ramp_exclusion_seconds": 5,
    "concurrency_cap": 64,
    "seed": 3,
    "request_timeout_seconds": 20,
}


def traffic(cycle: int = 1, task: dict[str, Any] | None = None, **said: Any) -> Traffic:
    spec = spec_of(
        "vllm", {}, config={"server": {"traffic": TRAFFIC | said}} | ({"task": task} if task else {})
    )
    return traffic_of(replace(spec, cycle=cycle))


def test_the_traffic_is_what_the_study_says() -> None:
    assert traffic() == Traffic(
        rate_per_s=4.0,
        users=None,
        arrival="gamma",
        burstiness=2.0,
        window_s=30.0,
        ramp_s=5.0,
        concurrency_cap=64,
        timeout_s=20.0,
        seed=3,
        turns=1.0,
    )
    assert str(traffic()) == "gamma arrivals, 4 requests/s"
    assert traffic(burstiness=None).burstiness == 1.0


@pytest.mark.parametrize(("users", "text"), [(1, "1 user"), (2, "2 users")])
def test_users_of_a_closed_loop_have_no_rate(users: int, text: str) -> None:
    closed = traffic(concurrency=users, rate=9)
    assert (closed.rate_per_s, closed.users, str(closed)) == (None, users, f"a closed loop of {text}")
    # Ramp, window, and the second after it, as the window opens at a tick of the energy counter.
    assert closed.measured == {"users": users, "duration_s": 36.0}
    assert closed.warmup(7.5) == {"users": users, "duration_s": 7.5}


def test_a_schedule_covers_ramp_window_and_the_second_behind_it() -> None:
    def drawn(duration_s: float, seed: int) -> tuple[float, ...]:
        return tuple(arrival_times("gamma", rate_per_s=4, duration_s=duration_s, burstiness=2, seed=seed))

    assert traffic().measured == {"due_s": drawn(36.0, 3), "duration_s": 36.0}
    assert traffic().warmup(60.0)["due_s"] != drawn(60.0, 3)  # the window's requests come as news
    third = traffic(cycle=3).measured["due_s"]
    assert third == drawn(36.0, 3 + 2 * 7919)
    rarer = replace(traffic(arrival="constant", burstiness=None), turns=2.0).measured["due_s"]
    assert rarer == tuple(index / 2 for index in range(72))  # a conversation of two requests, twice as rare


@pytest.mark.parametrize(("own", "task", "seed"), [(0, 5, 0), (None, 5, 5), (None, None, 0)])
def test_the_seed_is_the_traffic_s_or_else_the_task_s(own: int | None, task: int | None, seed: int) -> None:
    assert traffic(seed=own, task={"random_seed": task}).seed == seed


def row(due_s: float, status: str = "ok", **more: Any) -> dict[str, Any]:
    """A request whose three tokens came one, two and three seconds after it was due, unless ``more`` says so."""
    times_ns = [round((due_s + after_s) * SECOND_NS) for after_s in (1, 2, 3)]
    told: dict[str, Any] = {
        "phase": "measure",
        "status": status,
        "input_tokens": 5,
        "output_tokens": 3,
        "t_due_mono_ns": round(due_s * SECOND_NS),
        "token_mono_ns": times_ns if status == "ok" else [],
        "chunk_tokens": [1, 1, 1],
        "error_class": None,
        "http_status": 200,
        "error_text": None,
    }
    return told | more


def totals(folder: Path, *rows: dict[str, Any]) -> WindowTotals:
    """Of a window from 10 s to 20 s."""
    (folder / "load.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows) + '{"status": "cu')
    found = sort_by_due_time(folder / "load.jsonl", folder / "requests.jsonl", 10 * SECOND_NS, 20 * SECOND_NS)
    assert not (folder / "load.jsonl").exists()
    return found


def test_a_request_belongs_to_the_window_by_its_due_time_and_a_token_by_when_it_came(tmp_path: Path) -> None:
    (tmp_path / "requests.jsonl").write_text('{"phase": "warmup"}\n')
    due_s = (6.0, 7.0, 8.0, 9.999, 10.0, 17.0, 19.999, 20.0)
    found = totals(tmp_path, *map(row, due_s))
    phases = [json.loads(line)["phase"] for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert phases == ["warmup", *["ramp"] * 4, *["measure"] * 3, "drain"]
    # Tokens inside: at 10 of the second; 10, 11; 10.999 to 12.999; 11, 12, 13; 18, 19 and not 20; none; none.
    assert found == WindowTotals(3, 3, 15, 0 + 1 + 2 + 3 + 3 + 2, {}, "")


def test_chunks_that_do_not_tell_their_tokens_have_the_same_share_each(tmp_path: Path) -> None:
    untold = row(17.0, chunk_tokens=None, output_tokens=9)  # two of three chunks in the window
    silent = row(17.0, chunk_tokens=None, output_tokens=None)  # its chunks are all that is known
    empty = row(17.0, chunk_tokens=None, output_tokens=4, token_mono_ns=[])
    assert totals(tmp_path, untold, silent, empty).output_tokens == 6 + 2


def test_what_failed_is_counted_by_how_and_the_first_is_quoted(tmp_path: Path) -> None:
    found = totals(
        tmp_path,
        row(9.0, "error", error_class="connect", error_text="in the ramp"),
        row(11.0, input_tokens=None),
        row(12.0, "timeout"),
        row(13.0, "error", error_class="http_status", http_status=503, error_text="busy"),
        row(14.0, "error", error_class="http_status", http_status=503, error_text="later"),
        row(15.0, "error", error_class="connect", error_text="refused"),
        row(16.0, "cut"),
        row(17.0),
    )
    assert (found.due, found.answered, found.input_tokens) == (7, 2, 5)
    assert found.failed == {"timeout": 1, "HTTP 503": 2, "connect": 1, "cut": 1}
    assert found.example == "busy"


def test_of_a_warm_up_what_was_answered_and_what_failed_count_but_not_what_was_cut(tmp_path: Path) -> None:
    rows = [
        row(0.0, phase="measure"),
        row(0.0, "error", phase="measure", error_class="connect", error_text="another phase"),
        *[row(0.0, phase="warmup")] * 3,
        row(0.0, "cut", phase="warmup"),
        row(0.0, "error", phase="warmup", error_class="http_status", http_status=500, error_text="no"),
        row(0.0, "timeout", phase="warmup"),
    ]
    (tmp_path / "requests.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert answered(tmp_path / "requests.jsonl", "warmup") == (3, 2, "HTTP 500: no")
    assert answered(tmp_path / "requests.jsonl", "ramp") == (0, 0, "")
