"""The text of tokens that continue others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from preftune.data.examples import Ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def continuation(tokenizer: PreTrainedTokenizerBase, prompt: Ids, ids: Ids) -> str:
    """The text of a response, with the space that some tokenizers drop at the start of a text.

    Args:
        tokenizer: of both.
        prompt: token ids before it.
        ids: its own.
    """
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before = str(tokenizer.decode(prompt, **options))
    whole = str(tokenizer.decode(np.concatenate([prompt, ids]), **options))
    return whole[len(before) :] if whole.startswith(before) else str(tokenizer.decode(ids, **options))
