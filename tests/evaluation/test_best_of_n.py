"""Best-of-n: the answer that a judge scores highest is kept, and how far that is from the model is bounded."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation.runs import Made

from preftune.errors import PreftuneError
from preftune.evaluation.answers import Answer, Prompt, Sampling, Writer
from preftune.evaluation.best_of_n import BestOf, BestWriter, kl_bound
from preftune.evaluation.evaluate import evaluate
from preftune.evaluation.judges.function import ScoringFunction
from preftune.evaluation.winning import Judging
from preftune.report.html import write
from preftune.sandbox.world import true_reward

PROMPTS = [Prompt(np.array([row], np.int32), f"prompt {row}", f"prompt {row}", row) for row in range(2)]


def writer(texts: Sequence[Sequence[str]]) -> Callable[[Sampling], Writer]:
    """Writes these answers to the prompts, as many as are asked for."""

    def made(sampling: Sampling) -> Writer:
        def write(prompts: Sequence[Prompt]) -> list[list[Answer]]:
            count = sampling.samples_per_prompt
            return [[Answer(t, len(t), True) for t in texts[prompt.row][:count]] for prompt in prompts]

        return write

    return made


def best(
    texts: Sequence[Sequence[str]], score: Callable[..., Any], n: int, wanted: int = 1
) -> tuple[Any, dict[str, Any]]:
    """The texts that are kept, and the figures."""
    rows = {row: {"bonus": 10.0 * row} for row in range(2)}
    judge = ScoringFunction("mine:score", score, "1")
    made = BestWriter(writer(texts), Sampling(samples_per_prompt=wanted), n, judge, rows)
    return [[answer.text for answer in group] for group in made(PROMPTS)], made.figures


def value(response: str) -> float:
    return float(response)


def test_the_best_of_each_n_is_kept() -> None:
    kept, figures = best([["1", "3", "2", "9", "8", "0"], ["5", "4", "6", "0", "0", "1"]], value, 3, wanted=2)
    assert kept == [["3", "9"], ["6", "1"]]
    assert figures["score"] == (3 + 9 + 6 + 1) / 4
    assert figures["score_of_all"] == (23 + 16) / 12
    assert (figures["n"], figures["judge"], figures["no_choice"], figures["unscored"]) == (3, "mine:score", 0.0, 0.0)


def test_the_judge_sees_prompt_and_row() -> None:
    def score(prompt: str, response: str, row: dict[str, float]) -> float:
        return float(response) * (1 if prompt == "prompt 0" else -1) + row["bonus"]

    kept, figures = best([["1", "2"], ["1", "2"]], score, 2)
    assert kept == [["2"], ["1"]]
    assert figures["score"] == (2 + 9) / 2


def test_of_equal_scores_the_first_is_kept_and_that_nothing_was_chosen_is_told() -> None:
    kept, figures = best([["7", "7.0"], ["1", "2"]], value, 2)
    assert kept == [["7"], ["2"]]
    assert figures["no_choice"] == 0.5


def test_answers_without_a_score_are_kept_only_where_none_has_one() -> None:
    kept, figures = best(
        [["no", "1", "0"], ["no", "no", "nor"]], lambda response: None if "n" in response else float(response), 3
    )
    assert kept == [["1"], ["no"]]
    assert figures["unscored"] == pytest.approx(4 / 6)
    assert figures["score"] == 1.0
    assert figures["no_choice"] == 0.5


@pytest.mark.parametrize(
    ("score", "says"),
    [
        (lambda response: None, "judge mine:score gave no score on any of 4 answers, so none of them is the best"),
        (lambda response: math.nan, "judge mine:score gave nan on row 0, sample 0, expected a finite number"),
        (lambda response: 1 / 0, "judge mine:score failed on row 0, sample 0 (ZeroDivisionError"),
    ],
)
def test_scores_that_choose_nothing_are_refused(score: Callable[..., Any], says: str) -> None:
    with pytest.raises(PreftuneError) as error:
        best([["1", "2"], ["3", "4"]], score, 2)
    assert str(error.value).startswith(says)


def test_the_mean_of_the_best_of_uniform_scores_is_n_over_n_plus_one() -> None:
    drawn = np.random.default_rng(0).random((2, 8000)).astype(str).tolist()
    _, figures = best(drawn, value, 4, wanted=2000)
    assert figures["score"] == pytest.approx(4 / 5, abs=0.006)  # standard error 0.16 / sqrt(4000)
    assert figures["score_of_all"] == pytest.approx(1 / 2, abs=0.01)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_the_bound_holds_for_exact_policies_and_is_tight_for_fine_ones(n: int) -> None:
    rng = np.random.default_rng(n)
    for share_Y in (rng.dirichlet(np.ones(6)), rng.dirichlet(np.full(5000, 5.0))):  # in order of reward
        below_Y = np.concatenate([[0.0], np.cumsum(share_Y)])
        best_Y = np.diff(below_Y**n)
        kl = float((best_Y * np.log(best_Y / share_Y)).sum())
        assert kl <= kl_bound(n) + 1e-9
    assert kl == pytest.approx(kl_bound(n), abs=0.01)
    assert 0 < kl_bound(n) == math.log(n) - (n - 1) / n


def test_the_probability_of_the_best_is_that_of_brute_force() -> None:
    """The closed form above, against all draws of three from a policy over three answers."""
    share = [0.2, 0.3, 0.5]
    exact = [0.0, 0.0, 0.0]
    for draw in itertools.product(range(3), repeat=3):
        exact[max(draw)] += math.prod(share[i] for i in draw)
    assert np.diff(np.cumsum([0, *share]) ** 3) == pytest.approx(exact)


def test_on_a_run_the_best_of_its_own_samples_is_kept(made: Made, tmp_path: Path) -> None:
    options: dict[str, Any] = {"prompts": 4, "max_new_tokens": 24, "quiet": True}
    evaluate(made("dpo"), out=tmp_path / "all", samples_per_prompt=6, **options)
    chosen = BestOf(by="sandbox", policy=3, against=3)
    done = evaluate(made("dpo"), out=tmp_path / "best", samples_per_prompt=2, best_of=chosen, **options)
    lines = {name: read(tmp_path / name) for name in ("all", "best")}
    for side in ("policy", "against"):
        every = [line[side] for line in lines["all"]]
        kept = [max(every[at : at + 3], key=true_reward) for at in range(0, len(every), 3)]
        assert [line[side] for line in lines["best"]] == kept
        figures = done.figures["generation"][side]["best_of"]
        assert figures["score"] == pytest.approx(np.mean([true_reward(text) for text in kept]))
        assert figures["kl_bound"] == pytest.approx(math.log(3) - 2 / 3)
    assert "kl" not in done.figures["generation"]
    assert any("the best of 3 and no plain samples of the policy" in note for note in done.notes)
    assert done.figures["own_reference"] is False  # what is chosen by a judge is neither the policy nor its reference


def test_the_policy_against_the_best_of_its_reference(made: Made, tmp_path: Path) -> None:
    """The baseline that needs no training, in the place of the reference: the policy's own KL stays measured."""
    done = evaluate(
        made("dpo"),
        out=tmp_path,
        prompts=8,
        max_new_tokens=24,
        best_of=BestOf(by="sandbox", against=8),
        judging=Judging(judge="sandbox", checks=0),
        quiet=True,
    )
    assert done.figures["generation"]["kl"]["per_response"] > 0
    assert "best_of" not in done.figures["generation"]["policy"]
    assert done.figures["win_rate"]["win_rate"] < 0.5  # four steps of training are no match for the best of eight
    assert any("sandbox both chose the answers and judged them" in note for note in done.notes)


def test_the_report_says_from_what_was_chosen(made: Made, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(made("dpo"), run)
    evaluate(run, prompts=3, max_new_tokens=12, best_of=BestOf(by="sandbox", policy=4), quiet=True)
    assert "the best of 4 by sandbox" in write(run).read_text().replace("&#39;", "'")


@pytest.mark.parametrize(
    ("chosen", "options", "says"),
    [
        ({"by": "sandbox", "policy": 4}, {"temperature": 0.0}, "a temperature of 0 gives the same one each time"),
        ({"by": "sandbox", "policy": 4}, {"prompts": 0}, "best-of-n needs prompts to answer"),
        ({"by": "sandbx", "policy": 4}, {}, "did you mean sandbox"),
        (
            {"by": "evaluation.test_best_of_n:compares", "policy": 2},
            {},
            "compares two answers and gives them no scores",
        ),
    ],
)
def test_what_chooses_nothing_is_refused(
    chosen: dict[str, Any], options: dict[str, Any], says: str, made: Made, tmp_path: Path
) -> None:
    with pytest.raises(PreftuneError, match=says):
        evaluate(
            made("dpo"),
            out=tmp_path,
            max_new_tokens=4,
            best_of=BestOf(**chosen),
            quiet=True,
            **{"prompts": 2, **options},
        )
    assert not (tmp_path / "evaluation.json").exists()


def compares(a: str, b: str) -> str:
    return "a" if len(a) > len(b) else "b"


def test_n_of_one_on_both_sides_and_a_model_against_nothing_are_refused(
    made: Made, files: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(PreftuneError, match="set --best-of or --against-best-of to 2 or more"):
        BestOf(by="sandbox")
    with pytest.raises(PreftuneError, match="is compared with nothing"):
        evaluate(
            made("dpo") / "model",
            data=files["pairs"],
            out=tmp_path,
            prompts=2,
            max_new_tokens=4,
            best_of=BestOf(by="sandbox", against=2),
            quiet=True,
        )
    with pytest.raises(PreftuneError, match="is a reward model, which writes no answers: leave --best-of out"):
        evaluate(made("reward"), out=tmp_path, prompts=2, best_of=BestOf(by="sandbox", policy=2), quiet=True)


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "generations.jsonl").read_text().splitlines()]
