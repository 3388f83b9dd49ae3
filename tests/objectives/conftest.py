"""Batches made by the real packer, and log-probs to go with them."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from preftune.data.examples import Example, Response
from preftune.data.packing import PackedBatch, pack
from preftune.objectives.base import LogProbs, Role

MakePairs = Callable[..., list[Example]]
Spread = Callable[[PackedBatch, Sequence[Tensor]], LogProbs]


@pytest.fixture
def make_pairs() -> MakePairs:
    """Pairs with the given (chosen, rejected) lengths; keyword arguments go to each `Example`, one value each."""

    def make(lengths: Sequence[tuple[int, int]], **columns: Sequence[float]) -> list[Example]:
        def ids(length: int) -> np.ndarray:
            return np.arange(1, length + 1, dtype=np.int32)

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


LENGTHS = [(2, 5), (7, 3), (4, 4), (1, 6)]


@pytest.fixture
def batch(make_pairs: MakePairs) -> PackedBatch:
    """Four pairs of different lengths, weights, confidences and gaps."""
    return pack(
        make_pairs(LENGTHS, weight=[1.0, 0.5, 2.0, 1.0], confidence=[1.0, 0.75, 0.5, 0.25], gap=[1.0, 2.0, 0.5, 3.0])
    )


@pytest.fixture
def draw() -> Callable[..., list[Tensor]]:
    """Random token log-probs for each response of a batch, float64."""

    def tokens(batch: PackedBatch, seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [-torch.rand(n, generator=generator, dtype=torch.float64) * 3 for n in batch.length_R.tolist()]

    return tokens
