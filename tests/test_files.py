"""Files that are whole or not there."""

from __future__ import annotations

import os

import pytest

from preftune.files import settle_all, write_whole


def test_a_file_is_written_whole_and_replaces_another(tmp_path):
    path = tmp_path / "a.json"
    for content in (b"first", b"", b"x" * 100_000):
        write_whole(path, content)
        assert path.read_bytes() == content
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_whole(path, b"first")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"second")
    assert path.read_bytes() == b"first"
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]


def test_everything_in_a_folder_is_forced_to_disk(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    for name in ("a", "sub/b"):
        (tmp_path / name).write_text(name)
    forced = []
    monkeypatch.setattr(os, "fsync", lambda handle: forced.append(os.readlink(f"/proc/self/fd/{handle}")))
    settle_all(tmp_path)
    assert sorted(forced) == sorted(str(path) for path in (tmp_path, *tmp_path.rglob("*")))


def test_others_may_read_it_as_any_other_file(tmp_path):
    mask = os.umask(0o022)
    try:
        write_whole(tmp_path / "a", b"")
    finally:
        os.umask(mask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644
