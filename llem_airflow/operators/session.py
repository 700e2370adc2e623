"""The first and the last task of a session: its living container is started before its cycles and removed after."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowSkipException, AirflowTaskTimeout

from llem_airflow.operators.evidence import attempt_of, run_of
from llem_airflow.operators.experiment import LLEMExperimentOperator
from llem_airflow.operators.gates import Candidate, Reason, canary, note, precision, window
from llem_airflow.operators.placement import PlacementError
from llem_airflow.operators.request import RunRequest, study_of_run
from llem_airflow.operators.retries import AttemptRetryableError, ended
from llem_airflow.operators.runners import end_session, placing, session_container
from llem_airflow.operators.settings import local_model, settings
from llem_airflow.results import StoredRun
from llem_airflow.results.cleanup import scratch_folder
from llem_airflow.runners.base import Busy
from llem_airflow.runners.engine import ENGINE_ERRORS
from llem_airflow.runners.failures import AttemptFailedError, classify
from llem_airflow.study import PlannedCycle, Study, experiment_spec
from llem_airflow.text.wording import counted


class SessionTask(LLEMExperimentOperator):
    """A task around the cycles of a session; what it has of an experiment is the first one's."""

    ui_color = "#e8f5e9"

    def __init__(self, *, study: Study, session: str, cycles: Sequence[PlannedCycle], **kwargs: Any) -> None:
        super().__init__(
            study=study, experiment=cycles[0].experiment_id, cycle=cycles[0].cycle, session=session, **kwargs
        )


class LLEMStartSessionOperator(SessionTask):
    """Start the living container of a session, or go on with it where an earlier try has started it.

    A setup task: where it fails, no cycle of the session starts.

    Args:
        study: The study.
        session: Id of the session.
        cycles: The session's cycles; the container is made as for the first of them that the run asks for.
        **kwargs: As for LLEMExperimentOperator.
    """

    def execute(self, context: Context) -> dict[str, Any]:  # type: ignore[override]  # as its parent does
        """Start the session.

        Returns:
            The session's id, its container, its GPUs, and whether it lived already.

        Raises:
            AttemptFinalError: It cannot be started; the text says what to do.
            AttemptRetryableError: The same, and another try can help.
            AirflowSkipException: None of its cycles is to be measured.
        """
        cycles = self._cycles(context)
        self.look_at_host()
        self.model_files = local_model(self.experiment.model, settings(), study_folder=self.study.folder)
        run = run_of(self.study, context)
        self._skip_without_cycles(run, cycles, context)
        self.attempt = attempt_of(context, self.experiment, self.cycle)
        with scratch_folder() as folder:
            try:
                said = self._start(run, folder)
            except AttemptFailedError as error:
                for each in cycles:
                    note(run, each.experiment_id, each.cycle, Reason("session", error.headline))
                raise ended(f"session {self.session}: {error}", error.failure) from None
            except AirflowTaskTimeout:
                with contextlib.suppress(*ENGINE_ERRORS):
                    self.on_kill()
                raise
            finally:
                self.leave_host()
        self.log.info("Session %s: %s to measure in it", said["session"], counted(len(cycles), "cycle"))
        return said

    def _cycles(self, context: Context) -> list[PlannedCycle]:
        """The session's cycles that the run asks for; the experiment of the first is that of this task."""
        if RunRequest.of(context).dry_run:
            raise AirflowSkipException("dry run: nothing is measured")
        self.study = study_of_run(self.study, context)
        cycles = [run for run in self.study.plan.planned_cycles if run.session == self.session]
        if not cycles:
            raise AirflowSkipException(f"this run asks for no cycle of session {self.session}")
        self.experiment, self.cycle = self.study.experiment(cycles[0].experiment_id), cycles[0].cycle
        return cycles

    def _skip_without_cycles(self, run: StoredRun, cycles: Sequence[PlannedCycle], context: Context) -> None:
        """Skip a session of which no cycle would be measured; the reason of each is noted as if it had been asked."""
        reasons = []
        for each in cycles:
            experiment = self.study.experiment(each.experiment_id)
            candidate = Candidate(self.study, run, experiment, each.cycle, context, self.retries or 0)
            found = (gate(candidate) for gate in (precision, canary, window))
            reasons.append(next((reason for reason in found if reason is not None), None))
        if None in reasons:
            return
        for each, reason in zip(cycles, reasons, strict=True):
            if reason is not None:
                note(run, each.experiment_id, each.cycle, reason)
        raise AirflowSkipException(f"session {self.session}: {reasons[0]}")

    def _start(self, run: StoredRun, folder: Path) -> dict[str, Any]:
        self._choose(run, folder)
        with placing(folder):
            container = self._current = session_container(self, run, folder)
            spec = experiment_spec(self.study, self.experiment, self.cycle)
        started = container.begin(spec, self.gpu_wait.of(self.gpu_wait_s))
        if isinstance(started, Busy):
            self._wait_in_the_triggerer(started)
            raise started.error(folder)
        return {
            "session": self.session,
            "container": container.container_name,
            "gpus": list(started.gpus),
            "adopted": started.adopted,
        }


class LLEMStopSessionOperator(SessionTask):
    """Remove the living container of a session with its volume, and so give its GPUs back.

    A teardown task: it runs whatever became of the cycles, and is quiet where the container has gone already.

    Args:
        study: The study.
        session: Id of the session.
        cycles: The session's cycles.
        **kwargs: As for LLEMExperimentOperator.
    """

    def execute(self, context: Context) -> dict[str, Any]:  # type: ignore[override]  # as its parent does
        """Remove the session's container.

        Returns:
            The session's id.

        Raises:
            AttemptRetryableError: The Docker engine does not answer or refuses.
        """
        self.look_at_host()
        try:
            end_session(self, attempt_of(context, self.experiment, self.cycle))
        except (*ENGINE_ERRORS, PlacementError) as error:
            found = classify(None, "", error=error)
            hint = f"the session ends itself {self.study.execution.session.idle_seconds:g} s after its last cycle"
            raise AttemptRetryableError(
                f"session {self.session} cannot be removed: {error}. {hint}", found
            ) from error
        finally:
            self.leave_host()
        self.log.info(
            "Session %s has ended: its container, its volume and its GPUs are given back", self.session
        )
        return {"session": self.session}
