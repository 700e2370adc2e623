"""When and where the cycles run: their order, canaries, pauses, hosts, what shares a container, how long each takes.

A session is all that loads alike (engine, image, model, revision, engine arguments, GPUs) in one pass: cycle 1 of each
experiment, or cycle 2, and so on. No two cycles of one experiment share a session, so that an interval over the cycles
of an experiment is one over sessions.

The candidates of a search for a rate are a fixed geometric grid, each an experiment like one that is written with that
rate. So the search has no state of its own: which of them are measured follows from the stored results, whoever
restarts what.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from llem_airflow.protocol.engine_keys import load_arguments
from llem_airflow.study.config.base import Config
from llem_airflow.study.config.study import AirflowSection
from llem_airflow.study.plan.identity import canonical_json, digest, word
from llem_airflow.study.plan.model import Experiment, RateSearch

Run = tuple[int, int]
"""Index of the experiment and its cycle, from 1."""


def ordered(count: int, cycles: int, order: str, seed: int) -> list[Run]:
    """Every cycle of every experiment in the order in which they run.

    ``sequential`` AAABBB, ``interleave`` ABABAB, ``shuffle`` a seeded permutation per pass,
    ``reverse`` ABBAAB, ``latin_square`` the rows of a Williams design, over and over.
    """
    if order == "sequential":
        return [(index, cycle) for index in range(count) for cycle in range(1, cycles + 1)]
    rows = _rows(count, order, seed)
    return [(index, cycle) for cycle in range(1, cycles + 1) for index in next(rows)]


def gaps_s(runs: list[Run], order: str, short_s: float, long_s: float) -> list[float]:
    """The pause before each run, in seconds: none before the first, the long one between blocks or passes.

    A block is all cycles of one experiment in ``sequential``; a pass is one cycle of every experiment
    otherwise. A sequential study of one experiment has passes, since it has nothing else to separate.
    Without repetition there is nothing to tell apart, and every pause is the short one.
    """
    if all(cycle == 1 for _, cycle in runs):
        long_s = short_s
    which = 0 if order == "sequential" and runs and runs[-1][0] > 0 else 1
    gaps = [0.0] * min(1, len(runs))
    gaps += [long_s if now[which] != before[which] else short_s for before, now in itertools.pairwise(runs)]
    return gaps


def balanced(count: int, cycles: int, order: str) -> bool:
    """Whether each experiment follows each other one equally often within the passes.

    Williams' designs need ``count`` passes (twice as many when ``count`` is odd), or a multiple of it.
    """
    rows = count if count % 2 == 0 else 2 * count
    return order == "latin_square" and (count < 2 or cycles % rows == 0)


def _rows(count: int, order: str, seed: int) -> Iterator[list[int]]:
    forward = list(range(count))
    from random import Random  # noqa: PLC0415  # with its hashes as slow to import as YAML; only a shuffle needs it

    generator = Random(seed)  # noqa: S311  # an order, not a secret
    for number in itertools.count():
        if order == "shuffle":
            row = forward.copy()
            generator.shuffle(row)
        elif order == "reverse":
            row = forward[::-1] if number % 2 else forward
        elif order == "latin_square":
            row = _williams_row(count, number)
        else:
            row = forward
        yield row


def _williams_row(count: int, number: int) -> list[int]:
    """Row ``number`` of Williams' design: a Latin square in which each follows each other equally often.

    The first row is 0, 1, n-1, 2, n-2, ...; the others shift it by one. With an odd count one square cannot
    be balanced, and its mirror image is added (E. J. Williams 1949, Aust. J. Sci. Res. A 2, 149-168).
    """
    period = count if count % 2 == 0 else 2 * count
    number %= period
    shift = number % count
    row = [((step + 1) // 2 if step % 2 else (count - step // 2) % count) + shift for step in range(count)]
    row = [item % count for item in row]
    return row if number < count else row[::-1]


CANARY_CYCLE = 1
"""Canaries run in the first cycle."""


def canaries(experiments: Iterable[Experiment]) -> dict[str, str]:
    """Id of the canary of each experiment: of its engine and model the one that handles the fewest tokens."""
    groups: dict[tuple[str, str], list[Experiment]] = {}
    for experiment in experiments:
        groups.setdefault((experiment.engine, experiment.model), []).append(experiment)
    return {each.id: min(group, key=_tokens).id for group in groups.values() for each in group}


def _tokens(experiment: Experiment) -> float:
    """Tokens of one pass over the prompts, at most; endless where the study does not cut prompts."""
    task = experiment.config["task"]
    read = math.inf if task["max_input_tokens"] is None else task["max_input_tokens"]
    return float(task["dataset"]["n_prompts"] * (read + task["max_output_tokens"]))


PASSES = "interleave"
"""The order that sessions have, as far as pauses go: they follow one another pass by pass."""
_DIGITS, _MOST_MODEL = 6, 30
_PASS = "-c"  # noqa: S105  # not a password: what stands before the number of the pass in a session's id


def load_groups(experiments: Sequence[Experiment]) -> list[str]:
    """Of each experiment the name of what it loads; experiments that load alike have the same one."""
    return [
        f"{each.engine}-{word(each.model.rstrip('/').rsplit('/', 1)[-1])[:_MOST_MODEL].strip('-_')}-"
        f"{digest(_load(each))[:_DIGITS]}"
        for each in experiments
    ]


def _load(experiment: Experiment) -> str:
    gpus = experiment.gpus
    return canonical_json(
        [
            experiment.engine,
            experiment.image,
            experiment.model,
            load_arguments(experiment.engine, experiment.config),
            [gpus.count, gpus.kind, gpus.ids, gpus.memory_gb, gpus.exclusive],
        ]
    )


def session_id(groups: Sequence[str], run: Run) -> str:
    """The session of a cycle, whose experiment is of one of the ``load_groups``."""
    index, cycle = run
    return f"{groups[index]}{_PASS}{cycle}"


def load_of(session: str) -> str:
    """The name of what a session loads, which its id begins with: the same one in every pass."""
    return session.rpartition(_PASS)[0]


def by_session(runs: Sequence[Run], groups: Sequence[str]) -> list[Run]:
    """The cycles session by session: sessions by their first cycle, within one in the order that was asked for."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(session_id(groups, run), []).append(run)
    return [run for session in found.values() for run in session]


def hosts_of(
    runs: Sequence[Run],
    settings: AirflowSection,
    experiments: Sequence[Experiment],
    groups: Sequence[str] | None,
    searches: Sequence[RateSearch],
) -> list[str | None]:
    """The host of each cycle; None where the study names none.

    All cycles of a session (``groups``: what each experiment loads) are on one host, as are all rates of a search
    in each cycle. With ``spread: cycles`` the host is a blocking factor: the cycles of each experiment go round the
    hosts, and experiments begin at different ones. With ``spread: experiments`` all cycles of one are on one.
    """
    if not settings.hosts:
        return [None] * len(runs)
    together = {name: one.experiments[0] for one in searches for name in one.experiments}
    units = groups or [together.get(each.id, each.id) for each in experiments]
    first = {unit: place for place, unit in enumerate(dict.fromkeys(units))}
    steps = (first[units[index]] + (cycle - 1) * (settings.spread == "cycles") for index, cycle in runs)
    return [settings.hosts[step % len(settings.hosts)] for step in steps]


def gaps_per_host_s(
    runs: Sequence[Run], hosts: Sequence[str | None], order: str, short_s: float, long_s: float
) -> list[float]:
    """The pause before each cycle, after the last one on the same host, in seconds."""
    found = [0.0] * len(runs)
    for host in dict.fromkeys(hosts):
        places = [place for place, other in enumerate(hosts) if other == host]
        own = gaps_s([runs[place] for place in places], order, short_s, long_s)
        for place, gap_s in zip(places, own, strict=True):
            found[place] = gap_s
    return found


_IDLE_S = 120.0
"""Longest idle power, which a study may leave to the meter: two phases, and the quiet before them."""

_AROUND_S = 180.0
"""Container, sampler, prompts, the drain of the last answers, and what is written at the end."""


def under_load_s(server: Config, warmup: bool) -> float:
    """Ramp, window, cooldown and, where it counts, the longest warm-up of a server, in seconds."""
    traffic, said = server["traffic"], server["warmup"]
    longest_s = said["duration_seconds"] if said["mode"] == "fixed" else said["timeout_seconds"]
    load_s = traffic["ramp_exclusion_seconds"] + traffic["window_seconds"]
    return float(load_s + (longest_s if warmup else 0) + server["cooldown_seconds"])


def longest_s(server: Config) -> float:
    """A limit for a cycle of which the study writes none, in seconds: everything takes its longest."""
    return under_load_s(server, True) + float(server["startup_timeout_seconds"]) + _IDLE_S + _AROUND_S


def least_s(experiment: Experiment) -> float:
    """Seconds that a cycle takes at least: its window, and the idle power and the warm-up that the study asks for."""
    measurement = experiment.config["measurement"]
    baseline = measurement["baseline"]
    idle_s = (baseline["duration_seconds"] or 0) if baseline["enabled"] else 0
    server = experiment.config.get("server")
    if server is not None:
        return float(idle_s + under_load_s(server, server["warmup"]["mode"] == "fixed"))
    warmup = experiment.config["offline"]["warmup"]
    warm_s = (warmup["thermal_floor_seconds"] or 0) if warmup["enabled"] else 0
    return float(measurement["min_window_seconds"] + idle_s + warm_s)


ENDS = 2
"""Probes that every search begins with: its lowest and its highest rate."""
_RATE_DIGITS = 4
"""Significant digits of a rate between the ends."""


def grid(lowest: float, highest: float, tolerance: float, max_probes: int) -> list[float]:
    """Candidate rates, in requests/s: so many halvings as the tolerance needs and the probes leave.

    The tolerance is how far two neighbours may lie apart, as a share.
    """
    needed = math.ceil(math.log2(math.log(highest / lowest) / math.log1p(tolerance)) - 1e-9)
    steps = 2 ** max(0, min(needed, max_probes - ENDS))
    between = (lowest * (highest / lowest) ** (step / steps) for step in range(1, steps))
    return [lowest, *(float(f"{rate:.{_RATE_DIGITS}g}") for rate in between), highest]


def probe_order(count: int) -> list[int]:
    """Every candidate behind all that decide whether it is asked for: the ends, then the bisection by its steps."""
    order, step = [0, count - 1], count - 1
    while step > 1:
        order += range(step // 2, count - 1, step)
        step //= 2
    return order


def most_probes(count: int) -> int:
    """Probes of the longest way through ``count`` candidates."""
    return ENDS + round(math.log2(count - 1))
