"""Every key of the block `prompts` changes what comes out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from loopback import listening, saying
from prompting.training.optimisers import PAIRS

from preftune.errors import PreftuneError
from preftune.prompting.config import PromptsConfig
from preftune.prompting.records import PromptPair
from preftune.prompting.training import train_prompts

ROUNDS = {"rounds": 2, "discriminator": "own:drawn", "facts": False, "max_new_tokens": 24, "measured": 2}
TASK = {**ROUNDS, "discriminator": "task", "generator": "own:answers", "checker": "own:right"}
MANY = {**ROUNDS, "extra": True}


@dataclass(frozen=True)
class Case:
    """A change of one key, what is set besides, and what must differ then."""

    change: Any
    shows: str = "rows"
    besides: dict[str, Any] = field(default_factory=dict)


KEYS = {
    "template": Case("{world}/other.yaml"),
    "chat": Case(False),
    "cases": Case(False),
    "each": Case(3),
    "multiple_choice": Case(1.0),
    "right_naive": Case(1.0),
    "words": Case("exact"),
    "extra": Case(True),
    "rounds": Case(1, "files"),
    "discriminator": Case("own:longer", "next", ROUNDS),
    "generator": Case("own:others", "next", TASK),
    "checker": Case("own:nothing", "discriminator", TASK),
    "rubric": Case("{world}/rubric.txt", "discriminator", {**ROUNDS, "discriminator": "{server}"}),
    "max_calls": Case(3, "refused", {**ROUNDS, "discriminator": "{server}"}),
    "max_tokens": Case(3000, "refused", {**ROUNDS, "discriminator": "{server}"}),
    "reference": Case("last_round", "weights", ROUNDS),
    "temperature": Case(0.0, "next", ROUNDS),
    "top_p": Case(0.01, "next", ROUNDS),
    "max_new_tokens": Case(2, "next", ROUNDS),
    "facts": Case(True, "left_out", ROUNDS),
    "new_responses": Case(False, "next", MANY),
    "keep_discrimination": Case(0.0, "next", MANY),
    "measured": Case(0, "discriminator", ROUNDS),
}


@pytest.fixture(scope="module")
def server() -> Any:
    def says(turns: list[dict[str, Any]]) -> str:
        first, _, second = turns[-1]["content"].partition("[End of answer 1]")
        return f"Verdict: {1 if 'Think' in first else 2 if 'Think' in second else 'tie'}"

    with listening(saying(says)) as found:
        yield f"endpoint:{found.url}"


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """What came out without a change, by what was set besides."""
    return {}


def test_the_table_of_keys_is_complete() -> None:
    assert sorted(KEYS) == sorted(PromptsConfig.model_fields)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_changes_what_comes_out(key, settings, world, server, plain, tmp_path) -> None:
    (world / "other.yaml").write_text((world / "short.yaml").read_text().replace("In {words}", "With {words}"))
    (world / "rubric.txt").write_text("Which? {second} {first} {prompt}")
    case = KEYS[key]
    besides = yaml.safe_load(yaml.safe_dump(case.besides).replace("'{server}'", server))
    change = case.change.format(world=world) if isinstance(case.change, str) else case.change
    pairs = [replace(one, prompt=f"{one.prompt} 7 times") for one in PAIRS] if key == "facts" else PAIRS
    if key == "facts" or str(besides) not in plain:
        plain[str(besides)] = seen(settings, tmp_path / "plain", besides, pairs)
    found = seen(settings, tmp_path / "changed", {**besides, key: change}, pairs)
    before = plain[str(besides)]
    assert before["refused"] is None
    if case.shows == "refused":
        assert f"prompts.{key}" in str(found["refused"])
        return
    assert found["refused"] is None
    assert found[case.shows] != before[case.shows]


def seen(
    settings: Callable[..., Any], here: Path, prompts: dict[str, Any], pairs: Sequence[PromptPair]
) -> dict[str, Any]:
    """What a key can change in a folder."""
    try:
        config = settings(here.name, prompts=prompts, train={"max_steps": 1})
        trained = train_prompts(config, pairs=pairs, quiet=True)
    except PreftuneError as error:
        return {"refused": str(error)}
    first = trained.path / "round-1" if trained.rounds else trained.path
    line = dict(trained.rounds[0]) if trained.rounds else {}
    following = trained.path / "data" / "round-2.jsonl"
    found = {
        "refused": None,
        "rows": (first / "data" / "train.jsonl").read_text(),
        "files": sorted(str(path.relative_to(trained.path)) for path in trained.path.rglob("*")),
        "next": following.read_text() if following.is_file() else None,
        "weights": (trained.run.path / "model" / "model.safetensors").read_bytes(),
        "left_out": line.get("left_out"),
        "discriminator": line.get("discriminator"),
    }
    shutil.rmtree(trained.path)
    return found
