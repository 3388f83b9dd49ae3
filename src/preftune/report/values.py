"""Numbers as they stand in run folders, and as people read them."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any, Literal

Unit = Literal["", "share", "nats", "nats per token", "nats per response", "tokens", "count", "seconds"]
Interval = tuple[float, float]

MINUS = "\u2212"  # lines up with the plus, and never breaks off at the end of a line
MISSING = "\u2013"


def number(value: Any) -> float | None:
    """The value as a float; None if it is missing, not a number, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def interval(value: Any) -> Interval | None:
    """The value as (low, high); None unless it is a list of two finite numbers in order."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None or low > high else (low, high)


def around(value: float, error: float) -> Interval:
    """95% interval of a KL divergence with its standard error: never below 0, as no divergence is."""
    return max(0.0, value - 1.96 * error), max(0.0, value + 1.96 * error)


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is an object, otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def rows(value: Any) -> list[dict[str, Any]]:
    """The objects of a list; none if it is no list."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def name_of(setting: Any) -> str:
    """What a block of a config is about: itself if it is text, its `name` or `path`, or the names in a list."""
    if isinstance(setting, str):
        return setting
    if isinstance(setting, dict):
        return next((setting[key] for key in ("name", "path") if isinstance(setting.get(key), str)), "")
    if isinstance(setting, list):
        return " + ".join(name for part in setting if (name := name_of(part)))
    return ""


def listed(words: list[str]) -> str:
    """Words as one would say them: "one", "one and two", "one, two and three"."""
    return " and ".join([*([", ".join(words[:-1])] if words[:-1] else []), *words[-1:]])


def show(value: float | None, unit: Unit = "") -> str:
    """A value for people: shares as percentages, others with as many decimals as their size asks for."""
    if value is None:
        return MISSING
    if unit == "count":
        return _decimal(value, 0)
    if unit == "seconds":
        return show_duration(value)
    return f"{_decimal(100 * value, 1)}%" if unit == "share" else _plain(value)


def show_change(value: float | None, unit: Unit = "") -> str:
    """A signed difference; of shares in percentage points."""
    if value is None:
        return MISSING
    text = f"{_decimal(100 * value, 1)} points" if unit == "share" else _plain(value)
    zero = not any(digit in text for digit in "123456789")
    return text if zero or text.startswith(MINUS) else f"+{text}"


def show_interval(value: Interval | None, unit: Unit = "") -> str:
    """An interval, "low to high"; empty if there is none, or it has no width and so says nothing."""
    return "" if value is None or value[0] == value[1] else f"{show(value[0], unit)} to {show(value[1], unit)}"


def show_time(value: Any) -> str:
    """A moment as manifests have it (ISO 8601), to the minute in UTC; any other text as it stands."""
    if not isinstance(value, str):
        return ""
    try:
        return datetime.fromisoformat(value).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError):
        return value


def show_duration(seconds: float) -> str:
    """A duration: "9.1 seconds", "3 min 20 s", "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.1f} seconds"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _plain(value: float) -> str:
    size = abs(value)
    if value == 0:
        return "0"
    if size >= 1e7 or size < 1e-4:
        return f"{value:.2e}".replace("-", MINUS)
    for least, decimals in ((1000, 0), (100, 1), (1, 2), (0.01, 3), (0.001, 4)):
        if size >= least:
            return _decimal(value, decimals)
    return _decimal(value, 5)


def _decimal(value: float, decimals: int) -> str:
    text = f"{value:,.{decimals}f}"
    negative_zero = text.startswith("-") and not any(digit in text for digit in "123456789")
    return text[1:] if negative_zero else text.replace("-", MINUS)
