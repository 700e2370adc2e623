"""LLEMExperimentOperator: one cycle of one experiment, in a fresh container or process."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from airflow.providers.docker.operators.docker import DockerOperator
from airflow.sdk import BaseOperator, Context
from airflow.sdk.bases.operator import TRIGGER_FAIL_REPR
from airflow.sdk.definitions.mappedoperator import OperatorPartial
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowTaskTimeout
from airflow.triggers.base import BaseTrigger

from llem_airflow.operators import arguments, runners
from llem_airflow.operators.evidence import (
    attempt_of,
    cut_short,
    provenance,
    run_of,
    store_kept,
    store_or_keep,
)
from llem_airflow.operators.gates import Candidate, check, require_energy, without_required_energy
from llem_airflow.operators.host import DEFAULT_CONN_ID, HostSettings, HostSettingsError, LLEMHostHook
from llem_airflow.operators.inputs import EarlierTries, known_idle_power, pinned_model, require_model
from llem_airflow.operators.live import LiveWriter, live_power
from llem_airflow.operators.metrics import StudyMetrics, cycle_span
from llem_airflow.operators.outcome import cycle_row, line_of
from llem_airflow.operators.placement import EngineAwayError, PlacementError, first
from llem_airflow.operators.request import cycle_of_run, study_in_form
from llem_airflow.operators.retries import ended, is_last_try
from llem_airflow.operators.runners import Chosen
from llem_airflow.operators.settings import LocalModel, local_model, settings
from llem_airflow.operators.ui import EvidenceLink
from llem_airflow.operators.waits import (
    AT_MOST_S,
    LOOK_EVERY_S,
    GpuFreeTrigger,
    GpuWait,
    now_epoch_s,
    thermal_gap,
)
from llem_airflow.protocol.files import config_name
from llem_airflow.protocol.live import LivePhase, LivePower
from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.results import StoredRun
from llem_airflow.results.cleanup import scratch_folder
from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.base import Busy, Collected, Runner
from llem_airflow.runners.engine import GRACE_S
from llem_airflow.runners.failures import AttemptFailedError
from llem_airflow.study import Experiment, Study, experiment_spec, load_study

if TYPE_CHECKING:
    from llem_airflow.analysis.cycle import Cycle

_GPU_WAIT_S = 180.0

_TRIGGERER_LATE_S = 60.0
"""After this long beyond the wait itself, a trigger that has not fired is one that nobody runs."""


class ExperimentTask(BaseOperator):
    """What a task does that measures one cycle, wherever that runs; a mixin before the operator of a place."""

    study: Study
    experiment: Experiment
    cycle: int
    gap_before_s: float
    runner: str | None
    llem_conn_id: str
    host: HostSettings
    gpu_wait: GpuWait
    image: str
    _gpu_wait_s: float | None
    attempt: Attempt | None = None
    _current: Runner | None = None
    _live: LiveWriter | None = None
    _runner = ""
    _chosen: Mapping[str, str] = MappingProxyType({})
    _image_asked: str | None = None
    earlier: EarlierTries = EarlierTries()
    cleared: int = 0
    model_files: LocalModel | None = None

    @staticmethod
    def check_arguments(arguments: Mapping[str, Any]) -> None:
        """Refuse what the operator of this place cannot have.

        Raises:
            ArgumentError: The text names all of them.
        """
        raise NotImplementedError

    @classmethod
    def partial(cls, **kwargs: Any) -> OperatorPartial:
        """As of every operator; arguments that are refused are refused when the DAG is parsed, as without mapping."""
        cls.check_arguments(kwargs)
        made: OperatorPartial = super().partial(**kwargs)
        return made

    def _take(
        self,
        cycle: int,
        gap_before_s: float,
        gpu_wait_s: float | None,
        llem_conn_id: str,
        *,
        deferrable: bool,
    ) -> None:
        """Keep the arguments that every place has."""
        self.cycle = cycle
        self.gap_before_s = gap_before_s
        self.llem_conn_id = llem_conn_id
        self.host = HostSettings()
        self._gpu_wait_s = gpu_wait_s
        self.gpu_wait = GpuWait(here=not deferrable)

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the attempt and commit its result.

        Returns:
            The experiment's id, the cycle and where the result lies.

        Raises:
            AirflowException: The attempt failed and another try can help; or it is stored without the energy that the
                study requires.
            AirflowFailException: The attempt failed and another try cannot help.
            AirflowSkipException: The run does not ask for this cycle.
        """
        try:
            said = self._measured(context)
        except Exception as error:
            self.metrics.cycle_ended(error, last_try=is_last_try(context["ti"]))
            raise
        self.metrics.cycle_measured()
        return said

    @property
    def metrics(self) -> StudyMetrics:
        """Airflow's metrics, as this task sends them."""
        study = getattr(self, "study", None)
        return StudyMetrics(self.dag_id, study.name if study else None)

    def _measured(self, context: Context) -> dict[str, Any]:
        """Run the attempt and commit its result; raises as ``execute`` does."""
        self.study, self.experiment = self._asked(context)
        self.look_at_host()
        self.model_files = local_model(self.experiment.model, settings(), study_folder=self.study.folder)
        run = run_of(self.study, context)
        attempt = self.attempt = attempt_of(context, self.experiment, self.cycle)
        if stored := self._stored_by_an_earlier_try(run, context):
            self.log.info("An earlier try of this task has stored the result: %s", stored)
            return self._said(stored, self._row(run))
        if kept := store_kept(run, self.experiment.id, self.cycle, after_try=self.cleared):
            self.log.info("The result that an earlier try could not store is stored: %s", kept)
            return self._stored(run, kept)
        self._pause(run, context)
        started_epoch_ns = time.time_ns()
        urls: list[str] = []

        def store(collected: Collected) -> None:
            record = self._record(attempt, started_epoch_ns, collected)
            urls.append(store_or_keep(run, self.experiment.id, self.cycle, collected.folder, record))

        with scratch_folder() as folder, cycle_span(attempt, self.study.name):
            try:
                self._run(run, folder, store)
            except AttemptFailedError as error:
                # Its text has all that is known; a log that ends with its causes hides it.
                raise self._failed(run, attempt, error, started_epoch_ns) from None
            except AirflowTaskTimeout as error:
                raise self._failed(run, attempt, cut_short(error, folder), started_epoch_ns) from error
            finally:
                self.leave_host()
        self.log.info("Result stored: %s", urls[-1])
        return self._stored(run, urls[-1])

    def _stored(self, run: StoredRun, url: str) -> dict[str, Any]:
        """Say what a result that was stored just now has measured."""
        row = self._row(run)
        self.metrics.attempt_succeeded(row)
        require_energy(self.experiment, run.cycle(self.experiment.id, self.cycle))
        return self._said(url, row)

    def execute_after_pause(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002  # Airflow's
        """Go on after a pause: everything is looked at again, as others have gone on meanwhile."""
        return self.execute(context)

    def execute_after_wait(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Go on after the trigger has fired: with the place in the queue, and what is left of the time."""
        self.gpu_wait = GpuWait(**{"here": False, **event})
        return self.execute(context)

    def resume_execution(
        self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context
    ) -> dict[str, Any]:
        """As every operator; but when nobody ran the trigger, the wait goes on here."""
        if next_method == TRIGGER_FAIL_REPR:
            self.log.warning(
                "The trigger that waits did not answer (%s). Is an `airflow triggerer` running? "
                "Waiting in the worker instead",
                (next_kwargs or {}).get("error"),
            )
            self.gpu_wait = GpuWait(here=True)
            return self.execute(context)
        resumed: dict[str, Any] = super().resume_execution(next_method, next_kwargs, context)
        return resumed

    def on_kill(self) -> None:
        """End the attempt, as far as this try owns it."""
        if self._current is not None:
            self._current.kill()

    def look_at_host(self) -> None:
        """Take over what the host's connection says, where the operator's arguments leave it open."""
        try:
            self.host = LLEMHostHook(self.llem_conn_id).settings()
        except HostSettingsError as error:
            raise AirflowFailException(str(error)) from error
        if self.host.name:
            self.log.info("Host: %s (engine: %s)", self.host.name, self.host.address)

    def leave_host(self) -> None:
        """Close what the attempt has opened to reach its host."""

    @property
    def spread_host(self) -> str | None:
        """The host of this task among those over which the study is spread; None for a study on one host."""
        return self.llem_conn_id if self.llem_conn_id in self.study.airflow.hosts else None

    @property
    def gpu_wait_s(self) -> float:
        """How long to wait for GPUs."""
        return float(first(self._gpu_wait_s, self.host.gpu_wait_s, _GPU_WAIT_S))

    def _asked(self, context: Context) -> tuple[Study, Experiment]:
        """What this run was asked for: the model release of its partition, the choices of the trigger form."""
        return self.study, cycle_of_run(self.study, self.experiment.id, self.cycle, context)

    def _row(self, run: StoredRun) -> Cycle | None:
        ref = run.cycle(self.experiment.id, self.cycle)
        return cycle_row(ref) if ref else None

    def _said(self, url: str, row: Cycle | None) -> dict[str, Any]:
        if row is not None:
            self.log.info("%s", line_of(row))
        return {"experiment": self.experiment.id, "cycle": self.cycle, "result": url}

    def _stored_by_an_earlier_try(self, run: StoredRun, context: Context) -> str | None:
        """URL of the result, when a try stored it and died before it could say so; nothing is measured twice.

        One without the energy that the study requires does not count.

        A task that a person cleared is measured again: clearing raises ``max_tries`` by the tries that were made, so
        tries up to that number do not count.
        """
        ti = context["ti"]
        retries = self.retries or 0
        cleared = self.cleared = max(0, getattr(ti, "max_tries", retries) - retries)
        self.earlier = EarlierTries.of(run, self.experiment.id, self.cycle, cleared)
        ref = run.cycle(self.experiment.id, self.cycle) if ti.try_number > cleared + 1 else None
        if ref is None or int(ref.provenance().get("try_number", 0)) <= cleared:
            return None
        if without_required_energy(self.experiment, ref):
            return None
        run.remove_orphans()
        self._clear(run, str(ref.provenance().get("runner")))
        return ref.folder.url

    def _clear(self, run: StoredRun, runner: str) -> None:
        """Remove what killed tries left, once its place can be reached; the stored result counts in any case."""
        deadline_s = time.monotonic() + GRACE_S
        with scratch_folder() as folder:
            while True:
                try:
                    self.make_runner(runner, run, folder).release()
                    return
                except (PlacementError, AttemptFailedError) as error:
                    if not isinstance(error, EngineAwayError) or time.monotonic() >= deadline_s:
                        self.log.warning("What earlier tries left could not be removed: %s", error)
                        return
                finally:
                    self.leave_host()
                time.sleep(1)

    def _run(self, run: StoredRun, folder: Path, store: Callable[[Collected], None]) -> None:
        """See the attempt through: a place, what is told there, what came out."""
        self._choose(run, folder)
        with runners.placing(folder):
            runner = self._current = self.make_runner(self._runner, run, folder)
            spec = self._spec(run, runner, folder)
        # What the attempt is told is evidence too, whether it succeeds or not.
        (folder / config_name(spec.experiment_hash)).write_text(spec.dumps(), encoding="utf-8")
        self.log.info("%s, cycle %s, %s", self.experiment.id, self.cycle, runner.where)
        asked_s, waited_s = time.monotonic(), self.gpu_wait.waited_s
        placed = runner.place(spec, self.gpu_wait.of(self.gpu_wait_s))
        if isinstance(placed, Busy):
            self._wait_in_the_triggerer(placed)
            self.metrics.gpu_wait(waited_s + time.monotonic() - asked_s)
            raise placed.error(folder)
        self.metrics.gpu_wait(waited_s + placed.waited_s)
        with live_power(
            run, self.experiment.id, self.cycle, self.attempt.try_number if self.attempt else 0
        ) as self._live:
            runner.run(placed, spec, store)

    def _spec(self, run: StoredRun, runner: Runner, folder: Path) -> ExperimentSpec:
        """What the attempt is told."""
        model = self.model_files
        if not runner.own_files:
            require_model(self.experiment, model, self.study.folder, folder)
        spec = experiment_spec(
            self.study,
            self.experiment,
            self.cycle,
            model_path=model.path(mounted=runner.own_files) if model else None,
            revision=None if model else pinned_model(run, self.experiment),
        )
        spec = replace(spec, known_baselines=known_idle_power(run, self.experiment, self.cycle))
        return self.earlier.pin_model(spec)

    def _choose(self, run: StoredRun, folder: Path) -> str:
        """Choose runner and image, and note which layers named them; the runner."""
        self._image_asked = self.image = self.image if self._image_asked is None else self._image_asked
        chosen = self.choose(run, folder)
        self._runner, self.image, self._chosen = chosen.runner, chosen.image, chosen.layers
        self.log.info("%s", chosen)
        return chosen.runner

    def _wait_in_the_triggerer(self, busy: Busy) -> None:
        """Defer where somebody else can wait, and there is time left."""
        if self.gpu_wait.here or busy.later is None:
            return
        begin_epoch_s = self.gpu_wait.begin_epoch_s or now_epoch_s()
        left_s = busy.later.get("until_epoch_s", begin_epoch_s + self.gpu_wait_s) - now_epoch_s()
        said = busy.text.rstrip(". ")  # a scheduler's reason ends as a sentence does
        self.log.info("%s. Waiting in the triggerer, for %.0f s at most", said, left_s)
        trigger = self.waiter(
            later=dict(busy.later),
            begin_epoch_s=begin_epoch_s,
            limit_s=self.gpu_wait_s,
            since_epoch_s=self.gpu_wait.since_epoch_s or now_epoch_s(),
        )
        self.defer(
            trigger=trigger,
            method_name="execute_after_wait",
            timeout=timedelta(seconds=left_s + _TRIGGERER_LATE_S),
        )

    def waiter(self, **wait: Any) -> BaseTrigger:
        """What waits in the triggerer; arguments as of ``GpuFreeTrigger``."""
        return GpuFreeTrigger(**wait)

    def choose(self, run: StoredRun, folder: Path) -> Chosen:
        """Which runner the attempt gets, and what named it.

        Raises:
            AttemptFailedError: There is none.
        """
        raise NotImplementedError

    def make_runner(self, name: str, run: StoredRun, folder: Path) -> Runner:
        """The runner of that name for this attempt.

        Raises:
            PlacementError: It cannot run there as it was asked, or what would run it does not answer.
            AttemptFailedError: What would run it refused.
        """
        raise NotImplementedError

    def line(self, line: str) -> None:
        """Take a line of the attempt's output."""
        self.log.info("%s", line)

    def live(self, record: LivePower | LivePhase) -> None:
        """Take a live record of the attempt, for those who watch it."""
        if self._live is not None:
            self._live.take(record)

    def _pause(self, run: StoredRun, context: Context) -> None:
        """Pass every gate, then wait until the hardware has cooled down; nothing holds a GPU meanwhile.

        In the triggerer; in the worker where there is none, or where the pause is shorter than the way there.
        """
        rank = [-self.priority_weight, self.attempt.map_index if self.attempt else -1]
        candidate = Candidate(self.study, run, self.experiment, self.cycle, context, self.retries or 0)
        said = ""
        while pause := check(candidate) or thermal_gap(run, self.gap_before_s, rank, self.spread_host):
            if pause.text != said:
                said = pause.text
                self.log.info("%s: %.0f s left", pause.text, pause.left_s)
            if pause.trigger is not None and not self.gpu_wait.here:
                left_s = pause.left_s + AT_MOST_S + _TRIGGERER_LATE_S
                self.defer(
                    trigger=pause.trigger,
                    method_name="execute_after_pause",
                    timeout=timedelta(seconds=left_s),
                )
            time.sleep(min(pause.left_s, LOOK_EVERY_S))

    def _record(self, attempt: Attempt, started_epoch_ns: int, collected: Collected | None) -> dict[str, Any]:
        """What provenance.json says of a result, or of a failure."""
        seen = {"start_kind": "fresh", **self._current.record(collected)} if self._current is not None else {}
        on = {"host_connection": self.spread_host} if self.spread_host else {}
        return {**provenance(attempt, self._runner, started_epoch_ns), **self._chosen, **on, **seen}

    def _failed(
        self, run: StoredRun, attempt: Attempt, error: AttemptFailedError, started_epoch_ns: int
    ) -> AirflowException:
        """Store the evidence and say what happened, where the evidence lies and what to do."""
        record = self._record(attempt, started_epoch_ns, None)
        record["failure"] = {
            "category": error.failure.category,
            "retryable": error.failure.retryable,
            "hint": error.failure.hint,
            "message": error.headline,
        }
        self.metrics.attempt_failed(error.failure.category)
        url = run.commit_failed(self.experiment.id, self.cycle, attempt.try_number, error.folder, record)
        text = f"{self.experiment.id} cycle {self.cycle}: {error}\nEvidence: {url}"
        return ended(text, error.failure)


class LLEMExperimentOperator(ExperimentTask, DockerOperator):  # type: ignore[misc]  # its execute returns log lines
    """Run one cycle of one experiment and store what it observed.

    Args:
        study: The study, or the path of its file; None where each run brings its own (LLEMTextCycleOperator).
        experiment: One of its experiments, or its id ``<slug>-<hash8>``; a slug that names only one is enough.
        cycle: Which repetition, from 1.
        gap_before_s: Thermal gap: wait until this long after the end of the run's previous cycle, in seconds.
            Nothing holds a GPU meanwhile.
        runner: ``container``, ``process`` or ``docker:<image>``, before everything else; default: what the layers of
            runners/choice.py say, and on ``auto`` what the run's plan task found out once for the whole study.
        gpu_wait_s: How long to wait for GPUs that others hold, in seconds, before the try fails (retryable); 0 for not
            at all. Default: what the host's connection says, then 180.
        max_gpu_idle_s: End an attempt whose GPUs compute nothing for so long, in seconds, whatever it prints. Default:
            what the host's connection says, then never. Of two limits the narrower counts.
        keep_failed: Stop a container that ran and failed and keep it with its volume, to be looked at; ``llem-airflow
            gc`` removes it when it is a day old. Default: what the host's connection says, then False.
        session: Id of the session in whose living container the cycle is measured, between the session's start and
            stop tasks; None for a container of its own.
        llem_conn_id: Connection of type ``llem``: the host and what it asks of containers.
        deferrable: Wait in the triggerer, where waiting takes no worker and no pool slot. Where no triggerer runs, the
            task comes back after ``gpu_wait_s`` and waits in the worker.
        **kwargs: Those of DockerOperator, but for the ones that make no sense here, which are refused by name
            (``operators/arguments.py`` has all of them; so has the page).

    Raises:
        ArgumentError: An argument of DockerOperator that an experiment cannot have.
    """

    template_fields: Sequence[str] = ("image", "docker_conn_id", "environment", "env_file", "mounts")
    operator_extra_links = (EvidenceLink(),)
    ui_color = "#fff3e0"
    check_arguments = staticmethod(arguments.check)

    def __init__(  # noqa: PLR0913  # the keywords are the operator's interface
        self,
        *,
        study: Study | str | Path | None,
        experiment: str | Experiment,
        cycle: int = 1,
        gap_before_s: float = 0.0,
        runner: str | None = None,
        gpu_wait_s: float | None = None,
        max_gpu_idle_s: float | None = None,
        keep_failed: bool | None = None,
        session: str | None = None,
        llem_conn_id: str = DEFAULT_CONN_ID,
        deferrable: bool = True,
        **kwargs: Any,
    ) -> None:
        arguments.check_limits(gpu_wait_s=gpu_wait_s, max_gpu_idle_s=max_gpu_idle_s)
        kwargs = {**arguments.given(kwargs), "mount_tmp_dir": False}
        keeps = {"success": True, "force": False}.get(kwargs.get("auto_remove", ""))
        kwargs["auto_remove"] = "force"
        if study is not None:
            self.study, experiment = found_experiment(study, experiment)
        if isinstance(experiment, Experiment):
            self.experiment = experiment
            kwargs["image"] = kwargs.get("image") or experiment.image
        super().__init__(**{**kwargs, "image": kwargs.get("image") or ""})
        self.experiment_id = experiment if isinstance(experiment, str) else experiment.id
        self._take(cycle, gap_before_s, gpu_wait_s, llem_conn_id, deferrable=deferrable)
        self.runner = runner
        self.session = session
        self.engine_given = kwargs.get("docker_url") is not None
        self.max_gpu_idle_s = max_gpu_idle_s
        self.keep_failed = keeps if keep_failed is None else keep_failed

    def resolve_template_files(self) -> None:
        """As in Airflow, which makes a template environment for a list without anything in it, thousands of times."""
        values = [getattr(self, name, None) for name in self.template_fields]
        files = tuple(self.template_ext)
        if any((isinstance(v, list) and v) or (isinstance(v, str) and v.endswith(files)) for v in values):
            super().resolve_template_files()

    @cached_property
    def hook(self) -> runners.EngineHook:
        """As of DockerOperator, with TLS files that no variable of the worker replaces, and with ssh."""
        return runners.EngineHook(
            address=runners.engine_address(self),
            docker_conn_id=self.docker_conn_id,
            version=self.api_version,
            timeout=self.timeout,
        )

    def choose(self, run: StoredRun, folder: Path) -> Chosen:
        """As the layers say, from the operator's argument to the default."""
        return runners.choose(self, run, folder)

    def make_runner(self, name: str, run: StoredRun, folder: Path) -> Runner:
        """A container or a process, as the operator's arguments say."""
        return runners.make_runner(self, name, run, folder)

    def look_at_host(self) -> None:
        """Take over what the host's connection says, its Docker engine too."""
        super().look_at_host()
        if self.host.docker_host and not self.engine_given:
            self.docker_url = self.host.docker_host
            if self.host.tls_ca_cert and not self.tls_ca_cert:
                self.tls_ca_cert = self.host.tls_ca_cert
                self.tls_client_cert, self.tls_client_key = (
                    self.host.tls_client_cert,
                    self.host.tls_client_key,
                )
                self.tls_verify = self.host.tls_verify is not False

    def leave_host(self) -> None:
        """Close the client of the Docker engine."""
        if self.hook.client_created:
            self.cli.close()

    @property
    def secrets(self) -> dict[str, str]:
        """Variables whose values appear in no rendered field, log or file."""
        return self._private_environment or {}


class LLEMTextCycleOperator(LLEMExperimentOperator):
    """Run one cycle of the study whose text was given in the trigger form.

    Made for ``LLEMTextCycleOperator.partial(...).expand_kwargs(plan.output)``.

    Args:
        experiment: Id of one of its experiments.
        **kwargs: As for LLEMExperimentOperator.
    """

    def __init__(self, *, experiment: str, **kwargs: Any) -> None:
        super().__init__(study=None, experiment=experiment, **kwargs)

    def _asked(self, context: Context) -> tuple[Study, Experiment]:
        study = study_in_form(context)
        return study, cycle_of_run(study, self.experiment_id, self.cycle, context)


def found_experiment(study: Study | str | Path, wanted: str | Experiment) -> tuple[Study, Experiment]:
    """A study, read where its file is named, and of it the experiment of that id, or of a slug that only one has."""
    study = study if isinstance(study, Study) else load_study(study)
    if isinstance(wanted, Experiment):
        return study, wanted
    with contextlib.suppress(KeyError):
        return study, study.experiment(wanted)
    named = [e for e in study.experiments if e.slug == wanted]
    if len(named) != 1:
        known = ", ".join(e.id for e in study.experiments[:20])
        raise ValueError(f"study {study.name!r} has no experiment {wanted!r}; it has: {known}")
    return study, named[0]
