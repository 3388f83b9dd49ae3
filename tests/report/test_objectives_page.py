"""docs/objectives.md is what the objectives say now."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from preftune.objectives import registry
from preftune.report import objectives_page
from preftune.report.slices import MARGINS, along_margin

DOCS = Path(__file__).parents[2] / "docs"
AGAIN = f"run: {objectives_page.COMMAND}"


@pytest.fixture(scope="module")
def written() -> dict[str, str]:
    return objectives_page.files()


def test_the_page_and_its_drawings_are_current(written):
    for name, text in written.items():
        path = DOCS / name
        assert path.is_file(), f"docs/{name} is missing; {AGAIN}"
        assert path.read_text(encoding="utf-8") == text, f"docs/{name} is out of date; {AGAIN}"
    there = {path.relative_to(DOCS).as_posix() for path in (DOCS / objectives_page.IMAGES).iterdir()}
    assert there == set(written) - {"objectives.md"}, AGAIN


@pytest.mark.parametrize("name", registry.names())
def test_rounding_on_another_machine_would_change_no_drawing(name, written):
    noisy = MARGINS * (1 + 1e-12) + 1e-12
    drawn = objectives_page.picture(name, along_margin(registry.build(name), noisy))
    assert drawn == written[f"{objectives_page.IMAGES}/{name}.svg"]


def test_the_makefile_writes_it():
    makefile = (DOCS.parent / "Makefile").read_text(encoding="utf-8")
    target = objectives_page.COMMAND.removeprefix("make ")
    assert re.search(rf"^{target}: .*\n\t.*preftune\.report\.objectives_page docs$", makefile, re.M)


def test_every_objective_has_an_entry_and_every_link_leads_somewhere(written):
    page = written["objectives.md"]
    headings = set(re.findall(r"^### (\w+)$", page, re.M))
    assert headings == set(registry.names())
    assert set(re.findall(r"\]\(#(\w+)\)", page)) == headings
    assert set(re.findall(r"!\[[^]]*\]\(([^)]+)\)", page)) == set(written) - {"objectives.md"}


def test_rows_of_tables_have_as_many_cells_as_their_heads(written):
    width = 0
    for line in written["objectives.md"].splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert not (width and cells) or cells == width, line
        width = cells


def test_prose_is_escaped_outside_code():
    assert objectives_page._plain("a_b * `c_d` <e>") == r"a\_b \* `c_d` \<e>"


def test_drawings_of_objectives_that_are_no_more_are_removed(tmp_path):
    old = tmp_path / objectives_page.IMAGES / "gone.svg"
    old.parent.mkdir(parents=True)
    old.write_text("<svg/>")
    paths = objectives_page.write(tmp_path)
    assert not old.exists()
    assert {path.name for path in paths} == {"objectives.md", *(f"{name}.svg" for name in registry.names())}
    assert all(path.is_file() for path in paths)
