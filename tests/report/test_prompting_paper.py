"""The paper's tables and their drawings: the averages come out, and what lies in docs/ is what would be written."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from preftune.prompting import paper
from preftune.report import prompting_paper
from preftune.report.gains import bars, heat_map

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.mark.parametrize(("table", "row"), paper.rows(), ids=lambda value: getattr(value, "name", value))
def test_weighted_averages_are_those_that_the_paper_prints(table: str, row: paper.Scores) -> None:
    assert row.recomputed == pytest.approx(row.average, abs=0.02)


def test_simple_means_are_not() -> None:
    off = [abs(sum(row.values) / 5 - row.average) for _, row in paper.rows()]
    assert max(off) > 1.0


def test_tables_agree_where_they_say_the_same() -> None:
    third = {row.name: row for row in paper.TABLE3}
    last = {row.name.partition(",")[0]: row for row in paper.TABLE6 if row.name.endswith("epoch 3")}
    assert set(last) == {"IPL-DPO-70B", "IPL-IPO-70B"}
    for name, row in last.items():
        assert (row.values, row.average) == (third[name].values, third[name].average)


def test_gains() -> None:
    naive, *_, best, _, _ = paper.TABLE3
    assert best.name == "IPL-IPO-70B"
    assert best.over(naive) == (1.90, 3.39, 3.76, 5.54, 4.80, 4.34)


def test_docs_are_as_they_would_be_written(tmp_path: Path) -> None:
    written = prompting_paper.write(tmp_path)
    assert len(written) == 4
    for path in written:
        there = DOCS / path.relative_to(tmp_path)
        assert there.read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), f"run: {prompting_paper.COMMAND}"
    target = prompting_paper.COMMAND.removeprefix("make ")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}: .*\n\t.*preftune\.report\.prompting_paper docs$", makefile, re.M)


def test_the_page_says_whose_figures_these_are() -> None:
    texts = prompting_paper.files()
    page = texts[prompting_paper.PAGE]
    assert "figures of the authors of FIPO" in page
    for name in re.findall(r"\(\.\./(images/prompts/[\w-]+\.svg)\)", page):
        assert "the paper's figures" in texts[name]


def test_drawings() -> None:
    drawn = ElementTree.fromstring(bars("A <title>", [("up & on", 2.0), ("down", -1.0)], "points"))
    space = {"s": "http://www.w3.org/2000/svg"}
    widths = [float(rect.attrib["width"]) for rect in drawn.findall("s:rect", space)]
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.01)
    assert [text.text for text in drawn.findall("s:text", space)][1:5] == ["up & on", "+2.00", "down", "\u22121.00"]
    cells = ElementTree.fromstring(heat_map("t", ["x", "y"], [("a", [0.0, 0.0]), ("b", [1.0, -3.0])]))
    colours = [rect.attrib["fill"] for rect in cells.findall("s:rect", space)]
    assert len(colours) == 4
    assert colours[0] == colours[1], "nothing gained, nothing coloured"
    assert len(set(colours)) == 3
    right = max(float(rect.attrib["x"]) + float(rect.attrib["width"]) for rect in cells.findall("s:rect", space))
    assert right <= float(cells.attrib["width"])
