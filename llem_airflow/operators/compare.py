"""LLEMCompareOperator: did it become worse? A verdict that can fail, skip or tell somebody."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from llem_airflow.analysis.metrics import deciding_metric, positive_threshold
from llem_airflow.operators.notify import tell
from llem_airflow.operators.outcome import cautions, changes, said
from llem_airflow.operators.settings import settings
from llem_airflow.operators.ui import keeps_failure
from llem_airflow.results import ResultReadError, ResultsRoot
from llem_airflow.results.store import NoSuchRunError, locate_run

if TYPE_CHECKING:
    from llem_airflow.analysis.compare import How
    from llem_airflow.analysis.compare_named import Compared
    from llem_airflow.analysis.history import Trend

OUTCOMES = (
    "regression",
    "not comparable",
    "suspicious answers",
    "not enough evidence",
    "improvement",
    "unchanged",
    "no baseline",
)
"""What can come out for an experiment, the gravest first."""

ACTIONS = ("fail", "skip", "notify", "pass")

_SHOWN = 50
"""Sentences in an XCom; the log has all."""

DEFAULT_ACTIONS: Mapping[str, tuple[str, ...]] = {
    "regression": ("notify", "fail"),
    "not comparable": ("fail",),
    "suspicious answers": ("fail",),
    "not enough evidence": ("pass",),
    "improvement": ("pass",),
    "unchanged": ("pass",),
    "no baseline": ("pass",),
}


class LLEMCompareOperator(BaseOperator):
    """Compare runs, and act on the verdict.

    Against ``previous`` the verdict is that of the history (``llem-airflow history``), which knows how much whole runs
    differ by chance and tells a change once; with ``factor``, ``ignore``, ``paired`` or ``without_flagged``, and
    against any other baseline, it is that of the two runs.

    The task fails when an outcome that was seen asks for ``fail``, else is skipped (and with it what follows) when all
    of them ask for ``skip``; the notifier of section ``[llem]`` is told once when one asks for ``notify``.

    Args:
        baseline: The run to compare with, by ``study/run``, folder or URL; ``study`` for its newest run;
            ``study@release`` for the newest aggregated run of a model release; ``previous`` for the run of the same
            study and release before each candidate. ``#experiment`` behind it names one experiment. Templated.
        candidates: The runs in question, likewise, one or several; ``study@*`` for every release. Default: the run
            that this DAG run has measured, which an empty name (``#experiment``) means, too. Templated.
        metric: The metric that decides.
        threshold_ratio: Smallest relative difference that matters.
        on: What to do about an outcome: ``{"regression": ["notify", "fail"], "unchanged": "skip"}``; outcomes that
            are not named keep their default (DEFAULT_ACTIONS).
        factor: Configuration key under study (``task.model``): experiments are matched by all others. Default: by
            identity, and then by id, which stays the same over the releases of a model.
        ignore: Conditions of the fingerprint that may differ, such as ``gpus``.
        paired: Cycle k of one experiment was measured next to cycle k of the other, on one GPU in one run.
        without_flagged: Leave out cycles with a warning.
        study: Name of the study whose run this DAG run is, where one DAG measures several.
    """

    template_fields = ("baseline", "candidates")
    ui_color = "#f3e8f7"

    def __init__(  # noqa: PLR0913 - each is a keyword in a DAG file
        self,
        *,
        baseline: str = "previous",
        candidates: str | Sequence[str] | None = None,
        metric: str = "energy_per_output_token_j",
        threshold_ratio: float = 0.02,
        on: Mapping[str, str | Sequence[str]] | None = None,
        factor: str | None = None,
        ignore: Collection[str] = (),
        paired: bool = False,
        without_flagged: bool = False,
        study: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.baseline = baseline
        self.candidates = candidates
        self.metric = deciding_metric(metric)
        self.threshold_ratio = positive_threshold(threshold_ratio)
        self.on = actions(on or {})
        self.factor = factor
        self.ignore = tuple(ignore)
        self.paired = paired
        self.without_flagged = without_flagged
        self.study = study

    @keeps_failure
    def execute(self, context: Context) -> dict[str, Any]:
        """Compare.

        Returns:
            The gravest outcome, the outcome of each experiment, how much each metric changed, and what had no
            counterpart. It is an XCom also when the task fails or is skipped.

        Raises:
            AirflowFailException: An outcome asks for it, or there is nothing that can be compared.
            AirflowSkipException: All outcomes ask for it.
        """
        from llem_airflow.analysis.compare import How  # noqa: PLC0415 - SciPy is for this task alone
        from llem_airflow.analysis.compare_named import Compared  # noqa: PLC0415 - likewise

        how = How(
            metric=self.metric,
            threshold_ratio=self.threshold_ratio,
            factor=self.factor,
            ignore=self.ignore,
            paired=self.paired,
            without_flagged=self.without_flagged,
        )
        found = self._compared(context, how)
        self._log(found)
        trends = self._histories(found, how)
        outcomes = _outcomes(found, self.metric, trends)
        # Of two runs that tell a gross change the numbers are those of the comparison, and so is its caution.
        told = {name: one for name, one in trends.items() if len(one.points) > 2 or one.told is None}
        rest = Compared(tuple(one for one in found.reports if one.candidate not in told))
        lines = [f"{name}: {self.metric}: {one.state}" for name, one in told.items()]
        lines += [*said(rest, self.metric), *cautions(rest)]
        text = "\n".join(lines)
        result = changes(found) | {
            "verdict": min(outcomes.values(), key=OUTCOMES.index),
            "outcomes": outcomes,
            "history": {name: one.state for name, one in trends.items()},
            "metric": self.metric,
            "said": lines[:_SHOWN],
        }
        self._act(context, set(outcomes.values()), result, text)
        return result

    def _compared(self, context: Context, how: How) -> Compared:
        from llem_airflow.analysis.compare_named import compare_named  # noqa: PLC0415 - likewise

        root, ti = ResultsRoot(settings().results_root), context["ti"]
        named = [self.candidates] if isinstance(self.candidates, str) else list(self.candidates or [""])
        own = root.run(self.study, ti.run_id) if self.study else root.find_run(ti.dag_id, ti.run_id)
        if own is None and "" in named:
            raise AirflowFailException(
                f"this DAG run has no results under {root.url}: name the runs to compare with `candidates`"
            )
        try:
            found = compare_named(self.baseline, named, root, how, own)
        except (NoSuchRunError, ResultReadError, ValueError) as error:
            raise AirflowFailException(str(error.args[0] if error.args else error)) from error
        if not found.reports and not found.without_baseline:
            raise AirflowFailException(
                "the runs have no experiment in common: name one of each as run#experiment, or the key that differs "
                f"with `factor`. Only in the reference run: {', '.join(found.only_baseline) or 'none'}. Only in the "
                f"candidates: {', '.join(found.only_candidate) or 'none'}"
            )
        return found

    def _histories(self, found: Compared, how: How) -> dict[str, Trend]:
        """The history of each candidate by its name, where its history is what decides: against the run before."""
        from llem_airflow.analysis.compare import How  # noqa: PLC0415 - likewise
        from llem_airflow.analysis.history import history_until  # noqa: PLC0415 - likewise

        if self.baseline != "previous" or how != How(metric=how.metric, threshold_ratio=how.threshold_ratio):
            return {}
        root = ResultsRoot(settings().results_root)
        known = {one.candidate for one in found.reports if not one.differences}
        trends: dict[str, Trend] = {}
        for name in dict.fromkeys(candidate.partition("#")[0] for candidate in known):
            by_id = history_until(locate_run(name, root), self.metric, self.threshold_ratio)
            trends |= {f"{name}#{one}": trend for one, trend in by_id.items() if f"{name}#{one}" in known}
        return trends

    def _log(self, found: Compared) -> None:
        from rich.console import Console  # noqa: PLC0415 - likewise

        from llem_airflow.report.terminal import render_comparisons  # noqa: PLC0415 - likewise

        console = Console(width=150, no_color=True)
        with console.capture() as captured:
            console.print(render_comparisons(found.reports))
        self.log.info("%s", captured.get())
        for note in found.notes:
            self.log.warning("%s", note)
        for name in found.only_baseline:
            self.log.warning("only in the reference run: %s", name)
        for name in found.only_candidate:
            self.log.warning("not in the reference run: %s", name)
        for name in found.without_baseline:
            self.log.warning("no earlier run to compare with: %s", name)

    def _act(self, context: Context, seen: set[str], result: dict[str, Any], text: str) -> None:
        wanted = [outcome for outcome in OUTCOMES if outcome in seen]
        loud = [outcome for outcome in wanted if "notify" in self.on[outcome]]
        if loud:
            tell(context, loud[0], text)
        failing = [outcome for outcome in wanted if "fail" in self.on[outcome]]
        skipping = all("skip" in self.on[outcome] for outcome in wanted)
        if failing or skipping:
            context["ti"].xcom_push(key="return_value", value=result)
        if failing:
            raise AirflowFailException(f"{', '.join(failing)}:\n{text}")
        if skipping:
            raise AirflowSkipException(f"{', '.join(wanted)}: what follows is not needed")


def actions(given: Mapping[str, str | Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The actions of every outcome, with the defaults where nothing is given.

    Raises:
        ValueError: An outcome or an action is not known; the text lists them.
    """
    found = dict(DEFAULT_ACTIONS)
    for outcome, what in given.items():
        if outcome not in OUTCOMES:
            raise ValueError(
                f"on: {outcome!r} is no outcome of a comparison; there are: {', '.join(OUTCOMES)}"
            )
        several = (what,) if isinstance(what, str) else tuple(what)
        unknown = [action for action in several if action not in ACTIONS]
        if unknown or not several:
            raise ValueError(f"on: {outcome!r}: {what!r} is no action; there are: {', '.join(ACTIONS)}")
        found[outcome] = several
    return found


def _outcomes(found: Compared, metric: str, trends: Mapping[str, Trend]) -> dict[str, str]:
    """Outcome of each candidate's experiment. Less energy for another answer is suspicious, not an improvement."""
    outcomes = dict.fromkeys(found.without_baseline, "no baseline")
    for report in found.reports:
        trend = trends.get(report.candidate)
        verdict = str(trend.verdict if trend else report.verdict_on(metric))
        suspicious = report.answers is not None and report.answers.finding == "suspicious"
        graver = verdict in {"regression", "not comparable"}
        outcomes[report.candidate] = "suspicious answers" if suspicious and not graver else verdict
    return outcomes
