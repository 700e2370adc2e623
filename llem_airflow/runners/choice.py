"""Which runner and which image an engine's experiments get, and which layer says so; the first that speaks decides.

In order: the operator's argument, the study, the host's connection, the worker's variables ``LLEM_RUNNER_<ENGINE>``
and ``LLEM_IMAGE_<ENGINE>``, section ``[llem]`` of Airflow's configuration, else ``auto``. Of one layer an image that is
named as such goes before that of ``docker:<image>``. Each speaks the study file's words (``docker:<image>``, ``local``,
``pytorch``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llem_airflow.study.names import ENGINE_ALIASES, ENGINES, RUNNERS, split_runner

AUTO = "auto"
DEFAULT = "no layer"
IMAGE_ARGUMENT = "the operator's argument `image`"
_PREFIX = {"runner": "LLEM_RUNNER_", "image": "LLEM_IMAGE_"}
_WORDS = "process, container, container:<image>, kubernetes or auto (also local, docker, docker:<image>)"


class RunnerError(ValueError):
    """A layer names a runner or an engine that there is not; the text says which layer, and what is allowed."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Where an engine's experiments run.

    Attributes:
        runner: process | container | auto.
        by: The layer that says so, for people.
        why: Why ``auto`` became what it is; empty where a layer decided.
        images: Images that layers name for it, with their layer, the first before the others.
    """

    runner: str
    by: str
    why: str = ""
    images: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """As people read it."""
        return f"{self.runner} ({self.why or self.by})"

    @property
    def told(self) -> str:
        """Runner, image and their layers, before ``auto`` is decided."""
        if self.runner == AUTO and not self.why:
            return "auto: containers where a Docker engine answers, else processes; decided once, when a run is planned"
        image = f", image {self.images[0][0]} ({self.images[0][1]})" if self.images else ""
        return f"{self}{image if self.runner != RUNNERS[0] else ''}"

    def to_json(self) -> dict[str, Any]:
        """For a plan or a record."""
        return {
            "runner": self.runner,
            "by": self.by,
            "why": self.why,
            "images": [list(i) for i in self.images],
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Choice:
        """From :meth:`to_json`."""
        images = tuple((str(image), str(by)) for image, by in said["images"])
        return cls(str(said["runner"]), str(said["by"]), str(said["why"]), images)


@dataclass(frozen=True, slots=True)
class Layers:
    """Everything outside the study that may name a runner or an image.

    Attributes:
        argument: The operator's (or the command's) ``runner``, for every engine.
        environ: Environment of whoever decides.
        connection: Runner by engine, as the host's connection says.
        connection_images: Image by engine, likewise.
        installation: Runner by engine, as ``[llem] runners`` says.
        operator_image: The operator's argument ``image``.
    """

    argument: str | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    connection: Mapping[str, str] = field(default_factory=dict)
    connection_images: Mapping[str, str] = field(default_factory=dict)
    installation: Mapping[str, str] = field(default_factory=dict)
    operator_image: str = ""

    def choice(self, engine: str, runner: str = AUTO, image: str | None = None) -> Choice:
        """What the layers say of an engine.

        Args:
            engine: Its name.
            runner: What the study says of it.
            image: The same.

        Raises:
            RunnerError: A layer says something that cannot be.
        """
        check_variables(self.environ)
        said = list(self._said(engine, runner, image))
        found, by = next(((named, layer) for named, layer, _ in said if named), (AUTO, DEFAULT))
        return Choice(found, by, images=tuple(named for _, _, images in said for named in images))

    def _said(
        self, engine: str, study: str, study_image: str | None
    ) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
        """Runner, its layer, and the images that the layer names with theirs; in order of authority."""
        runner_variable, runner_value = _variable(self.environ, "runner", engine)
        image_variable, image_value = _variable(self.environ, "image", engine)
        argument, connection = "the operator's argument `runner`", "the host's connection (runners)"
        for runner, layer, image, image_layer in (
            (self.argument, argument, self.operator_image, IMAGE_ARGUMENT),
            ("" if study == AUTO else study, "the study", study_image, "the study"),
            (
                self.connection.get(engine),
                connection,
                self.connection_images.get(engine),
                "the host's connection (images)",
            ),
            (runner_value, runner_variable, image_value, image_variable),
            (self.installation.get(engine), "[llem] runners", None, ""),
        ):
            named, own = _split(runner, layer)
            yield named, layer, [(each, by) for each, by in ((image, image_layer), (own, layer)) if each]


def terminal_layers(environ: Mapping[str, str]) -> Layers:
    """What a terminal sees without Airflow: variables, and ``[llem] runners`` where a variable sets it.

    Raises:
        RunnerError: It cannot be read.
    """
    name = next((name for name in ("AIRFLOW__LLEM__RUNNERS", "LLEM_RUNNERS") if environ.get(name)), None)
    return Layers(environ=environ, installation=read_runners(environ[name], name) if name else {})


def _split(value: str | None, layer: str) -> tuple[str, str | None]:
    if not value or value == AUTO:
        return value or "", None
    found = split_runner(value)
    if found is None:
        raise RunnerError(f"{layer}: found {value!r}; allowed: {_WORDS}")
    return found


def _names(engine: str) -> tuple[str, ...]:
    return (engine, *(alias for alias, name in ENGINE_ALIASES.items() if name == engine))


def _variable(environ: Mapping[str, str], kind: str, engine: str) -> tuple[str, str | None]:
    """The variable that speaks of an engine, by whichever of its names, and what it says."""
    names = dict.fromkeys(f"{_PREFIX[kind]}{name.upper().replace('-', '_')}" for name in _names(engine))
    said = {name: environ[name] for name in names if environ.get(name)}
    if len(set(said.values())) > 1:
        raise RunnerError(
            f"{' and '.join(said)} speak of one engine and say different things: keep one of them"
        )
    return next(iter(said.items()), (next(iter(names)), None))


def check_variables(environ: Mapping[str, str]) -> None:
    """Check every variable that names a runner.

    Raises:
        RunnerError: One names no engine, or no runner.
    """
    known = {name.upper().replace("-", "_") for engine in ENGINES for name in _names(engine)}
    for name, value in environ.items():
        engine = name.removeprefix(_PREFIX["runner"])
        if engine == name or not value:
            continue
        if engine not in known:
            raise RunnerError(
                f"{name} names no engine; engines are: {', '.join(ENGINES)} (also {_aliases()})"
            )
        _split(value, name)


def _aliases() -> str:
    return ", ".join(ENGINE_ALIASES)


def read_runners(value: Any, layer: str) -> dict[str, str]:
    """Runner by engine, from a JSON object or its text, with the engines' current names.

    Raises:
        RunnerError: It is none, or names something that there is not.
    """
    try:
        said = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        said = None
    if not isinstance(said, dict) or not all(isinstance(each, str) for each in said.values()):
        raise RunnerError(
            f'{layer}: found {value!r}; allowed: a JSON object such as {{"vllm": "docker:my/image"}}'
        )
    found: dict[str, str] = {}
    for name, runner in said.items():
        engine = ENGINE_ALIASES.get(name, name)
        if engine not in ENGINES:
            raise RunnerError(
                f"{layer}: {name!r} is no engine; engines are: {', '.join(ENGINES)} (also {_aliases()})"
            )
        _split(runner, f"{layer}: {name}")
        found[engine] = runner
    return found


def said_by_engine(layers: Layers, experiments: Sequence[Any]) -> dict[str, Choice]:
    """What the layers say of each engine of some experiments, in order of name.

    Raises:
        RunnerError: A layer says something that cannot be.
    """
    by_engine = {each.engine: each for each in experiments}
    return {
        engine: layers.choice(engine, by_engine[engine].runner, by_engine[engine].image)
        for engine in sorted(by_engine)
    }


def settled(said: Mapping[str, Choice], *, engine_text: str, answers: bool) -> dict[str, Choice]:
    """The same with ``auto`` decided, once for all engines: containers where a Docker engine answers, else processes.

    Args:
        said: What the layers say.
        engine_text: What was found of the Docker engine, for people.
        answers: Whether it answers.

    Raises:
        RunnerError: There is none and the study has several engines, which no one Python holds.
    """
    open_ones = [engine for engine, choice in said.items() if choice.runner == AUTO]
    if open_ones and not answers and len(said) > 1:
        pinned = ", ".join(f"{engine}: process" for engine in open_ones)
        raise RunnerError(
            f"the study has {len(said)} engines ({', '.join(said)}), which need containers, and {engine_text}. Start "
            "a Docker engine, or name one by DOCKER_HOST or the host's connection; or put each engine into a study of "
            f"its own; or, where one Python has them all, say so: `runners: {{{pinned}}}`"
        )
    runner = RUNNERS[1] if answers else RUNNERS[0]
    return {
        engine: Choice(runner, choice.by, f"auto: {engine_text}", choice.images)
        if engine in open_ones
        else choice
        for engine, choice in said.items()
    }
