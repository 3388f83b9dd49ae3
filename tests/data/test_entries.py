"""Entries of the cache: whole or not there, found again, made anew where they are damaged."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from preftune.data.entries import fetch, key_of
from preftune.errors import PreftuneError


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data" / "things"


class Maker:
    """Writes a file, and counts."""

    def __init__(self, text: str = "content") -> None:
        self.text, self.made = text, 0

    def __call__(self, folder: Path) -> dict[str, Any]:
        assert list(folder.iterdir()) == []
        self.made += 1
        (folder / "file").write_text(self.text)
        return {"made": self.made}


def test_an_entry_is_made_once_and_found_again(root: Path) -> None:
    make, key = Maker(), key_of("a", 1)
    for _ in range(2):
        entry = fetch("things", key, make)
        assert (entry.about, entry.notes, (entry.folder / "file").read_text()) == ({"made": 1}, [], "content")
    assert [path.name for path in root.iterdir()] == [key]
    assert fetch("things", key_of("a", 2), make).about == {"made": 2}


def test_without_a_key_an_entry_lasts_as_long_as_it_is_held(root: Path) -> None:
    make = Maker()
    entry = fetch("things", None, make)
    assert (entry.folder / "file").read_text() == "content"
    folder = entry.folder
    del entry
    assert not folder.exists()
    unkept = fetch("things", key_of(1), make, keep=lambda: False)
    assert unkept.about == {"made": 2}
    assert fetch("things", key_of(1), make).about == {"made": 3}, "what was not to be kept is not found"


DAMAGES = {
    "cut": lambda folder: (folder / "file").write_text("conten"),
    "changed": lambda folder: (folder / "file").write_text("contend"),
    "gone": lambda folder: (folder / "file").unlink(),
    "empty": lambda folder: (folder / "about.json").write_text(""),
    "no JSON": lambda folder: (folder / "about.json").write_bytes(b"\xff{"),
    "other JSON": lambda folder: (folder / "about.json").write_text("[1]"),
    "forged": lambda folder: (folder / "about.json").write_text(
        (folder / "about.json").read_text().replace("made", "mada")
    ),
    "half": lambda folder: (folder / "about.json").unlink(),
    "no folder": lambda folder: (
        [path.unlink() for path in folder.iterdir()],
        folder.rmdir(),
        folder.write_text("a file"),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_made_anew_with_a_note(damage: str) -> None:
    make, key = Maker(), key_of("a")
    DAMAGES[damage](fetch("things", key, make).folder)
    entry = fetch("things", key, make)
    assert entry.about == {"made": 2}
    assert (entry.folder / "file").read_text() == "content"
    (note,) = entry.notes
    assert "was damaged: it is made anew" in note
    if damage != "no folder":
        assert fetch("things", key, make).notes == []


def test_a_maker_that_fails_leaves_nothing(root: Path) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "file").write_text("half")
        raise PreftuneError("row 3 is bad")

    for _ in range(2):
        with pytest.raises(PreftuneError, match="row 3 is bad"):
            fetch("things", key_of("a"), fail)
    assert list(root.iterdir()) == []


def test_a_full_disk_is_said_in_one_sentence() -> None:
    def fill(folder: Path) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(PreftuneError, match=r"cannot write to .* \(No space left on device\): make room"):
        fetch("things", key_of("a"), fill)


def test_a_process_killed_in_the_middle_breaks_nothing_and_is_swept_away(root: Path) -> None:
    script = (
        "import os\n"
        "from preftune.data.entries import fetch\n"
        "def make(folder):\n"
        "    (folder / 'file').write_text('half')\n"
        "    os._exit(9)\n"
        f"fetch('things', {key_of('a')!r}, make)\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 9
    (left,) = root.iterdir()
    make = Maker()
    assert fetch("things", key_of("a"), make).about == {"made": 1}
    assert left.exists(), "who knows whether its maker is still at work"
    long_ago = time.time() - 3 * 24 * 3600
    os.utime(left, (long_ago, long_ago))
    fetch("things", key_of("b"), make)
    assert not left.exists()


def test_of_two_that_make_the_same_at_once_the_first_wins(root: Path) -> None:
    first, second = Maker(), Maker()

    def meanwhile(folder: Path) -> dict[str, Any]:
        fetch("things", key_of("a"), first)
        return second(folder)

    entry = fetch("things", key_of("a"), meanwhile)
    assert (entry.folder / "file").read_text() == "content"
    assert entry.notes == []
    del entry
    assert fetch("things", key_of("a"), first).notes == []
    assert (first.made, second.made) == (1, 1)
    assert len(list(root.iterdir())) == 1


def test_where_the_cache_cannot_be_written_nothing_is_kept_and_the_user_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "file"))
    make = Maker()
    for made in (1, 2):
        entry = fetch("things", key_of("a"), make)
        assert entry.about == {"made": made}
        (note,) = entry.notes
        assert "the cache folder cannot be written to (Not a directory)" in note
