"""Minima to the last digits of float64, and the graphs that say whether there is one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

_STEPS = 200
_FLAT = 1e-11  # curvature below this share of the largest counts as none


class NoFiniteOptimumError(ValueError):
    """What was asked for lies at infinity: preferences that never contradict each other pull without end."""


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """A local minimum of a smooth function, by Newton steps in float64.

    Directions in which the function is flat (logits may all rise together) are left as they are at the start.

    Args:
        loss: function of a tensor shaped like `start`, to a scalar.
        start: where to begin.

    Returns:
        The minimum, float64: the last Newton step was smaller than 1e-10 of it.

    Raises:
        NoFiniteOptimumError: if it runs off to infinity, or levels out on the way there.

    Example:
        >>> minimise(lambda x: (x[0] - 3 * x[1]).square() + (x[1] - 1).cosh(), torch.zeros(2)).tolist()
        [3.0, 1.0]
    """
    shape, x = start.shape, start.detach().double().flatten()

    def value(point: Tensor) -> Tensor:
        return loss(point.reshape(shape))

    curved_at_start, steepest = -1, 0.0
    for _ in range(_STEPS):
        gradient = torch.autograd.functional.jacobian(value, x)
        curvatures, directions = torch.linalg.eigh(torch.autograd.functional.hessian(value, x))
        curved = curvatures.abs() > _FLAT * curvatures.abs().max()
        if curved_at_start < 0:
            curved_at_start, steepest = int(curved.sum()), float(gradient.abs().max())
        along = directions[:, curved]
        step = -along @ ((along.T @ gradient) / curvatures[curved].abs())  # downhill in hollows and on saddles alike
        if step.abs().max() <= 1e-10 * (1 + x.abs().max()):
            level = bool(((directions[:, ~curved].T @ gradient).abs() <= 1e-9 * (1 + steepest)).all())
            if not level or (curvatures[curved] < 0).any() or int(curved.sum()) < curved_at_start:
                break
            return (x + step).reshape(shape)
        x = x + _backtrack(value, x, step, float(gradient @ step))
    raise NoFiniteOptimumError("the loss has no finite minimum that Newton's method finds from this start")


def _backtrack(value: Callable[[Tensor], Tensor], x: Tensor, step: Tensor, slope: float) -> Tensor:
    """The step, halved until the function falls by a fair share of what its slope promises."""
    here = float(value(x))
    rounding = 1e-14 * (1 + abs(here))
    for _ in range(60):
        if float(value(x + step)) <= here + 1e-4 * slope + rounding:
            return step
        step, slope = step / 2, slope / 2
    return step


def reachable(beats_NN: Tensor) -> Tensor:
    """True at [i, j] if a path of edges leads from i to j, or i is j; shape (N, N).

    Args:
        beats_NN: True where an edge leads from the row to the column.
    """
    found_NN = beats_NN.bool() | torch.eye(len(beats_NN), dtype=torch.bool)
    for _ in range(max(1, len(beats_NN)).bit_length()):  # each squaring doubles the length of the paths seen
        found_NN = (found_NN.double() @ found_NN.double()) > 0
    return found_NN


def groups(alike_NN: Tensor) -> list[list[int]]:
    """The classes of an equivalence relation, each in rising order.

    Args:
        alike_NN: True where row and column belong together.
    """
    found: dict[int, list[int]] = {}
    for i, row in enumerate(alike_NN.tolist()):
        found.setdefault(row.index(True), []).append(i)
    return list(found.values())


def shortest_cycles(beats_NN: Tensor) -> list[tuple[int, ...]]:
    """For every edge that lies on a cycle, a shortest cycle through it; each cycle once, the shortest first.

    Args:
        beats_NN: True where an edge leads from the row to the column; no edge leads from a node to itself.

    Returns:
        The nodes of each cycle in order, beginning with the smallest.
    """
    after = [[j for j, edge in enumerate(row) if edge] for row in beats_NN.tolist()]
    found = set()
    for start, ends in enumerate(after):
        for second in ends:
            path = _shortest_path(after, second, start)
            if path:
                first = path.index(min(path))
                found.add((*path[first:], *path[:first]))
    return sorted(found, key=lambda cycle: (len(cycle), cycle))


def _shortest_path(after: list[list[int]], start: int, end: int) -> list[int]:
    """Nodes of a shortest path, both ends included; none if there is no path."""
    before = {start: start}
    queue = deque([start])
    while queue and end not in before:
        node = queue.popleft()
        for following in after[node]:
            if following not in before:
                before[following] = node
                queue.append(following)
    if end not in before:
        return []
    path = [end]
    while path[-1] != start:
        path.append(before[path[-1]])
    return path[::-1]
