"""The sections of the engines: free keys that pass through, and what the measuring code does around an engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llem_airflow.study.engine_names import INSTALLED_ENGINES
from llem_airflow.study.fields import Leaf, Section
from llem_airflow.study.mistakes import Path
from llem_airflow.study.vocabulary import FlatKeys


def _compile(values: dict[str, Any]) -> Iterator[tuple[Path, str, str]]:
    for name in ("torch_compile_mode", "torch_compile_backend"):
        if values.get(name) is not None and values.get("torch_compile") is False:
            yield (name,), f"{name} is set but torch_compile is false", "set torch_compile: true or drop it"


_FREE = {
    "engine_params": Section(
        "Arguments of the engine's constructor; unknown keys pass through.", {}, open=True
    ),
    "sampling_params": Section(
        "Arguments of the engine's sampling; unknown keys pass through.", {}, open=True
    ),
}

_CHAT = Leaf("boolean", "Put each prompt into the model's chat template.", nullable=True)

EXECUTION_KNOBS = Section(
    "What the measuring code does around the transformers engine.",
    {
        "batch_size": Leaf("integer", "Prompts per batch (default 1).", nullable=True, least=1),
        "chat_template": _CHAT,
        "torch_compile": Leaf("boolean", "Compile the model with torch.compile.", nullable=True),
        "torch_compile_mode": Leaf("string", "Mode of torch.compile.", nullable=True, least=1),
        "torch_compile_backend": Leaf("string", "Backend of torch.compile.", nullable=True, least=1),
        "allow_tf32": Leaf("boolean", "Allow TF32 matrix products.", nullable=True),
        "autocast_enabled": Leaf("boolean", "Generate under torch.autocast.", nullable=True),
        "autocast_dtype": Leaf(
            "string", "Type under autocast.", nullable=True, choices=("float16", "bfloat16")
        ),
    },
    also=_compile,
)

_CHAT_KNOB = {
    "llem_execution": Section("What the measuring code does around the engine.", {"chat_template": _CHAT})
}

ENGINE_SECTIONS = {
    "transformers": Section(
        "The transformers engine.",
        {**_FREE, "llem_execution": EXECUTION_KNOBS},
        moved=FlatKeys("transformers"),
    ),
    "vllm": Section("The vLLM engine.", _FREE | _CHAT_KNOB, moved=FlatKeys("vllm")),
    "tensorrt": Section("The TensorRT-LLM engine.", _FREE | _CHAT_KNOB, moved=FlatKeys("tensorrt")),
    **{name: Section(f"The installed engine {name}.", _FREE | _CHAT_KNOB) for name in INSTALLED_ENGINES},
}
