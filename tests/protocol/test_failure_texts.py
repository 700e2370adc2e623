"""How engines word that the tokenizer of a model is not there: that is told before the model is looked for."""

from __future__ import annotations

import pytest

from llem_airflow.protocol.failure_texts import LIBRARIES, first


@pytest.mark.parametrize(
    "said",
    [
        "OSError: Can't load tokenizer for 'my/model'. If you were trying to load it from",
        "ValueError: Couldn't instantiate the backend tokenizer from one of: (1) a `tokenizers` library file",
        "FileNotFoundError: no tokenizer file found in /models/m",
        "RuntimeError: no tokenizer was found beside the weights",
        "ValueError: Tokenizer class MyTokenizer does not exist or is not currently imported.",
        "OSError: Unable to load vocabulary from file. Please check that the provided vocabulary is accessible",
        "OSError: Can't load tokenizer for 'm'. Can't load model for 'm'.",
    ],
)
def test_a_tokenizer_that_is_not_there_is_told_from_a_model_that_is_not_there(said: str) -> None:
    found = first(LIBRARIES, f"Traceback (most recent call last):\n{said}\n")
    assert found is not None
    assert (found.category, found.said_inside) == ("model_missing", "tokenizer_missing")
    assert found.hint is not None
    assert found.hint.startswith("put the tokenizer's files")


def test_a_model_that_is_not_there_is_no_matter_of_its_tokenizer() -> None:
    found = first(LIBRARIES, "OSError: Can't load model for 'm'.")
    assert found is not None
    assert (found.category, found.said_inside) == ("model_missing", None)
