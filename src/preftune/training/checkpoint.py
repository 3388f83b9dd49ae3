"""Checkpoints on disk: all that training goes on from, in folders that are whole or not there.

    checkpoints/step-000040/
        ...                       the policy, as plain transformers loads it
        state/position.json       numbers: where the run stood, and what was seen since the last line of metrics
        state/tensors-0.safetensors   weights and moments: of each process those parts that it holds
        checksums.json            SHA-256 of every other file

Nothing in it is pickled, so reading one runs nobody's code. A folder is filled under a temporary name, its files are
forced to disk, and then it is renamed: a process that is killed at any moment leaves no checkpoint that looks whole.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from preftune.errors import PreftuneError
from preftune.files import hash_file, settle, settle_all

FOLDER, STATE = "checkpoints", "state"
CHECKSUMS, POSITION = "checksums.json", "position.json"
TEMPORARY = ".checkpoint.tmp"
FORMAT = 1  # to be raised when older checkpoints cannot be read any more
NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Fragment:
    """What a process holds of a tensor whose elements are shared out row by row, wherever rows end.

    Attributes:
        values: the elements, as a vector.
        start: place of the first one in the whole, read row by row.
        shape: of the whole.
    """

    values: Tensor
    start: int
    shape: tuple[int, ...]


def name_of(step: int) -> str:
    """A checkpoint's folder, in the run folder."""
    return f"{FOLDER}/step-{step:06d}"


def begin(run: Path) -> Path:
    """An empty folder to fill, in the place of what a killed process left there.

    Raises:
        OSError: if it cannot be made.
    """
    folder = run / TEMPORARY
    shutil.rmtree(folder, ignore_errors=True)
    (folder / STATE).mkdir(parents=True)
    return folder


def write_tensors(folder: Path, process: int, tensors: Mapping[str, Tensor | Fragment]) -> dict[str, str]:
    """Write what one process holds; the first process writes what all of them have.

    Args:
        folder: from `begin`.
        process: number of the process, from 0.
        tensors: by name; of a distributed one, and of a fragment, the process's own part is written, with its place in
            the whole.

    Returns:
        The file and its SHA-256.

    Raises:
        OSError: if the disk does not take it.
    """
    parts, places = dict[str, Tensor](), dict[str, tuple[list[int], list[int]]]()
    seen = set[int]()
    for name, tensor in tensors.items():
        if (found := _part(tensor, process)) is None:
            continue
        part, offset = found
        held = part.detach().cpu().contiguous()
        if held.data_ptr() in seen:  # safetensors takes no tensors that share memory
            held = held.clone()
        seen.add(held.data_ptr())
        parts[name], places[name] = held, (list(tensor.shape), offset)
    file = folder / STATE / f"tensors-{process}.safetensors"
    try:
        save_file(parts, file, metadata={"places": json.dumps(places)})
    except SafetensorError as error:  # which is how it reports a full disk
        raise OSError(str(error)) from error
    return {f"{STATE}/{file.name}": hash_file(file)}


def finish(run: Path, step: int, position: Mapping[str, Any], digests: Mapping[str, str]) -> Path:
    """Complete what `begin` began, and give it its name.

    Args:
        run: the run folder.
        step: optimiser steps done.
        position: goes into position.json; floats come back as they are.
        digests: SHA-256 of files that are known already.

    Raises:
        OSError: if the disk does not take it.
    """
    folder, target = run / TEMPORARY, run / name_of(step)
    text = json.dumps({"format": FORMAT, **position}, indent=1)
    (folder / STATE / POSITION).write_text(text, encoding="utf-8")
    files = sorted(str(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file())
    sums = {name: digests.get(name) or hash_file(folder / name) for name in files}
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=1), encoding="utf-8")
    settle_all(folder)
    if not target.parent.exists():
        target.parent.mkdir()
        settle(run)
    if target.exists():  # one that is damaged, or of another try
        shutil.rmtree(target)
    folder.rename(target)
    settle(target.parent)
    return target


def saved(run: Path) -> list[int]:
    """Steps of which there is a checkpoint, in order."""
    folder = run / FOLDER
    found = [NAME.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for match in found if match)


def clear(run: Path, keep: Collection[int]) -> None:
    """Remove all checkpoints but some."""
    for step in saved(run):
        if step not in keep:
            going = run / f".step-{step}.tmp"  # a name of its own, or a kill would leave what looks like a damaged one
            shutil.rmtree(going, ignore_errors=True)
            (run / name_of(step)).rename(going)
            shutil.rmtree(going, ignore_errors=True)


def put_away(run: Path, beyond: int) -> None:
    """Give checkpoints after a step another name: they are damaged, and would pass for the newest."""
    for step in saved(run):
        if step > beyond:
            away = run / FOLDER / f"damaged-{step:06d}"
            shutil.rmtree(away, ignore_errors=True)
            (run / name_of(step)).rename(away)


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is as it was written, and a sentence about each newer one that is not."""
    notes: list[str] = []
    for step in reversed(saved(run)):
        folder = run / name_of(step)
        if (fault := _fault(folder)) is None:
            return folder, notes
        notes.append(f"the checkpoint {folder} is damaged ({fault}): it is skipped")
    return None, notes


def position_of(folder: Path) -> dict[str, Any]:
    """What position.json of a checkpoint says.

    Raises:
        PreftuneError: if another version of preftune wrote it in another form.
    """
    position: dict[str, Any] = json.loads((folder / STATE / POSITION).read_text(encoding="utf-8"))
    if position.get("format") != FORMAT:
        raise PreftuneError(
            f"{folder} has checkpoint format {position.get('format')}, expected {FORMAT}: resume with the version of "
            "preftune that the run's manifest.json names"
        )
    return position


class Tensors:
    """The tensors of a checkpoint, whoever wrote which part of them: a block of it, or a fragment."""

    def __init__(self, folder: Path) -> None:
        """`folder` is a checkpoint that `newest` gave."""
        self._parts: dict[str, list[tuple[Any, list[int]]]] = {}
        self._shapes: dict[str, list[int]] = {}
        for file in sorted((folder / STATE).glob("tensors-*.safetensors")):
            handle = safe_open(file, "pt")
            for name, (shape, offset) in json.loads(handle.metadata()["places"]).items():
                self._parts.setdefault(name, []).append((handle, offset))
                self._shapes[name] = shape

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def under(self, prefix: str) -> list[str]:
        """Names that begin with `prefix`, without it."""
        return [name.removeprefix(prefix) for name in self._parts if name.startswith(prefix)]

    def dtype(self, name: str) -> torch.dtype:
        """The type of its numbers."""
        empty: Tensor = self._parts[name][0][0].get_slice(name)[:0] if self._shapes[name] else self.whole(name)
        return empty.dtype

    def shape(self, name: str) -> list[int]:
        """The shape of the whole."""
        return self._shapes[name]

    def whole(self, name: str) -> Tensor:
        """A tensor on the host, its parts put together."""
        parts = self._parts[name]
        first: Tensor = parts[0][0].get_tensor(name)
        if self._in_fragments(name):
            flat = torch.empty(math.prod(self._shapes[name]), dtype=first.dtype)
            for handle, (start,) in parts:
                piece = handle.get_tensor(name)
                flat[start : start + len(piece)] = piece
            return flat.view(self._shapes[name])
        if len(parts) == 1:
            return first
        return self._filled(name, torch.empty(self._shapes[name], dtype=first.dtype), [0] * first.ndim)

    @torch.no_grad()
    def read_into(self, name: str, tensor: Tensor) -> None:
        """Fill a tensor, of a distributed one the part that this process holds.

        Raises:
            PreftuneError: if the checkpoint has no such tensor, or one of another shape.
        """
        if name not in self._parts or self._shapes[name] != list(tensor.shape):
            found = f"shape {self._shapes[name]}" if name in self._parts else "nothing"
            raise PreftuneError(
                f"the checkpoint has {found} for {name}, expected shape {list(tensor.shape)}: resume with the model "
                "and adapters that the run began with"
            )
        local, offset = _local(tensor)
        if len(self._parts[name]) == 1 and not self._in_fragments(name):
            handle, start = self._parts[name][0]
            if list(local.shape) == self._shapes[name] and not any(start):
                local.copy_(handle.get_tensor(name))
                return
        local.copy_(self._filled(name, torch.empty(local.shape, dtype=local.dtype), offset))

    def _in_fragments(self, name: str) -> bool:
        """True if the parts are places in the elements read row by row. Of a vector, both are the same."""
        return len(self._parts[name][0][1]) != len(self._shapes[name])

    def _filled(self, name: str, target: Tensor, offset: list[int]) -> Tensor:
        """`target`, which begins at `offset` of the whole, filled from the parts that overlap it."""
        if self._in_fragments(name):
            spans = (slice(at, at + size) for at, size in zip(offset, target.shape, strict=True))
            return target.copy_(self.whole(name)[tuple(spans)])
        for handle, start in self._parts[name]:
            piece = handle.get_slice(name)
            overlaps = [
                (max(at, begun), min(at + size, begun + length))
                for at, size, begun, length in zip(offset, target.shape, start, piece.get_shape(), strict=True)
            ]
            if all(low < high for low, high in overlaps):
                theirs = tuple(
                    slice(low - begun, high - begun) for (low, high), begun in zip(overlaps, start, strict=True)
                )
                ours = tuple(slice(low - at, high - at) for (low, high), at in zip(overlaps, offset, strict=True))
                target[ours] = piece[theirs].to(target.dtype)
        return target


def _part(tensor: Tensor | Fragment, process: int) -> tuple[Tensor, list[int]] | None:
    """The part of a tensor that this process writes, and where it begins; None if another process writes it."""
    from torch.distributed.tensor import DTensor

    if isinstance(tensor, Fragment):
        return tensor.values, [tensor.start]
    if not isinstance(tensor, DTensor):
        return (tensor, [0] * tensor.ndim) if process == 0 else None
    coordinate = tensor.device_mesh.get_coordinate()
    copies = [at for at, placement in zip(coordinate or [], tensor.placements, strict=True) if placement.is_replicate()]
    local, offset = _local(tensor)
    return None if any(copies) or not local.numel() else (local, offset)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _local(tensor: Tensor) -> tuple[Tensor, list[int]]:
    """The part of a tensor that this process holds, and where it begins."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if not isinstance(tensor, DTensor):
        return tensor, [0] * tensor.ndim
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tensor.to_local(), list(offset)


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is as it was written."""
    try:
        sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        for name, expected in sums.items():
            if hash_file(folder / name) != expected:
                return f"{name} has changed"
        if f"{STATE}/{POSITION}" not in sums:
            return "it lists no position"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        return f"{CHECKSUMS} cannot be read: {error}"
    return None
