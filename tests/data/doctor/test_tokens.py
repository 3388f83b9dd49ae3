"""What rendering refuses or leaves out, sorted into kinds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from preftune.data import chat_template, rendering
from preftune.data.doctor.checkup import Chart
from preftune.data.doctor.tokens import KINDS, kind_of, unfit_as_tokens
from preftune.data.lines import Lines, Reading
from preftune.data.rendering import RenderingConfig
from preftune.sandbox.preferences import base_tokenizer, rows

REASONS = {
    "prompt and response are longer than max_length=20 tokens": "too_long",
    "a response alone is longer than max_length=20 tokens": "too_long",
    "the prompt alone is longer than max_length=20 tokens": "too_long",
    "chosen and rejected are identical in tokens": "identical_tokens",
    "chosen is empty": "empty_tokens",
    "chosen is empty in tokens": "empty_tokens",
    "the prompt is empty, and the tokenizer has no bos_token to begin with": "empty_tokens",
    "the text of chosen holds the end token </s>": "end_twice",
    "the text of the prompt holds the control token <|im_start|>": "templated_text",
    "the prompt begins with '<s>' twice": "begin_twice",
    "the tokenizer joins 'a' at the end of the prompt and the start of chosen into 'ab' (x)": "boundary",
    "the chat template refuses it: no": "template",
    "its text is broken Unicode (a surrogate without its pair)": "template",
}


@pytest.mark.parametrize("reason", REASONS)
def test_each_reason_is_of_one_kind(reason: str) -> None:
    assert KINDS[kind_of(reason)][0] == REASONS[reason]


def test_these_are_the_sentences_of_rendering() -> None:
    """A sentence that changes there without changing here would be sorted wrongly."""
    source = "".join(Path(str(module.__file__)).read_text("utf-8") for module in (rendering, chat_template))
    written = re.sub(r"\s+", " ", source)
    for part in (
        "longer than max_length=",
        "are identical in tokens",
        "is empty in tokens",
        "the prompt is empty, and",
        "holds the {found}",
        "'end' if found[0] in self.ends else 'control'} token",
        "the prompt begins with {self.tokenizer.bos_token!r} twice",
        "the tokenizer joins {before!r} at",
    ):
        assert part in written, part


def test_records_are_named_with_what_is_wrong_with_them() -> None:
    given = rows(40)
    given[3] = {**given[3], "chosen": " very" * 90}
    given[5] = {**given[5], "rejected": " no <|end|>."}
    lines = Lines(given, Reading())
    findings, notes = unfit_as_tokens(
        lines, Chart(lines).index.places, base_tokenizer(), RenderingConfig(max_length=80)
    )
    assert [(one.name, one.level, one.drop.tolist()) for one in findings] == [
        ("too_long", "error", [3]),
        ("end_twice", "error", [5]),
    ]
    assert findings[0].sentence() == (
        "1 row is longer than data.rendering.max_length or the model allows (given data row 3: prompt and response are "
        "longer than max_length=80 tokens)"
    )
    assert notes == []


def test_text_that_the_tokenizer_does_not_know_is_told() -> None:
    foreign = [{"prompt": f"Frage {i}", "chosen": " Ja, das stimmt.", "rejected": " Nein."} for i in range(9)]
    for given, names in ((rows(9), []), (foreign, ["unknown_tokens"]), (rows(200) + foreign[:1], [])):
        lines = Lines(given, Reading())
        findings, _ = unfit_as_tokens(lines, Chart(lines).index.places, base_tokenizer(), RenderingConfig())
        assert [finding.name for finding in findings] == names
    lines = Lines(foreign, Reading())  # 6 of 11 tokens in each row: the prompt's two, three words, one word
    ((finding,), _) = unfit_as_tokens(lines, Chart(lines).index.places, base_tokenizer(), RenderingConfig())
    assert (finding.level, finding.text) == (
        "warning",
        "55% of the tokens are <|unknown|>: the tokenizer does not know such text",
    )
