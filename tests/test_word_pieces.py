"""BERT's tokens of plain English against those of the tokenizers library, on texts that nobody would write."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from indexer.encoders.mini import PACKAGED, TOKENIZER, MiniEncoder
from indexer.encoders.word_pieces import LONGEST, WordPieces


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    return dict(json.loads((PACKAGED / TOKENIZER).read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def ours(described: dict[str, Any]) -> WordPieces:
    return WordPieces(described)


@pytest.fixture(scope="module")
def mini() -> MiniEncoder:
    return MiniEncoder("cpu")


@settings(max_examples=400, deadline=None)
@given(
    text=st.text(st.characters(min_codepoint=31, max_codepoint=128))
    | st.lists(st.sampled_from(["unbelievable", "Dogs", "1,234.5", "don't", "_", " ", "x" * LONGEST, "e-mail"])).map(
        "".join
    )
)
@example(text="a" * (LONGEST + 1))
@example(text="[SEP] and [MASK]")
def test_the_tokens_are_those_of_the_library(ours: WordPieces, mini: MiniEncoder, text: str) -> None:
    if WordPieces.can_read(text):
        assert ours.ids(text) == mini._tokenizer.encode(text).ids


def test_what_is_not_plain_goes_to_the_library(mini: MiniEncoder) -> None:
    """é is a letter that the library strips of its accent, [SEP] a token of its own."""
    assert not WordPieces.can_read("café") and not WordPieces.can_read("[SEP]") and not WordPieces.can_read("a\tb")
    assert mini.token_ids(["café"]) == mini.token_ids(["cafe"])
    assert mini.token_ids(["a [SEP]"])[0].count(102) == 2


def test_another_tokenizer_is_not_taken_for_this_one(described: dict[str, Any]) -> None:
    for part, value in (
        ("normalizer", {"type": "BertNormalizer", "lowercase": False}),
        ("pre_tokenizer", {"type": "X"}),
    ):
        with pytest.raises(ValueError, match="no tokenizer of BERT"):
            WordPieces(described | {part: value})
    with pytest.raises(ValueError, match="words of 5 characters"):
        WordPieces(described | {"model": described["model"] | {"max_input_chars_per_word": 5}})
