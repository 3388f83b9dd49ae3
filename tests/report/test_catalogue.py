"""`preftune objectives`, as people see it."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from preftune import cli
from preftune.objectives import catalogue, registry
from preftune.report.catalogue import show_all, show_one


def text_of(show, *arguments, width=100):
    console = Console(file=io.StringIO(), width=width)
    show(*arguments, console)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 160])
def test_the_table_has_every_objective_with_its_fields_whole(width):
    text = text_of(show_all, width=width)
    assert max(map(len, text.splitlines())) <= width
    words = set(text.split())
    for entry in catalogue.entries():
        assert entry.name in words
        assert {f"{field.name}={field.default}" for field in entry.fields} <= words
    families = {entry.family for entry in catalogue.entries()}
    assert [family for family in catalogue.FAMILIES if f"{family} (data: " in text] == [
        family for family in catalogue.FAMILIES if family in families
    ]
    assert "arXiv 2310.12036" in text or width == 80


@pytest.mark.parametrize("name", registry.names())
def test_one_objective_is_shown_with_all_that_its_docstring_says(name):
    entry = catalogue.entry(name)
    text = text_of(show_one, name)
    flat = " ".join(text.split())
    assert entry.sections["Equation"].splitlines()[0] in text
    for title in set(entry.sections) - {"Equation", "Args", "Example"}:
        assert f"\n{title}\n" in text
        assert " ".join(entry.sections[title].split()) in flat
    for field in entry.fields:
        assert " ".join(f"{field.name} ({field.type}, default {field.default}): {field.meaning}".split()) in flat
    assert f"name: {name}" in text
    assert f"reference: {'yes' if entry.reference else 'no'}" in text
    assert ">>>" not in text


def test_markup_in_a_docstring_is_text():
    assert "in [0, 0.5)" in text_of(show_one, "dpo")


OWN = """
from dataclasses import dataclass, field
from preftune.objectives import DPO

@dataclass(frozen=True)
class Bare(DPO):
    slope: float = 2.0
    steps: tuple[int, ...] = field(default_factory=lambda: (1, 2))
"""


def test_an_objective_without_a_docstring_is_shown_as_far_as_it_goes(tmp_path, monkeypatch):
    (tmp_path / "bare_objective.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    text = text_of(show_one, "bare_objective:Bare")
    sys.modules.pop("bare_objective", None)
    assert "slope (float, default 2.0): its docstring does not say" in text
    assert "steps (tuple[int, ...], default [1, 2])" in text
    assert "Bare(beta" not in text  # the signature that dataclass writes is no docstring


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["preftune", "objectives", *words])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code or 0, *capsys.readouterr()


def test_the_command_lists_explains_and_names_the_nearest(monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys)
    assert (code, err) == (0, "")
    assert "Pairs, with a reference" in out
    code, out, err = run(monkeypatch, capsys, "ipo")
    assert (code, err) == (0, "")
    assert "loss = (delta - 1 / (2 tau))^2" in out
    code, out, err = run(monkeypatch, capsys, "simp")
    assert (code, out) == (2, "")
    assert err == "error: unknown objective 'simp'; did you mean simpo? (your own: package.module:Class)\n"
