"""What happened since the last line of metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from preftune.training import metrics
from preftune.training.scored import Scored


@dataclass(frozen=True)
class Finished:
    """What is kept of an optimiser step, on the host.

    Attributes:
        loss: of the batch.
        norm: of the gradient, before clipping.
        examples: of the batch.
        columns: values of each example, in one or more pieces.
    """

    loss: float
    norm: float
    examples: int
    columns: Sequence[metrics.Columns]


@dataclass
class Window:
    """Steps since the last line of metrics.

    Attributes:
        since: when its time began to run.
        seconds: that it had run before (in a process that was stopped).
        finished: steps whose values were fetched and found in order.
        waiting: steps whose values are still on the device.
        tokens: that were read in the finished steps.
        computed: the same with padding.
    """

    since: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    finished: list[Finished] = field(default_factory=list)
    waiting: list[Scored] = field(default_factory=list)
    tokens: int = 0
    computed: int = 0

    def finish(self, scored: Scored) -> None:
        """Keep what a step that waited came to."""
        self.finished.append(Finished(scored.loss, scored.gradient_norm or 0.0, len(scored.rows), scored.columns))
        self.tokens += scored.tokens
        self.computed += scored.computed

    @property
    def elapsed(self) -> float:
        """Seconds that its steps took."""
        return self.seconds + time.perf_counter() - self.since

    def line(self) -> dict[str, Any]:
        """Metrics of the finished steps."""
        examples, elapsed = sum(one.examples for one in self.finished), self.elapsed
        return {
            "loss": sum(one.examples * one.loss for one in self.finished) / examples,
            **metrics.summarise(metrics.table([piece for one in self.finished for piece in one.columns])),
            "gradient_norm": sum(one.norm for one in self.finished) / len(self.finished),
            "pairs_per_second": examples / elapsed,
            "tokens_per_second": self.tokens / elapsed,
            "padding_share": 1 - self.tokens / self.computed,
            "seconds": elapsed,
        }

    def numbers(self) -> dict[str, Any]:
        """For a checkpoint, with `tensors`."""
        steps = [[one.loss, one.norm, one.examples, [list(piece) for piece in one.columns]] for one in self.finished]
        return {"seconds": self.elapsed, "tokens": self.tokens, "computed": self.computed, "steps": steps}

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint, with `numbers`."""
        return {
            f"{i}.{j}.{name}": value
            for i, one in enumerate(self.finished)
            for j, piece in enumerate(one.columns)
            for name, value in piece.items()
        }

    @classmethod
    def restored(cls, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Window:
        """What a checkpoint kept; its time runs from now."""
        finished = [
            Finished(
                loss,
                norm,
                count,
                [{name: tensors[f"{i}.{j}.{name}"] for name in piece} for j, piece in enumerate(pieces)],
            )
            for i, (loss, norm, count, pieces) in enumerate(numbers["steps"])
        ]
        return cls(
            seconds=numbers["seconds"], finished=finished, tokens=numbers["tokens"], computed=numbers["computed"]
        )
