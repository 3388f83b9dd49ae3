"""Naive prompts, as people wrote them: a file of rows or of lines -> prompts with names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from preftune.data.fields import Unfit, get, get_optional, read_text, shown
from preftune.data.records import Where
from preftune.data.sources import Source, rows
from preftune.errors import PreftuneError
from preftune.prompting.naming import prompt_id

PROMPT = "prompt|raw_prompt|question|instruction|input"
ANSWERS = ("ground_truth", "answer", "reference", "target")  # best first
LONGEST = 32_768  # characters of a prompt: beyond that it is a document, and no model reads it with a rewrite of it
_FINAL = re.compile(r"####\s*(.+)\s*$")  # as GSM8K marks the answer below its solution
TEXTS = (".txt", ".text", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class NaivePrompt:
    """A prompt to be rewritten.

    Attributes:
        id: names it.
        prompt: its text.
        where: where it came from, for messages.
        ground_truth: the right answer, if it is known.
        task: what it belongs to, if that matters.
        options: what may be answered, if the prompt lists it.
    """

    id: str
    prompt: str
    where: Where
    ground_truth: str | None = None
    task: str | None = None
    options: tuple[str, ...] = ()


def final_answer(ground_truth: str) -> str:
    """The answer at the end of a solution that ends as GSM8K's do; else all of it.

    Example:
        >>> final_answer("48 / 2 = 24\\n#### 24"), final_answer("Paris")
        ('24', 'Paris')
    """
    found = _FINAL.search(ground_truth)
    return found[1].strip() if found else ground_truth


def read_prompts(source: Source, limit: int | None = None) -> list[NaivePrompt]:
    """Naive prompts: a text file with one in each line, or all that `data.sources.rows` reads, with a column prompt
    (or raw_prompt, question, instruction, input), and maybe ground_truth (or answer, reference, target), options (or
    choices), task and id.

    A prompt that stands there twice counts once.

    Args:
        source: file, folder, hub id or rows.
        limit: the first ones alone.

    Raises:
        PreftuneError: if it cannot be read, a row has no prompt or a too long one, or two prompts share an id.
    """
    found: dict[str, NaivePrompt] = {}
    text = isinstance(source, str | Path) and Path(source).suffix.lower() in TEXTS and Path(source).is_file()
    for prompt in _lines(Path(str(source))) if text else _rows(source):
        if len(prompt.prompt) > LONGEST:
            raise PreftuneError(
                f"{prompt.where}: the prompt has {len(prompt.prompt):,} characters, expected at most {LONGEST:,}: "
                "shorten it, or leave it out"
            )
        same = found.setdefault(prompt.id, prompt)
        if prompt_id(same.prompt) != prompt_id(prompt.prompt):
            raise PreftuneError(
                f"{prompt.where} and {same.where} have the id {prompt.id!r} and different prompts: give each its own"
            )
    return list(islice(found.values(), limit))


def _lines(path: Path) -> Iterator[NaivePrompt]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PreftuneError(f"cannot read {path} ({error.strerror}): check the path") from None
    except UnicodeDecodeError as error:
        raise PreftuneError(
            f"{path} is no UTF-8 text (byte {error.start}), expected a prompt in each line, or rows in .jsonl"
        ) from None
    if "\x00" in text:
        raise PreftuneError(f"{path} is no text (it holds zero bytes), expected a prompt in each line")
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n")) if line.strip()]
    if not lines:
        raise PreftuneError(f"0 prompts in {path}, expected one in each line")
    for number, line in lines:
        yield NaivePrompt(id=prompt_id(line), prompt=line, where=Where(str(path), number))


def _rows(source: Source) -> Iterator[NaivePrompt]:
    for where, row in rows(source):
        try:
            yield _read(row, where)
        except Unfit as unfit:
            reason = str(unfit)
        else:
            continue
        raise PreftuneError(f"{where}: {reason}")


def _read(row: Mapping[str, Any], where: Where) -> NaivePrompt:
    prompt = read_text(*get(row, PROMPT))
    given = get_optional(row, "id")
    answer = next((name for name in ANSWERS if get_optional(row, name) is not None), None)
    task = get_optional(row, "task")
    return NaivePrompt(
        id=prompt_id(prompt) if given is None else str(given),
        prompt=prompt,
        where=where,
        ground_truth=None if answer is None else _answer(row[answer], answer),
        task=None if task is None else read_text(task, "task"),
        options=_options(row),
    )


def _options(row: Mapping[str, Any]) -> tuple[str, ...]:
    name = next((each for each in ("options", "choices") if row.get(each) is not None), None)
    if name is None:
        return ()
    if not isinstance(row[name], list | tuple):
        raise Unfit(f"{name} is {shown(row[name])}, expected a list of texts")
    return tuple(read_text(each, f"{name} {number}") for number, each in enumerate(row[name]))


def _answer(value: Any, name: str) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return read_text(value, name)
