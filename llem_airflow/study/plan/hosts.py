"""On which of several hosts each cycle is measured: the same in every plan of a study, and balanced over the hosts.

With ``spread: cycles`` the host is a blocking factor: the cycles of each experiment go round the hosts, and experiments
begin at different ones. With ``spread: experiments`` all cycles of an experiment are on one host.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llem_airflow.study.config.study import AirflowSection
from llem_airflow.study.plan.model import Experiment
from llem_airflow.study.plan.order import Run, gaps_s
from llem_airflow.study.plan.search import RateSearch
from llem_airflow.study.problems import StudyWarning
from llem_airflow.text.wording import counted


def hosts_of(
    runs: Sequence[Run],
    settings: AirflowSection,
    experiments: Sequence[Experiment],
    groups: Sequence[str] | None,
    searches: Sequence[RateSearch],
) -> list[str | None]:
    """The host of each cycle; None where the study names none.

    Args:
        runs: The cycles in their order.
        settings: Section ``airflow``.
        experiments: The experiments.
        groups: What each experiment loads, where cycles share sessions: all of a session are on one host.
        searches: All rates of a search are asked for on one host in each cycle.
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


def host_warnings(settings: AirflowSection, cycles: int, experiments: int) -> Iterator[StudyWarning]:
    """What the user should know of how a study is spread."""
    hosts = len(settings.hosts)
    if hosts < 2:
        return
    if settings.spread == "experiments" and experiments > 1:
        yield StudyWarning(
            "hosts-confounded",
            "airflow.spread: experiments measures different experiments on different hosts: a difference between them "
            "may be one between hosts; spread: cycles measures each experiment on all of them",
        )
    elif settings.spread == "cycles" and cycles % hosts:
        yield StudyWarning(
            "hosts-unbalanced",
            f"{counted(cycles, 'cycle')} over {hosts} hosts are not the same number on each for every experiment: "
            f"n_cycles: {-(-cycles // hosts) * hosts} is",
        )
