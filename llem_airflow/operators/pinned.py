"""A further try of a task runs what its first try ran: the same image and the same commit of the model.

A tag or a branch may stand for something else by then, and a run must not mix the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import docker

from llem_airflow.operators.pins import with_image
from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.results import FailureRef, ResultReadError, StoredRun
from llem_airflow.runners.images import digest
from llem_airflow.runners.settings import BoxSettings


@dataclass(frozen=True)
class EarlierTries:
    """The failed tries of a task in this run.

    Attributes:
        failures: Their records, the first try first.
    """

    failures: Sequence[FailureRef] = ()

    @classmethod
    def of(cls, run: StoredRun, experiment_id: str, cycle: int, after: int) -> EarlierTries:
        """Those of this cycle; tries up to number ``after`` do not count, as a person has cleared the task since."""
        return cls(
            [
                each
                for each in run.failures()
                if (each.experiment_id, each.cycle) == (experiment_id, cycle) and each.attempt > after
            ]
        )

    def pin_image(self, api: docker.APIClient, box: BoxSettings) -> BoxSettings:
        """The settings with the image of the first try; when they name another image than it did, they stay."""
        records = [each.provenance() for each in self.failures]
        first = next(
            (r["image_digest"] for r in records if r.get("image") == box.image and r.get("image_digest")),
            None,
        )
        return box if first is None else with_image(api, box, first)

    def pin_model(self, spec: ExperimentSpec) -> ExperimentSpec:
        """The spec with the commit that the first try loaded, when it came from the hub under the same name."""
        for each in self.failures:
            try:
                model = each.environment().get("model")
            except ResultReadError:
                continue
            commit = model.get("commit") if isinstance(model, dict) else None
            if commit and each.provenance().get("experiment_hash") == spec.experiment_hash:
                return replace(spec, model=replace(spec.model, commit=str(commit)))
        return spec


def image_record(api: docker.APIClient, named: str, ran: str) -> dict[str, Any]:
    """What the record of a failed try says of its image: how it is called, and which one it was."""
    return {"image": named, "image_digest": digest(api, ran)}
