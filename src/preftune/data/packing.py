"""Examples -> batches: one row of tokens in which each prompt stands once, or padded rows, with the same targets.

Tensor names carry their shape: T tokens of the batch, K targets (response tokens to predict), R responses, E examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from preftune.data.examples import Example, Response
from preftune.objectives.batch import Batch, PlainBatch

# Tokens from which on a beginning that responses share is worth a segment of its own.
LEAST_SHARED = 16


@dataclass
class Tree:
    """The segments of a packed row. A token sees its own segment causally, and all of its ancestor segments.

    Attributes:
        start: first token of each segment.
        length: tokens of each segment; segments are contiguous and in order.
        parent: index of each segment's parent; -1 for a root. A parent stands before its children.
        read_T: tokens whose last hidden state may be read: those of responses, and the last of each prompt;
            None: all.
        consumed: how often attention has used these segments; each attention layer adds one per forward.
        groups: the segments in groups of like size, made by the attention and shared by the layers.
        sequences: the segments in flash attention's form by device, likewise.
    """

    start: tuple[int, ...]
    length: tuple[int, ...]
    parent: tuple[int, ...]
    read_T: Tensor | None = field(default=None, compare=False)
    consumed: int = 0
    groups: dict[tuple[object, ...], object] = field(default_factory=dict, init=False)
    sequences: dict[torch.device, object] = field(default_factory=dict, init=False)

    def tokens(self, segments: Sequence[int]) -> np.ndarray:
        """The tokens of some segments, one segment after the other."""
        pieces = [np.arange(self.start[each], self.start[each] + self.length[each]) for each in segments]
        return np.concatenate([np.empty(0, dtype=np.int64), *pieces])

    def ancestors(self, segment: int) -> list[int]:
        """Ancestors of a segment, the root first."""
        chain: list[int] = []
        while (segment := self.parent[segment]) >= 0:
            chain.insert(0, segment)
        return chain


@dataclass(frozen=True)
class PackedBatch:
    """Tokens to run a model on, targets to score, and what each response and example is.

    Exactly one of `tree` and `row_length` is given: a tree batch is one row of T tokens, a padded batch is
    T / row_length rows, one for each response, with the prompt repeated.

    Attributes:
        ids_T: token ids.
        position_T: position of each token on its path from the root.
        attended_T: False for padding.
        source_K: token whose hidden state predicts the target.
        target_K: token id to predict.
        response_K: response that the target belongs to.
        example_R: example that each response belongs to.
        role_R: a `Role` each.
        score_R: label, rank or reward; NaN where there is none.
        length_R: number of targets.
        last_R: last token of each response (for scalar heads).
        row_E: index of the record in its source.
        weight_E: weight in the loss.
        confidence_E: probability that chosen is better.
        gap_E: rated difference; NaN where there is none.
        token: further values per target, each of shape K; NaN where a response has none.
        at_hand: the same batch on the host, if this one is on another device.
    """

    ids_T: Tensor
    position_T: Tensor
    attended_T: Tensor
    source_K: Tensor
    target_K: Tensor
    response_K: Tensor
    example_R: Tensor
    role_R: Tensor
    score_R: Tensor
    length_R: Tensor
    last_R: Tensor
    row_E: Tensor
    weight_E: Tensor
    confidence_E: Tensor
    gap_E: Tensor
    token: Mapping[str, Tensor]
    tree: Tree | None
    row_length: int | None
    real_tokens: int
    at_hand: PackedBatch | None = None

    @property
    def examples(self) -> int:
        """Number of examples."""
        return len(self.row_E)

    @property
    def tokens(self) -> int:
        """Number of tokens that a forward computes, padding included."""
        return len(self.ids_T)

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on another device."""
        moved = self.mapped(lambda value: value.to(device, non_blocking=True))
        return moved if torch.device(device).type == self.ids_T.device.type else replace(moved, at_hand=self)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> PackedBatch:
        """The same batch with each of its tensors changed."""
        found: dict[str, object] = {
            f.name: change(value) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)
        }
        if self.tree is not None and self.tree.read_T is not None:
            found["tree"] = replace(self.tree, read_T=change(self.tree.read_T))
        found["token"] = {name: change(value) for name, value in self.token.items()}
        return replace(self, **found)  # type: ignore[arg-type]


def pack(examples: Sequence[Example]) -> PackedBatch:
    """Examples -> one row of tokens: each prompt once, followed by its responses.

    A long beginning that all responses of an example share stands once too, as a segment of its own between prompt and
    responses; its log-probs count for each of them.
    """
    segments, sources, last = _Segments(), list[np.ndarray](), list[int]()
    for example in examples:
        root = segments.add(example.prompt, -1)
        shared = _shared(example.responses)
        parent, trunk = root, segments.tokens(root)[-1:]
        if shared:
            parent = segments.add(example.responses[0].ids[:shared], root)
            trunk = np.concatenate([trunk, segments.tokens(parent)])
        for response in example.responses:
            path = np.concatenate([trunk, segments.tokens(segments.add(response.ids[shared:], parent))])
            sources.append(path[:-1] if response.targets is None else path[:-1][response.targets])
            last.append(int(path[-1]))
    ids, positions = np.concatenate(segments.ids), np.concatenate(segments.positions)
    return _batch(examples, ids, positions, None, sources, last, segments.tree(), None)


class _Segments:
    """The segments of a row, one added after the other."""

    def __init__(self) -> None:
        self.ids, self.positions = list[np.ndarray](), list[np.ndarray]()
        self.start, self.length, self.parent = list[int](), list[int](), list[int]()

    def add(self, ids: np.ndarray, parent: int) -> int:
        """Add a segment; returns its index."""
        first = 0 if parent < 0 else int(self.positions[parent][-1]) + 1
        self.start.append(0 if not self.start else self.start[-1] + self.length[-1])
        self.length.append(len(ids))
        self.parent.append(parent)
        self.ids.append(ids)
        self.positions.append(np.arange(first, first + len(ids)))
        return len(self.start) - 1

    def tokens(self, segment: int) -> np.ndarray:
        """Where a segment's tokens stand in the row."""
        return np.arange(self.start[segment], self.start[segment] + self.length[segment])

    def tree(self) -> Tree:
        """The tree of all segments."""
        read = [self.tokens(each)[-1 if parent < 0 else 0 :] for each, parent in enumerate(self.parent)]
        return Tree(tuple(self.start), tuple(self.length), tuple(self.parent), torch.from_numpy(np.concatenate(read)))


def _shared(responses: Sequence[Response]) -> int:
    """Tokens that all responses begin with; 0 if they are few. The end of each stays apart."""
    if len(responses) < 2:
        return 0
    first, length = responses[0].ids, min(len(response.ids) for response in responses) - 1
    for response in responses[1:]:
        differs = first[:length] != response.ids[:length]
        length = int(differs.argmax()) if differs.any() else length
    return length if length >= LEAST_SHARED else 0


def pad(examples: Sequence[Example], pad_id: int = 0) -> PackedBatch:
    """Examples -> one padded row for each response, prompt included; targets as in `pack`."""
    rows = [(example.prompt, response) for example in examples for response in example.responses]
    row_length = max(len(prompt) + len(response.ids) for prompt, response in rows)
    ids = np.full((len(rows), row_length), pad_id, dtype=np.int64)
    attended = np.zeros((len(rows), row_length), dtype=bool)
    sources, last = [], []
    for row, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response.ids)
        ids[row, : len(prompt)] = prompt
        ids[row, len(prompt) : end] = response.ids
        attended[row, :end] = True
        before = row * row_length + np.arange(len(prompt) - 1, end - 1)
        sources.append(before if response.targets is None else before[response.targets])
        last.append(row * row_length + end - 1)
    positions = np.tile(np.arange(row_length), len(rows))
    return _batch(examples, ids.ravel(), positions, attended.ravel(), sources, last, None, row_length)


def join(batches: Sequence[Batch]) -> Batch:
    """Several batches as objectives see one: responses and examples are counted on from batch to batch."""
    if len(batches) == 1:
        return batches[0]
    responses = np.cumsum([0, *(len(batch.length_R) for batch in batches)])
    examples = np.cumsum([0, *(len(batch.weight_E) for batch in batches)])

    names = {name for batch in batches for name in batch.token}

    def cat(name: str) -> Tensor:
        return torch.cat([getattr(batch, name) for batch in batches])

    def values(batch: Batch, name: str) -> Tensor:
        return batch.token.get(name, torch.full_like(batch.response_K, torch.nan, dtype=torch.float32))

    return PlainBatch(
        response_K=torch.cat([batch.response_K + int(n) for batch, n in zip(batches, responses, strict=False)]),
        example_R=torch.cat([batch.example_R + int(n) for batch, n in zip(batches, examples, strict=False)]),
        role_R=cat("role_R"),
        score_R=cat("score_R"),
        length_R=cat("length_R"),
        weight_E=cat("weight_E"),
        confidence_E=cat("confidence_E"),
        gap_E=cat("gap_E"),
        row_E=cat("row_E"),
        token={name: torch.cat([values(batch, name) for batch in batches]) for name in names},
        at_hand=None if batches[0].at_hand is None else join([b.at_hand for b in batches if b.at_hand is not None]),
    )


def _batch(
    examples: Sequence[Example],
    ids: np.ndarray,
    positions: np.ndarray,
    attended: np.ndarray | None,
    sources: list[np.ndarray],
    last: list[int],
    tree: Tree | None,
    row_length: int | None,
) -> PackedBatch:
    """The fields that both layouts share."""
    responses = [response for example in examples for response in example.responses]
    lengths = [len(source) for source in sources]
    targets = [r.ids if r.targets is None else r.ids[r.targets] for r in responses]
    names = {name for response in responses for name in response.token}
    attended = np.ones(len(ids), dtype=bool) if attended is None else attended

    def ints(values: object) -> Tensor:
        return torch.as_tensor(np.asarray(values, dtype=np.int64))

    def floats(values: object) -> Tensor:
        return torch.as_tensor(np.asarray(values, dtype=np.float32))

    def values(response: Response, name: str) -> np.ndarray:
        return response.token.get(name, np.full(response.length, np.nan, dtype=np.float32))

    return PackedBatch(
        ids_T=ints(ids),
        position_T=ints(positions),
        attended_T=torch.as_tensor(attended),
        source_K=ints(np.concatenate(sources)),
        target_K=ints(np.concatenate(targets)),
        response_K=ints(np.repeat(np.arange(len(responses)), lengths)),
        example_R=ints([e for e, example in enumerate(examples) for _ in example.responses]),
        role_R=ints([response.role for response in responses]),
        score_R=floats([response.score for response in responses]),
        length_R=ints(lengths),
        last_R=ints(last),
        row_E=ints([example.row for example in examples]),
        weight_E=floats([example.weight for example in examples]),
        confidence_E=floats([example.confidence for example in examples]),
        gap_E=floats([example.gap for example in examples]),
        token={name: floats(np.concatenate([values(r, name) for r in responses])) for name in names},
        tree=tree,
        row_length=row_length,
        real_tokens=int(attended.sum()),
    )
