"""A model with random weights, made on the spot from a config: nothing is read from a disk or a network."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

import torch
import transformers

from llem_airflow.measurement.engines.contract import Prompt, Vocabulary
from llem_airflow.measurement.engines.transformers import TransformersEngine, generate_parameters
from llem_airflow.protocol.spec import ExperimentSpec

VOCABULARY_TOKENS = 32_000
INPUT_TOKENS, OUTPUT_TOKENS = 32, 16
SHAPES = {
    "7 B": (4096, 32, 32, 11008),
    "3 B": (3072, 26, 24, 8192),
    "1 B": (2048, 20, 16, 5632),
    "0.1 B": (768, 12, 12, 2048),
}
"""Hidden size, layers, heads and intermediate size of Llamas, by their number of parameters."""
_CPU_SHAPE = (256, 4, 4, 688)
"""On a stand-in: 0.01 B."""
_BYTES = 2
_ROOM = 0.4
"""Share of the free memory that the weights may take: cache, activations and other work need the rest."""


class NoModelError(RuntimeError):
    """No model can run here; the message says why."""


class RandomModel(TransformersEngine):
    """A Llama of the largest shape that the free memory has room for.

    Args:
        cpu: Run on the CPU, in a shape that it answers with quickly.
    """

    def __init__(self, *, cpu: bool) -> None:
        super().__init__()
        self._device = "cpu" if cpu else "cuda"

    def load(self, spec: ExperimentSpec) -> None:  # noqa: ARG002  # every engine is told
        """Make the weights where they will be used.

        Raises:
            NoModelError: PyTorch sees no CUDA device, or it has no room.
        """
        if self._device == "cuda" and not torch.cuda.is_available():
            raise NoModelError("PyTorch sees no CUDA device")
        shape = _CPU_SHAPE if self._device == "cpu" else SHAPES[shape_for(torch.cuda.mem_get_info()[0])]
        hidden, layers, heads, intermediate = shape
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY_TOKENS,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            tie_word_embeddings=True,
        )
        torch.manual_seed(0)
        dtype = torch.bfloat16 if self._device == "cuda" else torch.float32
        with torch.device(self._device):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        self._model = model.eval()
        self._tokenizer = _NoTokenizer()
        self._sampling, self._fixed_length = generate_parameters({"temperature": 0.0})

    def vocabulary(self) -> Vocabulary:
        """Every token id but those that begin and end a sequence."""
        return Vocabulary(VOCABULARY_TOKENS, frozenset(range(3)))

    def prompt(self) -> Prompt:
        """One prompt of random token ids."""
        chance = random.Random(0)  # noqa: S311  # no secret: the same prompt each time
        ids = tuple(chance.randrange(3, VOCABULARY_TOKENS) for _ in range(INPUT_TOKENS))
        return Prompt(0, ids, OUTPUT_TOKENS)

    def bare(self, batch: Sequence[Prompt]) -> None:
        """What ``generate`` of the harness asks of the model, and nothing else: no time is noted, no answer taken."""
        ids = torch.tensor([prompt.token_ids for prompt in batch], device=self._model.device)
        with torch.inference_mode():
            self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=OUTPUT_TOKENS,
                min_new_tokens=OUTPUT_TOKENS,
                pad_token_id=0,
                **self._sampling,
            )
        self.sync()


class _NoTokenizer:
    """The one thing that ``generate`` asks of a tokenizer."""

    pad_token_id = 0


def shape_for(free_bytes: int) -> str:
    """The largest shape whose weights fit into 40 % of the free memory of a GPU.

    Raises:
        NoModelError: None does.
    """
    for name in SHAPES:
        if float(name.split()[0]) * 1e9 * _BYTES <= _ROOM * free_bytes:
            return name
    raise NoModelError(
        f"{free_bytes / 2**20:.0f} MiB of the GPU's memory are free, too few for 0.1 B parameters"
    )


def quiet() -> None:
    """Keep what the libraries say to themselves, and the network out of it."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
