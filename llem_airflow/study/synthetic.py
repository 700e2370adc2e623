"""Lengths of synthetic prompts: fixed, or drawn with a seed, the same in every experiment that has that seed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from llem_airflow.protocol.spec import Synthetic
from llem_airflow.study.config.experiment import SYNTHETIC
from llem_airflow.study.config.paths import Config


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of one kind, of prompts or of answers.

    Attributes:
        tokens: The length that the source names, in tokens.
        range_ratio: Uniform over tokens x (1 -/+ this), whole numbers, both ends included, at least 1: as
            `--random-range-ratio` of ``vllm bench serve`` (``vllm/benchmarks/datasets``). 0 is none.
        stddev_tokens: Normal with this standard deviation, rounded up, drawn again until it is above 0: as
            `--synthetic-input-tokens-stddev` of AIPerf (``sample_positive_normal_integer``). 0 is none.
    """

    tokens: int
    range_ratio: float = 0
    stddev_tokens: float = 0

    @property
    def bounds(self) -> tuple[int, int]:
        """Shortest and longest of the uniform distribution, in tokens."""
        ratio = Fraction(str(self.range_ratio))  # 100 x (1 + 0.1) is 110, and not a little more
        return max(1, math.floor(self.tokens * (1 - ratio))), math.ceil(self.tokens * (1 + ratio))

    def draw(self, n: int, seed: str) -> tuple[int, ...]:
        """So many lengths; none where they are all the same.

        Args:
            n: How many.
            seed: Of the random numbers.
        """
        source = random.Random(seed)  # noqa: S311  # the same seed must give the same lengths, on every machine
        if self.range_ratio:
            low, high = self.bounds
            return tuple(source.randint(low, high) for _ in range(n))
        if self.stddev_tokens:
            return tuple(self._normal(source.gauss) for _ in range(n))
        return ()

    def _normal(self, gauss: Callable[[float, float], float]) -> int:
        while (length := gauss(self.tokens, self.stddev_tokens)) <= 0:
            pass
        return max(1, math.ceil(length))

    def told(self) -> str:
        """The distribution in words."""
        if self.range_ratio:
            low, high = self.bounds
            return f"{low} to {high} (uniform)"
        if self.stddev_tokens:
            return f"mean {self.tokens}, standard deviation {self.stddev_tokens:g} (normal, above 0)"
        return f"{self.tokens}"


def lengths_of(dataset: Config) -> tuple[Lengths, Lengths] | None:
    """How long the prompts and the answers of a synthetic set are; None when it is another.

    Args:
        dataset: ``task.dataset`` of an experiment.
    """
    match = SYNTHETIC.match(dataset["source"])
    if match is None:
        return None
    ratio = dataset.get("range_ratio") or 0
    return (
        Lengths(int(match[1]), ratio, dataset.get("input_tokens_stddev") or 0),
        Lengths(int(match[2]), ratio, dataset.get("output_tokens_stddev") or 0),
    )


def synthetic(dataset: Config, seed: int) -> Synthetic | None:
    """The synthetic set of ``task.dataset``, drawn; None when it names another source.

    Args:
        dataset: ``task.dataset`` of an experiment.
        seed: Of the lengths. Those of prompts and answers do not depend on each other's distribution.
    """
    found = lengths_of(dataset)
    if found is None:
        return None
    prompts, answers = found
    return Synthetic(
        input_tokens=prompts.tokens,
        output_tokens=answers.tokens,
        prefix_tokens=dataset.get("prefix_tokens") or 0,
        input_lengths_tokens=prompts.draw(dataset["n_prompts"], f"{seed} input"),
        output_lengths_tokens=answers.draw(dataset["n_prompts"], f"{seed} output"),
    )
