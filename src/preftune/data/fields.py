"""The fields of one row: each is checked, or refused with its name, what was found and what was expected."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from preftune.data.records import WEIGHT, Message, Text, is_weight

Turns = tuple[Message, ...]
Fields = Mapping[str, Any]

# Names of roles in use -> ours.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
}
# Which roles may follow which; None is the beginning.
NEXT_ROLES: dict[str | None, tuple[str, ...]] = {
    None: ("user", "system"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


class Unfit(Exception):  # noqa: N818 (it speaks of a row, and becomes a PreftuneError or a dropped row)
    """A row that cannot be read. The message says which field, what was found and what was expected."""


def get(row: Fields, key: str) -> tuple[Any, str]:
    """Value and name of the first column present among alternatives "a|b"."""
    for name in key.split("|"):
        if name in row:
            return row[name], name
    raise Unfit(f"{key.replace('|', ' or ')} is missing, expected it in every row")


def get_optional(row: Fields, key: str) -> Any:
    """A value that may be left out: None where it is missing, null or blank."""
    value = row.get(key)
    return None if isinstance(value, str) and not value.strip() else value


def read_text(value: Any, field: str) -> str:
    """Text that is not blank, as it lies."""
    if not isinstance(value, str) or not value.strip():
        raise Unfit(f"{field} is {shown(value)}, expected text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Unfit(f"{field} has half a surrogate pair at character {error.start}, expected valid Unicode") from None
    return value


def read_turns(value: Any, field: str) -> Turns:
    """A list of {role, content} or {from, value}, or a single one of them."""
    if isinstance(value, Mapping):
        return (_read_turn(value, field),)
    if not isinstance(value, list | tuple) or not value:
        raise Unfit(f"{field} is {shown(value)}, expected a list of turns")
    return tuple(_read_turn(turn, f"{field} turn {i}") for i, turn in enumerate(value))


def read_text_or_turns(value: Any, field: str) -> Text:
    """Either of the two."""
    if isinstance(value, list | tuple | Mapping):
        return read_turns(value, field)
    if isinstance(value, str):
        return read_text(value, field)
    raise Unfit(f"{field} is {shown(value)}, expected text or turns")


def _read_turn(value: Any, field: str) -> Message:
    if not isinstance(value, Mapping):
        raise Unfit(f"{field} is {shown(value)}, expected role and content")
    for role_key, content_key in (("role", "content"), ("from", "value")):
        if role_key in value and content_key in value:
            role = value[role_key]
            if not isinstance(role, str) or role.lower() not in ROLES:
                raise Unfit(f"{role_key} of {field} is {shown(role)}, expected one of {', '.join(ROLES)}")
            return Message(ROLES[role.lower()], read_text(value[content_key], f"{content_key} of {field}"))
    raise Unfit(f"{field} has the keys {names(value)}, expected role and content, or from and value")


def read_number(row: Fields, key: str, low: float = -math.inf, high: float = math.inf) -> float | None:
    """An optional finite number in [low, high]; as text too, which is all that csv can give."""
    value = get_optional(row, key)
    if value is None:
        return None
    number = math.nan
    if isinstance(value, numbers.Real | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):  # stays NaN, refused below
            number = float(value)
    if not (math.isfinite(number) and low <= number <= high):
        bounds = f" from {low:g} to {high:g}" if math.isfinite(high) else f" >= {low:g}" if math.isfinite(low) else ""
        raise Unfit(f"{key} is {shown(value)}, expected a finite number{bounds}")
    return number


def read_numbers(value: Any, field: str) -> tuple[list[float], str]:
    """A list of finite numbers, and the name of its column."""
    if not isinstance(value, list | tuple):
        raise Unfit(f"{field} is {shown(value)}, expected a list of numbers")
    found = [read_number({f"{field} entry {i}": each}, f"{field} entry {i}") for i, each in enumerate(value)]
    for i, number in enumerate(found):
        if number is None:
            raise Unfit(f"{field} entry {i} is {shown(value[i])}, expected a finite number")
    return [number for number in found if number is not None], field


def read_weight(row: Fields) -> float:
    """The optional weight of a record; 1 if there is none."""
    weight = read_number(row, "weight", low=0)
    if weight is not None and not is_weight(weight):
        raise Unfit(f"weight is {shown(weight)}, expected {WEIGHT}")
    return 1.0 if weight is None else weight


def read_flag(value: Any, field: str) -> bool:
    """True or false, also as 1 or 0, or as text (csv)."""
    if isinstance(value, numbers.Real) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in ("true", "false", "1", "0"):
        return value.strip().lower() in ("true", "1")
    raise Unfit(f"{field} is {shown(value)}, expected true or false")


def shown(value: Any) -> str:
    """A value as messages show it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:37] + "...") if value.strip() else "empty"
    if isinstance(value, numbers.Real):
        try:
            return f"the number {float(value):g}"
        except OverflowError:
            return "a huge number"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    return f"of type {type(value).__name__}"


def names(keys: Iterable[Any], most: int = 12) -> str:
    """Names of columns as messages show them, the first few if there are many."""
    texts = [str(key) for key in keys]
    texts = [text if text.isprintable() and 0 < len(text) <= 40 else shown(text) for text in texts]
    return ", ".join(texts[:most]) + (", ..." if len(texts) > most else "") if texts else "(none)"


def as_turns(text: Text, role: str) -> Turns:
    """Text as one turn of this role; turns as they are."""
    return (Message(role, text),) if isinstance(text, str) else text


def one_form(row: Fields, prompt: Text, responses: Mapping[str, Text]) -> tuple[Text, list[Text]]:
    """Prompt and responses (by field name) all as text, or all as turns if any is or if there is a system prompt."""
    texts = (prompt, *responses.values())
    if get_optional(row, "system") is None and all(isinstance(text, str) for text in texts):
        return prompt, list(responses.values())
    asked = as_turns(prompt, "user")
    answers: list[Text] = []
    for field, response in responses.items():
        answer = as_turns(response, "assistant")
        check_roles(("prompt", asked), (field, answer))
        answers.append(answer)
    return with_system(row, asked), answers


def check_roles(*parts: tuple[str, Turns]) -> None:
    """The roles of a conversation, given in named parts, alternate; each part but the last awaits an answer, which the
    next begins with and the last ends with."""
    before = None
    for part, (field, turns) in enumerate(parts):
        if part and before not in ("user", "tool"):
            raise Unfit(f"{parts[part - 1][0]} ends with role {before}, expected user")
        for i, turn in enumerate(turns):
            expected = ("assistant",) if part and i == 0 else NEXT_ROLES[before]
            if turn.role not in expected:
                place = f" after {before}" if before else ""
                raise Unfit(f"{field} turn {i} has role {turn.role}{place}, expected {' or '.join(expected)}")
            before = turn.role
    if before != "assistant":
        raise Unfit(f"{parts[-1][0]} ends with role {before}, expected assistant")


def with_system(row: Fields, turns: Turns) -> Turns:
    """The turns after the system prompt of the `system` column, if there is one."""
    if get_optional(row, "system") is None:
        return turns
    system = Message("system", read_text(row["system"], "system"))
    if turns[0].role != "system":
        return (system, *turns)
    if turns[0] != system:
        raise Unfit("the system column and the first turn give different system prompts, expected one")
    return turns
