"""What benchmarks of options with letters share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from preftune.data.records import Where
from preftune.errors import PreftuneError
from preftune.prompting.benchmarks.base import BenchmarkQuestion, checked, letter, lettered
from preftune.prompting.naming import prompt_id

UNKNOWN = -1  # the label of questions whose answers were never published


def question(
    where: Where, task: str, asked: str, options: Sequence[str], label: int, prompt: str | None = None
) -> BenchmarkQuestion:
    """A question with its options below it.

    Args:
        where: the row.
        task: what it belongs to.
        asked: the question.
        options: texts of A, B, and so on.
        label: number of the right one, from 0.
        prompt: the question where it lists the options already.

    Raises:
        PreftuneError: if there is no such option.
    """
    if not 0 <= label < len(options):
        raise PreftuneError(
            f"{where}: the label is {label}, expected 0 to {len(options) - 1}"
            + (": the answers of this split were not published, name another one" if label == UNKNOWN else "")
        )
    listed = lettered(options)
    text = prompt or f"{asked.strip()}\n{listed}"
    return checked(
        BenchmarkQuestion(
            id=prompt_id(f"{task}\n{text}"),
            task=task,
            prompt=text,
            gold=letter(label),
            scorer="choice",
            options=tuple(options),
            listed=listed if prompt is None else "",
            shown=f"({letter(label)})",
            where=where,
        )
    )


def texts(row: dict[str, Any], where: Where, benchmark: str, *names: str) -> list[str]:
    """Fields that must be texts.

    Raises:
        PreftuneError: if one is not.
    """
    for name in names:
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise PreftuneError(
                f"{where}: {name} must be a text, got {row.get(name)!r}; {benchmark} has {', '.join(names)}"
            )
    return [row[name].strip() for name in names]


def number(row: dict[str, Any], where: Where, benchmark: str, name: str) -> int:
    """A field that must be a whole number; digits in a text are one too.

    Raises:
        PreftuneError: if it is not.
    """
    value = row.get(name)
    if isinstance(value, str) and value.strip().lstrip("-").isascii() and value.strip().lstrip("-").isdigit():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise PreftuneError(f"{where}: {name} must be the number of the right option, got {value!r} ({benchmark})")
    return value
