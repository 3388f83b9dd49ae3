"""Whatever a config file or an override holds, it is a config, or one sentence says what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fuzz_cases import BUDGET, EDITS, PIECES, Edits, check_sentence, edited, fuzz
from hypothesis import strategies as st

from preftune import yaml_tree
from preftune.config import RunConfig
from preftune.errors import PreftuneError

GOOD = b"""
model: {path: sandbox, lora: {r: 4, targets: [q_proj, v_proj]}}
data:
  path: pairs.jsonl
  held_out: 0.2
  rendering: {max_length: 512, template_options: {a: [1, {b: null}]}}
objective: [{name: dpo, beta: 0.1, weight: 1.0}, {name: sft, weight: 0.1}]
optim: &optim
  learning_rate: 5e-5
  betas: [0.9, 0.95]
output: {path: "runs/a b", trackers: []}
seed: 7
"""
COMMENTED = yaml_tree.commented(RunConfig).encode()


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("c.yaml")


def loads_or_says(path: Path | None, overrides: list[str]) -> None:
    """The property: a config that can be written and read again, or one sentence."""
    try:
        config = yaml_tree.load(RunConfig, path, overrides, tagged=("objective",))
    except PreftuneError as error:
        check_sentence(str(error), *([path.name] if path else []))
    else:
        if path:
            again = Path("again.yaml")
            again.write_text(yaml_tree.dump(config), encoding="utf-8")
            assert repr(yaml_tree.load(RunConfig, again, tagged=("objective",))) == repr(config)


def test_the_files_that_are_broken_below_can_be_read(path: Path) -> None:
    for content in (GOOD, COMMENTED):
        path.write_bytes(content)
        assert yaml_tree.load(RunConfig, path, tagged=("objective",)).optim.betas


def test_a_broken_config_is_read_or_explained(path: Path) -> None:
    def check(edits: Edits) -> None:
        path.write_bytes(edited(GOOD, edits))
        loads_or_says(path, [])

    fuzz("configs", check, edits=EDITS)


def test_any_text_is_read_or_explained(path: Path) -> None:
    def check(content: bytes) -> None:
        path.write_bytes(content)
        loads_or_says(path, [])

    pieces = st.lists(PIECES, max_size=12).map(b"".join)
    fuzz("pieces of configs", check, content=st.one_of(pieces, st.text(max_size=30).map(str.encode)))


def keys(model: Any, above: str = "") -> list[str]:
    found = []
    for name, info in model.model_fields.items():
        found.append(above + name)
        for inner in yaml_tree.models_in(info.annotation):
            found += keys(inner, f"{above}{name}.")
    return found


PARTS = st.sampled_from(
    ["model", "lora", "objective", "name", "beta", "0", "1", "", " ", "optim", "a", "ä", "-1", "9" * 30]
)
KEY = st.one_of(st.sampled_from(keys(RunConfig)), st.lists(PARTS, max_size=4).map(".".join), st.text(max_size=6))
VALUE = st.one_of(
    st.sampled_from(
        [
            *("", "null", "true", "no", "-1", "0", "1e999", ".nan", "-.inf", "9" * 30, "9" * 5000, "a" * 500, "${a.b}"),
            *("[]", "{}", "[", "{", "[[1]]", "{a: {b: 1}}", "{name: ipo}", "[{name: dpo}, sft]", "'", '"', "&a", "*a"),
            *("ipo", "no_such_file:Loss", "[" * 99, "{a: " * 99, "!!int x", "\0", "\ud83d", "010", "12:30", "0x1F"),
        ]
    ),
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
)


def test_any_override_is_taken_or_explained() -> None:
    def check(overrides: list[str]) -> None:
        loads_or_says(None, overrides)

    fuzz("overrides", check, overrides=st.lists(st.tuples(KEY, VALUE).map("=".join), min_size=1, max_size=3))


def test_ten_thousand_cases_are_planned() -> None:
    assert sum(BUDGET.values()) >= 10_000
