"""Pairs of rewrites: a naive prompt, a better and a worse rewrite of it, and what is known of its answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from preftune.data.fields import Unfit, get_optional, read_text
from preftune.data.records import Where
from preftune.data.sources import Source, rows
from preftune.errors import PreftuneError
from preftune.files import write_whole
from preftune.prompting.naming import prompt_id

# Our names -> those of the data published with FIPO (arXiv 2402.11811; Junrulu/Prompt_Preference_Dataset).
PUBLISHED = {
    "id": "id",
    "prompt": "raw_prompt",
    "chosen": "gpt4_optimized_prompt",
    "rejected": "chatgpt_optimized_prompt",
    "naive_response": "text003_response_based_raw",
    "ground_truth": "gpt4_response_based_raw",
}
NEEDED = ("prompt", "chosen", "rejected")
Layout = Literal["preftune", "published"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptPair:
    """A naive prompt and two rewrites of it, of which `chosen` is the better.

    Attributes:
        id: names the naive prompt. All that was made from one shares it, and never lies on both sides of a split.
        prompt: the naive prompt.
        chosen: the better rewrite.
        rejected: the worse one.
        where: where it came from, for messages.
        naive_response: what a generator answered to the naive prompt; None if nothing is known.
        ground_truth: the right answer, or a very good one ("golden"); None if nothing is known.
        chosen_response: what a generator answered to the better rewrite.
        rejected_response: what it answered to the worse one.
        task: what the prompt belongs to, such as "gsm8k"; None if it does not matter.
    """

    id: str
    prompt: str
    chosen: str
    rejected: str
    where: Where
    naive_response: str | None = None
    ground_truth: str | None = None
    chosen_response: str | None = None
    rejected_response: str | None = None
    task: str | None = None


def read_pairs(source: Source) -> Iterator[PromptPair]:
    """Pairs of any source that `data.sources.rows` reads, in our layout or the published one.

    A row without `id` is named by its naive prompt.

    Raises:
        PreftuneError: if the source cannot be read, or a row is no pair of rewrites.
    """
    for where, row in rows(source):
        try:
            yield _read(row, where)
        except Unfit as unfit:
            reason = str(unfit)
        else:
            continue
        raise PreftuneError(f"{where}: {reason}")


def write_pairs(path: Path, pairs: Iterable[PromptPair], layout: Layout = "preftune") -> None:
    """Write pairs, one JSON object a line, in our layout or the published one (which has no place for tasks and for
    what was answered to the rewrites).

    Raises:
        PreftuneError: if the file cannot be written.
    """
    lines = [json.dumps(as_row(pair, layout), ensure_ascii=False) + "\n" for pair in pairs]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(lines).encode())
    except OSError as error:
        raise PreftuneError(f"cannot write {path} ({error.strerror}): name another file") from None


def as_row(pair: PromptPair, layout: Layout = "preftune") -> dict[str, Any]:
    """A pair as a row, without what is not known.

    Example:
        >>> as_row(PromptPair(id="1", prompt="Add 2 and 3", chosen="Add 2 and 3, step by step",
        ...                   rejected="Sum?", where=Where("pairs.jsonl", 0)), "published")["raw_prompt"]
        'Add 2 and 3'
    """
    names = PUBLISHED if layout == "published" else {name: name for name in _NAMES}
    return {there: value for name, there in names.items() if (value := getattr(pair, name)) is not None}


_NAMES = tuple(field.name for field in fields(PromptPair) if field.name != "where")


def _read(row: Mapping[str, Any], where: Where) -> PromptPair:
    names = PUBLISHED if "raw_prompt" in row else {name: name for name in _NAMES}
    found: dict[str, str | None] = {}
    for name, there in names.items():
        value = get_optional(row, there)
        if name == "id":
            found[name] = None if value is None else str(value)
        elif value is not None or name in NEEDED:
            if there not in row:
                raise Unfit(
                    f"{there} is missing, expected a naive prompt (prompt), a better and a worse rewrite (chosen, "
                    "rejected), or the names of the published data (raw_prompt, gpt4_optimized_prompt, ...)"
                )
            found[name] = read_text(value, there)
    if found.get("id") is None:
        found["id"] = prompt_id(str(found["prompt"]))
    return PromptPair(where=where, **found)  # type: ignore[arg-type]
