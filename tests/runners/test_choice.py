"""Which layer names runner and image: the first that speaks, in the words of the study file; a slip is a mistake."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llem_airflow.runners.choice import (
    Choice,
    Layers,
    RunnerError,
    read_runners,
    settled,
)

EVERYWHERE = Layers(
    argument="docker:argument",
    environ={"LLEM_RUNNER_PYTORCH": "docker:variable", "LLEM_IMAGE_HF": "image-variable"},
    connection={"transformers": "docker:connection"},
    connection_images={"transformers": "image-connection"},
    installation={"transformers": "docker:installation"},
    operator_image="image-argument",
)


def without(layers: Layers, *names: str) -> Layers:
    empty: dict[str, Any] = {"argument": None, "operator_image": ""}
    return replace(layers, **{name: empty.get(name, {}) for name in names})


@pytest.mark.parametrize(
    ("silent", "study", "by"),
    [
        ((), "process", "the operator's argument `runner`"),
        (("argument",), "process", "the study"),
        (("argument",), "auto", "the host's connection (runners)"),
        (("argument", "connection"), "auto", "LLEM_RUNNER_PYTORCH"),
        (("argument", "connection", "environ"), "auto", "[llem] runners"),
        (("argument", "connection", "environ", "installation"), "auto", "no layer"),
    ],
)
def test_the_first_layer_that_speaks_names_the_runner(silent: tuple[str, ...], study: str, by: str) -> None:
    assert without(EVERYWHERE, *silent).choice("transformers", study).by == by


def test_images_follow_the_same_order() -> None:
    assert [image for image, _ in EVERYWHERE.choice("transformers", "container", "image-study").images] == [
        "image-argument",
        "argument",
        "image-study",
        "image-connection",
        "connection",
        "image-variable",
        "variable",
        "installation",
    ]


@pytest.mark.parametrize(
    ("said", "runner", "image"),
    [
        ("docker", "container", None),
        ("container", "container", None),
        ("docker:my/image:1", "container", "my/image:1"),
        ("container:localhost:5000/x@sha256:1", "container", "localhost:5000/x@sha256:1"),
        ("local", "process", None),
        ("process", "process", None),
        ("auto", "auto", None),
        ("", "auto", None),
    ],
)
@pytest.mark.parametrize("engine", ["PYTORCH", "TRANSFORMERS", "HF", "HUGGINGFACE"])
def test_a_variable_speaks_as_the_study_file_does(
    engine: str, said: str, runner: str, image: str | None
) -> None:
    choice = Layers(environ={f"LLEM_RUNNER_{engine}": said}).choice("transformers")
    assert choice.runner == runner
    assert [name for name, _ in choice.images] == ([image] if image else [])


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"LLEM_RUNNER_VLLM": "dokcer"}, "LLEM_RUNNER_VLLM: found 'dokcer'; allowed: process, container"),
        ({"LLEM_RUNNER_VLLM": "local:image"}, "LLEM_RUNNER_VLLM: found 'local:image'"),
        ({"LLEM_RUNNER_VLLM": "docker:"}, "LLEM_RUNNER_VLLM: found 'docker:'"),
        ({"LLEM_RUNNER_VLM": "docker"}, "LLEM_RUNNER_VLM names no engine; engines are: transformers, vllm"),
        (
            {"LLEM_RUNNER_PYTORCH": "local", "LLEM_RUNNER_TRANSFORMERS": "docker"},
            "LLEM_RUNNER_TRANSFORMERS and LLEM_RUNNER_PYTORCH speak of one engine",
        ),
    ],
)
def test_a_wrong_variable_is_named_whatever_engine_is_asked_for(environ: dict[str, str], text: str) -> None:
    with pytest.raises(RunnerError) as caught:
        Layers(environ=environ).choice("transformers")
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("docker", "found 'docker'; allowed: a JSON object"),
        ("[1]", "allowed: a JSON object"),
        ('{"vllm": 1}', "allowed: a JSON object"),
        ('{"vlm": "docker"}', "'vlm' is no engine"),
        ('{"vllm": "dokcer"}', "[llem] runners: vllm: found 'dokcer'"),
    ],
)
def test_a_wrong_setting_is_named(value: str, text: str) -> None:
    with pytest.raises(RunnerError) as caught:
        read_runners(value, "[llem] runners")
    assert text in str(caught.value)


def test_a_setting_may_use_older_names() -> None:
    assert read_runners('{"pytorch": "local"}', "x") == {"transformers": "local"}


AUTO = Choice("auto", "no layer")


def test_auto_is_one_decision_for_all_engines_with_its_reason() -> None:
    found = settled({"transformers": AUTO, "vllm": AUTO}, engine_text="Docker 1 answers", answers=True)
    assert {str(choice) for choice in found.values()} == {"container (auto: Docker 1 answers)"}
    alone = settled({"vllm": AUTO}, engine_text="there is none", answers=False)
    assert str(alone["vllm"]) == "process (auto: there is none)"


def test_several_engines_without_containers_have_ways_out() -> None:
    with pytest.raises(
        RunnerError, match=r"need containers, and there is none.*`runners: \{vllm: process\}`"
    ):
        settled(
            {"transformers": Choice("process", "x"), "vllm": AUTO}, engine_text="there is none", answers=False
        )


def test_what_layers_say_is_not_decided_again() -> None:
    said = {"transformers": Choice("process", "the study"), "vllm": Choice("process", "the study")}
    assert settled(said, engine_text="there is none", answers=False) == said


def test_a_choice_comes_back_from_its_record() -> None:
    choice = EVERYWHERE.choice("transformers")
    assert Choice.from_json(choice.to_json()) == choice
