from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from preftune.errors import PreftuneError
from preftune.evaluation.journal import Journal


@contextmanager
def opened(path: Path) -> Iterator[Journal]:
    journal = Journal(path)
    try:
        yield journal
    finally:
        journal.close()


def test_lines_are_there_again(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.jsonl"
    with opened(path) as journal:
        assert journal.lines == []
        journal.add({"text": "Ä\u2028\n"}, {"n": 1})
        journal.add({"half": "\ud800"})
    with opened(path) as journal:
        assert journal.lines == [{"text": "Ä\u2028\n"}, {"n": 1}, {"half": "?"}]


@pytest.mark.parametrize("cut", [1, 5, 11])
def test_what_a_kill_left_is_taken_away(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    with opened(path) as journal:
        journal.add({"n": 1}, {"word": "x"})
    path.write_bytes(path.read_bytes()[:-cut])
    with opened(path) as journal:
        assert journal.lines == [{"n": 1}]
        journal.add({"n": 2})
    assert path.read_text() == '{"n": 1}\n{"n": 2}\n'


def test_threads_share_it_and_processes_do_not(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    with opened(path) as journal:
        writers = [
            threading.Thread(target=lambda k=k: [journal.add({"k": k, "text": "x" * 999}) for _ in range(10)])
            for k in range(8)
        ]
        for each in writers:
            each.start()
        for each in writers:
            each.join()
        with pytest.raises(PreftuneError, match=r"another process writes to .*b.jsonl"):
            Journal(path)
    with opened(path) as journal:
        assert sorted(line["k"] for line in journal.lines) == sorted(list(range(8)) * 10)


def test_a_disk_that_is_full_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(path) as journal:
        journal.add({"n": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
        try:
            with pytest.raises(PreftuneError, match=r"cannot write .*b.jsonl \(File too large\): make room there"):
                journal.add({"text": "x" * 100})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        journal.add({"n": 2})
    assert path.read_text() == '{"n": 1}\n{"n": 2}\n'


@pytest.mark.parametrize("content", [b"no JSON\n", b"[1]\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b'{"n": 1}\n\n'])
def test_what_is_no_line_of_ours(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_bytes(content)
    with pytest.raises(PreftuneError, match=r"b.jsonl line [12] is no JSON object"):
        Journal(tmp_path / "b.jsonl")
    assert (tmp_path / "b.jsonl").read_bytes() == content
