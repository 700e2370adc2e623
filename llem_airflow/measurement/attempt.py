"""One attempt, from the import of the engine to the result."""

from __future__ import annotations

import itertools
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import llem_airflow
from llem_airflow.measurement.engines.contract import Engine, EngineFacts, Prompt, open_engine
from llem_airflow.measurement.environment import boot_id, bundle_sha256, environment, settings
from llem_airflow.measurement.failure import MeasurementError
from llem_airflow.measurement.idle_power import CONTEXT_S, IdlePhases, idle_rules
from llem_airflow.measurement.living import LivingEngine
from llem_airflow.measurement.output import BatchTotals, EventLog, RequestLog, anchor, seconds_since
from llem_airflow.measurement.process import (
    cpu_time,
    forget_host_peak,
    host_memory,
    look_every_s,
    sign_of_life,
    spent,
)
from llem_airflow.measurement.prompts import batches, prompt_set
from llem_airflow.measurement.recent_power import Recent, recent
from llem_airflow.measurement.sampler import Sampler, start_sampler
from llem_airflow.measurement.warmup import Verdict, WarmupRules, judge, warmup_rules
from llem_airflow.protocol import PROTOCOL_VERSION
from llem_airflow.protocol.files import ENVIRONMENT, POWER, REQUESTS, write_json
from llem_airflow.protocol.gpus import idle_conditions
from llem_airflow.protocol.result import Anchor, CpuTime, CycleResult, Meter, Warmup, Window
from llem_airflow.protocol.spec import UNMEASURED_KINDS, ExperimentSpec

# The driver's power average looks back one second, and the window's edges are interpolated between samples.
COOLDOWN_S = 1.5
_STEP_LINE_EVERY_NS = 5_000_000_000
_PASS_LINE_EVERY_S = 1.0


class Attempt:
    """What the steps of one attempt share."""

    def __init__(
        self, spec: ExperimentSpec, out: Path, log: EventLog, living: LivingEngine | None = None
    ) -> None:
        self._spec = spec
        self._out = out
        self._log = log
        self._begin_ns = time.monotonic_ns()
        self._last_line_ns = self._begin_ns
        self._living = living
        self._loaded = living if living is not None and living.engine is not None else None
        self._settings = settings() if self._loaded is None else self._loaded.settings
        self._gpus: list[dict[str, Any]] = []
        self._anchors: list[Anchor] = [anchor()]
        self._requests = RequestLog(out / REQUESTS)
        self._cpu: CpuTime | None = None
        self._sampler: Sampler | None = None
        self._engine: Engine | None = None
        self._forgotten = False

    def run(self) -> CycleResult:
        """All phases in order; the result is not written yet."""
        self._engine = self._go_on()
        sampler = self._sampler = start_sampler(self._spec.meter, self._out / POWER)
        baselines = self._baselines(sampler)
        engine, facts = self._ready(baselines)
        prompts = prompt_set(self._spec, engine)
        baselines.measure("baseline_loaded")
        work = batches(prompts, engine.batch_size())
        warmup = self._warm_up(sampler, engine, work)
        window = self._measure(sampler, engine, work)
        memory = {**self._host_memory(), **engine.memory()}
        with self._log.phase("cooldown"):
            time.sleep(COOLDOWN_S)
            self._anchors.append(anchor())
            self._write_environment(facts)
        return self._result(facts, warmup, window, sampler.stop(), memory)

    def stop_sampler(self) -> None:
        """End the sampling process, which writes what it still holds."""
        if self._sampler is not None:
            self._sampler.stop()

    def close(self) -> None:
        """Give back what the engine holds, unless it lives on."""
        if self._engine is not None and (self._living is None or self._living.engine is not self._engine):
            self._engine.close()
        self._requests.close()

    def _go_on(self) -> Any:
        """What lives on, ready for this experiment; None where nothing does."""
        if self._loaded is None:
            return None
        self._forgotten = forget_host_peak()
        return self._loaded.go_on(self._spec)

    def _live_on(self, living: LivingEngine, engine: Any, baselines: IdlePhases) -> None:
        """The session keeps what was loaded here."""
        living.take(engine, self._spec)
        living.settings = self._settings
        living.idle, living.measured_in = baselines.unloaded

    def _host_memory(self) -> dict[str, int | None]:
        return host_memory(since_start=self._loaded is None, since_forgotten=self._forgotten)

    def _baselines(self, sampler: Sampler) -> IdlePhases:
        rules = idle_rules(self._spec.config, sampler.kind)
        devices, keeps = len(sampler.facts.devices), self._living is not None
        baselines = IdlePhases(self._log, rules, self._out / POWER, devices, keeps=keeps)
        self._gpus = sampler.describe_gpus()
        if self._loaded is not None:
            baselines.keep(self._loaded.idle, self._loaded.measured_in)
        else:
            baselines.take_over(self._spec.known_baselines, idle_conditions(boot_id(), self._gpus))
        return baselines

    def _ready(self, baselines: IdlePhases) -> tuple[Engine, EngineFacts]:
        """The loaded engine: loaded here, or the one that lives on."""
        if self._engine is not None:
            self._log.say(f"{self._spec.engine} lives on with {self._spec.model.name} loaded")
            facts = self._engine.describe()
            self._write_environment(facts)
            return self._engine, facts
        baselines.measure("baseline_bare", settle=False)
        engine = self._engine = self._import_engine()
        if baselines.wanted and engine.open_context():
            baselines.measure("baseline_context", longest_s=CONTEXT_S)
        facts = self._load(engine)
        if self._living is not None:
            self._live_on(self._living, engine, baselines)
        return engine, facts

    def _import_engine(self) -> Engine:
        with self._log.phase("import"):
            self._log.say(f"importing {self._spec.engine}")
            engine = open_engine(self._spec.engine, offline=self._spec.model.path is not None)
        self._write_environment(None)
        return engine

    def _load(self, engine: Engine) -> EngineFacts:
        with self._log.phase("load"):
            self._log.say(f"loading {self._spec.model.path or self._spec.model.name}")
            begin_ns = time.monotonic_ns()
            with self._sign_of_life(begin_ns):
                engine.load(self._spec)
                engine.sync()
        facts = engine.describe()
        self._write_environment(facts)
        parameters = facts.model.get("n_parameters")
        size = f"{parameters / 1e6:,.1f} M parameters, " if parameters else ""
        self._log.say(
            f"{size}{facts.model.get('dtype') or 'dtype unknown'}, ready after {seconds_since(begin_ns):.1f} s"
        )
        return facts

    def _write_environment(self, facts: EngineFacts | None) -> None:
        now = self._sampler.describe_gpus() if self._sampler else []
        self._gpus = self._gpus or now
        write_json(
            self._out / ENVIRONMENT,
            environment(
                engine=self._spec.engine,
                facts=facts,
                settings=self._settings,
                gpus=self._gpus,
                gpus_after=now,
                anchors=self._anchors,
            ),
        )

    def _warm_up(self, sampler: Sampler, engine: Engine, work: list[tuple[Prompt, ...]]) -> Warmup:
        rules = warmup_rules(self._spec.config, sampler.kind, self._spec.limits.wall_clock_s)
        if not rules.enabled:
            return Warmup("disabled", 0, 0.0, None, "the study disables warm-up")
        with self._log.phase("warmup"):
            begin_ns = time.monotonic_ns()
            latencies_s: list[float] = []
            verdict = Verdict(None, None, "not begun")

            def look() -> Recent | None:
                devices = len(sampler.facts.devices)
                return recent(self._out / POWER, devices) if sampler.kind not in UNMEASURED_KINDS else None

            for index, batch in enumerate(itertools.cycle(work)):
                totals = self._warmup_iteration(engine, index, batch)
                latencies_s.append(totals.duration_s / max(totals.output_tokens, 1))
                verdict = judge(latencies_s, seconds_since(begin_ns), look, rules)
                self._say_warmup(index, totals, verdict, rules)
                if verdict.outcome is not None:
                    break
        self._log.note(f"{verdict.outcome}: {verdict.reason}")
        return Warmup(
            outcome=str(verdict.outcome),
            iterations=len(latencies_s),
            duration_s=seconds_since(begin_ns),
            cv=verdict.cv,
            reason=verdict.reason,
        )

    def _warmup_iteration(self, engine: Engine, index: int, batch: tuple[Prompt, ...]) -> BatchTotals:
        if index > 0:
            return self._iteration(engine, "warmup", index, batch)
        # The first one compiles kernels, silently and for minutes.
        with self._sign_of_life(time.monotonic_ns()):
            return self._iteration(engine, "warmup", index, batch)

    def _sign_of_life(self, begin_ns: int) -> AbstractContextManager[None]:
        return sign_of_life(self._log.say, begin_ns, look_every_s(self._spec.limits.silence_s))

    def _say_warmup(self, index: int, totals: BatchTotals, verdict: Verdict, rules: WarmupRules) -> None:
        rate = totals.output_tokens / totals.duration_s
        cv = "" if verdict.cv is None else f", CV {verdict.cv:.1%}"
        text = f"iteration {index + 1}: {rate:.1f} tok/s{cv}"
        self._line(index + 1, rules.min_iterations, text, last=verdict.outcome is not None)

    def _measure(self, sampler: Sampler, engine: Engine, work: list[tuple[Prompt, ...]]) -> Window:
        with self._log.phase("measure"):
            engine.sync()
            engine.reset_peaks()
            cpu_before = cpu_time()
            begin_ns = self._open_window(sampler)
            done = self.passes(engine, work, begin_ns, self._spec.meter.min_window_s)
            engine.sync()
            end_ns = time.monotonic_ns()
            self._cpu = spent(cpu_before, cpu_time())
            sampler.wait_for_tick()  # sharp samples around the edge; the wait itself is not in the window
        return Window(
            t_begin_mono_ns=begin_ns,
            t_end_mono_ns=end_ns,
            iterations=len(done),
            requests=sum(one.requests for one in done),
            input_tokens=sum(one.input_tokens for one in done),
            output_tokens=sum(one.output_tokens for one in done),
        )

    def passes(
        self, engine: Engine, work: list[tuple[Prompt, ...]], begin_ns: int, wanted_s: float
    ) -> list[BatchTotals]:
        """Pass after pass through the prompt set until the window is long enough; what each batch did.

        Args:
            engine: A loaded engine.
            work: The batches of one pass.
            begin_ns: When the window began, in nanoseconds of the monotonic clock.
            wanted_s: How long it shall be at least, in seconds.
        """
        done: list[BatchTotals] = []
        tokens = 0
        for number in itertools.count(1):
            for batch in work:
                totals = self._iteration(engine, "measure", len(done), batch)
                done.append(totals)
                tokens += totals.output_tokens
            elapsed_s = seconds_since(begin_ns)
            text = f"pass {number}: {elapsed_s:.1f} of {wanted_s:g} s, {tokens / elapsed_s:.1f} tok/s"
            self._line(elapsed_s, wanted_s, text, last=elapsed_s >= wanted_s)
            if elapsed_s >= wanted_s:
                break
        return done

    def _open_window(self, sampler: Sampler) -> int:
        # Opened at a change of the energy counter, the counter is exact at the window's begin.
        tick_ns = sampler.wait_for_tick()
        if tick_ns is None:
            return time.monotonic_ns()
        self._log.emit("counter_tick", t_mono_ns=tick_ns)
        return tick_ns

    def _iteration(self, engine: Engine, phase: str, index: int, batch: tuple[Prompt, ...]) -> BatchTotals:
        self._check_wall_clock()
        completions = engine.generate(batch, self._on_step)
        totals = self._requests.write(phase, index, batch, completions)
        self._log.emit(
            "iteration",
            index=index,
            duration_s=totals.duration_s,
            input_tokens=totals.input_tokens,
            output_tokens=totals.output_tokens,
            t_submit_mono_ns=totals.t_submit_mono_ns,
            t_first_mono_ns=totals.t_first_mono_ns,
            t_prefill_end_mono_ns=totals.t_prefill_end_mono_ns,
            t_last_mono_ns=totals.t_last_mono_ns,
        )
        return totals

    def _on_step(self, tokens: int) -> None:
        now_ns = time.monotonic_ns()  # at every token: nothing else until a line is due
        if now_ns - self._last_line_ns >= _STEP_LINE_EVERY_NS:
            self._check_wall_clock()
            self._last_line_ns = now_ns
            self._log.say(f"{tokens} token{'s' * (tokens != 1)} of this batch")

    def _line(self, done: float, total: float, text: str, *, last: bool) -> None:
        if not last and seconds_since(self._last_line_ns) < _PASS_LINE_EVERY_S:
            return
        self._last_line_ns = time.monotonic_ns()
        self._log.progress(done, total, text)

    def _check_wall_clock(self) -> None:
        limit_s = self._spec.limits.wall_clock_s
        if limit_s is None:
            return
        # A little before the watchdog outside, so that the attempt can still say where the time went.
        own_s = limit_s - min(10.0, limit_s * 0.05)
        if seconds_since(self._begin_ns) > own_s:
            raise MeasurementError(
                f"the attempt ran {own_s:.0f} s, its wall-clock limit is {limit_s:g} s: "
                "raise study_execution.experiment_timeout_seconds, or use fewer prompts or tokens",
                category="timeout",
            )

    def _result(
        self, facts: EngineFacts, warmup: Warmup, window: Window, meter: Meter, memory: dict[str, int | None]
    ) -> CycleResult:
        return CycleResult(
            schema_version=PROTOCOL_VERSION,
            experiment_hash=self._spec.experiment_hash,
            cycle=self._spec.cycle,
            engine=self._spec.engine,
            engine_version=facts.version,
            window=window,
            warmup=warmup,
            meter=meter,
            anchors=tuple(self._anchors),
            model=facts.model,
            memory=memory,
            bundle_version=llem_airflow.__version__,
            bundle_sha256=bundle_sha256(),
            cpu=self._cpu,
        )
