from __future__ import annotations

import hashlib
import mmap
import os
import time
from dataclasses import replace
from pathlib import Path

import miniatures
import numpy as np
import pytest

from preftune.data.examples import Example, Response
from preftune.objectives.batch import Role
from preftune.policy import stored
from preftune.policy.stored import KEY, Shards, example_key, keys_of


def changed(example: Example, what: str) -> Example:
    first, *others = example.responses
    ids = first.ids.copy()
    ids[-1] += 1
    keep = np.arange(len(first.ids)) > 0
    changes = {
        "a response token": replace(example, responses=(replace(first, ids=ids), *others)),
        "a prompt token": replace(example, prompt=example.prompt[::-1].copy()),
        "a target": replace(example, responses=(replace(first, targets=keep), *others)),
        "the order of responses": replace(example, responses=example.responses[::-1]),
        "where the prompt ends": replace(
            example,
            prompt=example.prompt[:-1],
            responses=(replace(first, ids=np.concatenate([example.prompt[-1:], first.ids])), *others),
        ),
        "where a response ends": replace(
            example,
            responses=(
                replace(first, ids=first.ids[:-1]),
                replace(others[0], ids=np.concatenate([first.ids[-1:], others[0].ids])),
            ),
        ),
        "the number of responses": replace(example, responses=(first,)),
    }
    return changes[what]


@pytest.mark.parametrize(
    "what",
    [
        "a response token",
        "a prompt token",
        "a target",
        "the order of responses",
        "where the prompt ends",
        "where a response ends",
        "the number of responses",
    ],
)
def test_any_change_of_tokens_changes_the_key(what):
    example = miniatures.pair(11, 7, 5, 0)
    assert example_key(changed(example, what)) != example_key(example)


def test_what_is_no_token_does_not():
    example = miniatures.pair(4, 3, 2, 0)
    first, second = example.responses
    relabelled = (Response(first.ids.copy(), Role.RANKED, score=3.0), second)
    assert example_key(replace(example, responses=relabelled, row=9, weight=2.0)) == example_key(example)
    wide = replace(example, prompt=np.repeat(example.prompt, 2)[::2], responses=tuple(relabelled))
    assert example_key(wide) == example_key(example), "how tokens lie in memory is no matter"


def random_keys(count: int, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).integers(0, 256, (count, KEY.itemsize), dtype=np.uint8)
    found[: count // 2, -3:] = 0  # zeros at the end are part of a key
    return found.view(KEY).ravel()


def filled(folder: Path, shards: int = 3, count: int = 20) -> tuple[Shards, np.ndarray, list[np.ndarray]]:
    """Shards, all their keys and the values of each."""
    random, keys, kept = np.random.default_rng(1), random_keys(shards * count), list[np.ndarray]()
    found = Shards(folder)
    for part in np.split(keys, shards):
        values = [random.normal(size=n).astype(np.float32) for n in random.integers(1, 9, len(part))]
        found.write(part, np.array([len(value) for value in values]), np.concatenate(values))
        kept += values
    return found, keys, kept


def test_what_was_written_is_found_in_any_order_and_number(tmp_path):
    written, keys, values = filled(tmp_path / "deep" / "folder")
    for shards in (written, Shards(tmp_path / "deep" / "folder")):
        assert len(shards) == len(keys)
        assert shards.has(keys).all()
        for seed in range(4):
            picked = np.random.default_rng(seed).integers(0, len(keys), 1 + 20 * seed)
            np.testing.assert_array_equal(shards.values(keys[picked]), np.concatenate([values[i] for i in picked]))


def test_what_was_not_written_is_not_found(tmp_path):
    shards, keys, _ = filled(tmp_path)
    others = random_keys(8, seed=5)
    assert shards.has(np.concatenate([others, keys[:3]])).tolist() == [False] * 8 + [True] * 3
    with pytest.raises(KeyError, match="1 of 2 examples"):
        shards.values(np.array([keys[0], others[0]], dtype=KEY))
    empty = Shards(tmp_path / "none")
    assert not len(empty)
    assert not empty.has(keys).any()
    assert not empty.folder.exists()


@pytest.mark.parametrize("damage", ["one bit", "cut short", "emptied", "made longer"])
def test_a_damaged_shard_is_noticed_named_and_put_away(tmp_path, damage):
    _, keys, values = filled(tmp_path)
    path = sorted(tmp_path.glob("*.shard"))[1]
    whole = path.read_bytes()
    flipped = whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]
    path.write_bytes({"one bit": flipped, "cut short": whole[:-1], "emptied": b"", "made longer": whole + b"0"}[damage])
    shards = Shards(tmp_path)
    assert shards.damaged == [path.name]
    assert not path.exists()
    assert shards.has(keys).sum() == 40
    shards.write(keys[~shards.has(keys)], *lengths_and_values(values, ~shards.has(keys)))
    np.testing.assert_array_equal(Shards(tmp_path).values(keys), np.concatenate(values))
    assert not Shards(tmp_path).damaged


def lengths_and_values(values: list[np.ndarray], wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kept = [value for value, want in zip(values, wanted, strict=True) if want]
    return np.array([len(value) for value in kept]), np.concatenate(kept)


def test_a_shard_is_named_after_its_bytes_and_the_same_one_twice_is_one(tmp_path):
    first, keys, values = filled(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 3
    for name, content in before.items():
        assert name == hashlib.sha256(content).hexdigest()[:32] + ".shard"
    first.write(keys[:20], *lengths_and_values(values, np.arange(60) < 20))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_two_writers_see_each_others_shards(tmp_path):
    one, other = Shards(tmp_path), Shards(tmp_path)
    keys = random_keys(4)
    one.write(keys[:2], np.array([1, 2]), np.arange(3, dtype=np.float32))
    other.write(keys[1:], np.array([2, 1, 1]), np.array([1, 2, 3, 4], dtype=np.float32))
    assert other.has(keys).all()
    assert not one.has(keys).all()
    one.refresh()
    for shards in (one, other):  # both computed the second example
        assert shards.values(keys).tolist() == [0, 1, 2, 3, 4]


def test_what_a_killed_writer_left_is_put_away_and_what_another_is_writing_is_not(tmp_path):
    left, fresh = tmp_path / ".a-1.tmp", tmp_path / ".b-2.tmp"
    for path in (left, fresh):
        path.write_bytes(b"half a shard")
    os.utime(left, (time.time() - 2 * stored.LEFT_BEHIND,) * 2)
    shards, keys, _ = filled(tmp_path)
    assert not left.exists()
    assert fresh.exists()
    assert shards.has(keys).all()


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        filled(tmp_path)
    assert list(tmp_path.iterdir()) == []


def resident_file_bytes() -> int:
    """Pages of mapped files that count as this process's."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith("RssFile")))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_values_are_mapped_and_do_not_stay_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "READS_MAPPED", 8)
    count, length = 1000, 16_000  # 64 MB
    keys = random_keys(count)
    values = np.arange(count * length, dtype=np.float32).reshape(count, length)
    for part in np.split(np.arange(count), 2):
        Shards(tmp_path).write(keys[part], np.full(len(part), length), values[part].ravel())
    before = resident_file_bytes()
    shards, most = Shards(tmp_path), 0
    assert resident_file_bytes() - before < 2**22, "looking for damage does not map them"
    order = np.random.default_rng(0).permutation(count)
    for at in range(0, count, 4):
        picked = order[at : at + 4]
        np.testing.assert_array_equal(shards.values(keys[picked]), values[picked].ravel())
        most = max(most, resident_file_bytes() - before)
    assert hasattr(mmap, "MADV_DONTNEED")
    assert most < 2**25


def test_keys_of_several_are_those_of_each():
    examples = miniatures.pairs()
    assert keys_of(examples).tobytes() == b"".join(example_key(example) for example in examples)
    assert len(keys_of([])) == 0
