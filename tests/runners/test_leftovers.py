"""What may be removed, over all that an engine can list: checked with a stand-in for the engine's list."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any, cast

import docker
from hypothesis import given
from hypothesis import strategies as st

from llem_airflow.runners.attempt import LABEL_KEY
from llem_airflow.runners.gc import Running, find_leftovers
from llem_airflow.runners.gpus import LABEL_PROBE

INSTALLATIONS = ["mine", "other", None]


class Listing:
    """An engine that lists; Docker's own filters by label."""

    def __init__(self, containers: list[dict[str, Any]], volumes: list[dict[str, Any]]) -> None:
        self._containers, self._volumes = containers, volumes

    def info(self) -> dict[str, Any]:
        return {}

    def containers(self, *, all: bool, filters: Mapping[str, str]) -> list[dict[str, Any]]:  # noqa: A002  # as docker-py
        return [one for one in self._containers if filters["label"] in one["Labels"]]

    def volumes(self, *, filters: Mapping[str, str]) -> dict[str, Any]:
        return {"Volumes": [one for one in self._volumes if filters["label"] in one["Labels"]]}


@st.composite
def things(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    age_s = draw(st.integers(0, 30)) * 3600 + 60
    installation = draw(st.sampled_from(INSTALLATIONS))
    owned = draw(st.sampled_from(["alive", "over", "unknown"]))
    probe = kind == "container" and draw(st.booleans())
    labels = {LABEL_PROBE if probe else LABEL_KEY: "1", "owned": owned}
    if installation is not None:
        labels["llem.installation"] = installation
    name = f"{kind}-{draw(st.uuids())}"
    created_s = datetime.datetime.now(datetime.UTC).timestamp() - age_s
    return {
        "Names": [f"/{name}"],
        "Name": name,
        "Id": name,
        "Labels": labels,
        "State": draw(st.sampled_from(["running", "paused", "exited", "created"])),
        "Created": created_s,
        "CreatedAt": datetime.datetime.fromtimestamp(created_s, datetime.UTC).isoformat(),
        "Mounts": [],
    }


def alive(labels: Mapping[str, str]) -> bool | None:
    return {"alive": True, "over": False, "unknown": None}[labels["owned"]]


@given(
    containers=st.lists(things("container"), max_size=6),
    volumes=st.lists(things("volume"), max_size=4),
    asked=st.booleans(),
    installation=st.sampled_from(INSTALLATIONS),
    running=st.sampled_from(["never", "disowned", "any"]),
)
def test_what_is_alive_runs_or_is_another_s_stays(
    containers: list[dict[str, Any]],
    volumes: list[dict[str, Any]],
    *,
    asked: bool,
    installation: str | None,
    running: Running,
) -> None:
    found = find_leftovers(
        cast("docker.APIClient", Listing(containers, volumes)),
        alive=alive if asked else None,
        older_than_s=2 * 3600.0,
        installation=installation,
        running=running,
    )
    by_name = {one["Name"]: one for one in (*containers, *volumes)}
    for left in found:
        one = by_name[left.name]
        labels = one["Labels"]
        assert installation in (None, labels.get("llem.installation"))
        if LABEL_PROBE in labels:
            continue
        if asked:
            assert labels["owned"] != "alive"
        if left.kind == "container" and one["State"] in ("running", "paused"):
            assert running == "any" or (running == "disowned" and asked and labels["owned"] == "over")
        if not asked or labels["owned"] == "unknown":
            assert left.age_s > 2 * 3600
    names = {left.name for left in found}
    for one in volumes:
        if (
            asked
            and one["Labels"]["owned"] == "over"
            and installation in (None, one["Labels"].get("llem.installation"))
        ):
            assert one["Name"] in names
