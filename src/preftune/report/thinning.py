"""Too many points for a screen, thinned so that nothing that stands out is lost."""

from __future__ import annotations

from collections.abc import Sequence

MOST = 400  # points of one curve; a figure is about as many pixels wide


def extremes(low: Sequence[float], high: Sequence[float] | None = None, most: int = MOST) -> list[int]:
    """Which points to draw: the first, the last, and of each stretch between them the lowest and the highest.

    A mean would hide the one step at which a run blew up; the extremes show it at its height and at its step.

    Args:
        low: values, or the lower ends of a band.
        high: the upper ends, as many; the same values if not given.
        most: points to keep at most, at least 4.

    Returns:
        Indices in order; all of them if there are no more than `most`.

    Example:
        >>> extremes([0, 0, 9, 0, 0, 0, -5, 0], most=6)
        [0, 1, 2, 4, 6, 7]
    """
    count, tops = len(low), low if high is None else high
    if count <= most:
        return list(range(count))
    stretches = (most - 2) // 2
    kept = {0, count - 1}
    for stretch in range(stretches):
        within = range(1 + stretch * (count - 2) // stretches, 1 + (stretch + 1) * (count - 2) // stretches)
        kept |= {min(within, key=low.__getitem__), max(within, key=tops.__getitem__)}
    return sorted(kept)
