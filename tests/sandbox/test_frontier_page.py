"""docs/frontier.md, its figure and its data are what the script makes of this code."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("frontier_page", ROOT / "scripts" / "frontier.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_listed_world_is_as_the_page_says(script: ModuleType) -> None:
    page = (ROOT / "docs" / "frontier.md").read_text(encoding="utf-8")
    assert page == script.replaced(page, "listed", script.listed_table(script.listed_figures()))
    assert re.search(r"^docs-frontier: .*\n\t.* scripts/frontier\.py$", (ROOT / "Makefile").read_text(), re.M)


def test_figure_and_table_come_from_the_data_beside_them(script: ModuleType) -> None:
    found = json.loads((ROOT / "docs" / "images" / "frontier.json").read_text(encoding="utf-8"))
    assert script.figure(found) == (ROOT / "docs" / "images" / "frontier.svg").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "frontier.md").read_text(encoding="utf-8")
    assert page == script.replaced(page, "reviews", script.reviews_table(found["reviews"]))
    alone, mixed = found["reviews"]["alone"], found["reviews"]["mixed"]
    assert mixed["kl"][-1] > alone["kl"][-1]


def test_the_example_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "frontier.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    exec(code, {})
    reward, nats, regret = map(float, capsys.readouterr().out.split())
    assert reward > 3
    assert nats > 1
    assert abs(regret) < 0.001
