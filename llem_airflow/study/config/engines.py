"""An engine's section of an experiment: what passes through to it, what is done around it, which keys it has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from llem_airflow.study.config.base import Config, Consistent, Contradiction, Section, key
from llem_airflow.study.config.types import Mapped, Text, Whole
from llem_airflow.study.names import OWN_ENGINES

PRESETS: dict[str, dict[str, float]] = {
    "deterministic": {"temperature": 0.0},
    "standard": {"temperature": 1.0, "top_p": 0.95},
    "creative": {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.1},
    "factual": {"temperature": 0.3},
}
"""Sampling presets: what is written under ``sampling_params`` wins over them."""
_DATA = Path(__file__).parents[1] / "data"

PARTS = ("engine_params", "sampling_params")


@cache
def known_keys(engine: str, part: str) -> tuple[str, ...]:
    """Keys that the engine is known to have, sorted."""
    return tuple(json.loads((_DATA / "engine-keys.json").read_text("utf-8")).get(engine, {}).get(part, ()))


@cache
def not_of_a_server(engine: str, part: str) -> frozenset[str]:
    """Known keys that the engine's server has no flag or no field of a completion request for."""
    found = json.loads((_DATA / "server-keys.json").read_text("utf-8"))
    return frozenset(found.get(engine, {}).get(part, ()))


def key_of_engines(name: str) -> str | None:
    """Where a key that engines are known to have is written, as a sentence."""
    full = [f"{e}.{part}.{name}" for e in OWN_ENGINES for part in PARTS if name in known_keys(e, part)]
    return f"it is {' or '.join(full)}" if full else None


CHAT = "Put each prompt into the model's chat template."


class Execution(Section):
    """What the measuring code does around the engine."""

    chat_template: bool | None = key(None, CHAT)


class TransformersExecution(Consistent):
    """What the measuring code does around the transformers engine."""

    batch_size: Whole | None = key(None, "Prompts per batch (default 1).", ge=1)
    chat_template: bool | None = key(None, CHAT)
    torch_compile: bool | None = key(None, "Compile the model with torch.compile.")
    torch_compile_mode: Text | None = key(None, "Mode of torch.compile.")
    torch_compile_backend: Text | None = key(None, "Backend of torch.compile.")
    allow_tf32: bool | None = key(None, "Allow TF32 matrix products.")
    autocast_enabled: bool | None = key(None, "Generate under torch.autocast.")
    autocast_dtype: Literal["float16", "bfloat16"] | None = key(None, "Type under autocast.")

    def contradictions(self) -> Iterator[Contradiction]:
        """Settings of a compilation that is switched off."""
        for name in ("torch_compile_mode", "torch_compile_backend"):
            if getattr(self, name) is not None and self.torch_compile is False:
                advice = "set torch_compile: true or drop it"
                yield (name, "torch_compile"), f"{name} is set but torch_compile is false", advice


class EngineSection(Section):
    """An engine: what passes through to it, and what is done around it."""

    flat_execution: ClassVar[tuple[str, ...]] = ()
    """Keys of ``llem_execution`` that older files have in the section itself."""

    engine_params: Mapped = key({}, "Arguments of the engine's constructor; unknown keys pass through.")
    sampling_params: Mapped = key({}, "Arguments of the engine's sampling; unknown keys pass through.")
    llem_execution: Execution = Execution()

    @classmethod
    def moved_to(cls, name: str) -> str | None:
        """Where a flat key of an older file is now: ``vllm.dtype`` is ``vllm.engine_params.dtype``."""
        engine = cls.__name__.lower()
        parts = (part for part in PARTS if name in known_keys(engine, part))
        part = next(parts, "llem_execution" if name in cls.flat_execution else None)
        return part and f"it is {engine}.{part}.{name}"


class Transformers(EngineSection):
    """The transformers engine."""

    flat_execution: ClassVar = ("batch_size", "torch_compile", "allow_tf32", "autocast_enabled")

    llem_execution: TransformersExecution = TransformersExecution()  # type: ignore[assignment]  # its own keys instead


class Vllm(EngineSection):
    """The vLLM engine."""


class Tensorrt(EngineSection):
    """The TensorRT-LLM engine."""


def with_sampling(engine: str, section: Config, preset: str | None) -> Config:
    """The section of the experiment's engine with the preset's values and, for transformers, whether it samples."""
    given, sampling = PRESETS.get(preset or "", {}), section["sampling_params"]
    sampling = given | {
        name: value for name, value in sampling.items() if value is not None or name not in given
    }
    if engine == "transformers":
        sampling = sampling | {"do_sample": _samples(sampling)}
    return section | {"sampling_params": sampling}


def _samples(sampling: Config) -> Any:
    """Whether transformers draws tokens at random.

    ``generate`` decodes greedily unless do_sample is set, whatever the temperature, and refuses a temperature of 0
    when it is set: here a temperature that is written down is applied, and 0 is greedy as in the other engines.
    """
    temperature, wanted = sampling.get("temperature"), sampling.get("do_sample")
    if not isinstance(temperature, (int, float)):
        return False if wanted is None else wanted
    if wanted is None:
        return temperature > 0
    return False if temperature == 0 else wanted
