"""The DAGs of a folder of study files: one file that cannot become a DAG shows why and takes no other down."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from airflow.sdk import DAG, Context, get_parsing_context, task
from airflow.sdk.exceptions import AirflowFailException

from llem_airflow.factory.docs import invalid_doc, plain
from llem_airflow.factory.releases import ALL, EACH, release_dags
from llem_airflow.factory.study import build_dag, check_render, read_study
from llem_airflow.operators.ui import keep_failure
from llem_airflow.study import Problem, Study, StudyFileError
from llem_airflow.study.names import INVALID_PREFIX, dag_id_of, plain_name
from llem_airflow.study.plan.findings import not_runnable

log = logging.getLogger(__name__)

INVALID_TAG = "llem:invalid"


def study_dags(
    folder: str | Path | MutableMapping[str, Any],
    namespace: MutableMapping[str, Any] | str | Path | None = None,
    *,
    strict: bool = False,
    **dag_args: Any,
) -> dict[str, DAG]:
    """Make a DAG of each study file (``*.yaml``, ``*.yml``) in a folder.

    A file that cannot become a DAG, whatever the reason, becomes one tagged ``llem:invalid`` that shows it, and takes
    no other study down. Of two files that ask for one DAG id the first by name has it, and both say so. A worker,
    which parses the file for one task, builds that task's DAG only.

    Args:
        folder: Where the study files lie. ``study_dags(globals(), folder)`` is the same as
            ``study_dags(folder, globals())``.
        namespace: ``globals()`` of the DAG file, into which the DAGs are put. Airflow also finds them without it.
        strict: Raise an error for a file with problems, instead of making a DAG that shows them.
        **dag_args: As for :func:`study_dag`.

    Returns:
        The DAGs by id.

    Raises:
        StudyFileError: A file has problems and ``strict`` is set.
        FileNotFoundError: The folder does not exist.
        ValueError: ``render`` is none of the three.
    """
    check_render(dag_args.get("render", "auto"))
    if isinstance(folder, MutableMapping):
        folder, namespace = namespace, folder  # type: ignore[assignment] # told apart below
    if not isinstance(folder, str | Path):
        raise TypeError(f"study_dags needs a folder of study files, not {folder!r}")
    if not (folder := Path(folder)).is_dir():
        raise FileNotFoundError(f"study folder {folder} does not exist")
    paths = study_files(folder)
    wanted = get_parsing_context().dag_id
    some = files_naming(paths, wanted.removesuffix(EACH).removesuffix(ALL)) if wanted else paths
    dags = _dags_of(some, strict=strict, dag_args=dag_args)
    if wanted is not None and wanted not in dags:
        dags = _dags_of(paths, strict=strict, dag_args=dag_args)
    if isinstance(namespace, MutableMapping):
        namespace.update({f"study_{index}": dag for index, dag in enumerate(dags.values())})
    return dags


def _dags_of(paths: Sequence[Path], *, strict: bool, dag_args: dict[str, Any]) -> dict[str, DAG]:
    found = FolderDags()
    for path in paths:
        try:
            found.add(path, _made(read_study(path), dag_args))
        except StudyFileError as error:
            if strict:
                raise
            found.refuse(path, str(error))
        except Exception as error:
            if strict:
                raise
            log.exception("%s cannot become a DAG", path)
            found.refuse(path, f"{path}: {type(error).__name__}: {error}")
    return found.registered()


def _made(study: Study, dag_args: dict[str, Any]) -> list[DAG]:
    """The DAGs of a study; only a worker does not look whether Airflow stores them: it reads what was stored."""
    if get_parsing_context().dag_id is None and (problems := dag_problems(study, **dag_args)):
        raise StudyFileError(problems)
    return _study_dags(study, dag_args)


def dag_problems(study: Study, **dag_args: Any) -> tuple[Problem, ...]:
    """What keeps a study from becoming a DAG: why no run could end well, its times, and whatever Airflow refuses.

    The last, for which Airflow's DAG processor would drop every DAG of the file, is told by the DAGs of one cycle: the
    others differ in nothing that Airflow could refuse.
    """
    from airflow.serialization.serialized_objects import DagSerialization  # noqa: PLC0415  # no task needs it

    problems = not_runnable(study)
    some = study.experiments[:1]
    runs = [run for run in study.plan.planned_cycles if run.experiment_id == some[0].id][:1]
    small = replace(study, plan=replace(study.plan, experiments=some, planned_cycles=runs))
    try:
        for dag in _study_dags(small, dag_args):
            dag.validate()  # type: ignore[no-untyped-call]  # Airflow leaves it untyped
            DagSerialization.to_dict(dag)
    except StudyFileError as error:
        problems += error.problems
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the finding
        said = " ".join(f"{error}".split())[:500] or type(error).__name__
        found = f"Airflow makes no DAG of it: {said}"
        problems.append(study.problem(("airflow",), found, "change what this names"))
    return tuple(problems)


def _study_dags(study: Study, dag_args: dict[str, Any]) -> list[DAG]:
    return [build_dag(study, known=False, **dag_args), *release_dags(study, known=False)]


def study_files(folder: Path) -> list[Path]:
    """Every study file, by name: regular files and links to them, none that is hidden (an editor's lock or backup)."""
    found = []
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        if path.name.startswith("."):
            continue
        if os.path.isfile(path):  # noqa: PTH113  # Path.is_file() raises where a link leads into a closed folder
            found.append(path)
        else:
            log.warning("%s is no regular file and is left out", path)
    return found


def files_naming(paths: Sequence[Path], dag_id: str) -> list[Path]:
    """The files that a DAG of this id can come from.

    Reading a name is cheap, expanding a sweep is not. A name that is written in an unusual way is only missed here: the
    caller then reads every file. A file too many costs time; one too few could give the id to another study.
    """
    stem = dag_id.removeprefix(INVALID_PREFIX)
    # What a dash of the id stands for in the name is not known; a long name ends in its hash.
    parts = [re.escape(part) for part in re.split(r"-+", re.sub(r"(?<=.{229})-[0-9a-f]{8}\Z", "", dag_id))]
    written = re.compile(r"(?<![\w.])" + r"[^\w.]+".join(parts))
    return [path for path in paths if stem in _of_file(path) or written.search(_content(path))]


def _of_file(path: Path) -> tuple[str, str]:
    """Ids from the name of the file: of its study where the text names none, and of its problems."""
    return dag_id_of(plain_name(path.stem)), dag_id_of(path.stem)


def _content(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace") if path.is_file() else ""
    except OSError:  # it cannot be read, or went away: it then names nothing
        return ""


class FolderDags:
    """DAGs by id, each from one file; none is known to the Airflow that reads the DAG file before :meth:`registered`.

    Attributes:
        dags: What there is so far.
    """

    def __init__(self) -> None:
        self.dags: dict[str, DAG] = {}
        self._files: dict[str, Path] = {}

    def add(self, path: Path, made: Sequence[DAG]) -> None:
        """Add the DAGs of a file; when another file has one of their ids already, both say so."""
        taken = next((dag.dag_id for dag in made if dag.dag_id in self.dags), None)
        if taken is not None:
            first = self.dags[taken]
            first.doc_md = (
                f"**{plain(_text(path.name))} asks for this DAG id too and is not run.**\n\n{first.doc_md}"
            )
            self.refuse(
                path,
                f"{path}: the DAG id {taken!r} is already taken by {self._files[taken].name}; "
                "set study_name or airflow.dag_id in one of them",
            )
            return
        self.dags |= {dag.dag_id: dag for dag in made}
        self._files |= {dag.dag_id: path for dag in made}

    def registered(self) -> dict[str, DAG]:
        """The DAGs, known to Airflow: a DAG that was begun and given up, or has the id of another, is not."""
        for dag in self.dags.values():
            dag.auto_register = True
            with dag:
                pass
        return self.dags

    def refuse(self, path: Path, report: str) -> None:
        """Add a DAG that stands for a file with problems: it shows them, and its only task fails with them."""
        report = _text(report)
        log.warning("%s", report)
        dag_id = wanted = INVALID_PREFIX + dag_id_of(_text(path.stem))
        number = 1
        while dag_id in self.dags:
            number += 1
            dag_id = f"{wanted}-{number}"
        self.dags[dag_id] = _invalid_dag(dag_id, _text(path.name), report)
        self._files[dag_id] = path


def _invalid_dag(dag_id: str, name: str, report: str) -> DAG:
    with DAG(
        dag_id=dag_id,
        # Airflow's list searches by how names begin: who looks for the file finds it.
        dag_display_name=f"{name} has problems",
        description=f"{name} has problems",
        doc_md=invalid_doc(name, report),
        schedule=None,
        tags=["llem", INVALID_TAG],
        auto_register=False,
    ) as dag:

        @task(task_id="problems", retries=0)
        def problems(**context: Any) -> None:
            error = AirflowFailException(report)
            keep_failure(cast("Context", context), error)
            raise error

        problems()
    return dag


def _text(text: str) -> str:
    """A text that can be stored: files may be named in bytes that are none."""
    return text.encode("utf-8", "backslashreplace").decode()
