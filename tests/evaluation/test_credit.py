"""Credit per token: what it sums to, which step a token belongs to, and that it is what training logged."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from evaluation.runs import Made
from hypothesis import given
from hypothesis import strategies as st

from preftune import train
from preftune.evaluation.credit import PairCredit, TokenCredit, step_credit, steps, unit
from preftune.evaluation.opening import open_for_evaluation
from preftune.evaluation.scoring import score
from preftune.inspection import inspect
from preftune.objectives import DPO, IPO, build
from preftune.run import Run

TOKENS = ["\n", " two", " plus", "\n", "\n", " one", ".", "\n"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A short DPO run on the built-in world, with a whole response masked in no example."""
    return train(
        "sandbox",
        "sandbox",
        {"name": "dpo", "beta": 0.3},
        output=tmp_path_factory.mktemp("credit") / "run",
        quiet=True,
        config={"data": {"limit": 200}},
        optim={"learning_rate": 2e-3},
        train={"max_steps": 4, "device": "cpu"},
        evaluate={"samples": 0, "credit": 5},
    )


def test_lines_end_with_their_break_and_blank_ones_belong_to_the_line_before() -> None:
    assert steps(TOKENS, "line").tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def test_sentences_end_with_a_full_stop_a_closing_quote_or_a_line() -> None:
    assert steps([" a.", "b", '."', " c", "\n", "d", "\u3002", "e"], "sentence").tolist() == [0, 1, 1, 2, 2, 3, 3, 4]


def test_turns_are_what_lies_between_masked_tokens() -> None:
    masked = [True, False, False, True, True, False, True]
    assert steps(list("abcdefg"), "turn", masked).tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert steps(["a", "b"], "turn").tolist() == [0, 0]
    assert steps([], "turn", []).tolist() == []


@given(
    st.lists(
        st.tuples(st.sampled_from([" a", "\n", ".", " b.\n", "  "]), st.floats(-9, 9), st.booleans()), max_size=30
    ),
    st.sampled_from(["line", "sentence", "turn"]),
)
def test_steps_share_out_all_credit_whatever_the_split(rows, split) -> None:  # type: ignore[no-untyped-def]
    logps = np.array([math.nan if masked else value for _, value, masked in rows])
    credit = TokenCredit([token for token, _, _ in rows], logps, np.zeros(len(rows)), 0.5)
    number = steps(credit.tokens, split, np.isnan(logps))
    assert (np.diff(number) >= 0).all()
    assert (np.diff(number) <= 1).all()
    assert step_credit(credit, split).sum() == pytest.approx(credit.total, abs=1e-9)
    assert credit.total == pytest.approx(credit.cumulative_T[-1] if rows else 0.0, abs=1e-9)


def test_what_both_responses_begin_with_decides_nothing_and_the_largest_part_comes_first() -> None:
    reference = np.zeros(3)
    chosen = TokenCredit(["x", "good", "!"], np.array([9.0, 1.0, 0.0]), reference, 1.0)
    rejected = TokenCredit(["x", "bad", "?"], np.array([9.0, -3.0, 0.5]), reference, 1.0)
    pair = PairCredit(0, "p", chosen, rejected)
    assert pair.margin == pytest.approx(3.5)
    assert pair.deciding(3) == [("rejected", 1, 3.0), ("chosen", 1, 1.0), ("rejected", 2, -0.5)]


def test_a_line_of_the_file_gives_the_pair_again_masked_tokens_included() -> None:
    side = TokenCredit(["a", "b"], np.array([-1.25, math.nan]), np.array([-2.0, math.nan]), 0.1)
    line = json.loads(json.dumps(PairCredit(7, "p", side, side).as_json()))
    assert line["chosen"]["credit"] == [0.075, None]
    again = PairCredit.from_json(line)
    assert again.row == 7
    np.testing.assert_allclose(again.rejected.credit_T, side.credit_T)


def test_credit_is_in_units_of_the_objectives_reward() -> None:
    assert unit([DPO(beta=0.3)]) == 0.3
    assert unit([IPO(tau=0.2)]) == 0.2
    assert unit([build("sft"), DPO(beta=0.5)]) == 0.5
    assert unit([build("sft")]) == 1.0


def test_a_runs_credit_adds_up_to_its_rewards(run: Run) -> None:
    lines = [json.loads(line) for line in (run.path / "credit.jsonl").read_text().splitlines()]
    scores = {one.row: one for one in score(open_for_evaluation(run.path))}
    assert len(lines) == 5
    assert any(abs(sum(line["chosen"]["credit"])) > 1e-2 for line in lines)
    for line in lines:
        for side in ("chosen", "rejected"):
            wanted = getattr(scores[line["row"]], side)
            assert sum(line[side]["credit"]) == pytest.approx(wanted.reward, abs=1e-4)
            assert sum(line[side]["logps"]) == pytest.approx(wanted.logp, abs=1e-4)
        assert "".join(line["chosen"]["tokens"]).endswith("<|end|>")


def test_inspect_finds_the_same_credit_as_the_run_kept(run: Run) -> None:
    kept = [PairCredit.from_json(json.loads(line)) for line in (run.path / "credit.jsonl").read_text().splitlines()]
    found = inspect(run.path, rows=[pair.row for pair in kept])
    for old, new in zip(kept, found, strict=True):
        assert new.pair is not None
        assert new.prompt == old.prompt
        assert new.pair.chosen.tokens == old.chosen.tokens
        np.testing.assert_allclose(new.pair.rejected.credit_T, old.rejected.credit_T, atol=1e-4)


@pytest.mark.parametrize("kind", ["kto", "kto-pairs"])
def test_one_row_is_enough_whatever_the_objective_compares(kind: str, made: Made) -> None:
    (first,) = inspect(made(kind), count=1)
    (again,) = inspect(made(kind), rows=[first.row])
    assert [name for name, _ in first.responses] == [name for name, _ in again.responses]
    assert all(math.isfinite(credit.total) for _, credit in first.responses)


def test_the_worst_pairs_are_those_of_the_lowest_margin(run: Run) -> None:
    margins = sorted(one.margin for one in score(open_for_evaluation(run.path)))  # type: ignore[type-var]
    found = inspect(run.path, count=2, worst=True)
    assert [one.pair.margin for one in found] == pytest.approx(margins[:2], abs=1e-4)  # type: ignore[union-attr]


def test_what_is_written_is_in_the_report(run: Run, copied: Callable[[Path], Path]) -> None:
    folder = copied(run.path)
    (one,) = inspect(folder, count=1, worst=True, write=True)
    (line,) = (folder / "credit.jsonl").read_text().splitlines()
    assert json.loads(line)["row"] == one.row


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a run folder."""
    import shutil

    return lambda path: Path(shutil.copytree(path, tmp_path / "copy"))
