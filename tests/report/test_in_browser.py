"""The page as a reader meets it: in a browser, with mouse, keyboard and finger."""

from __future__ import annotations

import json
import random
import re
import time
from itertools import cycle

import evidence
import pytest
from visits import until

from preftune.report import comparison
from preftune.report.html import write

NASTY = [
    "</script><script>window.owned=1</script>",
    '<img src=x onerror="window.owned=1">',
    '"><svg onload=window.owned=1>',
    "'-window.owned=1-'",
    "${window.owned=1} {{ 7*7 }} {% raw %}",
    "javascript:window.owned=1",
    "--></style><base href=//example.org>",
    "\u202eright to left\u202c \u200b\u200d\ufeff zero width \u2028\u2029",
    "مرحبا بالعالم",
    "Z̸̧͎a̷l̶g̵o̸ 👩‍👩‍👧‍👦 \U0001f1ea\U0001f1fa",
    "\ud83d half a pair \udc00",
    "\x00\x01\x07\x1b[31m\ttab\r\nline",
]


def with_texts(texts, like):
    """The same structure in which every text is one of `texts` in turn; keys and numbers stay as they are."""
    if isinstance(like, dict):
        return {key: with_texts(texts, value) for key, value in like.items()}
    if isinstance(like, list):
        return [with_texts(texts, value) for value in like]
    return next(texts) if isinstance(like, str) else like


@pytest.fixture
def full(write_run):
    return evidence.everything(write_run())


def test_the_page_loads_in_silence_and_draws_all_its_figures(full, visit):
    seen = visit(write(full))
    assert seen.draw_all() == 13  # eight panels of curves, reliability, four pairs
    assert seen.page.locator(".plot .main-svg").first.is_visible()
    assert seen.troubles == []
    assert [url for url in seen.requests if not url.startswith(("file:", "data:", "blob:"))] == []


def test_figures_have_hover_and_zoom(full, visit):
    page = visit(write(full)).page
    loss = page.locator("#figure-loss")
    loss.scroll_into_view_if_needed()
    loss.locator(".main-svg").first.wait_for()
    box = loss.bounding_box()
    middle = box["y"] + box["height"] / 2
    hover = page.locator("#figure-loss .hoverlayer .legend")
    for i in range(50):  # along the curves, until the pointer meets a point
        page.mouse.move(box["x"] + 60 + 8 * i, middle)
        page.wait_for_timeout(60)
        if hover.count():
            break
    assert "held-out" in hover.text_content(timeout=1000)
    ends = "document.getElementById('figure-loss').layout.xaxis.range"
    before = page.evaluate(ends)
    page.mouse.move(box["x"] + 150, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, middle, steps=4)
    page.mouse.up()
    until(page, f"{ends}[1] < {before[1]} - 1")


def test_tabs_work_with_mouse_and_keyboard(full, visit):
    page = visit(write(full)).page
    tabs = page.locator("#held-out [role=tab]")
    assert tabs.all_inner_texts() == [
        *("Before and after", "Against baselines", "Calibration", "By length", "By source", "Generation", "Win rate")
    ]
    shown = page.locator("#held-out [role=tabpanel]:visible")
    assert shown.get_attribute("id") == "panel-changes"
    tabs.nth(2).click()
    assert shown.get_attribute("id") == "panel-calibration"
    page.locator("#figure-reliability .main-svg").first.wait_for()
    assert page.locator("#figure-reliability").bounding_box()["width"] > 300  # it was hidden when the page was loaded
    page.keyboard.press("ArrowRight")
    assert shown.get_attribute("id") == "panel-by-length"
    assert page.evaluate("document.activeElement.id") == "tab-by-length"
    page.keyboard.press("End")
    assert shown.get_attribute("id") == "panel-win-rate"
    page.keyboard.press("ArrowRight")
    assert shown.get_attribute("id") == "panel-changes"
    assert page.locator("#held-out [role=tab][tabindex='0']").count() == 1


def test_light_and_dark_follow_the_system_and_the_toggle(full, visit):
    page = visit(write(full), color_scheme="dark").page
    ground = "getComputedStyle(document.body).backgroundColor"
    text = "document.querySelector('#figure-loss .xtick text').style.fill"
    page.locator("#figure-loss").scroll_into_view_if_needed()
    page.locator("#figure-loss .xtick text").first.wait_for()
    dark, dark_text = page.evaluate(ground), page.evaluate(text)
    page.get_by_label("Light").check(force=True)
    light, light_text = page.evaluate(ground), page.evaluate(text)
    assert sum(map(int, dark[4:-1].split(", "))) < 150 < 600 < sum(map(int, light[4:-1].split(", ")))
    assert dark_text != light_text
    page.reload()
    assert page.evaluate(ground) == light, "the choice is remembered"
    page.get_by_label("Light").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate(ground) == dark


def test_differences_can_be_switched_off_with_the_keyboard(full, visit):
    page = visit(write(full)).page
    ground = "getComputedStyle(document.querySelector('ins')).backgroundColor"
    marked = page.evaluate(ground)
    switch = page.get_by_role("switch", name="Mark words")
    switch.focus()
    page.keyboard.press("Space")
    assert not switch.is_checked()
    assert page.evaluate(ground) == "rgba(0, 0, 0, 0)" != marked


def test_tokens_tell_what_they_got(full, visit):
    page = visit(write(full)).page
    row = evidence.credit()[0]["chosen"]
    tip = page.locator(".tip")
    token = page.locator("#credit .tokens").first.locator(".t").nth(5)
    token.hover()
    so_far = sum(value or 0 for value in row["credit"][:6])
    said = tip.inner_text().replace("\u2212", "-")
    assert said.startswith("token 6: credit ")
    found = [float(one) for one in re.findall(r"[-+]?\d+(?:\.\d+)?", said)]
    expected = [6, row["credit"][5], so_far, row["logps"][5], row["reference_logps"][5]]
    assert found == pytest.approx(expected, rel=0.02, abs=0.01)
    page.mouse.move(0, 0)
    page.locator("#credit .tokens").first.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    assert tip.inner_text().startswith("token 2: ")
    page.keyboard.press("Escape")
    assert tip.is_hidden()


def test_a_phone_shows_all_of_it_without_scrolling_sideways(full, visit):
    seen = visit(write(full), viewport={"width": 390, "height": 844}, has_touch=True)
    seen.draw_all()
    for tab in seen.page.locator("[role=tab]").all():
        tab.click()
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390
    seen.page.locator("#credit .tokens .t").nth(3).tap()
    assert seen.page.locator(".tip").inner_text().startswith("token 4: ")
    assert seen.troubles == []


def test_texts_of_data_and_models_stay_inert(write_run, visit):
    texts = cycle(NASTY)
    pairs = [(f"{i} {nasty}", nasty) for i, nasty in enumerate(NASTY)]
    folder = write_run(
        config=json.dumps({key: next(texts) for key in ("model", "data", "objective")}),
        manifest={next(texts): next(texts) for _ in NASTY},
        samples=[{"when": when, "prompt": p, "response": f"{when} {r}"} for when in ("start", "end") for p, r in pairs],
    )
    evidence.add(
        folder,
        evaluation=with_texts(texts, evidence.evaluation()),
        generations=with_texts(texts, evidence.generations(12)),
        credit=with_texts(texts, evidence.credit(3, 30)),
        data_doctor=with_texts(texts, evidence.data_doctor()),
        summary={"objective": next(texts), "messages": NASTY, "doctor": [with_texts(texts, evidence.symptom(3))] * 2},
    )
    seen = visit(write(folder))
    page = seen.page
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    seen.draw_all()
    assert page.evaluate("window.owned") is None
    assert page.locator("img, base, iframe, object, form, section svg[onload]").count() == 0
    assert page.locator("section").count() == 8
    shown = page.locator("#panel-before-after .prompt").all_inner_texts()
    for text in NASTY[:-1]:  # the last has control characters, which browsers show in their own way
        assert any(text.encode(errors="replace").decode().strip() in prompt for prompt in shown)
    assert seen.troubles == []


def test_ten_thousand_steps_and_two_hundred_samples_stay_small_and_quick(write_run, history, visit):
    draw = random.Random(0)
    train, held_out = ([row for row in history if row["kind"] == kind][-1] for kind in ("train", "eval"))
    rows = [{**train, "step": step, "loss": draw.random()} for step in range(1, 10_001)]
    rows += [{**held_out, "step": step} for step in range(0, 10_001, 50)]
    samples = [
        {"when": when, "prompt": f"{i} {evidence.text(draw, 40)}", "response": evidence.text(draw, 200)}
        for when in ("start", "end")
        for i in range(200)
    ]
    folder = write_run(metrics=rows, samples=samples)
    evidence.add(folder, credit=evidence.credit(16, 300), evaluation=evidence.evaluation())
    began = time.process_time()
    path = write(folder)
    assert time.process_time() - began < 2
    assert path.stat().st_size < 8e6
    seen = visit("about:blank")
    clock = seen.page.context.new_cdp_session(seen.page)
    # the thread's own time: what a clock on the wall says depends on what else the machine is doing
    clock.send("Performance.enable", {"timeDomain": "threadTicks"})
    seen.page.goto(path.as_uri())
    seen.page.locator("#figure-loss").scroll_into_view_if_needed()
    seen.page.locator("#figure-loss .main-svg").first.wait_for()
    took = {each["name"]: each["value"] for each in clock.send("Performance.getMetrics")["metrics"]}
    assert took["TaskDuration"] < 2
    assert seen.page.locator("#samples article").count() == 200
    assert "Of 10,000 recorded points a curve shows 400 at most" in seen.page.locator("#curves").inner_text()
    assert seen.draw_all() == 25


def test_a_comparison_is_a_page_like_the_others(full, write_run, tmp_path, visit):
    other = write_run("<b>other")
    seen = visit(comparison.write([full, other], tmp_path / "all" / "comparison.html"))
    assert seen.draw_all() >= 6
    assert seen.troubles == []
    assert seen.page.locator("thead bdi").all_inner_texts() == ["run", "<b>other"]
    assert seen.page.locator(".plot b").count() == 0
    points = seen.page.evaluate("JSON.parse(document.getElementById('figures').textContent)['kl-true_reward'].data")
    assert [(point["name"], point["x"], point["y"]) for point in points] == [
        ("A run", [2.29], [1.13]),
        ("B", [1.35], [1.13]),
    ]
