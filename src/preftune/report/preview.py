"""Examples as coloured tokens: what the model reads, what it is trained on, and where a response ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from preftune.data.examples import Example, Response
from preftune.data.pieces import pieces, visible
from preftune.data.records import Record
from preftune.data.rendering import Refused, Renderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STYLES = {"prompt": "cyan", "target": "green", "masked": "dim", "end": "bold reverse magenta"}
LONGEST = 400  # tokens of one part that are shown: its first and last halves


def show(records: Iterable[Record], renderer: Renderer, console: Console | None = None) -> None:
    """Print each record as the tokens of its prompt and responses, divided by bars.

    Colours say the same as the words do: tokens in parentheses are masked, and an end token stands in brackets.
    """
    console = console or Console()
    legend = Text("tokens are divided by | : ")
    legend.append("prompt", STYLES["prompt"]).append(", ").append("trained on", STYLES["target"]).append(", ")
    legend.append("(masked)", STYLES["masked"]).append(", ").append("[end token]", STYLES["end"])
    console.print(legend, soft_wrap=True)
    for record in records:
        (outcome,) = renderer.outcomes([record])
        console.print(f"\n{record.where}", style="bold", markup=False, highlight=False, soft_wrap=True)
        if isinstance(outcome, Example):
            _show_example(console, outcome, renderer)
        else:
            what = "cannot be rendered" if isinstance(outcome, Refused) else "is left out"
            console.print(f"{what}: {outcome.reason}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    for note in renderer.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def _show_example(console: Console, example: Example, renderer: Renderer) -> None:
    words = _words(renderer.tokenizer, example.prompt.tolist())
    console.print(f"prompt, {len(words):,} tokens", style="dim", highlight=False)
    console.print(_joined([(word, "prompt") for word in words]), soft_wrap=True)
    for response in example.responses:
        trained = response.length
        console.print(
            f"{response.name}, {len(response.ids):,} tokens, {trained:,} trained on", style="dim", highlight=False
        )
        console.print(_joined(_response(response, renderer)), soft_wrap=True)


def _response(response: Response, renderer: Renderer) -> list[tuple[str, str]]:
    ids = response.ids.tolist()
    masks = [True] * len(ids) if response.targets is None else response.targets.tolist()
    parts = []
    for index, word, trained in zip(ids, _words(renderer.tokenizer, ids), masks, strict=True):
        if trained and index in renderer.end_ids:
            parts.append((f"[{word}]", "end"))
        else:
            parts.append((word, "target") if trained else (f"({word})", "masked"))
    return parts


def _words(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """Each token as text; control characters escaped, parts of a character by their names."""
    return [visible(piece) for piece in pieces(tokenizer, ids)]


def _joined(parts: list[tuple[str, str]]) -> Text:
    text = Text()
    half = LONGEST // 2
    if len(parts) > LONGEST:
        parts = [*parts[:half], (f" ... {len(parts) - LONGEST:,} more ... ", "masked"), *parts[-half:]]
    for number, (word, kind) in enumerate(parts):
        text.append("|" if number else "", "dim").append(word, STYLES[kind])
    return text
