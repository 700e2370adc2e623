"""Record the API of the vLLM in an image: what our calls are checked against where that version cannot run.

docker run --rm -i --network none --entrypoint python3 IMAGE - <tests/engines/record_vllm.py \
    >llem_airflow/runners/engine_api/vllm-0.34.json
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import sys
from typing import Any

METHODS = {
    "vllm.LLM": ("__init__", "get_tokenizer", "get_metrics", "reset_prefix_cache"),
    "vllm.v1.engine.llm_engine.LLMEngine": ("add_request", "has_unfinished_requests", "step"),
    "vllm.v1.engine.core_client.EngineCoreClient": ("shutdown",),
    "vllm.platforms.interface.Platform": ("is_cpu",),
}
FIELDS = (
    "vllm.SamplingParams",
    "vllm.engine.arg_utils.EngineArgs",
    "vllm.outputs.CompletionOutput",
    "vllm.v1.metrics.reader.Gauge",
    "vllm.v1.metrics.stats.RequestStateStats",
    "vllm.config.VllmConfig",
    "vllm.config.ModelConfig",
    "vllm.config.CacheConfig",
    "vllm.config.SchedulerConfig",
)
# Set in methods: no class tells them. Those that our calls read.
ATTRIBUTES = {
    "vllm.LLM": ("llm_engine",),
    "vllm.v1.engine.llm_engine.LLMEngine": ("engine_core", "vllm_config"),
    "vllm.platforms.interface.Platform": ("device_type",),
    "vllm.outputs.RequestOutput": ("request_id", "outputs", "finished", "metrics"),
    "vllm.sampling_params.RequestOutputKind": ("DELTA",),
}


def main() -> None:
    """Print the record of the installed version."""
    import vllm  # noqa: PLC0415  # only there in the image

    classes: dict[str, dict[str, Any]] = {name: {} for name in (*METHODS, *FIELDS, *ATTRIBUTES)}
    for name, methods in METHODS.items():
        cls = _class(name)
        classes[name]["methods"] = {method: _parameters(getattr(cls, method)) for method in methods}
    for name in FIELDS:
        classes[name]["fields"] = _fields(_class(name))
    for name, attributes in ATTRIBUTES.items():
        source = inspect.getsource(_class(name))
        missing = [one for one in attributes if f"self.{one}" not in source and f"{one}:" not in source]
        missing = [one for one in missing if not hasattr(_class(name), one)]
        if missing:
            sys.exit(f"{name} has no {missing} any more: the adapter and this list need a look")
        classes[name]["attributes"] = list(attributes)
    version = vllm.__version__.partition("+")[0]
    record = {"library": "vllm", "version": version, "source": "", "executed": "", "classes": classes}
    json.dump(record, sys.stdout, indent=1)
    print()  # noqa: T201  # a script


def _class(name: str) -> Any:
    module, _, cls = name.rpartition(".")
    return getattr(importlib.import_module(module), cls)


def _parameters(function: Any) -> list[dict[str, Any]]:
    return [
        {"name": one.name, "kind": one.kind.name.lower(), "required": one.default is one.empty}
        for one in inspect.signature(function).parameters.values()
        if one.name != "self"
    ]


def _fields(cls: Any) -> list[str]:
    if hasattr(cls, "__struct_fields__"):
        return [name for name in cls.__struct_fields__ if not name.startswith("_")]
    return [field.name for field in dataclasses.fields(cls)]


if __name__ == "__main__":
    main()
