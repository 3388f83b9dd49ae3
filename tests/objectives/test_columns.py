"""Objectives that cannot do without a column of the data say so before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, tensor

import preftune
from preftune import PreftuneError
from preftune.data.records import Preference, Where
from preftune.objectives import registry
from preftune.objectives.base import Objective
from preftune.objectives.pairs import PairObjective, Pairs

WHERE = Where("rated.jsonl", 0)
RATED = [
    Preference(
        f"A {kind} about a circus.", " I loved the music.", " I hated the music.", replace(WHERE, row=row), gap=1.0
    )
    for row, kind in enumerate(("comedy", "drama", "fantasy", "musical", "mystery", "French drama"))
]


@dataclass(frozen=True)
class Doubted(PairObjective):
    """Needs to know how sure each label is, as a user's objective may."""

    columns: ClassVar[frozenset[str]] = frozenset({"confidence"})

    def pair_loss(self, pairs: Pairs) -> Tensor:
        return (pairs.delta_E - pairs.confidence_E) ** 2

    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        return ratio


def refusal(records: list[Preference], objective: Any, folder: Path, **config: Any) -> str:
    with pytest.raises(PreftuneError) as raised:
        preftune.train("sandbox", records, objective, output=folder / "run", quiet=True, config=config)
    assert not (folder / "run").exists()
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("objective", "column"), [("odpo", "gap"), ("rebel", "gap"), (Doubted(), "confidence")], ids=str
)
@pytest.mark.parametrize("held_out", [0, 5])
def test_a_row_without_a_value_is_refused_on_either_side(
    objective: Any, column: str, held_out: int, tmp_path: Path
) -> None:
    rated = [replace(pair, confidence=0.9) for pair in RATED]
    records = [replace(pair, **{column: None}) if pair.where.row == 4 else pair for pair in rated]
    message = refusal(records, objective, tmp_path, data={"held_out": held_out})
    name = objective if isinstance(objective, str) else "test_columns:Doubted"
    assert message.endswith(
        f"{name} learns from {column}, but rated.jsonl row 4 has none: give every row one, or choose another objective"
    )


def test_one_term_of_a_mix_is_enough(tmp_path: Path) -> None:
    message = refusal([replace(pair, gap=None) for pair in RATED], ["dpo", {"name": "rebel"}], tmp_path)
    assert message.startswith("objective rebel learns from gap, but rated.jsonl row ")


@pytest.mark.parametrize("modifiers", [None, {"temperature": 2.0}])
@pytest.mark.parametrize("gap", [0.0, -1.5])
def test_a_value_that_the_objective_cannot_use_is_refused(gap: float, modifiers: Any, tmp_path: Path) -> None:
    records = [replace(pair, gap=gap) if pair.where.row == 2 else pair for pair in RATED]
    spec = {"name": "odpo"} if modifiers is None else {"name": "odpo", "modifiers": modifiers}
    assert refusal(records, spec, tmp_path) == (
        f"rated.jsonl row 2, for objective odpo: gap must be > 0 to have a logarithm, got {gap:g}: leave such pairs "
        "out or set scaling to identity"
    )


def test_data_with_values_that_can_be_used_trains(tmp_path: Path) -> None:
    records = [replace(pair, gap=-1.5) for pair in RATED]
    for number, objective in enumerate(({"name": "odpo", "scaling": "identity"}, "rebel")):
        run = preftune.train("sandbox", records, objective, output=tmp_path / str(number), quiet=True)
        assert run.summary["steps"] == 1


def test_every_column_that_is_asked_for_is_one_of_records() -> None:
    for name in registry.names():
        assert registry.resolve(name).columns <= {"gap", "confidence"}
    assert Objective.columns == frozenset()


@pytest.mark.parametrize("name", [name for name in registry.names() if "gap" in registry.resolve(name).columns])
def test_plain_tensors_need_the_gap_too(name: str) -> None:
    objective, one = registry.build(name), torch.zeros(1)
    with pytest.raises(ValueError, match="learns from rated gaps: give gap"):
        objective.on_pairs(one, one, one, one)
    with pytest.raises(ValueError, match="gap must be a finite number, got nan"):
        objective.on_pairs(one, one, one, one, gap=tensor([float("nan")]))
