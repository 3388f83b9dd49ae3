"""Each token as the text that it stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text of each token on its own; a token that is a part of a character has the tokenizer's name for it."""
    found = []
    for index, word in zip(ids, tokenizer.batch_decode([[index] for index in ids]), strict=True):
        found.append(word if word and "\ufffd" not in word else str(tokenizer.convert_ids_to_tokens(index)))
    return found


def visible(piece: str) -> str:
    """A piece on one line: control characters escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in piece)
