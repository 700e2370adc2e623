"""The verb ``gpus`` on a terminal."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence

from llem_airflow.runners.doctor import python_images
from llem_airflow.runners.engine import ENGINE_ERRORS, connect, engine_url, is_installed_here
from llem_airflow.runners.failures import classify
from llem_airflow.runners.who import Held, HostGpus, look, to_json
from llem_airflow.text.terminal import Folding, Rows, console, show
from llem_airflow.text.wording import counted

_LOOK_EVERY_S = 2.0
_STYLES = {"free": "green", "task": "cyan", "container": "yellow", "process": "yellow", "split": "dim"}


def show_hosts(hosts: Sequence[str], *, watch: bool, as_json: bool) -> int:
    """Show the GPUs of some hosts, once or again and again; the exit code.

    Args:
        hosts: Engines; none for the one that DOCKER_HOST names, else this machine's.
        watch: Whether to look again until Ctrl-C.
        as_json: One JSON document, or with ``watch`` one line for each look.

    Raises:
        ValueError: A host has a port that cannot be.
    """
    named: list[str | None] = [engine_url(host) for host in hosts] or [None]
    while True:
        seen = [_seen(url) for url in named]
        if as_json:
            found = [
                {"host": one[0], "error": one[1]} if isinstance(one, tuple) else to_json(one) for one in seen
            ]
            sys.stdout.write(json.dumps(found, indent=None if watch else 1) + "\n")
        else:
            _print(seen, clear=watch)
        sys.stdout.flush()
        if not watch:
            return 2 if any(isinstance(one, tuple) for one in seen) else 0
        time.sleep(_LOOK_EVERY_S)


def _seen(url: str | None) -> HostGpus | tuple[str, str]:
    """A host's GPUs; or its engine and why that does not answer."""
    environ: Mapping[str, str] = {**os.environ, **({"DOCKER_HOST": url} if url else {})}
    if not environ.get("DOCKER_HOST") and not is_installed_here():
        return look(None)
    where = environ.get("DOCKER_HOST") or "this machine"
    try:
        with connect(environ, timeout_s=20) as api:
            return look(api, python_images(environ))
    except ENGINE_ERRORS as error:
        hint = classify(None, "", error=error).hint
        return where, f"the Docker engine does not answer: {error}. What to do: {hint}"


def _print(seen: Sequence[HostGpus | tuple[str, str]], *, clear: bool) -> None:
    target = console()
    if clear and target.is_terminal:
        target.clear()
    for number, one in enumerate(seen):
        if number:
            show(target, "")
        if isinstance(one, tuple):
            show(target, Folding(f"{one[0]}: {one[1]}", "bold red", indent=2))
            continue
        show(target, Folding(_headline(one), "bold", indent=2))
        rows = list(_rows(one))
        if rows:
            cells, styles = zip(*rows, strict=True)
            show(target, Rows(("GPU", "Device", "Held by", "Since"), cells, styles=styles))
        for text in (one.known.absent, one.unseen):
            if text:
                show(target, Folding(f"Not seen: {text}", "yellow", indent=2))
        if one.waiting:
            show(target, Folding("Waiting, the first first:", "bold"))
        for place, waiter in enumerate(one.waiting, start=1):
            wants = "the host alone" if waiter.exclusive_host else f"{waiter.count} GPU(s)"
            since = _span(one.now_epoch_s - waiter.since_epoch_s)
            show(target, Folding(f"{place:>2}. {waiter.what}: wants {wants}, for {since}", indent=4))


def _headline(host: HostGpus) -> str:
    devices = [gpu.id for gpu in host.known.gpus if gpu.id not in {each.parent for each in host.known.gpus}]
    held = sum(bool(host.holders_of(gpu) or host.holders_above(gpu)) for gpu in devices)
    quota = f" of the quota of {host.quota}" if host.quota is not None else ""
    driver = f", driver {host.known.driver}" if host.known.driver else ""
    return (
        f"{host.host}{driver}: {held} of {counted(len(devices), 'GPU')} held, {host.ours} by experiments{quota}; "
        f"{len(host.waiting) or 'nobody'} waiting"
    )


def _rows(host: HostGpus) -> list[tuple[tuple[str, ...], str]]:
    """Cells and style of each device and of whatever else holds something."""
    found: list[tuple[tuple[str, ...], str]] = []
    split = {gpu.parent for gpu in host.known.gpus}
    for gpu in host.known.gpus:
        holders = host.holders_of(gpu.id)
        name = gpu.name or gpu.id
        if not holders:
            above = gpu.parent is not None and host.holders_above(gpu.id)
            word = "split" if gpu.id in split or above else "free"
            text = "in slices" if gpu.id in split else "with its whole GPU" if above else "free"
            found.append(((gpu.index, name, text, ""), _STYLES[word]))
        found += [((gpu.index, name, _who(each), _since(host, each)), _STYLES[each.kind]) for each in holders]
    for each in host.nameless():
        device = "the host alone" if each.exclusive_host else ", ".join(each.gpus)
        found.append((("?", device, _who(each), _since(host, each)), _STYLES[each.kind]))
    return found


def _who(held: Held) -> str:
    owner = f", {held.owner}" if held.owner else ""
    return {
        "task": f"{held.what} ({held.name}{owner})",
        "container": f"container {held.name} ({held.what}{owner})",
        "process": f"{held.name}{owner}",
    }[held.kind]


def _since(host: HostGpus, held: Held) -> str:
    return "" if held.since_epoch_s is None else _span(host.now_epoch_s - held.since_epoch_s)


def _span(seconds: float) -> str:
    """A time that has gone by, in its two largest units."""
    minutes, left_s = divmod(max(0, round(seconds)), 60)
    hours, left_min = divmod(minutes, 60)
    days, left_h = divmod(hours, 24)
    if days:
        return f"{days} d {left_h} h"
    if hours:
        return f"{hours} h {left_min} min"
    return f"{minutes} min {left_s} s" if minutes else f"{left_s} s"
