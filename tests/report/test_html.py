from __future__ import annotations

import base64
import hashlib
import json
import shutil
from html.parser import HTMLParser

import plotly.graph_objects as go
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plotly.offline import get_plotlyjs

from preftune.errors import PreftuneError
from preftune.report.drawing import Cell, Panel
from preftune.report.html import for_script, render, write
from preftune.report.reading import read

NASTY = [
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "'\" onmouseover=document.title='owned' x=\"",
    "<!--<script>",
    "--></style></title></textarea>]]><svg/onload=document.title='owned'>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:document.title='owned'",
    "&lt;b&gt; &amp; \x00\x07 \u202e \u2028",
]
SHORT = "<b onclick=1>x"


class Page(HTMLParser):
    """The elements of a page with their attributes, its scripts, and the text outside of scripts and styles."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.elements, self.scripts, self.text, self.inside = [], [], "", ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, attrs))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.text += data

    def handle_comment(self, data):
        pytest.fail(f"a comment: {data}")


def filled(write_run, name, text, key):
    """A run in which every string that comes from data, model or user is `text` (or a list of texts in turn)."""
    texts = [text(i) for i in range(8)]
    bad = {"preference_accuracy": 0.5, key: 1.0, "note": texts[0]}
    metrics = [
        {"kind": "eval", "step": 0, "loss": 1.0, key: texts[1], "margin": texts[2]},
        {"kind": "train", "step": 1, "loss": 1.0, "gradient_norm": texts[3]},
        {"kind": texts[4], "step": texts[5]},
    ]
    samples = [
        {"when": when, "prompt": f"{i} {one}", "response": one}
        for when in ("start", "end")
        for i, one in enumerate(texts)
    ]
    return write_run(
        name,
        config=json.dumps({"model": texts[0], "data": {"path": texts[1]}, "objective": texts[2]}),
        manifest={"command": texts[3], "started": texts[4], key: texts[5], "versions": {texts[6]: texts[7]}},
        metrics=metrics,
        samples=samples,
        summary={"objective": texts[0], "steps": 3, "before": bad, "after": bad, "messages": texts},
    )


def test_the_report_is_one_file_in_the_run_folder(write_run):
    folder = write_run()
    path = write(folder)
    assert path == folder / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    links = [value for _, attrs in page.elements for key, value in attrs if key in ("src", "href", "action")]
    assert links
    assert all(link.startswith("#") for link in links)
    assert [tag for tag, _ in page.elements if tag in ("link", "iframe", "img", "base", "object")] == []
    assert "url(" not in path.read_text(encoding="utf-8").replace(get_plotlyjs(), "")


def test_plotly_is_inside_once_and_the_policy_allows_no_other_script(write_run):
    page = Page(render(read(write_run())))
    data, plotly, ours = page.scripts
    assert plotly == get_plotlyjs()
    assert "Plotly.react" in ours
    (policy,) = [dict(attrs)["content"] for tag, attrs in page.elements if dict(attrs).get("http-equiv")]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in (plotly, ours)]
    assert f"script-src 'sha256-{hashes[0]}' 'sha256-{hashes[1]}';" in policy
    assert policy.startswith("default-src 'none';")
    assert set(json.loads(data)) == {
        dict(attrs)["id"].removeprefix("figure-")
        for tag, attrs in page.elements
        if dict(attrs).get("id", "").startswith("figure-")
    }


def test_the_page_tells_the_run_in_order(write_run):
    text = Page(render(read(write_run()))).text
    parts = [
        "started 2026-01-02 03:04 UTC",
        "Held-out preference accuracy is 75.0%, above chance",
        "padded path taken because the model is a Bloom",
        "Held-out curves are measured",
        "Held-out evaluation",
        "70.0% to 80.0%",
        "it was dull",
        "it was lovely",
        "empty response",
        "preftune train --model tiny --data pairs.jsonl",
        "beta: 0.1",
        "torch 2.13.0, transformers 5.23.0",
    ]
    places = [text.index(part, text.index("Held-out curves") if i > 3 else 0) for i, part in enumerate(parts)]
    assert places == sorted(places)


def test_no_element_comes_from_data(write_run):
    nasty = filled(write_run, "a" + SHORT, lambda i: NASTY[i], SHORT)
    harmless = filled(write_run, "harmless", lambda i: f"word {i}", "word")
    nasty_page, harmless_page = (Page(write(folder).read_text(encoding="utf-8")) for folder in (nasty, harmless))
    assert nasty_page.elements == harmless_page.elements
    assert nasty_page.scripts == harmless_page.scripts
    for one in NASTY:
        assert one.replace("\x00", "\ufffd") in nasty_page.text.replace("\x00", "\ufffd")
    assert SHORT in nasty_page.text


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(), st.lists(st.sampled_from(["<", "b", ">", "</", "&", "lt;", "{{", "}}", "\n", "<!--"])).map("".join))
def test_any_text_of_a_model_arrives_as_it_is(write_run, tmp_path, prompt, response):
    shutil.rmtree(tmp_path / "any", ignore_errors=True)
    samples = [{"when": "end", "prompt": f"[{prompt}]", "response": f"[{response}]"}]
    page = render(read(write_run("any", metrics=[], samples=samples)))
    body = page[: page.index('<script type="application/json"')]
    text = Page(body).text
    assert f"[{prompt}]" in text
    assert f"[{response}]" in text


def test_figures_stay_inert_inside_their_script():
    trace = go.Scatter(y=[1.0], name="</script><b>\u2028&<!--")
    panel = Panel("key", "title", "caption", (Cell("y", [trace]),))
    content = for_script([panel])
    assert not set(content) & set("<>&\u2028")
    assert json.loads(content)["key"]["data"][0]["name"] == trace.name


def test_half_a_surrogate_pair_can_be_written(write_run):
    path = write(write_run(samples=b'{"when": "end", "prompt": "p", "response": "a\\ud83db"}\n'))
    assert "a?b" in path.read_text(encoding="utf-8")


def test_demonstrations_have_a_report(sft_run):
    text = Page(write(sft_run).read_text(encoding="utf-8")).text
    assert "Held-out loss went from 4.00 to 2.00" in text
    assert "No samples were recorded." in text
    assert "Preference accuracy" not in text


def test_a_run_that_has_just_begun_has_a_report(write_run):
    text = Page(write(write_run(manifest=None, metrics=None, samples=None, summary=None)).read_text()).text
    for words in ("has not finished", "No metrics were recorded.", "Nothing was measured before or after training."):
        assert words in text


def test_many_samples_are_folded(write_run):
    samples = [{"when": "start", "prompt": f"prompt {i}", "response": "x"} for i in range(11)]
    page = Page(render(read(write_run(samples=samples))))
    assert "Show 5 more" in page.text
    assert sum(dict(attrs).get("class") == "card sample" for _, attrs in page.elements) == 11


def test_an_older_report_is_replaced(write_run):
    folder = write_run()
    (folder / "report.html").write_text("old")
    assert write(folder).read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_folder_that_is_no_run_gets_no_report(tmp_path):
    with pytest.raises(PreftuneError, match="no run folder"):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == []
