"""Batches made by the real packer, and log-probs to go with them: for every kind of data, and for what each objective
needs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from preftune.data.examples import Example, Response
from preftune.data.packing import PackedBatch, pack
from preftune.objectives.base import Objective
from preftune.objectives.batch import LogProbs, Role

MakePairs = Callable[..., list[Example]]
Spread = Callable[[PackedBatch, Sequence[Tensor]], LogProbs]

LENGTHS = [(2, 5), (7, 3), (4, 4), (1, 6)]
WEIGHTS, CONFIDENCES, GAPS = [1.0, 0.5, 2.0, 1.0], [1.0, 0.75, 0.5, 0.25], [1.0, 2.0, 0.5, 3.0]
# what the optional fields of LogProbs may be, from numbers between 0 and 1
OPTIONAL: dict[str, Callable[[Tensor], Tensor]] = {
    "log_sum_p2_K": lambda x: -4 * x,
    "entropy_K": lambda x: 3 * x,
    "kl_K": lambda x: 2 * x,
    "reward_R": lambda x: 4 * x - 2,
}


def ids(length: int) -> np.ndarray:
    return np.arange(1, length + 1, dtype=np.int32)


@pytest.fixture
def make_pairs() -> MakePairs:
    """Pairs with the given (chosen, rejected) lengths; keyword arguments go to each `Example`, one value each."""

    def make(lengths: Sequence[tuple[int, int]], **columns: Sequence[float]) -> list[Example]:
        return [
            Example(
                ids(3),
                (Response(ids(chosen), Role.CHOSEN), Response(ids(rejected), Role.REJECTED)),
                row=row,
                **{name: values[row] for name, values in columns.items()},
            )
            for row, (chosen, rejected) in enumerate(lengths)
        ]

    return make


@pytest.fixture
def spread() -> Spread:
    """Log-probs of a batch from those of each response, one tensor of token log-probs per response."""

    def to_targets(batch: PackedBatch, tokens: Sequence[Tensor]) -> LogProbs:
        seen = [0] * len(tokens)
        logps = []
        for response in batch.response_K.tolist():
            logps.append(tokens[response][seen[response]])
            seen[response] += 1
        return LogProbs(torch.stack(logps))

    return to_targets


@pytest.fixture
def batch(make_pairs: MakePairs) -> PackedBatch:
    """Four pairs of different lengths, weights, confidences and gaps."""
    return pack(make_pairs(LENGTHS, weight=WEIGHTS, confidence=CONFIDENCES, gap=GAPS))


@pytest.fixture
def draw() -> Callable[..., list[Tensor]]:
    """Random token log-probs for each response of a batch, float64."""

    def tokens(batch: PackedBatch, seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [-torch.rand(n, generator=generator, dtype=torch.float64) * 3 for n in batch.length_R.tolist()]

    return tokens


def responses(kind: str, row: int) -> tuple[Response, ...]:
    """The responses of one of four examples of a kind of data."""
    first, second = LENGTHS[row]
    if kind == "pairs":
        return Response(ids(first), Role.CHOSEN), Response(ids(second), Role.REJECTED)
    if kind == "labels":
        return (Response(ids(first), Role.LABELLED, score=float(row % 2 == 0)),)
    if kind == "rankings":
        scores = (0.2, 0.9, 0.5, 0.9)[: 2 + row]  # two alike, from the third ranking on
        return tuple(Response(ids(first + i), Role.RANKED, score=score) for i, score in enumerate(scores))
    if kind == "rollouts":
        rewards = (0.5, -1.0, 2.0, 0.5)[: 2 + row % 3]
        return tuple(Response(ids(first + i), Role.RANKED, score=reward) for i, reward in enumerate(rewards))
    assert kind == "demonstrations"
    return (Response(ids(first), Role.CHOSEN),)


def carrying(response: Response, objective: Objective, seed: int) -> Response:
    """The response with what rollouts carry at each token."""
    generator = np.random.default_rng(seed)
    drawn = {name: generator.random(response.length) for name in sorted(objective.carried)}
    values = {name: 2 * each - 1 if name == "advantages" else -3 * each for name, each in drawn.items()}
    return replace(response, token={name: each.astype(np.float32) for name, each in values.items()})


@pytest.fixture
def examples_for() -> Callable[[Objective, str], list[Example]]:
    """Four examples of a kind of data with all that an objective needs, and with no doubt where it takes none."""

    def examples(objective: Objective, kind: str) -> list[Example]:
        doubt = kind == "pairs" and objective.confidence != "unused"
        return [
            Example(
                ids(3),
                tuple(carrying(each, objective, 10 * row + i) for i, each in enumerate(responses(kind, row)))
                + ((Response(ids(2 + row), Role.BASELINE),) if objective.baselines else ()),
                row=row,
                weight=WEIGHTS[row],
                confidence=CONFIDENCES[row] if doubt else 1.0,
                gap=GAPS[row] if kind == "pairs" else float("nan"),
            )
            for row in range(4)
        ]

    return examples


@pytest.fixture
def batch_for(examples_for: Any) -> Callable[..., PackedBatch]:
    """The same, packed. Of the objective's own kind of data, unless another is given."""
    return lambda objective, kind=None: pack(examples_for(objective, kind or objective.data))


@pytest.fixture
def log_probs(draw: Any, spread: Spread) -> Callable[..., LogProbs]:
    """Random log-probs, float64, with what an objective needs beside them. Any two seeds agree on the first baseline
    response of a batch, whose log-ratio so is 0.

    `scale` multiplies the log-probs.
    """

    def drawn(objective: Objective, batch: PackedBatch, seed: int, scale: float = 1.0) -> LogProbs:
        tokens = draw(batch, seed)
        baselines = torch.nonzero(batch.role_R == Role.BASELINE).flatten().tolist()
        for index in baselines[:1]:
            tokens[index] = draw(batch, 0)[index]

        def optional(name: str) -> Tensor:
            generator = torch.Generator().manual_seed(100 * (1 + list(OPTIONAL).index(name)) + seed)
            sizes = batch.length_R.tolist() if name.endswith("_K") else [1] * len(batch.length_R)
            parts = [torch.rand(size, generator=generator, dtype=torch.float64) for size in sizes]
            return OPTIONAL[name](spread(batch, parts).logps_K if name.endswith("_K") else torch.cat(parts))

        logps_K = scale * spread(batch, tokens).logps_K
        return LogProbs(logps_K, **{name: optional(name) for name in objective.needs})

    return drawn


@pytest.fixture
def held() -> Callable[..., Callable[..., Any]]:
    """Makes a function in which what has no gradient is a constant: every `detach` in it gives, at any call, what it
    gave at the first one. The gradient that autograd finds is that of this function."""

    def hold(function: Callable[..., Any]) -> Callable[..., Any]:
        kept: list[Tensor] = []

        def again(*args: Any) -> Any:
            with detaching(kept):
                return function(*args)

        return again

    return hold


@contextmanager
def detaching(kept: list[Tensor]) -> Iterator[None]:
    """`detach` gives what is kept, in order; where nothing is kept, it keeps what it gives."""
    original, first, calls = Tensor.detach, not kept, iter(list(kept))

    def detach(tensor: Tensor) -> Tensor:
        found = original(tensor)
        if not first:
            return next(calls)
        kept.append(found.clone())
        return found

    Tensor.detach = detach  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.detach = original  # type: ignore[method-assign]
