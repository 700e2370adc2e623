from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.measurement.load.__main__ import EXIT_CUT
from llem_airflow.measurement.load.plan import LoadPlan, LoadPrompt, read_plan, write_plan
from llem_airflow.measurement.load.process import LoadError, LoadProcess
from llem_airflow.protocol.typed_json import ProtocolError, to_json
from llem_airflow.runners.bundle import build_bundle
from tests.measurement.load.stub import Wire, always, answer, chunked, head, http_chunk, run, serving

GOOD = chunked(answer([1, 2]))
PLAN = LoadPlan(
    endpoint="http://127.0.0.1:1",
    model="tiny",
    prompts=(LoadPrompt(8, text="Grüße"), LoadPrompt(9, token_ids=(5, 6), sampling={"min_tokens": 9})),
    start_mono_ns=0,
    timeout_s=5.0,
    due_s=(0.0, 0.05, 0.1),
    sampling={"temperature": 0.0, "ignore_eos": True},
)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def planned(port: int, **changes: Any) -> LoadPlan:
    start_ns = time.monotonic_ns() + 1_000_000_000
    return replace(PLAN, endpoint=f"http://127.0.0.1:{port}", start_mono_ns=start_ns, **changes)


async def in_thread(what: Any, *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, what, *arguments)


def test_it_carries_out_its_plan_and_writes_a_row_a_request(tmp_path: Path) -> None:
    async def traffic() -> list[bytes]:
        async with serving(always(GOOD)) as stub:
            load = LoadProcess(planned(stub.endpoint.port), tmp_path / "plan.json", tmp_path / "rows.jsonl")
            await in_thread(load.wait_until_ready)
            facts = await in_thread(load.wait, 20)
            assert facts.requests == 3
            assert facts.cpu_s > 0
            return stub.bodies

    bodies = sorted(map(json.loads, run(traffic())), key=lambda body: str(body["prompt"]))
    assert [body["prompt"] for body in bodies] == ["Grüße", "Grüße", [5, 6]]
    assert bodies[0] == {
        "temperature": 0.0,
        "ignore_eos": True,
        "model": "tiny",
        "prompt": "Grüße",
        "max_tokens": 8,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    assert bodies[2] == {**bodies[0], "prompt": [5, 6], "max_tokens": 9, "min_tokens": 9}
    rows = sorted(rows_of(tmp_path / "rows.jsonl"), key=lambda row: row["t_due_mono_ns"])
    plan = read_plan(tmp_path / "plan.json")
    assert [row["request_id"] for row in rows] == ["measure-0", "measure-1", "measure-2"]
    assert [row["t_due_mono_ns"] - plan.start_mono_ns for row in rows] == [0, 50_000_000, 100_000_000]
    for row in rows:
        assert (row["status"], row["output_tokens"], row["chunk_tokens"]) == ("ok", 3, [1, 2])
        assert len(row["token_mono_ns"]) == 3
        assert row["token_mono_ns"][0] == row["t_first_mono_ns"]
        assert row["token_mono_ns"][1] == row["token_mono_ns"][2] == row["t_last_mono_ns"]


def test_a_closed_loop_is_a_plan_with_users(tmp_path: Path) -> None:
    async def traffic() -> int:
        async with serving(always(GOOD)) as stub:
            plan = planned(stub.endpoint.port, due_s=None, users=2, duration_s=0.3, phase="warmup")
            load = LoadProcess(plan, tmp_path / "plan.json", tmp_path / "rows.jsonl")
            await in_thread(load.wait, 20)
            return stub.most_open

    assert run(traffic()) <= 2
    rows = rows_of(tmp_path / "rows.jsonl")
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["phase"] for row in rows} == {"warmup"}


@pytest.mark.parametrize("how", ["SIGTERM", "end_s", "parent"])
def test_what_is_open_when_it_is_told_to_end_is_cut(tmp_path: Path, how: str) -> None:
    async def first_token(wire: Wire, number: int) -> None:
        first, *_rest = answer([1, 1])
        await wire.say(head(transfer_encoding="chunked") + http_chunk(first))
        asked.set()
        await asyncio.sleep(60)

    asked = asyncio.Event()

    async def traffic() -> None:
        async with serving(first_token) as stub:
            plan = planned(stub.endpoint.port, due_s=(0.0, 30.0), end_s=4.0 if how == "end_s" else None)
            load = LoadProcess(plan, tmp_path / "plan.json", tmp_path / "rows.jsonl")
            await asked.wait()
            await asyncio.sleep(0.1)
            if how == "SIGTERM":
                load.cut()
            elif how == "parent":
                assert load._child.process.stdin is not None
                load._child.process.stdin.close()
            facts = await in_thread(load.wait, 20)
            assert facts.requests == 1
            assert load._child.process.returncode == (0 if how == "end_s" else EXIT_CUT)
            assert load.broken_off == (how != "end_s")

    run(traffic())
    (row,) = rows_of(tmp_path / "rows.jsonl")
    assert (row["status"], row["output_tokens"], row["error_class"]) == ("cut", 1, None)


def test_rows_are_on_the_disk_within_a_second_whatever_happens_to_the_process(tmp_path: Path) -> None:
    async def traffic() -> None:
        async with serving(always(GOOD)) as stub:
            plan = planned(stub.endpoint.port, due_s=(0.0, 60.0))
            load = LoadProcess(plan, tmp_path / "plan.json", tmp_path / "rows.jsonl")
            while not (tmp_path / "rows.jsonl").exists() or not rows_of(tmp_path / "rows.jsonl"):
                await asyncio.sleep(0.05)
            os.kill(load.pid, signal.SIGKILL)
            with pytest.raises(LoadError, match="ended"):
                await in_thread(load.wait, 20)

    run(asyncio.wait_for(traffic(), 30))
    assert len(rows_of(tmp_path / "rows.jsonl")) == 1


def test_a_process_that_is_not_done_in_time_is_killed_and_told(tmp_path: Path) -> None:
    load = LoadProcess(planned(1, due_s=(60.0,)), tmp_path / "plan.json", tmp_path / "rows.jsonl")
    with pytest.raises(LoadError, match="not answered in time"):
        load.wait(0.3)
    assert load._child.process.returncode is not None


def test_it_works_from_the_bundle_on_a_bare_interpreter(tmp_path: Path) -> None:
    write_plan(planned(1, due_s=(0.0,)), tmp_path / "plan.json")
    done = subprocess.run(
        [sys.executable, "-S", "-m", "llem_airflow.measurement.load", "plan.json", "rows.jsonl"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(build_bundle(tmp_path))},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert said[0] == {"ready": True}
    assert said[1]["facts"]["requests"] == 1
    assert rows_of(tmp_path / "rows.jsonl")[0]["error_class"] == "connect"


def test_rows_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    async def traffic() -> None:
        async with serving(always(GOOD)) as stub:
            plan = planned(stub.endpoint.port, due_s=(0.0, 60.0))
            load = LoadProcess(plan, tmp_path / "plan.json", Path("/dev/full"))
            with pytest.raises(LoadError, match=r"rows cannot be written.*No space"):
                await in_thread(load.wait, 20)

    run(traffic())


BAD_PLANS: list[tuple[str, dict[str, Any]]] = [
    ("due_s or users", {"due_s": None}),
    ("due_s or users", {"users": 1, "duration_s": 1.0}),
    ("duration_s", {"due_s": None, "users": 1}),
    ("users >= 1", {"due_s": None, "users": 0, "duration_s": 1.0}),
    ("concurrency_cap", {"due_s": None, "users": 1, "duration_s": 1.0, "concurrency_cap": 1}),
    ("ascend", {"due_s": (1.0, 0.5)}),
    ("prompts", {"prompts": ()}),
    ("text or token_ids", {"prompts": (LoadPrompt(1),)}),
    ("text or token_ids", {"prompts": (LoadPrompt(1, text="a", token_ids=(1,)),)}),
    ("turns", {"turns": (1, 2)}),
    ("turns", {"turns": (2, 0)}),
    ("http://HOST:PORT", {"endpoint": "https://x"}),
]


@pytest.mark.parametrize(("what", "changes"), BAD_PLANS)
def test_a_plan_that_cannot_be_carried_out_is_refused_by_both_sides(
    tmp_path: Path, what: str, changes: dict[str, Any]
) -> None:
    plan = replace(PLAN, **changes)
    with pytest.raises(ProtocolError, match=what):
        LoadProcess(plan, tmp_path / "plan.json", tmp_path / "rows.jsonl")
    write_plan(plan, tmp_path / "plan.json")
    with pytest.raises(ProtocolError, match=what):
        read_plan(tmp_path / "plan.json")


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_plan(PLAN, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == PLAN
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(ProtocolError, match="not JSON"):
        read_plan(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text(json.dumps({**to_json(PLAN), "rate": 3}))
    with pytest.raises(ProtocolError, match="rate"):
        read_plan(tmp_path / "plan.json")
