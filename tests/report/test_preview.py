"""Tokens in colours that mean what the legend says."""

from __future__ import annotations

import io

from rich.console import Console

from preftune.data.records import Judged, Message, Preference, Ranking, Record, Where
from preftune.data.rendering import Renderer, RenderingConfig
from preftune.report.preview import LONGEST, show
from preftune.sandbox.preferences import base_tokenizer

WHERE = Where("pairs.jsonl", 4)


def shown(record: Record, color: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=color, color_system="truecolor" if color else None)
    show([record], Renderer(base_tokenizer(), RenderingConfig(boundary="shift")), console)
    return out.getvalue()


def test_prompt_target_and_end_have_the_colours_of_the_legend() -> None:
    text = shown(Preference("A film.", " The plot was vivid.", " The cast was weak.", WHERE), color=True)
    legend = text.splitlines()[0]
    prompt, target, end = "\x1b[36m", "\x1b[32m", "\x1b[1;7;35m"
    for style, name in ((prompt, "prompt"), (target, "trained on"), (end, "[end token]")):
        assert f"{style}{name}\x1b[0m" in legend
    assert f"{prompt}A\x1b[0m" in text
    assert f"{target} plot\x1b[0m" in text
    assert f"{end}[<|end|>]\x1b[0m" in text


def test_an_earlier_question_in_a_response_is_masked() -> None:
    response = tuple(
        Message(role, text)
        for role, text in (("assistant", "The plot"), ("user", "The music"), ("assistant", "The cast"))
    )
    text = shown(Preference((Message("user", "A film."),), response, (Message("assistant", "The end"),), WHERE))
    assert "( music)" in text
    assert "( plot)" not in text
    assert text.count("[<|end|>]") == 3


def test_each_response_is_named_by_what_it_is() -> None:
    assert "\ngood response, " in shown(Judged("A film.", " The plot was vivid.", True, WHERE))
    assert "\nbad response, " in shown(Judged("A film.", " The plot was vivid.", False, WHERE))
    ranking = Ranking("A film.", (" The plot.", " The cast."), (2.0, 0.5), WHERE)
    assert "\nresponse with score 2, " in shown(ranking)


def test_long_texts_show_their_ends() -> None:
    text = shown(Preference("A film.", " very" * 1000 + " vivid.", " The cast.", WHERE))
    assert f" ... {1003 - LONGEST:,} more ... " in text
    assert "| vivid|.|[<|end|>]" in text
