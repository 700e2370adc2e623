"""What the file says of a point, with the defaults of the models -> the configuration as it is measured.

Points share most sections, so each different section is validated, resolved and written as JSON once, however many
points have it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

from pydantic import ValidationError

from llem_airflow.study.config.base import (
    FRAGMENT,
    Config,
    KeyPath,
    lookup,
    merged,
    overlap,
    with_values,
    without,
)
from llem_airflow.study.config.base import Section as ConfigSection
from llem_airflow.study.config.engines import with_sampling
from llem_airflow.study.config.experiment import Experiment, section_model
from llem_airflow.study.file.check import Stage, check
from llem_airflow.study.file.document import Document
from llem_airflow.study.names import OWN_ENGINES
from llem_airflow.study.plan.identity import NEEDED, canonical_json, identity_view
from llem_airflow.study.plan.rules import Rule, relevant, rules_of
from llem_airflow.study.plan.sweep import Delta, Variant
from llem_airflow.study.problems import Problem

_SCALARS = ("serving_mode", "sampling_preset", "passthrough_kwargs")
_ORDER = tuple(Experiment.model_fields)
_SAMPLING = tuple((engine, "sampling_params") for engine in OWN_ENGINES)
_DECIDES: dict[KeyPath, tuple[KeyPath, ...]] = {
    ("measurement", "energy_sampler"): (("measurement", "meter"),),
    ("offline", "warmup"): (("offline", "warmup"),),
    ("sampling_preset",): _SAMPLING,
    ("transformers", "sampling_params"): _SAMPLING,
    ("gpus",): (("gpus",),),
}
"""Keys that others follow from, with those others: when one varies, rules about the others can apply."""


class Section(NamedTuple):
    """A section of some points.

    Attributes:
        config: The section as it is measured.
        identity: Its JSON in the hash.
        effective: Its JSON without what has no effect.
        idle: The keys that have none.
    """

    config: Config
    identity: str
    effective: str
    idle: tuple[KeyPath, ...]


class Point(NamedTuple):
    """The configuration of a point and its sections by name."""

    config: Config
    sections: dict[str, Section]

    def identity(self) -> str:
        """The canonical JSON that the hash is of."""
        return self._text({name: section.identity for name, section in self.sections.items()})

    def effective(self) -> str:
        """The same without what has no effect."""
        return self._text({name: section.effective for name, section in self.sections.items()})

    def _text(self, texts: dict[str, str]) -> str:
        for name, value in self.config.items():
            if name not in texts:
                texts[name] = canonical_json(value)
        return "{" + ",".join([f'"{name}":{texts[name]}' for name in sorted(texts)]) + "}"


class Batch:
    """Points that share what is written: those of a sweep on one engine, or one written-out experiment.

    Attributes:
        engine: Their engine.
        problems: What was found to be wrong with them.
        fired: Rules that make a key idle at some point.
    """

    def __init__(
        self,
        document: Document,
        origin: tuple[str | int, ...],
        written: Config,
        varied: set[KeyPath],
        stage: Stage = "whole",
    ) -> None:
        self.engine: str = written["engine"]
        self.problems: set[Problem] = set()
        self.fired: dict[str, Rule] = {}
        self._document, self._origin, self._written, self._stage = document, origin, written, stage
        self._known: dict[Any, Section | None] = {}
        names = ["task", "measurement", written["serving_mode"], self.engine]
        names += ["gpus"] * ("gpus" in written)
        decided = {
            path
            for key, paths in _DECIDES.items()
            if any(overlap(key, one) for one in varied)
            for path in paths
        }
        swept = {path[0] for path in varied | decided}
        self._moving = [name for name in dict.fromkeys((*names, "gpus")) if name in swept]
        self._scalars: Config = {name: written[name] for name in ("engine", *_SCALARS) if name in written}
        self._rules = relevant(rules_of(self.engine), self._unswept(names), varied | decided)
        self._base = {
            name: self._section(name, (), self._scalars) for name in names if name not in self._moving
        }
        self._names = names

    def _unswept(self, names: list[str]) -> Config:
        """The configuration without the sweep, which need not be one that can run."""
        found = dict(self._scalars)
        for name in names:
            written = merged(NEEDED.get(name, {}), self._written.get(name) or {})
            with suppress(ValidationError):
                section = section_model(name).model_validate(written, context=FRAGMENT)
                found[name] = self._config(name, section, self._scalars.get("sampling_preset"))
        return found

    def _config(self, name: str, section: ConfigSection, preset: str | None) -> Config:
        """A section as it is measured; the engine's has the sampling of the preset."""
        config = section.config()
        return with_sampling(name, config, preset) if name == self.engine else config

    @property
    def invalid(self) -> list[Rule]:
        """The rules that can exclude some of the points."""
        return [rule for rule in self._rules if rule.invalid]

    def point(self, variant: Variant) -> Point | None:
        """One point; None when something is wrong with it."""
        scalars = self._scalars
        touched: dict[str, list[Delta]] = {}
        for delta in variant:
            if delta.path[0] in _SCALARS:
                scalars = scalars | {delta.path[0]: delta.value}
            else:
                touched.setdefault(delta.path[0], []).append(delta)
        sections = dict(self._base)
        for name in self._moving:
            if name in self._names or name in touched:
                sections[name] = self._section(name, tuple(touched.get(name, ())), scalars)
        found = {name: section for name, section in sections.items() if section is not None}
        if len(found) < len(sections):
            return None
        values = scalars | {name: section.config for name, section in found.items()}
        return Point({name: values[name] for name in _ORDER if values.get(name) is not None}, found)

    def _section(self, name: str, deltas: tuple[Delta, ...], scalars: Config) -> Section | None:
        preset = scalars.get("sampling_preset") if name == self.engine else None
        key = (name, preset, *map(id, deltas))
        if key in self._known:
            return self._known[key]
        written = {name: self._written.get(name) or {}}
        written = with_values(written, ((path, value) for path, value, _ in deltas))
        report = self._document.reporter(self.problems, self._origin, deltas[::-1])
        swept = {path for path, _, _ in deltas}
        section = check(section_model(name), written[name], (name,), report, stage=self._stage, swept=swept)
        found = None if section is None else self._judged(name, self._config(name, section, preset))
        if len(self._moving) != 1:  # else each point has its own, and keeping it would only cost memory
            self._known[key] = found
        return found

    def _judged(self, name: str, config: Config) -> Section:
        """What the rules say of a section: each that makes a key idle looks at one section only."""
        alone = {name: config}
        identity = effective = identity_view(alone)
        idle: list[KeyPath] = []
        for rule in self._rules:
            if rule.section != name or not rule.applies(alone if rule.neutral else identity):
                continue
            if rule.ignores:
                self.fired[rule.id] = rule
            for path in rule.ignores:
                if lookup(alone, path) is not None:
                    idle.append(path)
                    effective = effective if rule.neutral else without(effective, path)
        text = canonical_json(identity[name])
        return Section(config, text, canonical_json(effective[name]) if idle else text, tuple(idle))
