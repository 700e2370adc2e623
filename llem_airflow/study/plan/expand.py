"""The points of a study: what each is as it is measured, which can run, and which are the same measurement.

Points share most sections, so each different section is validated, resolved and written as JSON once, however many
points have it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from pydantic import ValidationError

from llem_airflow.study.config.base import (
    FRAGMENT,
    Config,
    KeyNames,
    Section,
    every_key,
    leaf_paths,
    lookup,
    merged,
    overlap,
    with_values,
    without,
)
from llem_airflow.study.config.engines import with_sampling
from llem_airflow.study.config.experiment import LOADS, Experiment, section_model
from llem_airflow.study.file.document import Document, Stage, check
from llem_airflow.study.names import ENGINES, OWN_ENGINES
from llem_airflow.study.plan.identity import NEEDED, canonical_json, digest, experiment_hash, identity_view
from llem_airflow.study.plan.model import Skipped
from llem_airflow.study.plan.order import grid, probe_order
from llem_airflow.study.plan.rules import Rule, relevant, rules_of
from llem_airflow.study.plan.sweep import Delta, Sweep, Variant
from llem_airflow.study.problems import KeyPath, Problem, StudyFileError, StudyWarning, dotted
from llem_airflow.text.wording import counted

_RATE = ("server", "traffic", "rate")
FIND_RATE = ("server", "traffic", "find_rate")
MOST_TOLD_POINTS = 10_000
"""So many points are looked at for more problems when a file has some already."""


@dataclass(slots=True)
class Unique:
    """A point that runs, and the points that are the same measurement.

    Attributes:
        config: Its configuration.
        hash: Identity of the configuration as declared.
        members: Hashes of the points it stands for, its own first.
        ignored: Keys in which they differ: those without effect, and those that make no other measurement.
        first_counts: Of these the ones with an effect: they judge a result or bound an attempt, as in ``config``.
    """

    config: Config
    hash: str
    members: list[str]
    ignored: set[str] = field(default_factory=set)
    first_counts: set[KeyNames] = field(default_factory=set)


@dataclass(slots=True)
class Expansion:
    """Every point of a study.

    Attributes:
        declared: How many points the file declares.
        valid: How many can run.
        skipped: The others, with the rule.
        uniques: The experiments.
        varied: Keys that differ between points, for their names.
        fired: Rules that make a key idle at some point.
    """

    declared: int = 0
    valid: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    uniques: list[Unique] = field(default_factory=list)
    varied: list[KeyNames] = field(default_factory=list)
    fired: dict[str, Rule] = field(default_factory=dict)
    searches: list[tuple[int, list[float]]] = field(default_factory=list)
    """Of each search the place of its first experiment, and the rates, ascending."""


def expand(document: Document, sweep: Sweep, problems: set[Problem]) -> Expansion:
    """Expand a study. What only whole experiments show is told with the ``problems`` that are known already.

    Raises:
        StudyFileError: Something was wrong, keys are missing or contradict each other, modes are mixed, or nothing is
            left to run.
    """
    engines = _engines(document, sweep)
    checks = _Checks(document, sweep, problems)
    mode = checks.run(engines)
    if (count := sum(sweep.count(engine) for engine in engines)) > document.bounds.points:
        found, most = f"the sweep has {counted(count, 'point')}", f"at most {document.bounds.points:,}"
        problems.add(document.source.problem(("sweep",), found, f"{most}; drop an axis", of_key=True))
    if mode is None:
        raise StudyFileError(problems)
    expansion = Expansion()
    judge = _Judge(expansion, collapse=document.keys.study_execution.deduplicate_equivalent)
    stage: Stage = "rest" if problems else "whole"
    for origin, written, varied, variants in _batches(document, sweep, engines, checks):
        wrong = () if origin else checks.wrong_axes
        batch = Batch(document, origin, written | {"serving_mode": mode}, varied, stage, wrong)
        # The first points tell enough beside what is wrong already.
        judge.batch(batch, variants if stage == "whole" else islice(variants, MOST_TOLD_POINTS))
        problems |= batch.problems
    if expansion.declared == len(expansion.skipped) > 0 and not checks.about_rules(expansion.skipped):
        problems.add(_nothing_left(document, sweep, expansion))
    if not problems:
        problems.update(_search(document, expansion))
    if problems:
        raise StudyFileError(problems)
    expansion.varied = _varied(document, sweep, expansion)
    return expansion


def _batches(
    document: Document, sweep: Sweep, engines: list[str], checks: _Checks
) -> Iterator[tuple[KeyPath, Config, set[KeyNames], Iterator[Variant]]]:
    """Where points are written, what they share, what varies, and what each of them sets."""
    if sweep or not document.entries or checks.about("sweep"):
        for engine in engines:
            written = document.fixed | {"engine": engine}
            if sweep.cut_off:  # then no point of it can be relied on, but what it leaves alone can
                yield (), written, {(head,) for head in sweep.heads}, iter(())
            else:
                yield (), written, sweep.paths(), sweep.points(engine)
    for index, entry in enumerate(document.entries):
        engine = entry.get("engine") or document.default_engine
        yield ("experiments", index), merged(document.fixed, entry) | {"engine": engine}, set(), iter([()])


def _engines(document: Document, sweep: Sweep) -> list[str]:
    """The engines whose sweep is run: those listed, else the scopes seen plus one written explicitly."""
    if sweep.engines:
        return sweep.engines
    if document.engines is not None and len(document.engines) > 1:
        return document.engines
    scopes = sweep.scopes()
    return sorted(scopes.union(document.engines or ())) if scopes else document.engines or ["transformers"]


class _Judge:
    """Decides for each point: skipped, the same as an earlier one, or an experiment."""

    def __init__(self, expansion: Expansion, *, collapse: bool) -> None:
        self.expansion, self.collapse = expansion, collapse
        self.seen: dict[str, Unique] = {}
        self.declared: set[str] = set()

    def batch(self, batch: Batch, variants: Iterator[Variant]) -> None:
        """Judge the points of a batch."""
        invalid = batch.invalid
        for variant in variants:
            self.expansion.declared += 1
            point = batch.point(variant)
            if point is None:
                continue
            rule = next((rule for rule in invalid if rule.applies(point.config)), None)
            if rule is None:
                self._valid(point)
            else:
                shown = {dotted(path): value for path, value, _ in variant} | {"engine": batch.engine}
                self.expansion.skipped.append(Skipped(rule.id, rule.told(point.config), shown))
        self.expansion.fired |= batch.fired

    def _valid(self, point: Point) -> None:
        self.expansion.valid += 1
        own = digest(point.identity())
        idle = [path for section in point.sections.values() for path in section.idle]
        key = digest(point.effective()) if idle else own
        leader = self.seen.get(key)
        if leader is None or (not self.collapse and own not in self.declared):
            unique = Unique(point.config, own, [])
            self.expansion.uniques.append(unique)
            leader = leader or self.seen.setdefault(key, unique)
        self.declared.add(own)
        leader.members.append(own)
        if len(leader.members) > 1:
            differ = _differing(leader.config, point.config)
            leader.ignored |= set(map(dotted, differ))
            leader.first_counts |= differ.difference(idle)


def _differing(one: Config, other: Config) -> set[KeyNames]:
    """Keys with two values in two configurations, which share the sections that no axis touches."""
    apart = [name for name in one.keys() | other.keys() if one.get(name) is not other.get(name)]
    paths = {
        path
        for config in (one, other)
        for path in leaf_paths({name: config[name] for name in apart if name in config})
    }
    return {path for path in paths if lookup(one, path) != lookup(other, path)}


def _search(document: Document, expansion: Expansion) -> Iterator[Problem]:
    """Put the candidate rates of a search in its place, in the order in which it asks for them.

    It is a problem when another experiment is the same measurement as a candidate, and when the order is another.
    """
    found: list[Unique] = []
    for unique in expansion.uniques:
        asked = unique.config.get("server", {}).get("traffic", {}).get("find_rate")
        if asked is None:
            found.append(unique)
            continue
        rates = grid(asked["lowest"], asked["highest"], asked["tolerance"], asked["max_probes"])
        expansion.searches.append((len(found), rates))
        config = without(unique.config, FIND_RATE)
        for place in probe_order(len(rates)):
            probe = with_values(config, ((_RATE, rates[place]),))
            own = experiment_hash(probe)
            found.append(Unique(probe, own, [own]))
    if not expansion.searches:
        return
    expansion.uniques = found
    order = document.keys.study_execution.experiment_order
    if order != "sequential":
        found_order = f"{order} is no order for find_rate, whose probes follow from each other"
        where: KeyPath = ("study_execution", "experiment_order")
        yield document.source.problem(where, found_order, "allowed: sequential", of_key=True)
    if len({unique.hash for unique in found}) < len(found):
        path: KeyPath = ("server", "traffic", "find_rate")
        same = "a rate of find_rate is the same measurement as another experiment of the study"
        advice = "move its bounds, or make another study of one of them"
        where = path if document.source.has(path) else ("sweep",)
        yield document.source.problem(where, same, advice, of_key=True)


def _varied(document: Document, sweep: Sweep, expansion: Expansion) -> list[KeyNames]:
    """Keys in which the experiments differ, in the order in which the file names them.

    An axis of which one value is left still counts: the experiment keeps the name, and so the history, that it had
    beside the others.
    """
    paths = dict.fromkeys(delta.path for variant in sweep.variants() for delta in variant)
    for entry in document.entries:
        paths |= dict.fromkeys(leaf_paths(entry))
    paths[("engine",)] = None
    axes = {
        dimension.variants[0][0].path
        for dimension in sweep.dimensions
        if len(dimension.variants) == 1 == len(dimension.variants[0])
    }
    configs = [unique.config for unique in expansion.uniques]
    if expansion.searches:
        paths[_RATE] = None
    return [path for path in paths if path in axes or _differs(configs, path)]


def _differs(configs: list[Config], path: KeyNames) -> bool:
    if not configs:
        return False
    first = lookup(configs[0], path)
    return any(lookup(config, path) != first for config in configs)


def _nothing_left(document: Document, sweep: Sweep, expansion: Expansion) -> Problem:
    reasons = list(dict.fromkeys(f"[{skip.rule}] {skip.reason}" for skip in expansion.skipped))
    first = expansion.skipped[0]
    rule = _rule_of(first)
    where = ("sweep",) if sweep else ("experiments",) if document.entries else rule.conditions[0].path
    what = (
        "the experiment" if expansion.declared == 1 else f"each of the {counted(expansion.declared, 'point')}"
    )
    found = f"nothing is left to run: {what} is known not to work: {'; '.join(reasons[:5])}"
    return document.source.problem(where, found, "change or drop these keys", of_key=True)


def _rule_of(skipped: Skipped) -> Rule:
    return next(rule for rule in rules_of(skipped.point["engine"]) if rule.id == skipped.rule)


def _ends(path: str, marks: str) -> list[int]:
    """Where a dotted path or one above it ends."""
    return [*(place for place, letter in enumerate(path) if letter in marks), len(path)]


_NEEDED: dict[KeyNames, str] = {
    ("serving_mode",): "add serving_mode: offline (a fixed prompt set) or serving_mode: server",
    ("task", "model"): "add task: {model: ...}",
    _RATE: "add server: {traffic: {rate: <requests per second>}}",
}


class _Checks:
    """What can only be said of whole experiments: required keys, one serving mode, sections that fit."""

    def __init__(self, document: Document, sweep: Sweep, problems: set[Problem]) -> None:
        self.document, self.sweep, self.problems = document, sweep, problems
        self._at = {problem.path for problem in problems}
        self._above = {path[:end] for path in self._at for end in _ends(path, ".[")}
        self._meant = {problem.suggestion for problem in problems}
        swept = "\n".join(f"{problem.path}[" for problem in problems if problem.path.startswith("sweep."))
        self.wrong_axes = {
            path
            for path, _, _ in (every_key(Experiment) if swept else ())
            if (key := ".".join(path)) in self._meant or f".{key}[" in swept
        }
        """Keys of which some value in the sweep is wrong, or that were probably meant there."""

    def about(self, *key: str) -> bool:
        """Whether something is known to be wrong at a key, above or below it, or was probably meant for it."""
        whole = ".".join(key)
        return (
            whole in self._above
            or any(whole[:end] in self._at for end in _ends(whole, "."))
            or not self._meant.isdisjoint({whole, *key})
            or key in self.wrong_axes
        )

    def about_rules(self, skipped: list[Skipped]) -> bool:
        """Whether a rule that excludes points looks at a key that is known to be wrong."""
        conditions = (condition for one in skipped for condition in _rule_of(one).conditions)
        return bool(self._at) and any(self.about(*path) for one in conditions for path in one.paths())

    def run(self, engines: list[str]) -> str | None:
        """The serving mode of all experiments; None when that is not known. What is wrong goes to the problems."""
        document = self.document
        modes = {delta.value for v in self.sweep.variants() for delta in v if delta.path == ("serving_mode",)}
        if self.sweep or not document.entries:
            modes |= self._of(document.fixed, self.sweep.paths(), ())
        for index, entry in enumerate(document.entries):
            modes |= self._of(merged(document.fixed, entry), set(), ("experiments", index))
            self._entry_engine(entry, index)
        if len(modes) > 1:
            found = "the study mixes serving_mode offline and server"
            self._note(self._mode_path(), found, "make one study for each mode")
        elif modes:
            self._foreign("server" if modes == {"offline"} else "offline", *modes)
        if not self.problems:
            self._foreign_engines(engines)
        return str(modes.pop()) if len(modes) == 1 else None

    def _note(self, path: KeyPath, found: str, allowed: str) -> None:
        self.problems.add(self.document.source.problem(path, found, allowed, of_key=True))

    def _mode_path(self) -> KeyPath:
        for index, entry in enumerate(self.document.entries):
            if "serving_mode" in entry:
                return ("experiments", index, "serving_mode")
        return ("serving_mode",) if self.document.source.has(("serving_mode",)) else ("sweep", "serving_mode")

    def _of(self, config: Config, swept: set[KeyNames], path: KeyPath) -> set[str]:
        """The serving mode of an experiment, whose required keys are looked for."""
        mode = config.get("serving_mode")
        for key, advice in _NEEDED.items():
            needed = key[0] != "server" or mode == "server"
            known = self.about("base") or self.about(*key)
            known = known or (bool(path) and self.about(f"experiments[{path[1]}]", *key))
            keys = [(*key[:-1], name) for name in LOADS] if key == _RATE else [key]
            given = any(lookup(config, one) is not None or one in swept for one in keys)
            if needed and not given and not known:
                self._note(path or key[:1], f"the key {'.'.join(key)!r} is missing", advice)
        return {mode} if mode else set()

    def _entry_engine(self, entry: Config, index: int) -> None:
        where = ("experiments", index)
        if self.about("engine") or self.about(f"experiments[{index}]", "engine"):
            return
        if "engine" not in entry and len(self.document.engines or ()) > 1:
            found = "the study lists several engines and this entry names none"
            self._note(where, found, "add engine: ... to it")
        engine = entry.get("engine") or self.document.default_engine
        for other in ENGINES:
            if other != engine and entry.get(other):
                advice = f"set engine: {other} or drop {other}:"
                self._note((*where, other), f"keys of {other} in an experiment of {engine}", advice)

    def _foreign(self, section: str, mode: str) -> None:
        """Keys of the other mode's section are a problem: nothing would read them."""
        value = self.document.source.value
        places: list[KeyPath] = [(section,)] if value.get(section) is not None else []
        # Of an axis its key, of a group the key in its entry.
        places += [
            place[:2] if place[1] == ".".join(path) or len(place) < 4 else place[:4]
            for variant in self.sweep.variants()
            for path, _, place in variant
            if path[0] == section
        ]
        places += [
            ("experiments", i, section) for i, entry in enumerate(self.document.entries) if section in entry
        ]
        for place in places:
            found = f"the keys of {section} have no place in serving_mode: {mode}"
            self._note(place, found, f"drop {section}: or set serving_mode: {section}")

    def _foreign_engines(self, engines: list[str]) -> None:
        """Fixed sections of engines that the study never runs are told, not refused: a base may hold them."""
        used = {*engines, *(entry.get("engine", "") for entry in self.document.entries)}
        source = self.document.source
        swept = source.value.get("sweep")
        idle: list[tuple[KeyPath, str, str]] = [
            ((name,), "unused-section", f"{name}: is not used: no experiment runs {name}")
            for name in source.value
        ]
        idle += [
            (("sweep", key), "unused-axis", f"{key} is not used: {key.split('.')[0]} is not in engine:")
            for key in (swept if isinstance(swept, dict) else ())
        ]
        for path, code, text in idle:
            head = str(path[-1]).split(".")[0]
            if head in ENGINES and head not in used:
                line = source.place(path, of_key=True)[0]
                self.document.warnings.append(StudyWarning(code, text, line))


_SCALARS = ("serving_mode", "sampling_preset", "passthrough_kwargs")
_ORDER = tuple(Experiment.model_fields)
_SAMPLING = tuple((engine, "sampling_params") for engine in OWN_ENGINES)
_DECIDES: dict[KeyNames, tuple[KeyNames, ...]] = {
    ("measurement", "energy_sampler"): (("measurement", "meter"),),
    ("offline", "warmup"): (("offline", "warmup"),),
    ("sampling_preset",): _SAMPLING,
    ("transformers", "sampling_params"): _SAMPLING,
    ("gpus",): (("gpus",),),
}
"""Keys that others follow from, with those others: when one varies, rules about the others can apply."""


class Measured(NamedTuple):
    """A section of some points, as it is measured.

    Attributes:
        config: The section as it is measured.
        identity: Its JSON in the hash.
        effective: Its JSON without what has no effect.
        idle: The keys that have none.
    """

    config: Config
    identity: str
    effective: str
    idle: tuple[KeyNames, ...]


class Point(NamedTuple):
    """The configuration of a point and its sections by name."""

    config: Config
    sections: dict[str, Measured]

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
        varied: set[KeyNames],
        stage: Stage = "whole",
        wrong: Collection[KeyPath] = (),
    ) -> None:
        self.engine: str = written["engine"]
        self.problems: set[Problem] = set()
        self.fired: dict[str, Rule] = {}
        self._document, self._origin, self._written, self._stage = document, origin, written, stage
        self._known: dict[Any, Measured | None] = {}
        self._wrong = wrong
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
        self._rules = rules_of(self.engine)
        if stage == "whole":  # else what all points share is known to be wrong, and decides nothing
            self._rules = relevant(self._rules, self._unswept(names), varied | decided)
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

    def _config(self, name: str, section: Section, preset: str | None) -> Config:
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

    def _section(self, name: str, deltas: tuple[Delta, ...], scalars: Config) -> Measured | None:
        preset = scalars.get("sampling_preset") if name == self.engine else None
        key = (name, preset, *map(id, deltas))
        if key in self._known:
            return self._known[key]
        written = {name: self._written.get(name) or {}}
        written = with_values(written, ((path, value) for path, value, _ in deltas))
        report = self._document.reporter(self.problems, self._origin, deltas[::-1])
        swept = {path for path, _, _ in deltas}
        model, wrong = section_model(name), {path[1:] for path in self._wrong if path[0] == name}
        section = check(model, written[name], (name,), report, stage=self._stage, swept=swept, wrong=wrong)
        found = None if section is None else self._judged(name, self._config(name, section, preset))
        if len(self._moving) != 1:  # else each point has its own, and keeping it would only cost memory
            self._known[key] = found
        return found

    def _judged(self, name: str, config: Config) -> Measured:
        """What the rules say of a section: each that makes a key idle looks at one section only."""
        alone = {name: config}
        identity = effective = identity_view(alone)
        idle: list[KeyNames] = []
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
        return Measured(config, text, canonical_json(effective[name]) if idle else text, tuple(idle))
