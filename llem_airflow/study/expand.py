"""A study as written -> its points, the ones that can run, and the ones that are the same measurement."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from llem_airflow.study.engine_sections import ENGINE_SECTIONS
from llem_airflow.study.fields import defaults
from llem_airflow.study.identity import canonical_json, digest, identity_view, path_text, remember
from llem_airflow.study.keys import EXPERIMENT
from llem_airflow.study.mistakes import Mistake, Notice, StudyFileError
from llem_airflow.study.mistakes import Path as KeyPath
from llem_airflow.study.rules import Rule, lookup, relevant, rules_of, without
from llem_airflow.study.settle import DECIDING, Config, merged, settled, with_deltas
from llem_airflow.study.study import Skipped
from llem_airflow.study.study_keys import SWEEP_KEYS
from llem_airflow.study.sweep import MOST_POINTS, Variant
from llem_airflow.study.written import Written

_DEFAULTS = defaults(EXPERIMENT)


@dataclass(slots=True)
class Unique:
    """A point that runs, and the points that are the same measurement.

    Attributes:
        config: Its configuration.
        hash: Identity of the configuration as declared.
        members: Hashes of the points it stands for, its own first.
        ignored: Keys in which they differ and that have no effect.
    """

    config: Config
    hash: str
    members: list[str]
    ignored: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Expansion:
    """Every point of a study.

    Attributes:
        declared: How many points the file declares.
        valid: How many can run.
        skipped: The others, with the rule.
        uniques: The experiments.
        varied: Keys that differ between points, for their names.
        fired: Rules whose effect the user should know.
    """

    declared: int = 0
    valid: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    uniques: list[Unique] = field(default_factory=list)
    varied: list[tuple[str, ...]] = field(default_factory=list)
    fired: dict[str, Rule] = field(default_factory=dict)


def expand(written: Written, *, collapse: bool) -> Expansion:
    """Expand a study.

    Args:
        written: The checked file.
        collapse: Points that differ only in what the engine ignores run once.

    Raises:
        StudyFileError: A required key is missing, modes are mixed, or nothing is left to run.
    """
    engines = _engines(written)
    _bounded(written, engines)
    result = Expansion()
    _Checks(written).run(engines)
    seen: dict[str, Unique] = {}
    for batch in _batches(written, engines):
        batch.into(result, seen, collapse=collapse)
    result.varied = _varied(written, result)
    if not result.uniques:
        _nothing_left(written, result)
    return result


def _engines(written: Written) -> list[str]:
    """The engines whose sweep is run: those listed, else the scopes seen plus one written explicitly."""
    sweep = written.sweep
    if sweep.engines:
        return sweep.engines
    if written.engines is not None and len(written.engines) > 1:
        return written.engines
    scopes = sweep.scopes()
    return sorted(scopes.union(written.engines or ())) if scopes else written.engines or ["transformers"]


def _has_sweep(written: Written) -> bool:
    return bool(written.sweep.dimensions or written.sweep.engines)


def _bounded(written: Written, engines: list[str]) -> None:
    count = sum(written.sweep.count(engine) for engine in engines)
    if count > MOST_POINTS:
        found = f"the sweep has {count:,} points"
        raise StudyFileError(
            [written.source.mistake(("sweep",), found, f"at most {MOST_POINTS:,}; drop an axis", of_key=True)]
        )


def base_config(fixed: dict[str, Any], engine: str) -> Config:
    """Defaults and fixed keys for one engine; the sections of other engines are left out."""
    config = merged(_DEFAULTS, fixed) | {"engine": engine}
    return {key: value for key, value in config.items() if key not in ENGINE_SECTIONS or key == engine}


@dataclass(slots=True)
class _Batch:
    """Points that share a base: the sweep of one engine, or one written-out experiment."""

    base: Config
    points: Iterator[Variant]
    varied: set[tuple[str, ...]]

    def into(self, result: Expansion, seen: dict[str, Unique], *, collapse: bool) -> None:
        """Add every point to the result."""
        derived = {path for key, paths in DECIDING.items() for path in paths if self._sets(key)}
        first = settled(self.base)
        base = self.base if derived else first
        known: dict[int, str] = {}
        remember(base, known)
        rules = relevant(rules_of(base["engine"]), first, self.varied | derived)
        judge = _Judge(result, seen, rules, known, collapse=collapse)
        for variant in self.points:
            config = with_deltas(base, variant) if variant else base
            judge.point(settled(config) if derived else config, variant)

    def _sets(self, key: tuple[str, ...]) -> bool:
        """Whether some point sets the key or a key below it."""
        return any(path[: len(key)] == key[: len(path)] for path in self.varied)


class _Judge:
    """Decides for each point of a batch: skipped, the same as an earlier one, or an experiment."""

    def __init__(
        self,
        result: Expansion,
        seen: dict[str, Unique],
        rules: tuple[Rule, ...],
        known: dict[int, str],
        *,
        collapse: bool,
    ) -> None:
        self.result = result
        self.seen = seen
        self.invalid = tuple(rule for rule in rules if rule.invalid)
        self.dormant = tuple(rule for rule in rules if not rule.invalid)
        self.known = known
        self.collapse = collapse
        self.trimmed: dict[tuple[int, tuple[str, ...]], Config] = {}
        self.declared = {unique.hash for unique in seen.values()}

    def point(self, config: Config, variant: Variant) -> None:
        """Judge one point."""
        self.result.declared += 1
        for rule in self.invalid:
            if rule.applies(config):
                shown = {path_text(path): value for path, value in variant} | {"engine": config["engine"]}
                self.result.skipped.append(Skipped(rule.id, rule.told(config), shown))
                return
        self.result.valid += 1
        text = canonical_json(identity_view(config), self.known)
        own = digest(text)
        effective, ignored = self._effective(config)
        key = digest(canonical_json(identity_view(effective), self.known)) if ignored else own
        leader = self.seen.get(key)
        if leader is None or (not self.collapse and own not in self.declared):
            unique = Unique(config, own, [])
            self.result.uniques.append(unique)
            leader = leader or self.seen.setdefault(key, unique)
        self.declared.add(own)
        leader.members.append(own)
        if ignored and len(leader.members) > 1:
            leader.ignored |= self._differences(config, leader.config, ignored)

    def _differences(self, config: Config, other: Config, ignored: set[str]) -> set[str]:
        """Those of the ignored keys in which two equivalent configurations differ."""
        paths = {path_text(path): path for rule in self.dormant for path in rule.ignores}
        return {key for key in ignored if lookup(config, paths[key]) != lookup(other, paths[key])}

    def _effective(self, config: Config) -> tuple[Config, set[str]]:
        """The configuration without what has no effect, and the keys that were taken out."""
        ignored: set[str] = set()
        effective = config
        for rule in self.dormant:
            if not rule.applies(config):
                continue
            if rule.notice:
                self.result.fired[rule.id] = rule
            for path in rule.ignores:
                if lookup(effective, path) is not None:
                    effective = self._without(effective, path)
                    ignored.add(path_text(path))
        return effective, ignored

    def _without(self, config: Config, path: tuple[str, ...]) -> Config:
        """The configuration without a key; what that makes of a shared section is made once."""
        head, rest = path[0], path[1:]
        section = config[head]
        if not rest or id(section) not in self.known:
            return without(config, path)
        key = (id(section), rest)
        if key not in self.trimmed:
            self.trimmed[key] = without(section, rest)
            remember(self.trimmed[key], self.known)
        return config | {head: self.trimmed[key]}


def _batches(written: Written, engines: list[str]) -> Iterator[_Batch]:
    if _has_sweep(written) or not written.entries:
        for engine in engines:
            yield _Batch(
                base_config(written.fixed, engine), written.sweep.points(engine), written.sweep.paths()
            )
    for entry in written.entries:
        yield _Batch(*_entry_base(written, entry), set())


def _entry_base(written: Written, entry: dict[str, Any]) -> tuple[Config, Iterator[Variant]]:
    engine = entry.get("engine") or (written.engines or ["transformers"])[0]
    return base_config(merged(written.fixed, entry), engine), iter([()])


def _varied(written: Written, result: Expansion) -> list[tuple[str, ...]]:
    """Keys in which the experiments differ, in the order in which the file names them.

    An axis of which one value is left still counts: the experiment keeps the name, and so the history, that it had
    beside the others.
    """
    paths: dict[tuple[str, ...], None] = {}
    axes = {
        path
        for dimension in written.sweep.dimensions
        if len(dimension.variants) == 1 == len(dimension.variants[0])
        for path, _ in dimension.variants[0]
    }
    for dimension in written.sweep.dimensions:
        for variant in dimension.variants:
            paths.update(dict.fromkeys(path for path, _ in variant))
    for entry in written.entries:
        paths.update(dict.fromkeys(_leaf_paths(entry)))
    paths[("engine",)] = None
    configs = [unique.config for unique in result.uniques]
    return [path for path in paths if path in axes or _differs(configs, path)]


def _differs(configs: list[Config], path: tuple[str, ...]) -> bool:
    if not configs:
        return False
    first = lookup(configs[0], path)
    return any(lookup(config, path) != first for config in configs)


def _leaf_paths(value: dict[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, child in value.items():
        if isinstance(child, dict):
            yield from _leaf_paths(child, (*before, key))
        else:
            yield (*before, key)


def _nothing_left(written: Written, result: Expansion) -> None:
    reasons = list(dict.fromkeys(f"[{skip.rule}] {skip.reason}" for skip in result.skipped))
    where = ("sweep",) if _has_sweep(written) else ("experiments",) if written.entries else _culprit(result)
    what = "the experiment" if result.declared == 1 else f"each of the {result.declared} points"
    found = f"nothing is left to run: {what} is known not to work: {'; '.join(reasons[:5])}"
    raise StudyFileError([written.source.mistake(where, found, "change or drop these keys", of_key=True)])


def _culprit(result: Expansion) -> KeyPath:
    """The first key that the rule looks at which excludes the only point."""
    (skip,) = result.skipped
    rule = next(rule for rule in rules_of(skip.point["engine"]) if rule.id == skip.rule)
    return rule.conditions[0].path


class _Checks:
    """What can only be said of whole experiments: required keys, one serving mode, sections that fit."""

    def __init__(self, written: Written) -> None:
        self.written = written
        self.mistakes: list[Mistake] = []

    def run(self, engines: list[str]) -> None:
        """Raise StudyFileError when something is missing or does not fit."""
        written = self.written
        swept = written.sweep.paths()
        modes: set[str] = set()
        if _has_sweep(written) or not written.entries:
            self._required(written.fixed, swept, ())
            modes |= self._modes(written.fixed)
            modes |= {
                v
                for d in written.sweep.dimensions
                for variant in d.variants
                for p, v in variant
                if p == ("serving_mode",)
            }
        for index, entry in enumerate(written.entries):
            config = merged(written.fixed, entry)
            self._required(config, set(), ("experiments", index))
            modes |= self._modes(config)
            self._entry_engine(entry, index)
        if len(modes) > 1:
            found = "the study mixes serving_mode offline and server"
            self._note(self._mode_path(), found, "make one study for each mode")
        elif modes:
            self._foreign("server" if modes == {"offline"} else "offline", modes.pop())
        if not self.mistakes:
            self._foreign_engines(engines)
        if self.mistakes:
            raise StudyFileError(self.mistakes)

    def _note(self, path: KeyPath, found: str, allowed: str, *, of_key: bool = True) -> None:
        self.mistakes.append(self.written.source.mistake(path, found, allowed, of_key=of_key))

    def _modes(self, config: Config) -> set[str]:
        mode = config.get("serving_mode")
        return {mode} if mode else set()

    def _mode_path(self) -> KeyPath:
        value = self.written.source.value
        for index, entry in enumerate(value.get("experiments") or []):
            if isinstance(entry, dict) and "serving_mode" in entry:
                return ("experiments", index, "serving_mode")
        return ("sweep", "serving_mode") if "serving_mode" not in value else ("serving_mode",)

    def _required(self, config: Config, swept: set[tuple[str, ...]], path: KeyPath) -> None:
        wanted = [
            (("serving_mode",), "add serving_mode: offline (a fixed prompt set) or serving_mode: server"),
            (("task", "model"), "add task: {model: ...}"),
        ]
        if config.get("serving_mode") == "server":
            wanted.append(
                (("server", "traffic", "rate"), "add server: {traffic: {rate: <requests per second>}}")
            )
        for key, allowed in wanted:
            if lookup(config, key) is None and key not in swept:
                where = path or key[:1]
                self._note(where, f"the key {'.'.join(key)!r} is missing", allowed)

    def _entry_engine(self, entry: dict[str, Any], index: int) -> None:
        if "engine" not in entry and len(self.written.engines or ()) > 1:
            self._note(
                ("experiments", index),
                "the study lists several engines and this entry names none",
                "add engine: ... to it",
            )
        engine = entry.get("engine") or (self.written.engines or ["transformers"])[0]
        for other in ENGINE_SECTIONS:
            if other != engine and entry.get(other):
                self._note(
                    ("experiments", index, other),
                    f"keys of {other} in an experiment of {engine}",
                    f"set engine: {other} or drop {other}:",
                )

    def _foreign(self, section: str, mode: str) -> None:
        """Keys of the other mode's section are a mistake: nothing would read them."""
        value = self.written.source.value
        allowed = f"drop {section}: or set serving_mode: {section}"
        places: list[KeyPath] = [(section,)] if section in value else []
        places += [("sweep", name) for name in value.get("sweep") or {} if name.split(".")[0] == section]
        entries = value.get("experiments") or []
        places += [("experiments", index, section) for index, entry in enumerate(entries) if section in entry]
        for place in places:
            self._note(place, f"the keys of {section} have no place in serving_mode: {mode}", allowed)

    def _foreign_engines(self, engines: list[str]) -> None:
        """Fixed sections of engines that the study never runs are told, not refused: a base may hold them."""
        used = {*engines, *(entry.get("engine", "") for entry in self.written.entries)}
        source = self.written.source
        for name in source.value:
            if name in ENGINE_SECTIONS and name not in used:
                self.written.notices.append(
                    Notice(
                        "unused-section",
                        f"{name}: is not used: no experiment runs {name}",
                        source.place((name,), of_key=True)[0],
                    )
                )
        for name in (key for key in SWEEP_KEYS[:1] if isinstance(source.value.get(key), dict)):
            for key in source.value[name]:
                head = key.split(".")[0]
                if head in ENGINE_SECTIONS and head not in used:
                    line = source.place((name, key), of_key=True)[0]
                    self.written.notices.append(
                        Notice("unused-axis", f"{key} is not used: {head} is not in engine:", line)
                    )
