"""Where a program waits for its device: each place named, on CUDA by torch's own watch, on a CPU by the operations."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# Operations whose result, or its size, the program must know before it can go on.
WAITING = {
    aten._local_scalar_dense.default: "item",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten._unique2.default: "unique",
    aten.unique_consecutive.default: "unique",
    aten.unique_dim.default: "unique",
    aten.bincount.default: "bincount",
    aten.repeat_interleave.Tensor: "repeat_interleave",
    aten.equal.default: "equal",
}
INDEXING = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)
Places = Counter[str]


class _Watch(TorchDispatchMode):
    """Counts the operations that would wait if their tensors were on a GPU."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = WAITING.get(func)
        if found == "repeat_interleave" and (kwargs or {}).get("output_size") is not None:
            found = None
        if func in INDEXING and any(isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1]):
            found = "index by mask"
        if found:
            self.places[f"{_place()} ({found})"] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def waits(device: str) -> Iterator[Places]:
    """Counts, by place, how often the program waits for the device in here."""
    places: Places = Counter()
    if device == "cpu":
        with _Watch(places):
            yield places
        return
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("always")

        def heard(message: Any, *args: Any, **kwargs: Any) -> None:
            if "synchronizing CUDA operation" in str(message):
                places[_place()] += 1

        warnings.showwarning = heard
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode(mode)


def _place() -> str:
    """The innermost line outside torch and this file, after preftune's innermost one if that is another."""
    frames = [
        f"{'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno}"
        for frame in traceback.extract_stack()
        if "/torch/" not in frame.filename and Path(frame.filename) != Path(__file__)
    ]
    own = [frame for frame in frames if frame.startswith("preftune/") or "/preftune/" in frame]
    inner = frames[-1] if frames else "backward"
    return inner if not own or own[-1] == inner else f"{own[-1]} in {inner}"
