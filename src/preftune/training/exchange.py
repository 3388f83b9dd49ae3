"""Log-probs of all processes, for objectives that must see the whole optimiser batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from preftune.data.packing import join
from preftune.objectives.batch import Batch, LogProbs, PlainBatch, at_hand
from preftune.training.processes import Group

Part = tuple[LogProbs, LogProbs | None, Batch]  # of policy and reference, and what they are of


def exchanged(
    group: Group, own: Part | None, device: torch.device
) -> tuple[LogProbs, LogProbs | None, Batch, dict[str, int]]:
    """The parts of all processes as one, the same on all of them: in the order of the processes.

    Args:
        group: the processes, all of which must ask.
        own: this process's part, without gradient; None if it has no example.
        device: of the policy.

    Returns:
        Log-probs of policy and reference, what they are of, and how many values of each field of `LogProbs` stand
        before this process's own.

    Raises:
        ValueError: if no process has an example.
    """
    names = [f.name for f in fields(LogProbs)]
    if group.size == 1 and own is not None:
        return *own, dict.fromkeys(names, 0)
    parts = group.gathered(None if own is None else _on_host(*own))
    before = [part[0] for part in parts[: group.index] if part is not None]
    offsets = {name: sum(_length(getattr(one, name)) for one in before) for name in names}
    policies, references, batches = zip(*(part for part in parts if part is not None), strict=True)
    batch = join(batches)

    def there(value: Tensor) -> Tensor:
        return value.to(device)

    return (
        _mapped(LogProbs.join(policies), there),
        None if references[0] is None else _mapped(LogProbs.join(references), there),
        batch if device.type == "cpu" else replace(_mapped(batch, there), at_hand=batch),
        offsets,
    )


def _length(value: Tensor | None) -> int:
    return 0 if value is None else len(value)


def _on_host(
    policy: LogProbs, reference: LogProbs | None, batch: Batch
) -> tuple[LogProbs, LogProbs | None, PlainBatch]:
    """The same for another process: plain tensors on the host, and of the batch what objectives read."""
    known = at_hand(batch)
    plain = PlainBatch(**{f.name: getattr(known, f.name) for f in fields(PlainBatch) if f.name != "at_hand"})
    return _mapped(policy, Tensor.cpu), None if reference is None else _mapped(reference, Tensor.cpu), plain


def _mapped(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`LogProbs` or a `PlainBatch` with each of its tensors changed."""
    found: dict[str, Any] = {
        f.name: change(value) for f in fields(values) if isinstance(value := getattr(values, f.name), Tensor)
    }
    if isinstance(values, PlainBatch):
        found["token"] = {name: change(value) for name, value in values.token.items()}
    return replace(values, **found)
