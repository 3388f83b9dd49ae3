"""The page of a study."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from plotly.offline import get_plotlyjs

from preftune.report.bandits import page
from preftune.report.drawing import Cell
from preftune.report.study import Grid, Page, Table
from preftune.studies.ipo_bandits import DATA, ORDER, TAUS, Form, Study, limits, rerun


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    form = Form(20, 0.999, 0.01)
    curves = rerun(DATA, form.steps, 0)
    return Study(tmp_path_factory.mktemp("study"), form, 1.0, curves, tuple(limits(curves, form)))


class Scripts(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.attributes, self.scripts, self.ids, self.inside = [], [], [], False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        self.inside = tag == "script"
        self.ids += [value for key, value in attrs if key == "id"]
        if self.inside:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.scripts[-1] += data


def test_the_page_needs_nothing_else_and_allows_no_other_script(study):
    page(study, "preftune study ipo-bandits").write(study.page)
    text = study.page.read_text(encoding="utf-8")
    found = Scripts(text)
    data, plotly, ours = found.scripts
    assert plotly == get_plotlyjs()
    assert not [value for key, value in found.attributes if key in ("src", "href", "action")]
    (policy,) = [value for key, value in found.attributes if key == "content" and "default-src" in value]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in (plotly, ours)]
    assert f"script-src 'sha256-{hashes[0]}' 'sha256-{hashes[1]}';" in policy
    assert [f"figure-{key}" for key in json.loads(data)] == [each for each in found.ids if each != "figures"]
    assert "<pre>preftune study ipo-bandits</pre>" in text


def test_the_page_says_what_came_out(study):
    made = page(study, "again")
    missed = sum(not limit.held for limit in study.limits)
    assert missed > 0  # 20 steps are too few
    assert made.headline.startswith(f"{missed} limits do not hold.")
    assert "cannot give the paper's second figure as printed" in made.paragraphs[1]
    table = made.tables[0]
    assert len(table.rows) == len(DATA) * len(TAUS)
    assert ["total-order", "1", ".448 .321 .230"] in [[row[0], row[1], row[4]] for row in table.rows]


def test_dpo_and_ipo_stand_side_by_side_with_bands_and_closed_forms(study):
    grid = next(each for each in page(study, "again").figures if each.key == ORDER.key)
    assert grid.rows == len(TAUS)
    figure = grid.figure()
    titles = [annotation.text for annotation in figure.layout.annotations]
    assert titles == ["DPO (beta = tau)", "IPO"]
    named = [trace.name for trace in figure.data]
    assert named.count("a") == named.count("a, 95%") == 2 * len(TAUS)
    assert named.count("a, closed form") == len(TAUS)  # IPO has one, DPO has none
    assert len({trace.name for trace in figure.data if trace.showlegend}) == sum(
        bool(trace.showlegend) for trace in figure.data
    )
    drawn = next(trace for trace in figure.data if trace.name == "c")
    assert drawn.y[0] == pytest.approx(1 / 3, abs=1e-6)
    assert list(drawn.x) == list(range(21))


def test_texts_are_escaped(tmp_path):
    table = Table("<b>", "<i>", ("<u>", "x"), [("<s>", "<em>")])
    grid = Grid("key", "<h9>", "<q>", (Cell("y", []),))
    Page("<t>", "<o>", "<l>", ["<p1>"], [grid], [table], "<c>").write(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"<(b|i|u|s|em|q|h9|t|o|l|p1|c)>", text.replace(get_plotlyjs(), ""))
