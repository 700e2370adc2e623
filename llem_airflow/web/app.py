"""The routes: JSON for the pages, the stored report, downloads, the pages' own modules. Nothing here writes."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any
from urllib.parse import quote, urlencode, urlsplit

from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import get_user
from airflow.sdk import conf
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from llem_airflow.analysis.compare import COMPARED, How
from llem_airflow.analysis.leaderboard import LATENCIES
from llem_airflow.frames.tables import FORMATS, TABLES, export_table
from llem_airflow.operators.settings import settings
from llem_airflow.protocol.typed_json import to_json
from llem_airflow.results import CycleRef, ResultsRoot, StoredRun, layout
from llem_airflow.results.folder import is_of_store, why_store_fails
from llem_airflow.results.records import read_live
from llem_airflow.web.access import READS_DAG, READS_RUN, DagId, MayReadLogs, ReadableDags, RunId, RunsReader
from llem_airflow.web.answers import HEADERS, PAGE_HEADERS, download, in_theme, json_answer, notice
from llem_airflow.web.board import leaderboard
from llem_airflow.web.comparison import LARGEST_CANDIDATES, choices, comparison, named, pair, usual
from llem_airflow.web.cycle_view import PowerSeries, csv_of, cycle_requests, cycle_view
from llem_airflow.web.explore import cycle_values, explorer
from llem_airflow.web.index import Entry, RunIndex
from llem_airflow.web.kept import Kept, Recent
from llem_airflow.web.modules import entry, module
from llem_airflow.web.new_study import check, new_study
from llem_airflow.web.run_view import cycle_of_task, run_view
from llem_airflow.web.seen import past_durations, seen_dags, seen_run
from llem_airflow.web.studies import headline, run_rows, study_rows
from llem_airflow.web.trend import studies_of, trend_view, verdicts

_MEDIA_TYPES = {
    "csv": "text/csv",
    "json": "application/json",
    "jsonl": "application/x-ndjson",
    "parquet": "application/vnd.apache.parquet",
}
_FILES = {
    layout.SUMMARY: "application/json",
    layout.PLAN: "application/json",
    layout.STUDY: "application/yaml",
    layout.REPORT: "text/html",
}
_TABLES = (layout.POWER, layout.POWER_CHECK, layout.REQUESTS)
_DOWNLOADED_TABLES = tuple(name for name in TABLES if name != "power")
"""The merged power of a run can have gigabytes; `llem-airflow results export` writes it, a page downloads a cycle's."""


class Server:
    """What one API server keeps: the index of the runs and what was read of their files."""

    def __init__(self, root: str) -> None:
        self.index = RunIndex(ResultsRoot(root))
        self.kept = Kept()
        self.recent = Recent()
        self.power = PowerSeries()
        self.watching = threading.Lock()
        """Held while verdicts are worked out, which may take seconds: one user after another."""


@cache
def _server_of(root: str) -> Server:
    return Server(root)


def server() -> Server:
    """What is kept for the root that Airflow's configuration names."""
    return _server_of(settings().results_root)


Asked = Annotated[Server, Depends(server)]
Experiment = Annotated[str, Query(min_length=1)]
CycleNumber = Annotated[int, Query(ge=1, le=1_000_000)]


def create_app() -> FastAPI:
    """The application behind ``/llem``: nothing in it answers without a user."""
    app = FastAPI(
        title="LLEM", dependencies=[Depends(get_user)], docs_url=None, redoc_url=None, openapi_url=None
    )
    app.middleware("http")(guarded)
    routes: tuple[tuple[str, Callable[..., Any], tuple[Any, ...]], ...] = (
        ("/static/{name}", entry, ()),
        ("/static/{below}/{name}", module, ()),
        ("/api/studies", studies, ()),
        ("/api/leaderboard", leaderboard_of_all, ()),
        ("/api/headline", study_headline, READS_DAG),
        ("/api/runs", runs, READS_DAG),
        ("/api/trend", trend, READS_RUN),
        ("/api/verdicts", trend_verdicts, READS_RUN),
        ("/api/compare", compare, READS_RUN),
        ("/api/pair", compare_pair, READS_RUN),
        ("/api/run", run, READS_RUN),
        ("/api/explore", explore, READS_RUN),
        ("/api/values", values, READS_RUN),
        ("/download/table", download_table, READS_RUN),
        ("/download/file", download_file, READS_RUN),
        ("/run", report, READS_RUN),
        ("/cycle", cycle_link, READS_RUN),
        ("/api/cycle", cycle_facts, READS_RUN),
        ("/api/live", live, READS_RUN),
        ("/api/task", task_cycle, READS_RUN),
        ("/api/power", power, READS_RUN),
        ("/api/requests", requests, READS_RUN),
        ("/download/cycle", download_cycle, READS_RUN),
        ("/api/new-study", new_study, ()),
    )
    for path, endpoint, dependencies in routes:
        app.add_api_route(
            path, endpoint, methods=["GET"], dependencies=list(dependencies), response_class=Response
        )
    # The one route with a body, which is too long for an address; it changes nothing either.
    app.add_api_route("/api/check", check, methods=["POST"], response_class=Response)
    return app


async def guarded(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Every answer, refusals and errors included, with the headers that keep a browser from running it.

    What goes wrong with the store is told with what to do, as by the commands.
    """
    try:
        answer = await call_next(request)
    except Exception as error:
        if not is_of_store(error):
            raise
        if isinstance(error, PermissionError):
            _server_of.cache_clear()  # the next request opens the store with what its connection says then
        answer = JSONResponse({"detail": why_store_fails(error, settings().results_root)}, 503)
    for name, value in HEADERS.items():
        answer.headers.setdefault(name, value)
    return answer


def studies(readable: ReadableDags, session: SessionDep, state: Asked) -> Response:
    """The studies of the DAGs that the user may read."""
    found = {name: state.index.runs(name) for name in state.index.studies()}
    dags = {entry.dag_id for entries in found.values() for entry in entries} & readable
    return json_answer({"studies": study_rows(found, seen_dags(session, dags)), "root": state.index.root.url})


def leaderboard_of_all(
    reads: RunsReader,
    state: Asked,
    latency: str = LATENCIES[0],
    limit_s: Annotated[float | None, Query(gt=0, allow_inf_nan=False)] = None,
) -> Response:
    """Model x hardware x engine over the runs of the DAGs whose runs the user may read."""
    entries = [entry for name in state.index.studies() for entry in state.index.runs(name)]
    allowed = {dag_id for dag_id in {entry.dag_id for entry in entries} if dag_id and reads(dag_id)}
    visible = [entry for entry in entries if entry.dag_id in allowed]
    return _readable(lambda: leaderboard(visible, latency, limit_s, state.kept))


def study_headline(
    dag_id: DagId, study: Annotated[str, Query(min_length=1)], readable: ReadableDags, state: Asked
) -> Response:
    """The headline of one study as one of its DAGs measured it."""
    entries = state.index.runs(_folder(study, state))
    visible = {entry.run.run_id for entry in entries if entry.dag_id in readable}
    own = [entry for entry in entries if entry.dag_id == dag_id]
    return json_answer(headline(own, state.kept, visible))


def runs(dag_id: DagId, state: Asked) -> Response:
    """The newest runs of a DAG."""
    entries = [
        entry for name in state.index.studies() for entry in state.index.runs(name) if entry.dag_id == dag_id
    ]
    entries.sort(key=lambda entry: entry.started_epoch_ns)
    return json_answer({"runs": run_rows(entries, state.kept)})


def trend(
    dag_id: DagId,
    state: Asked,
    study: str = "",
    metric: str = "",
    experiment: Annotated[list[str] | None, Query(max_length=100)] = None,
) -> Response:
    """The histories of experiments of one study as one DAG measured it."""
    there = _own(dag_id, state)
    entries = _entries_of(dag_id, study, there, state)
    if not entries:
        return json_answer({"studies": [], "root": state.index.root.url})
    shown = {"studies": studies_of(there), "folder": entries[-1].run.folder.above().name}
    return _readable(lambda: shown | trend_view(entries, metric, experiment or (), state.kept))


def trend_verdicts(
    dag_id: DagId,
    study: Annotated[str, Query(min_length=1)],
    metric: Annotated[str, Query(min_length=1)],
    state: Asked,
) -> Response:
    """What the nightly verdict says of each experiment of a study."""
    entries = _entries_of(dag_id, study, _own(dag_id, state), state)

    def make() -> Any:
        with state.watching:
            return verdicts(entries, metric, state.kept)

    return _readable(make)


@dataclass(frozen=True)
class Sides:
    """What is compared, as the address of the page tells it: names are ids of runs, or @RELEASE."""

    baseline: str
    baseline_dag: str
    candidates: Sequence[str]
    ignore: Sequence[str]


def _sides(
    baseline: str = "",
    baseline_dag: str = "",
    candidate: Annotated[list[str] | None, Query(max_length=LARGEST_CANDIDATES)] = None,
    ignore: Annotated[list[str] | None, Query(max_length=50)] = None,
) -> Sides:
    return Sides(baseline, baseline_dag, candidate or (), ignore or ())


def compare(
    dag_id: DagId,
    sides: Annotated[Sides, Depends(_sides)],
    reads: RunsReader,
    state: Asked,
    study: str = "",
    metric: str = "",
) -> Response:
    """Runs or releases of a DAG, each against one reference, which may be a run of another DAG."""
    there = _own(dag_id, state)
    entries = _entries_of(dag_id, study, there, state)
    shown = {"studies": studies_of(there), "choices": choices(entries)}
    first, rest = usual(entries)
    of, baseline, candidates = (
        sides.baseline_dag or dag_id,
        sides.baseline or first,
        list(sides.candidates) or rest,
    )
    if not baseline or not candidates:
        return json_answer(shown | {"rows": None})
    known = _reference(of, dag_id, entries, reads, state)

    def make() -> Any:
        how = How(metric=metric or COMPARED[0], ignore=tuple(sorted(sides.ignore)), answers=False)
        others = [named(name, entries, dag_id) for name in candidates]
        told = comparison(named(baseline, known, of), others, how, state.kept)
        names = {"baseline": baseline, "of": of, "candidates": candidates}
        folder = entries[-1].run.folder.above().name
        return shown | {"folder": folder, "names": names} | told

    return _readable(make)


def compare_pair(
    dag_id: DagId,
    run_id: RunId,
    experiment: Experiment,
    baseline: Annotated[str, Query(min_length=1)],
    baseline_experiment: Experiment,
    reads: RunsReader,
    state: Asked,
    baseline_dag: str = "",
) -> Response:
    """What lies behind one cell of a comparison."""
    of = baseline_dag or dag_id
    if of != dag_id and not reads(of):
        raise HTTPException(403, f"you have no permission to read the runs of the DAG {of}")
    ours, theirs = _found(of, baseline, state), _found(dag_id, run_id, state)
    return _readable(lambda: pair(ours, baseline_experiment, theirs, experiment))


def _reference(
    of: str, dag_id: str, entries: Sequence[Entry], reads: Callable[[str], bool], state: Server
) -> Sequence[Entry]:
    """The runs among which the reference is: those of the DAG's study, or all of another DAG that the user may read."""
    if of == dag_id:
        return entries
    if not reads(of):
        raise HTTPException(403, f"you have no permission to read the runs of the DAG {of}")
    found = [entry for _, own in _own(of, state) for entry in own]
    return sorted(found, key=lambda entry: entry.started_epoch_ns)


def _own(dag_id: str, state: Server) -> list[tuple[str, list[Entry]]]:
    """The runs of a DAG by the study's folder, oldest first; only folders that have one."""
    found = [
        (name, [entry for entry in state.index.runs(name) if entry.dag_id == dag_id])
        for name in state.index.studies()
    ]
    return [(name, entries) for name, entries in found if entries]


def _entries_of(
    dag_id: str, study: str, there: Sequence[tuple[str, list[Entry]]], state: Server
) -> list[Entry]:
    """The runs of a DAG in a study's folder; in that of its newest run when none is named."""
    if not study:
        return max((entries for _, entries in there), key=lambda one: one[-1].started_epoch_ns, default=[])
    found = dict(there).get(study)
    if found is None:
        raise HTTPException(
            404, f"the DAG {dag_id} has no run of a study {study!r} under {state.index.root.url}"
        )
    return found


def run(
    dag_id: DagId, run_id: RunId, session: SessionDep, may_read_logs: MayReadLogs, state: Asked
) -> Response:
    """What happens in a run, or what it came to."""
    seen = seen_run(session, dag_id, run_id)
    if seen is None:
        raise HTTPException(404, _no_such_run(dag_id, run_id, state))
    stored = state.index.find(dag_id, run_id)
    past_s = {} if seen.ended else past_durations(session, dag_id, run_id)
    view = state.recent.of(
        (dag_id, run_id, seen.state, may_read_logs),
        lambda: run_view(seen, stored, state.index.root.url, state.kept, past_s, may_read_logs=may_read_logs),
    )
    return json_answer(view)


def explore(dag_id: DagId, run_id: RunId, state: Asked) -> Response:
    """Everything that an aggregated run says."""
    return _readable(lambda: explorer(_found(dag_id, run_id, state), state.kept))


def values(dag_id: DagId, run_id: RunId, metric: Annotated[str, Query()], state: Asked) -> Response:
    """A metric's value in each cycle."""
    return _readable(lambda: {"cycles": cycle_values(_found(dag_id, run_id, state), metric)})


def download_table(
    dag_id: DagId,
    run_id: RunId,
    table: Annotated[str, Query()],
    form: Annotated[str, Query(alias="format")],
    state: Asked,
) -> Response:
    """A table of a run as a file."""
    if table not in _DOWNLOADED_TABLES or form not in FORMATS:
        known = f"tables {', '.join(_DOWNLOADED_TABLES)}; formats {', '.join(FORMATS)}"
        raise HTTPException(404, f"there is no such table or format; there are: {known}")
    stored = _found(dag_id, run_id, state)
    with tempfile.TemporaryFile() as file:
        try:
            export_table(stored, table, form, file)
        except (OSError, ValueError) as error:
            raise HTTPException(409, str(error)) from error
        file.seek(0)
        return download(file.read(), _file_name(stored, f"{table}.{form}"), _MEDIA_TYPES[form])


def download_file(dag_id: DagId, run_id: RunId, name: Annotated[str, Query()], state: Asked) -> Response:
    """A file of a run as it is stored."""
    if name not in _FILES:
        raise HTTPException(404, f"there is no such file; there are: {', '.join(_FILES)}")
    stored = _found(dag_id, run_id, state)
    if not stored.folder.exists(name):
        raise HTTPException(404, f"{stored.url} has no {name} yet")
    return download(stored.folder.read(name), _file_name(stored, name), _FILES[name])


def report(dag_id: DagId, run_id: RunId, state: Asked) -> Response:
    """The stored report; without one, the Energy tab of the run, which says why."""
    stored = state.index.find(dag_id, run_id)
    if stored is not None and stored.folder.exists(layout.REPORT):
        return HTMLResponse(in_theme(stored.folder.read(layout.REPORT).decode()), headers=PAGE_HEADERS)
    return notice("No results yet", _no_report(dag_id, run_id, stored, state), status=404)


def cycle_link(dag_id: DagId, run_id: RunId, experiment: Experiment, cycle: CycleNumber) -> Response:
    """The page of a cycle: where the button of its task leads."""
    view = urlencode({"view": "cycle", "cell": f"{experiment}.{cycle}"})
    below = urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")
    where = f"{below}/dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}/plugin/llem-energy?{view}"
    return RedirectResponse(where, headers=HEADERS)


def cycle_facts(
    dag_id: DagId,
    run_id: RunId,
    experiment: Experiment,
    cycle: CycleNumber,
    may_read_logs: MayReadLogs,
    state: Asked,
) -> Response:
    """What one cycle left: its result and doubts, or why there is none."""
    stored = _found(dag_id, run_id, state)
    return _readable(lambda: cycle_view(stored, experiment, cycle, state.kept, with_tails=may_read_logs))


def live(dag_id: DagId, run_id: RunId, experiment: Experiment, cycle: CycleNumber, state: Asked) -> Response:
    """Power of a cycle while it is at work, as its worker last told; null for one that is not."""
    stored = state.index.find(dag_id, run_id)
    return _readable(
        lambda: {
            "now_epoch_ns": time.time_ns(),
            "live": to_json(read_live(stored, experiment, cycle)) if stored else None,
        }
    )


def task_cycle(
    dag_id: DagId,
    run_id: RunId,
    task_id: Annotated[str, Query(min_length=1)],
    session: SessionDep,
    state: Asked,
    map_index: Annotated[int, Query(ge=-1)] = -1,
) -> Response:
    """Which cycle a task measures, also one of a mapped task that has not begun; null for none."""
    seen, stored = seen_run(session, dag_id, run_id), state.index.find(dag_id, run_id)

    def told() -> dict[str, Any]:
        found = cycle_of_task(seen, stored, task_id, map_index) if seen else None
        return {"experiment": found[0] if found else None, "cycle": found[1] if found else None}

    return _readable(told)


def power(
    dag_id: DagId,
    run_id: RunId,
    experiment: Experiment,
    cycle: CycleNumber,
    state: Asked,
    begin_s: Annotated[float | None, Query(allow_inf_nan=False)] = None,
    end_s: Annotated[float | None, Query(allow_inf_nan=False)] = None,
) -> Response:
    """The power of a cycle in a stretch of time."""
    ref = _cycle(dag_id, run_id, experiment, cycle, state)
    return _readable(lambda: state.power.between(ref, begin_s, end_s))


def requests(
    dag_id: DagId, run_id: RunId, experiment: Experiment, cycle: CycleNumber, state: Asked
) -> Response:
    """The requests of a cycle."""
    ref = _cycle(dag_id, run_id, experiment, cycle, state)
    return _readable(lambda: cycle_requests(ref))


def download_cycle(
    dag_id: DagId,
    run_id: RunId,
    experiment: Experiment,
    cycle: CycleNumber,
    name: Annotated[str, Query()],
    may_read_logs: MayReadLogs,
    state: Asked,
) -> Response:
    """A file of a cycle as it is stored; a table also as CSV, by the name with that ending."""
    ref = _cycle(dag_id, run_id, experiment, cycle, state)
    as_csv = name.endswith(".csv")
    stored_as = f"{name.removesuffix('.csv')}.parquet" if as_csv else name
    if stored_as not in ref.folder.files() or (as_csv and stored_as not in _TABLES):
        raise HTTPException(
            404, f"the cycle has no file of that name; it has: {', '.join(ref.folder.files())}"
        )
    if stored_as == layout.LOG and not may_read_logs:
        raise HTTPException(403, "the output of a task is for users who may read its log")
    try:
        data = csv_of(ref, stored_as) if as_csv else ref.folder.read(stored_as)
    except (OSError, ValueError) as error:
        raise HTTPException(409, str(error)) from error
    named = layout.folder_name(f"{experiment}-cycle-{cycle}-{name}")
    return download(data, named, _MEDIA_TYPES.get(name.rpartition(".")[2], "application/octet-stream"))


def _cycle(dag_id: str, run_id: str, experiment: str, cycle: int, state: Server) -> CycleRef:
    ref = _found(dag_id, run_id, state).cycle(experiment, cycle)
    if ref is None:
        raise HTTPException(404, f"cycle {cycle} of {experiment} has no result")
    return ref


def _found(dag_id: str, run_id: str, state: Server) -> StoredRun:
    stored = state.index.find(dag_id, run_id)
    if stored is None:
        raise HTTPException(404, _no_such_run(dag_id, run_id, state))
    return stored


def _readable(make: Callable[[], Any]) -> Response:
    """JSON of what was read, or 409 with what is wrong with the files and what to do."""
    try:
        return json_answer(make())
    except (OSError, ValueError) as error:
        raise HTTPException(409, str(error)) from error


def _folder(study: str, state: Server) -> str:
    """A study's folder, of those that there are: a name from outside never becomes a path."""
    if study not in state.index.studies():
        raise HTTPException(404, f"there is no study {study!r} under {state.index.root.url}")
    return study


def _file_name(stored: StoredRun, name: str) -> str:
    return layout.folder_name(f"{stored.study}-{stored.folder.name}-{name}")


def _no_such_run(dag_id: str, run_id: str, state: Server) -> str:
    return (
        f"There are no results of the run {run_id} of {dag_id} under {state.index.root.url} (option results_root of "
        "section [llem])."
    )


def _no_report(dag_id: str, run_id: str, stored: StoredRun | None, state: Server) -> str:
    if stored is None:
        return _no_such_run(dag_id, run_id, state)
    return "The task aggregate writes it. The Energy tab of the run shows what is known before."
