"""A server that lives on over the experiments of a session; the server is a stand-in, and all around it is real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.measurement.session.folder import read_json, signal_session
from llem_airflow.measurement.session.work import ANSWER, NEXT
from llem_airflow.protocol.files import SERVER_LOG, config_name, write_json
from llem_airflow.protocol.result import Served
from llem_airflow.protocol.spec import ExperimentSpec
from tests.measurement.running import HASH, PLUGIN, ROOT, Ran, spec_of
from tests.measurement.test_server_attempt import STUB, served

LONG_S = 120.0
SERVE = "import sys; from pathlib import Path; from llem_airflow.measurement.session.engine import serve\n"
CACHES = {"enable_prefix_caching": True}


class Engine:
    """The process of a session's engine, which is handed one experiment after the other."""

    def __init__(self, folder: Path, mode: str = "") -> None:
        self.folder, self.state = folder, folder / "state"
        self.state.mkdir()
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{PLUGIN}:{STUB}", "STUB_SERVER": mode}
        with (folder / "said").open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"{SERVE}sys.exit(serve(Path({str(self.state)!r})))"],
                env=environment, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        self._number = 0

    def asks(self, spec: ExperimentSpec) -> Ran:
        """What became of an experiment; the engine's exit code where it ended with it."""
        self._number += 1
        own = self.folder / str(self._number)
        out = own / "out"
        out.mkdir(parents=True)
        config = own / config_name(HASH)
        config.write_text(spec.dumps())
        write_json(self.state / NEXT, {"number": self._number, "config": str(config), "out": str(out)})

        def code() -> int | None:
            answer = read_json(self.state / ANSWER)
            return answer["exit_code"] if answer.get("number") == self._number else self.process.poll()

        found = within(code)
        return Ran(found, (self.folder / "said").read_text(), out)

    def server(self) -> int:
        """The server's process."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for pid in children:
            if b"api_server" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
        raise AssertionError(children)

    def close(self) -> None:
        signal_session(self.process.pid, signal.SIGKILL)
        self.process.wait()


def within(look: Any) -> Any:
    deadline_s = time.monotonic() + LONG_S
    while (found := look()) is None:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    return found


@pytest.fixture
def engine(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    made = Engine(tmp_path, getattr(request, "param", ""))
    yield made
    made.close()


def asked(rate: float, patience_s: float = LONG_S, **engine_params: Any) -> ExperimentSpec:
    traffic = {"rate": rate, "arrival": "constant", "window_seconds": 1.0, "ramp_exclusion_seconds": 0.1}
    warmup = {"mode": "fixed", "duration_seconds": 0.0, "timeout_seconds": 900}
    return served(
        traffic=traffic, warmup=warmup, engine_params=engine_params, startup_timeout_seconds=patience_s
    )


def phases(ran: Ran) -> list[str]:
    return [event["phase"] for event in ran.events if event["event"] == "phase_begin"]


def said(ran: Ran) -> Served:
    found = ran.result.served
    assert found is not None
    return found


def test_one_server_takes_the_traffic_of_one_experiment_after_the_other(engine: Engine) -> None:
    first = engine.asks(asked(20, **CACHES))
    assert first.code == 0, first.stdout
    server = engine.server()
    second = engine.asks(asked(40, **CACHES))
    assert second.code == 0, second.stdout
    assert engine.server() == server
    under_load = ["ramp", "measure", "drain", "cooldown"]
    assert (phases(first), phases(second)) == (["load", *under_load], under_load)
    assert [said(one).rate_per_s for one in (first, second)] == [20, 40]
    assert said(first).command == said(second).command
    assert said(first).ready_s == said(second).ready_s
    assert ", its prefix cache emptied; constant arrivals, 40 requests/s" in second.stdout
    assert "VLLM_SERVER_DEV_MODE=1" in first.stdout
    logs = [(one.out / SERVER_LOG).read_text() for one in (first, second)]
    assert logs == ["", "reset\n"], "each has what the server printed for it"
    refused = engine.asks(spec_of("vllm", {"engine_params": CACHES}))
    assert 'serving_mode: "server" is loaded, nothing is asked for' in refused.error.message
    third = engine.asks(asked(20, **CACHES))
    assert (third.code, engine.server()) == (0, server)


def test_a_server_that_dies_while_nothing_is_asked_of_it_ends_the_engine(engine: Engine) -> None:
    first, second = engine.asks(asked(20)), engine.asks(asked(20))
    assert (first.code, second.code) == (0, 0), second.stdout
    assert (second.out / SERVER_LOG).read_text() == "", "without a prefix cache there is nothing to reset"
    assert "lives on and serves on port" in second.stdout
    assert "VLLM_SERVER_DEV_MODE" not in second.stdout
    assert "emptied" not in second.stdout
    os.kill(engine.server(), signal.SIGKILL)
    assert within(engine.process.poll) == 1
    text = "the server of the session ended by itself, with signal SIGKILL"
    assert text in (engine.folder / "said").read_text()


@pytest.mark.parametrize("engine", ["die"], indirect=True)
def test_a_server_that_dies_under_load_fails_its_experiment_and_ends_the_engine(engine: Engine) -> None:
    assert engine.asks(asked(4)).code == 0
    died = engine.asks(asked(40))
    assert (died.code, died.error.category) == (1, "server_died")
    assert "the engine core has died" in died.error.message
    assert "the engine core has died" in (died.out / SERVER_LOG).read_text()


@pytest.mark.parametrize(
    ("engine", "why"),
    [
        ("busy", "it still works on 1 requests"),
        ("full", "/reset_prefix_cache does not say that the prefix cache is empty"),
    ],
    indirect=["engine"],
)
def test_a_server_that_does_not_come_to_rest_is_not_measured_again(engine: Engine, why: str) -> None:
    assert engine.asks(asked(20, **CACHES)).code == 0
    second = engine.asks(asked(20, patience_s=0.5, **CACHES))
    assert (second.code, second.error.category) == (1, "server_not_ready")
    assert (
        f"the server of the session is not ready for the next experiment after 0.5 s: {why}"
        in second.error.message
    )
