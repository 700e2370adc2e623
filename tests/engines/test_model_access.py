"""Models of a hub: gated, missing, pinned, offline. Real engine, real client, and a hub of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llem_airflow.measurement.engines.contract import open_engine
from llem_airflow.measurement.failure import attempt_error
from llem_airflow.protocol.spec import ExperimentSpec, ModelSource
from tests.measurement.running import Ran, run, spec_of
from tests.standins.hub import COMMIT, TOKEN, Hub, point_to, serve

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def hub(tiny_model: Path) -> Iterator[Hub]:
    with serve() as served:
        served.repositories["models/org/tiny"] = tiny_model
        served.gated.add("models/org/tiny")
        yield served


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hub cache that the attempts share, as containers share the volume."""
    return tmp_path_factory.mktemp("hub-cache")


def attempt(hub: Hub, home: Path, folder: Path, spec: ExperimentSpec, **environment: str) -> Ran:
    return run(
        spec, folder, HF_ENDPOINT=hub.endpoint, HF_HOME=str(home), **{"HF_HUB_OFFLINE": "0", **environment}
    )


def of_the_hub(name: str, revision: str | None = None) -> ExperimentSpec:
    return replace(spec_of("transformers", {}, output_tokens=4), model=ModelSource(name, None, revision))


def test_a_token_opens_it_the_commit_is_recorded_and_the_token_is_not(
    hub: Hub, home: Path, tmp_path: Path
) -> None:
    ran = attempt(hub, home, tmp_path, of_the_hub("org/tiny", "main"), HF_TOKEN=TOKEN)
    assert ran.code == 0, ran.stdout
    model = ran.result.model
    assert (model["name"], model["revision"], model["commit"]) == ("org/tiny", "main", COMMIT)
    assert not [path for path in ran.out.iterdir() if TOKEN in path.read_text()]
    assert TOKEN not in ran.stdout
    asked = len(hub.asked)
    offline = attempt(hub, home, _made(tmp_path / "offline"), of_the_hub("org/tiny"), HF_HUB_OFFLINE="1")
    assert offline.code == 0, offline.stdout
    assert offline.result.model["commit"] == COMMIT
    assert len(hub.asked) == asked  # what the cache holds is used without a word to the hub


@pytest.mark.parametrize(
    ("name", "revision", "token", "category", "expected"),
    [
        (
            "org/tiny",
            None,
            "",
            "model_gated",
            "Accept the model's licence on the hub; give a token by HF_TOKEN",
        ),
        (
            "org/none",
            None,
            TOKEN,
            "model_missing",
            "org/none is not a local folder and is not a valid model id",
        ),
        ("org/tiny", "v9", TOKEN, "model_missing", "v9 is not a valid git identifier"),
    ],
    ids=["gated and no token", "no such model", "no such revision"],
)
def test_what_the_hub_does_not_give_is_told_with_what_to_do_and_not_tried_again(
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    revision: str | None,
    token: str,
    category: str,
    expected: str,
) -> None:
    point_to(hub.endpoint, tmp_path, monkeypatch)
    monkeypatch.setenv("HF_TOKEN", token)
    engine = open_engine("transformers", offline=False)
    with pytest.raises(OSError) as caught:  # noqa: PT011  # what is asserted is what we make of it
        engine.load(of_the_hub(name, revision))
    error = attempt_error(caught.value, "load")
    assert (error.category, error.retryable_hint) == (category, False)
    assert expected in error.message


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
