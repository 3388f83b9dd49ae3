"""The Bradley-Terry model: one number per item says how often it is preferred to any other.

    P(i is preferred to j) = sigmoid(strength of i - strength of j)

That is what a reward model, and DPO, take for granted. Here the model is fitted to counts, with intervals; a win graph
that has no finite fit is found before any fitting; and preferences that no such numbers can express are named.

A tie counts as half a win for each side. The fit then needs no parameter of its own for ties, and strengths stay those
of the equation above if it is read as the expected score; intervals come out a little too wide, since a tie varies less
than a win or a loss does.

Written out rather than taken from a library: choix, the best kept one, gives point estimates alone, needs SciPy, and
leaves graphs without a finite maximum, ties, intervals and intransitivity to its caller.

The film example. Twenty friends compare three films, two at a time. For an evening alone 18 of 20 put Alien before Babe
before Casablanca; with a partner Babe before Casablanca before Alien; with children Casablanca before Alien before
Babe. A score per film and context says all of it; one score per film says nothing:

    >>> films = ["Alien", "Babe", "Casablanca"]
    >>> alone = torch.tensor([[0, 18, 18], [2, 0, 18], [2, 2, 0]])
    >>> partner, children = (alone.roll((by, by), (0, 1)) for by in (1, 2))
    >>> fit(alone, names=films).ranking
    ('Alien', 'Babe', 'Casablanca')
    >>> pooled = alone + partner + children
    >>> score = fit(pooled, names=films)  # every film is as good as every other ...
    >>> score.probability("Alien", "Babe"), round((pooled[0, 1] / 60).item(), 3)  # ... and yet
    (0.5, 0.633)
    >>> finding = intransitivity(pooled, names=films)
    >>> round(finding.p_value, 4), [cycle.path for cycle in finding.cycles]
    (0.0003, ['Alien > Babe > Casablanca > Alien'])

Tensor names carry their shape: N items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.theory.solving import NoFiniteOptimumError, groups, reachable, shortest_cycles

_STEPS = 1000  # while strengths are far off, each brings about 0.7 logits
_SMALL = 1e-9  # steps above this share of the strengths are never taken for rounding


@dataclass(frozen=True)
class Fit:
    """Strengths of items, in logits, relative to their mean.

    Attributes:
        names: the items.
        strengths_N: with `prior_sd` the most probable ones, otherwise those of maximum likelihood; they sum to 0.
        covariance_NN: of their errors (inverse of the information; the rows sum to 0).
        log_likelihood: of the comparisons, without the prior.
    """

    names: tuple[str, ...]
    strengths_N: Tensor
    covariance_NN: Tensor
    log_likelihood: float

    @property
    def standard_errors_N(self) -> Tensor:
        """Standard error of each strength."""
        return self.covariance_NN.diagonal().clamp(min=0).sqrt()

    @property
    def ranking(self) -> tuple[str, ...]:
        """The items, strongest first."""
        order = sorted(range(len(self.names)), key=lambda i: -float(self.strengths_N[i]))
        return tuple(self.names[i] for i in order)

    def intervals(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Lower and upper end of each strength, each of shape N (normal approximation).

        Args:
            level: share of such intervals that hold the truth, in (0, 1).
        """
        half_N = _quantile(level) * self.standard_errors_N
        return self.strengths_N - half_N, self.strengths_N + half_N

    def probability(self, item: str, other: str) -> float:
        """Probability that one item is preferred to another."""
        return float(torch.sigmoid(self._difference(item, other)[0]))

    def probability_interval(self, item: str, other: str, level: float = 0.95) -> tuple[float, float]:
        """Interval of that probability (normal approximation of the difference of strengths).

        Args:
            item: one item.
            other: the other item.
            level: share of such intervals that hold the truth, in (0, 1).
        """
        difference, error = self._difference(item, other)
        half = _quantile(level) * error
        return float(torch.sigmoid(difference - half)), float(torch.sigmoid(difference + half))

    def _difference(self, item: str, other: str) -> tuple[Tensor, Tensor]:
        for name in (item, other):
            if name not in self.names:
                raise ValueError(f"there is no item {name!r}; known: {', '.join(self.names)}")
        contrast_N = torch.zeros_like(self.strengths_N)
        contrast_N[self.names.index(item)] += 1
        contrast_N[self.names.index(other)] -= 1
        variance = contrast_N @ self.covariance_NN @ contrast_N
        return contrast_N @ self.strengths_N, variance.clamp(min=0).sqrt()


@dataclass(frozen=True)
class Cycle:
    """Items of which each is preferred to the next by a majority, and the last to the first.

    Attributes:
        items: in order.
        weakest_p: p-value of its least certain majority (one-sided sign test against one half, ties left out): the
            cycle as a whole is as doubtful as that.
    """

    items: tuple[str, ...]
    weakest_p: float

    @property
    def path(self) -> str:
        """The cycle as text."""
        return " > ".join((*self.items, self.items[0]))


@dataclass(frozen=True)
class Intransitivity:
    """Whether one strength per item can express the comparisons.

    Attributes:
        deviance: twice the log-likelihood that is lost against a free probability for each pair.
        degrees: free probabilities less free strengths; at 0 there is nothing to test.
        p_value: of the deviance, from the chi-squared distribution, which wants about five comparisons of a pair or
            more; a small one says that no strengths fit, cycle or not. 1 if there is nothing to test.
        cycles: a shortest cycle of majorities through each pair that lies on one, the shortest first.
    """

    deviance: float
    degrees: int
    p_value: float
    cycles: tuple[Cycle, ...]


def fit(
    wins: Tensor, ties: Tensor | None = None, *, names: Sequence[str] | None = None, prior_sd: float | None = None
) -> Fit:
    """Strengths from pairwise comparisons, by Newton steps.

    Maximum likelihood has an answer only if from each item a chain of wins leads to each other one (Ford 1957). An item
    that always wins has no finite strength; with `prior_sd` it has, and that number is then the caller's statement
    about how far apart items can be.

    Args:
        wins: how often the row was preferred to the column, shape (N, N), >= 0; fractions are weights.
        ties: how often neither was preferred, shape (N, N), symmetric; each counts as half a win for both.
        names: of the items; numbers from 0 if not given.
        prior_sd: standard deviation of strengths in logits, of a normal prior around 0; None for none.

    Raises:
        NoFiniteOptimumError: without a prior, if strengths would be infinite, or no chain of comparisons links some
            items, which it names; or if weights lie so far apart that float64 cannot tell the strengths.
        ValueError: if an argument is out of its range.

    Example:
        >>> found = fit(torch.tensor([[0, 3], [1, 0]]))  # 3 to 1: the strengths differ by log 3
        >>> [round(x, 4) for x in found.strengths_N.tolist()], round(found.probability("0", "1"), 4)
        ([0.5493, -0.5493], 0.75)
    """
    score_NN = _scores(wins, ties)
    labels = _labels(names, len(score_NN))
    if prior_sd is not None and not 0 < prior_sd < math.inf:
        raise ValueError(f"prior_sd must be finite and > 0, got {prior_sd}: it is the spread of strengths in logits")
    precision = 0.0 if prior_sd is None else 1 / prior_sd**2
    if not precision:
        _refuse_apart(score_NN, labels)
        _refuse_unbounded(score_NN, labels)
    strengths_N = _newton(score_NN, precision)
    # differences from the mean: the level of all is what no comparison can see
    relative_NN = torch.eye(len(labels), dtype=torch.float64) - 1 / len(labels)
    covariance_NN = relative_NN @ _solved(_information(score_NN, strengths_N), precision, relative_NN)
    return Fit(labels, strengths_N, covariance_NN, _log_likelihood(score_NN, strengths_N))


def strengths(wins: Tensor) -> Tensor:
    """Strengths of maximum likelihood, float64, shape (N,); between items that no chain of comparisons links, each such
    group by itself sums to 0.

    Args:
        wins: how often, or with which weight, the row was preferred to the column, shape (N, N), >= 0.

    Raises:
        NoFiniteOptimumError: if a strength would be infinite; it names the items by number.
        ValueError: if wins are no such matrix.
    """
    score_NN = _scores(wins, None)
    _refuse_unbounded(score_NN, _labels(None, len(score_NN)))
    return _newton(score_NN, 0.0)


def intransitivity(wins: Tensor, ties: Tensor | None = None, *, names: Sequence[str] | None = None) -> Intransitivity:
    """Test whether strengths can express the comparisons, and name the cycles of majorities.

    Any win graph will do: groups of which one always beats the other cost no likelihood, so the test is within them.

    Args:
        wins: how often the row was preferred to the column, shape (N, N); whole numbers.
        ties: how often neither was preferred, shape (N, N), symmetric.
        names: of the items; numbers from 0 if not given.

    Raises:
        ValueError: if an argument is out of its range.
    """
    score_NN = _scores(wins, ties)
    labels = _labels(names, len(score_NN))
    wins_NN = wins.double()
    if (wins_NN != wins_NN.round()).any():
        raise ValueError("a test of intransitivity counts comparisons, but wins are no whole numbers: give counts")
    reach_NN = reachable(score_NN > 0)
    within_NN = torch.where(reach_NN & reach_NN.T, score_NN, 0)
    games_NN = within_NN + within_NN.T
    free = torch.special.xlogy(within_NN, within_NN / games_NN.clamp(min=1e-300)).sum()
    deviance = 2 * (float(free) - _log_likelihood(within_NN, _newton(within_NN, 0.0)))
    pairs = int((games_NN > 0).sum()) // 2
    degrees = pairs - (len(labels) - len(groups(reach_NN & reach_NN.T)))
    p_value = 1.0
    if degrees:
        half = torch.tensor([degrees / 2, max(deviance, 0.0) / 2], dtype=torch.float64)
        p_value = float(torch.special.gammaincc(half[0], half[1]))
    cycles = [
        Cycle(
            tuple(labels[i] for i in cycle),
            max(
                _sign_test(int(wins_NN[i, j]), int(wins_NN[j, i]))
                for i, j in zip(cycle, (*cycle[1:], cycle[0]), strict=True)
            ),
        )
        for cycle in shortest_cycles(wins_NN > wins_NN.T)
    ]
    return Intransitivity(max(deviance, 0.0), degrees, p_value, tuple(cycles))


def _newton(score_NN: Tensor, precision: float) -> Tensor:
    """Strengths of greatest posterior density, for scores that have them; every linked group sums to 0.

    Steps are damped by log(1 + r) / r, for r the largest change of a difference between items that met: the curvature
    of a logistic likelihood cannot change faster than exp(r), so that each such step climbs, from any start.
    """
    met_NN = score_NN + score_NN.T > 0
    mean_NN = torch.zeros_like(score_NN)
    for group in groups(reachable(met_NN)):
        mean_NN[torch.tensor(group)[:, None], torch.tensor(group)] = 1 / len(group)
    strengths_N, before = torch.zeros_like(score_NN[0]), math.inf
    for _ in range(_STEPS):
        # what each win still asks for, as one net flow per pair: n * p - wins would cancel if p is all but 1
        flow_NN = score_NN * torch.sigmoid(strengths_N - strengths_N[:, None])
        gradient_N = (flow_NN - flow_NN.T).sum(1) - precision * strengths_N
        step_N = _solved(_information(score_NN, strengths_N), precision, gradient_N[:, None])[:, 0]
        step_N = step_N - mean_NN @ step_N
        change = float(torch.where(met_NN, step_N[:, None] - step_N, 0).abs().max())
        strengths_N = strengths_N + step_N * (math.log1p(change) / change if change else 1.0)
        # near the maximum each step is about the square of the one before: one that is no shorter is rounding
        length = float(step_N.abs().max() / (1 + strengths_N.abs().max()))
        if before / 2 <= length <= _SMALL:
            return strengths_N
        before = length
    raise NoFiniteOptimumError(
        f"no strengths were found in {_STEPS} steps, because the weights of wins lie too far apart for float64: give a "
        "prior_sd, or a smaller one"
    )


def _information(score_NN: Tensor, strengths_N: Tensor) -> Tensor:
    """Fisher information of the comparisons about the difference of each two strengths."""
    p_NN = torch.sigmoid(strengths_N[:, None] - strengths_N)
    return (score_NN + score_NN.T) * p_NN * p_NN.T


def _solved(link_NN: Tensor, ground: float, right_NM: Tensor) -> Tensor:
    """x with sum over j of link[i, j] * (x[i] - x[j]) + ground * x[i] = right[i], by taking out item after item.

    What an item leaves behind are links between its neighbours, which add up: nothing cancels, where a decomposition of
    the matrix loses light links beside heavy ones. Without a ground, 0 is the level of one item of each linked group.
    """
    link_NN, x_NM, ground_N = link_NN.clone(), right_NM.clone(), torch.full_like(link_NN[0], ground)
    for k in range(len(x_NM) - 1, -1, -1):
        to_k = link_NN[k, :k]
        total = float(to_k.sum() + ground_N[k])
        share_k = to_k / total if total else to_k
        link_NN[:k, :k] += torch.outer(to_k, share_k)
        ground_N[:k] += share_k * ground_N[k]
        x_NM[:k] += torch.outer(share_k, x_NM[k])
        x_NM[k] = x_NM[k] / total if total else 0
        link_NN[k, :k] = share_k
    for k in range(1, len(x_NM)):
        x_NM[k] += link_NN[k, :k] @ x_NM[:k]
    return x_NM


def _log_likelihood(score_NN: Tensor, strengths_N: Tensor) -> float:
    return float((score_NN * logsigmoid(strengths_N[:, None] - strengths_N)).sum())


def _scores(wins: Tensor, ties: Tensor | None) -> Tensor:
    """Wins plus half the ties, float64, after checking both."""
    for name, counts in (("wins", wins), ("ties", ties)):
        if counts is None:
            continue
        if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or counts.shape != wins.shape:
            raise ValueError(f"{name} have shape {tuple(counts.shape)}, expected one row and one column for each item")
        if not len(counts):
            raise ValueError(f"{name} have no rows, expected one row and one column for each item")
        if not (counts.isfinite().all() and (counts >= 0).all() and (counts.diagonal() == 0).all()):
            raise ValueError(f"{name} must be finite and >= 0, and 0 on the diagonal: no item is compared with itself")
    if ties is None:
        return wins.double()
    if (ties != ties.T).any():
        raise ValueError("ties must be symmetric: a tie of i with j is one of j with i")
    return wins.double() + ties.double() / 2


def _labels(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    labels = tuple(str(i) for i in range(count)) if names is None else tuple(names)
    if len(labels) != count or len(set(labels)) != count:
        raise ValueError(f"names must be {count} different ones, one for each row of wins, got {list(labels)}")
    return labels


def _refuse_apart(score_NN: Tensor, labels: Sequence[str]) -> None:
    linked = groups(reachable(score_NN + score_NN.T > 0))
    if len(linked) > 1:
        raise NoFiniteOptimumError(
            f"no chain of comparisons links {_list(labels, linked[0])} with {_list(labels, linked[1])}: "
            "compare them, fit them apart, or give a prior_sd"
        )


def _refuse_unbounded(score_NN: Tensor, labels: Sequence[str]) -> None:
    """Refuse groups of items that win all their comparisons with the rest."""
    reach_NN = reachable(score_NN > 0)
    for group in groups(reach_NN & reach_NN.T):
        members = torch.tensor(group)
        below = reach_NN[members[0]].clone()
        below[members] = False
        never_beaten = not (reach_NN[:, members[0]] & ~reach_NN[members[0]]).any()
        if never_beaten and below.any():
            raise NoFiniteOptimumError(
                f"{_list(labels, group)} won every comparison with "
                f"{_list(labels, below.nonzero().flatten().tolist())}, so the "
                "likelihood rises without end: give a prior_sd, or comparisons that went the other way"
            )


def _list(labels: Sequence[str], items: Sequence[int]) -> str:
    shown = [labels[i] for i in items[:5]] + ([f"{len(items) - 5} more"] if len(items) > 5 else [])
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _sign_test(wins: int, losses: int) -> float:
    """P-value of at least so many wins if both sides were equal; exact."""
    games = wins + losses
    return math.fsum(math.comb(games, k) / 2**games for k in range(wins, games + 1))


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}: 0.95 is usual")
    return float(torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)))
