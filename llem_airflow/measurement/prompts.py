"""The prompt set as token ids."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from llem_airflow.measurement.engines.contract import Encoder, Prompt, Vocabulary
from llem_airflow.measurement.failure import MeasurementError
from llem_airflow.protocol.spec import ExperimentSpec, Synthetic


def prompt_set(spec: ExperimentSpec, engine: Encoder) -> tuple[Prompt, ...]:
    """The prompts of one pass, in the order of the study.

    Raises:
        MeasurementError: A prompt has no tokens, or there are fewer prompts than the pass needs.
    """
    task = spec.config.get("task") or {}
    if spec.prompts.synthetic is not None:
        seed = int(task.get("random_seed") or 0)
        return tuple(_synthetic(spec.prompts.synthetic, spec.prompts.n_prompts, engine.vocabulary(), seed))
    if len(spec.prompts.items) < spec.prompts.n_prompts:
        raise MeasurementError(
            f"prompts {spec.prompts.source!r}: a pass needs {spec.prompts.n_prompts} prompts, "
            f"the attempt was given {len(spec.prompts.items)}",
            category="bad_parameter",
        )
    texts = spec.prompts.items[: spec.prompts.n_prompts]
    encoded = engine.encode(texts, task.get("max_input_tokens"))
    empty = [index for index, ids in enumerate(encoded) if not ids]
    if empty:
        raise MeasurementError(
            f"prompts {spec.prompts.source!r}: prompt {empty[0]} has no tokens; remove it",
            category="bad_parameter",
        )
    output_tokens = int(task.get("max_output_tokens") or 256)
    return tuple(Prompt(index, ids, output_tokens) for index, ids in enumerate(encoded))


def _synthetic(wanted: Synthetic, n: int, vocabulary: Vocabulary, seed: int) -> Iterator[Prompt]:
    inputs = wanted.input_lengths_tokens or (wanted.input_tokens,) * n
    outputs = wanted.output_lengths_tokens or (wanted.output_tokens,) * n
    # Drawn apart: with and without a prefix the rest is the same.
    (prefix,) = synthetic_ids(vocabulary, (wanted.prefix_tokens,), f"{seed} prefix")
    for index, own in enumerate(synthetic_ids(vocabulary, inputs, seed)):
        yield Prompt(index, prefix + own, outputs[index])


def synthetic_ids(
    vocabulary: Vocabulary, lengths_tokens: Sequence[int], seed: int | str
) -> Iterator[tuple[int, ...]]:
    """Random prompts of exact lengths, all different, the same for the same seed.

    Args:
        vocabulary: What to choose from; special tokens are left out.
        lengths_tokens: Length of each, in tokens.
        seed: Of the random numbers.
    """
    # Not for secrets: the same seed must give the same prompts on every machine.
    source = random.Random(seed)  # noqa: S311
    plain = [token for token in range(vocabulary.size) if token not in vocabulary.special_ids]
    for length in lengths_tokens:
        yield tuple(source.choices(plain, k=length))


def batches(prompts: tuple[Prompt, ...], size: int | None) -> list[tuple[Prompt, ...]]:
    """The prompts cut into batches; the last may be smaller.

    Args:
        prompts: The prompts of one pass.
        size: Prompts of a batch, or None for all at once.
    """
    step = len(prompts) if size is None else max(1, size)
    return [prompts[begin : begin + step] for begin in range(0, len(prompts), step)]
