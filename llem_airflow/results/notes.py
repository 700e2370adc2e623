"""Why a planned cycle has no result: a small file for each, beside the results."""

from __future__ import annotations

import json

from llem_airflow.results import names
from llem_airflow.results.folder import Folder, json_bytes


def write_note(run: Folder, kind: str, experiment_id: str, cycle: int, reason: str) -> None:
    """Note the reason under the folder ``kind`` of a run."""
    folder = run.child(kind, names.folder_name(experiment_id))
    folder.write(f"{names.cycle_name(cycle)}.json", json_bytes({"cycle": cycle, "reason": reason}))


def read_notes(run: Folder, kind: str) -> dict[tuple[str, int], str]:
    """The reasons under the folder ``kind`` of a run, by experiment and cycle."""
    found = {}
    root = run.child(kind)
    for experiment_id in root.folders():
        for name in root.child(experiment_id).files():
            parsed = names.parse_cycle(name.removesuffix(".json"))
            if parsed:
                record = json.loads(root.child(experiment_id).read(name))
                found[experiment_id, parsed[0]] = str(record.get("reason", ""))
    return found
