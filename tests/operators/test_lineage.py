"""Where OpenLineage's provider is installed it learns what a run read and wrote; elsewhere nothing changes.

`make test-lineage` installs the provider beside the others for this file.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from llem_airflow.operators import LLEMAggregateOperator
from llem_airflow.operators.aggregate import run_lineage
from llem_airflow.study import load_study_text

STUDY = load_study_text(
    "study_name: s\nserving_mode: offline\nengine: transformers\n"
    "task: {model: org/m, dataset: {source: builtin, n_prompts: 2}}\nmeasurement: {meter: cpu-estimate}\n"
)
OUTCOME: dict[str, Any] = {
    "run": "s3://lab/results/s/run-1",
    "report": "s3://lab/results/s/run-1/report.html",
    "study": "s",
    "planned": 1,
    "valid": 1,
    "energy_kind": "estimate",
    "experiments": {"one": {"energy_per_output_token_j": {"mean": 0.5, "low": None, "high": None, "n": 1}}},
    "comparison": None,
}

if find_spec("airflow.providers.openlineage"):
    from airflow.providers.openlineage.extractors.base import DefaultExtractor
    from openlineage.client.serde import Serde

    def test_the_provider_s_own_extractor_gets_models_results_and_key_numbers() -> None:
        aggregate = LLEMAggregateOperator(task_id="aggregate", study=STUDY)
        aggregate._told = STUDY, OUTCOME
        found = DefaultExtractor(aggregate).extract_on_complete(None)
        assert [(each.namespace, each.name) for each in found.inputs] == [("model", "org/m")]
        assert [(each.namespace, each.name) for each in found.outputs] == [("s3://lab", "/results/s/run-1")]
        facet = Serde.to_dict(found.run_facets["llem_energy"])
        assert facet["energyKind"] == "estimate"
        assert facet["experiments"] == {"one": {"energy_per_output_token_j": {"mean": 0.5, "n": 1}}}

else:

    def test_without_the_provider_there_is_no_lineage() -> None:
        assert run_lineage(STUDY, OUTCOME) is None


@pytest.mark.parametrize("told", [None, (STUDY, OUTCOME)])
def test_a_task_that_did_not_finish_has_no_lineage(told: Any) -> None:
    aggregate = LLEMAggregateOperator(task_id="aggregate", study=STUDY)
    aggregate._told = told
    lineage = aggregate.get_openlineage_facets_on_complete(None)
    assert (lineage is None) == (told is None or not find_spec("airflow.providers.openlineage"))
