"""How the engines' own servers are started, and what a request to one holds. Pure: a spec in, arguments out."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llem_airflow.measurement.engines.model_source import source_of
from llem_airflow.measurement.failure import MeasurementError
from llem_airflow.measurement.generation import (
    engine_params,
    generation,
    request_arguments,
    tensorrt_arguments,
)
from llem_airflow.protocol.spec import ExperimentSpec

HOST = "127.0.0.1"
"""Loopback, which a container without a network has, too."""

OWN_PORT = "port"
OWN_KEYS = ("host", OWN_PORT, "model")
"""Engine parameters that say where the server listens and what it serves: ours, but for a pinned port."""

ON_ONLY = (
    "aggregate_engine_logging",
    "data_parallel_multi_port_external_lb",
    "disable_log_stats",
    "grpc",
    "headless",
    "hf_token",
)
"""Switches of ``vllm serve`` that have no ``--no-`` form: off is to leave them out."""


@dataclass(frozen=True)
class ServerCommand:
    """How a server is started.

    Attributes:
        argv: The command.
        served_model: The name of the model in requests.
        settings: The engine parameters that it was given, ours and the study's.
    """

    argv: tuple[str, ...]
    served_model: str
    settings: dict[str, Any]


def server_command(spec: ExperimentSpec, port: int, scratch: Path) -> ServerCommand:
    """The command of the engine's own server.

    Args:
        spec: The experiment.
        port: Where it listens, on loopback.
        scratch: Folder for a file of settings, where the server takes one.

    Raises:
        MeasurementError: The engine has no server that is known here.
    """
    makers = {"vllm": _vllm, "tensorrt": _trtllm}
    if spec.engine not in makers:
        raise MeasurementError(
            f"serving_mode server: {spec.engine} has no inference server that is known here; use vllm or tensorrt, "
            "or serving_mode: offline",
            category="bad_parameter",
        )
    return makers[spec.engine](spec, port, scratch)


def _vllm(spec: ExperimentSpec, port: int, _scratch: Path) -> ServerCommand:
    """``vllm serve``: every field of its EngineArgs is a flag of the same name."""
    ours: dict[str, Any] = {
        "served_model_name": "llem",
        "seed": generation(spec).seed,
        # The prompts repeat: with the prefix cache on, most of their prefill would be skipped after the first round.
        "enable_prefix_caching": False,
        # The model's own sampling defaults would change what the study writes: as offline, only that counts.
        "generation_config": "vllm",
        "disable_uvicorn_access_log": True,
    }
    if spec.model.hub_revision is not None:
        ours["revision"] = ours["tokenizer_revision"] = spec.model.hub_revision
    if vllm_is_for_cpus():
        ours["dtype"] = "float32"  # as offline: 16-bit formats are emulated on many machines
    settings = {**ours, **_given(spec)}
    where = {"host": HOST, "port": port}
    name = settings["served_model_name"]
    return ServerCommand(
        argv=(sys.executable, *_vllm_entry(source_of(spec)), *flags({**where, **settings})),
        served_model=str(name[0] if isinstance(name, (list, tuple)) else name),
        settings=settings,
    )


def _vllm_entry(model: str) -> tuple[str, ...]:
    """``vllm serve`` asks the metadata of a distribution called vllm; builds of another name have the older module."""
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return ("-m", "vllm.entrypoints.openai.api_server", "--model", model)
    return ("-m", "vllm.entrypoints.cli.main", "serve", model)


def vllm_is_for_cpus() -> bool:
    """Whether the vLLM of this image is a build for CPUs, as vLLM tells it itself: by its version or its name."""
    try:
        return "cpu" in importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return True  # only builds for other devices go by another name; those for CPUs are tested


def _trtllm(spec: ExperimentSpec, port: int, scratch: Path) -> ServerCommand:
    """``trtllm-serve``: the arguments of its ``LLM`` are those of a batch, and come from a file. Never run by us."""
    backend, given = tensorrt_arguments(spec)
    settings = {key: value for key, value in given.items() if key not in OWN_KEYS}
    options = scratch / "trtllm-options.yaml"
    options.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    source = source_of(spec)
    argv = (
        *("trtllm-serve", source, "--host", HOST, "--port", str(port), "--backend", backend),
        *("--extra_llm_api_options", str(options)),
    )
    return ServerCommand(argv, source, settings)


def _given(spec: ExperimentSpec) -> dict[str, Any]:
    """The study's parameters of the engine, without what is ours to say."""
    return {
        key: value for key, value in engine_params(spec).items() if value is not None and key not in OWN_KEYS
    }


def pinned_port(spec: ExperimentSpec) -> int | None:
    """The port that the study asks for; None for any free one."""
    port = engine_params(spec).get(OWN_PORT)
    return None if port is None else int(port)


def flags(parameters: Mapping[str, Any]) -> Iterator[str]:
    """Engine parameters as command-line flags of ``vllm serve``.

    ``key: value`` is ``--key value`` with dashes for underscores; true is ``--key`` and false ``--no-key`` (nothing
    where the switch has no such form); a mapping is JSON; a list is so many values; null is left out.

    Args:
        parameters: Names and values.
    """
    for key, value in parameters.items():
        name = key.replace("_", "-")
        if value is True:
            yield f"--{name}"
        elif value is False:
            yield from () if key in ON_ONLY else (f"--no-{name}",)
        elif isinstance(value, (list, tuple)):
            yield from (f"--{name}", *map(_word, value)) if value else ()
        elif value is not None:
            yield from (f"--{name}", _word(value))


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def sampling_fields(spec: ExperimentSpec, output_tokens: int) -> dict[str, Any]:
    """What every request holds beside its prompt and its longest length, for the endpoint ``/v1/completions``.

    The length is fixed unless the study says otherwise. The model's own defaults do not count (see ``_vllm``).

    Args:
        spec: The experiment.
        output_tokens: Tokens to generate.
    """
    chosen = {key: value for key, value in generation(spec).parameters.items() if value is not None}
    if chosen.pop("do_sample", None) is False:
        chosen["temperature"] = 0.0
    fields = request_arguments({"temperature": 1.0, **chosen}, output_tokens)
    return {key: value for key, value in fields.items() if key != "max_tokens"}
