"""Make a tiny random Llama for tests: real architecture, real tokenizer, weights drawn from seed 0.

    python images/models/tiny_llama.py build/models/tiny-llama-random

Its byte-level BPE tokenizer is trained on this repository's licence text, so the same versions of torch,
transformers and tokenizers make the same files everywhere. It loads in half a second and makes hundreds of
tokens a second on one CPU core; the text is noise.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from portable import make_portable, write_once

CORPUS = Path(__file__).parents[2] / "LICENSE"
VOCABULARY_TOKENS = 2048
CONTEXT_TOKENS = 2048

logger = logging.getLogger("models")


def main(arguments: list[str]) -> int:
    """Write the folder that the command line names.

    Returns:
        0, or 2 after a usage message.
    """
    if len(arguments) != 1:
        logger.error("usage: tiny_llama.py FOLDER")
        return 2
    write_once(Path(arguments[0]), _write)
    return 0


def _write(folder: Path) -> None:
    # Imported late: finding the model there already should not take seconds.
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        CORPUS.read_text(encoding="utf-8").splitlines(),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY_TOKENS,
            special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=CONTEXT_TOKENS,
    )
    tokenizer.chat_template = "{% for m in messages %}{{m['role']}}: {{m['content']}}\n{% endfor %}assistant:"
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=CONTEXT_TOKENS,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
            dtype="float32",
        )
    ).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    make_portable(folder)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    sys.exit(main(sys.argv[1:]))
