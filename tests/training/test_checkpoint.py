"""Checkpoints: whole or not there, and the same bits when they are read."""

from __future__ import annotations

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from preftune.errors import PreftuneError
from preftune.training import checkpoint
from preftune.training.checkpoint import Fragment, Tensors

POSITION = {"position": {"step": 7}, "odd": [math.inf, -math.inf, 0.1, 5e-324]}


def save(run: Path, step: int, tensors: dict[str, Tensor]) -> Path:
    folder = checkpoint.begin(run)
    digests = checkpoint.write_tensors(folder, 0, tensors)
    return checkpoint.finish(run, step, POSITION, digests)


def tensors() -> dict[str, Tensor]:
    shared = torch.arange(6.0)
    return {
        "weights.a": torch.randn(3, 4),
        "weights.half": torch.randn(5).bfloat16(),
        "moments.a/step": torch.tensor(3.0),
        "moments.a/codes": torch.randint(0, 255, (2, 3), dtype=torch.uint8),
        "window.twice": shared,
        "window.again": shared,
        "window.columns": torch.randn(4, 3).t(),
        "states.nothing": torch.empty(0),
        "states.odd": torch.tensor([math.nan, math.inf, -0.0], dtype=torch.float64),
    }


def same_bits(one: Tensor, other: Tensor) -> bool:
    form = (one.dtype, one.shape) == (other.dtype, other.shape)
    return form and one.contiguous().numpy(force=True).tobytes() == other.contiguous().numpy(force=True).tobytes()


def test_what_was_saved_comes_back_bit_by_bit(tmp_path):
    written = tensors()
    folder = save(tmp_path, 7, written)
    assert folder == tmp_path / "checkpoints" / "step-000007"
    assert checkpoint.newest(tmp_path) == (folder, [])
    read = Tensors(folder)
    assert sorted(read.under("")) == sorted(written)
    assert sorted(read.under("weights.")) == ["a", "half"]
    for name, tensor in written.items():
        whole, into = read.whole(name), torch.empty_like(tensor)
        read.read_into(name, into)
        as_bytes = (lambda t: t.view(torch.uint8)) if tensor.dtype == torch.bfloat16 else (lambda t: t)
        assert same_bits(as_bytes(whole), as_bytes(tensor)), name
        assert same_bits(as_bytes(into), as_bytes(tensor)), name
        assert (read.dtype(name), read.shape(name)) == (tensor.dtype, list(tensor.shape))
    assert {**checkpoint.position_of(folder)} == {"format": checkpoint.FORMAT, **POSITION}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints"]


def test_nothing_in_it_is_pickled(tmp_path):
    folder = save(tmp_path, 1, tensors())
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".json", ".safetensors"}


@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=3), data=st.data())
@settings(max_examples=40, deadline=None)
def test_parts_of_any_cut_make_the_whole_again(tmp_path_factory, shape, data):
    """As processes of one number write them and those of another read them."""
    run = tmp_path_factory.mktemp("parts")
    whole = torch.from_numpy(np.arange(math.prod(shape), dtype=np.float32).reshape(shape))
    folder = checkpoint.begin(run)
    digests, axis = {}, data.draw(st.integers(0, len(shape) - 1))
    cuts = sorted({0, shape[axis], *data.draw(st.lists(st.integers(0, shape[axis]), max_size=3))})
    with pytest.MonkeyPatch.context() as patch:
        for process, (low, high) in enumerate(pairwise(cuts)):
            offset = [0] * len(shape)
            offset[axis] = low
            part = whole.narrow(axis, low, high - low)
            patch.setattr(checkpoint, "_part", lambda tensor, process, part=part, at=offset: (part, at))
            digests |= checkpoint.write_tensors(folder, process, {"x": whole})
        read = Tensors(checkpoint.finish(run, 1, {}, digests))
        assert torch.equal(read.whole("x"), whole)
        low = data.draw(st.integers(0, shape[0] - 1))
        high = data.draw(st.integers(low + 1, shape[0]))
        patch.setattr(checkpoint, "_local", lambda tensor: (mine, [low] + [0] * (len(shape) - 1)))
        mine = torch.full_like(whole[low:high], -1.0)
        read.read_into("x", whole)
        assert torch.equal(mine, whole[low:high])


@given(shape=st.lists(st.integers(1, 5), min_size=0, max_size=3), data=st.data())
@settings(max_examples=40, deadline=None)
def test_fragments_make_the_whole_again_wherever_rows_end(tmp_path_factory, shape, data):
    run, size = tmp_path_factory.mktemp("fragments"), math.prod(shape)
    whole = torch.arange(size, dtype=torch.float32).reshape(shape)
    folder, digests = checkpoint.begin(run), {}
    cuts = sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=3))})
    for process, (low, high) in enumerate(pairwise(cuts)):
        mine = {"x": Fragment(whole.reshape(-1)[low:high], low, tuple(shape)), "step": Fragment(torch.ones(1), 0, ())}
        digests |= checkpoint.write_tensors(folder, process, mine)
    read = Tensors(checkpoint.finish(run, 1, {}, digests))
    assert torch.equal(read.whole("x"), whole)
    assert torch.equal(read.whole("step"), torch.tensor(1.0))
    assert (read.dtype("x"), read.shape("x")) == (torch.float32, shape)
    into = torch.full_like(whole, -1.0)
    read.read_into("x", into)
    assert torch.equal(into, whole)
    if shape:
        low = data.draw(st.integers(0, shape[0] - 1))
        high = data.draw(st.integers(low + 1, shape[0]))
        rows = torch.full_like(whole[low:high], -1.0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint, "_local", lambda tensor: (rows, [low] + [0] * (len(shape) - 1)))
            read.read_into("x", whole)
        assert torch.equal(rows, whole[low:high])


def test_a_tensor_of_another_model_is_refused(tmp_path):
    read = Tensors(save(tmp_path, 1, {"weights.a": torch.zeros(3)}))
    with pytest.raises(PreftuneError, match=r"has shape \[3\] for weights\.a, expected shape \[4\]"):
        read.read_into("weights.a", torch.zeros(4))
    with pytest.raises(PreftuneError, match=r"has nothing for weights\.b, expected shape \[2\]"):
        read.read_into("weights.b", torch.zeros(2))


@pytest.mark.parametrize("seed", range(12))
def test_any_damage_is_noticed_and_an_older_one_is_taken(tmp_path, seed):
    random = np.random.default_rng(seed)
    older, newer = save(tmp_path, 3, tensors()), save(tmp_path, 10, tensors())
    files = sorted(path for path in newer.rglob("*") if path.is_file())
    file = files[random.integers(len(files))]
    content = bytearray(file.read_bytes())
    at = int(random.integers(len(content)))
    kind = ("flip", "cut", "remove", "empty")[seed % 4]
    if kind == "flip":
        content[at] ^= 1 << int(random.integers(8))
    file.write_bytes(content[: at if kind == "cut" else None] if kind != "empty" else b"")
    if kind == "remove":
        file.unlink()
    folder, notes = checkpoint.newest(tmp_path)
    assert folder == older, (kind, file)
    assert len(notes) == 1
    assert notes[0].startswith(f"the checkpoint {newer} is damaged (")
    assert notes[0].endswith("): it is skipped")
    assert "\n" not in notes[0]


def test_what_a_killed_process_left_is_no_checkpoint(tmp_path):
    assert checkpoint.newest(tmp_path) == (None, [])
    folder = checkpoint.begin(tmp_path)
    checkpoint.write_tensors(folder, 0, tensors())
    assert checkpoint.newest(tmp_path) == (None, [])
    save(tmp_path, 4, {"x": torch.ones(1)})
    (tmp_path / "checkpoints" / "notes").mkdir()
    assert checkpoint.saved(tmp_path) == [4]
    assert not (tmp_path / checkpoint.TEMPORARY).exists()


def test_one_of_the_same_step_is_replaced(tmp_path):
    save(tmp_path, 4, {"x": torch.ones(1)})
    folder = save(tmp_path, 4, {"x": torch.zeros(1)})
    assert Tensors(folder).whole("x").item() == 0
    assert checkpoint.saved(tmp_path) == [4]


def test_old_ones_are_cleared(tmp_path):
    for step in (1, 2, 999_999, 1_000_000):
        save(tmp_path, step, {"x": torch.ones(1)})
    checkpoint.clear(tmp_path, {2, 1_000_000})
    assert checkpoint.saved(tmp_path) == [2, 1_000_000]


def test_another_format_is_refused(tmp_path):
    folder = save(tmp_path, 4, {"x": torch.ones(1)})
    file = folder / "state" / "position.json"
    file.write_text(json.dumps({"format": 99}))
    with pytest.raises(PreftuneError, match="has checkpoint format 99, expected 1: resume with the version"):
        checkpoint.position_of(folder)


def test_a_disk_that_takes_no_more_is_an_oserror(tmp_path):
    folder = checkpoint.begin(tmp_path)
    shutil.rmtree(folder / "state")
    with pytest.raises(OSError, match=r"No such file|os error"):
        checkpoint.write_tensors(folder, 0, {"x": torch.ones(1)})
