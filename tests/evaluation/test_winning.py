"""`evaluate` with a judge: its own answers, the judge scored first, verdicts replayed."""

import json
import shutil
from pathlib import Path

import pytest
from evaluation.runs import Made

from preftune.errors import PreftuneError
from preftune.evaluation.evaluate import evaluate
from preftune.evaluation.winning import Judging
from preftune.sandbox.world import true_reward


@pytest.fixture(scope="module")
def judged(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a run on pairs, evaluated with the true reward as judge."""
    folder = tmp_path_factory.mktemp("judged") / "run"
    shutil.copytree(made("dpo"), folder)
    evaluate(folder, prompts=6, samples_per_prompt=2, max_new_tokens=24, judging=Judging(judge="sandbox"), quiet=True)
    return folder


def test_the_win_rate_is_that_of_the_answers_side_by_side(judged: Path) -> None:
    found = json.loads((judged / "evaluation.json").read_text())["win_rate"]
    lines = [json.loads(line) for line in (judged / "generations.jsonl").read_text().splitlines()]
    gaps = [true_reward(line["policy"]) - true_reward(line["against"]) for line in lines]
    assert found["comparisons"] == len(lines) == 12
    assert found["wins"] == sum(gap > 1e-9 for gap in gaps)
    assert found["losses"] == sum(gap < -1e-9 for gap in gaps)
    assert found["win_rate"] == pytest.approx((found["wins"] + found["ties"] / 2) / len(gaps))


def test_the_judge_itself_is_scored_on_held_out_pairs(judged: Path) -> None:
    check = json.loads((judged / "evaluation.json").read_text())["win_rate"]["judge_check"]
    assert check["truth"] == "labels"
    assert 0 <= check["agreement_ci95"][0] <= check["agreement"] <= check["agreement_ci95"][1] <= 1


def test_a_second_evaluation_replays_all_verdicts(judged: Path) -> None:
    before = (judged / "verdicts.jsonl").read_bytes()
    evaluate(judged, prompts=6, samples_per_prompt=2, max_new_tokens=24, judging=Judging(judge="sandbox"), quiet=True)
    assert (judged / "verdicts.jsonl").read_bytes() == before


def test_the_report_shows_the_win_rate(judged: Path) -> None:
    from preftune.report.html import write

    assert "ontrolled" in write(judged).read_text() or "equal length" in write(judged).read_text()


@pytest.mark.parametrize(
    ("judging", "options", "says"),
    [
        (Judging(judge="sandbx"), {}, "did you mean sandbox"),
        (Judging(judge="sandbox"), {"prompts": 0}, "prompts is 0"),
    ],
)
def test_what_cannot_be_judged_is_said_before_anything_is_computed(
    judging: Judging, options: dict[str, int], says: str, made: Made, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(PreftuneError, match=says):
        evaluate(made("dpo"), out=out, judging=judging, quiet=True, **options)  # type: ignore[arg-type]
    assert not (out / "evaluation.json").exists()


def test_a_model_without_another_side_has_nothing_to_be_judged_against(
    made: Made, files: dict[str, Path], tmp_path: Path
) -> None:
    model = made("dpo") / "model"
    with pytest.raises(PreftuneError, match="--against"):
        evaluate(
            model,
            data=files["pairs"],
            out=tmp_path,
            prompts=2,
            max_new_tokens=4,
            judging=Judging(judge="sandbox"),
            quiet=True,
        )


def test_rows_reach_the_judge(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows_judge.py").write_text("def f(response, row):\n    return float(response == row['chosen'])\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    judging = Judging(judge="rows_judge:f", checks=5)
    found = evaluate(made("dpo"), out=tmp_path / "out", prompts=2, max_new_tokens=4, judging=judging, quiet=True)
    assert found.figures["win_rate"]["judge_check"]["pairs"] == 5
    assert found.figures["win_rate"]["judge_check"]["agreement"] == 1
