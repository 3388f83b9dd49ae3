from pathlib import Path

from preftune.cache import cache_folder


def test_the_variable_names_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path))
    assert cache_folder("references") == tmp_path / "references"


def test_without_it_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("PREFTUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("data") == tmp_path / "preftune" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("data") == Path.home() / ".cache" / "preftune" / "data"
