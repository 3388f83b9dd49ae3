"""Reward models measured: their scores are those of plain transformers, and so are the figures about them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation.runs import Made
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import preftune
from preftune.errors import PreftuneError
from preftune.evaluation.evaluate import evaluate
from preftune.evaluation.judges import Comparison, open_judge
from preftune.evaluation.winning import Judging
from preftune.report.html import write
from preftune.sandbox.preferences import rows as sandbox_rows

TEXTS = (" The jokes were superb.", " The jokes were awful.", " I loved the cast, but the ending was dull.")


@pytest.fixture(scope="module")
def run(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model that has learned something, and leans to nothing in particular."""
    folder = tmp_path_factory.mktemp("reward") / "run"
    preftune.train(
        "sandbox",
        files["pairs"],
        {"name": "bradley_terry", "centring": 0.01, "label_smoothing": 0.05},
        output=folder,
        quiet=True,
        train={"max_steps": 20},
        batch={"size": 16},
        optim={"learning_rate": 1e-2},
        config={"data": {"held_out": 0.3}},
    )
    return folder


def scored(folder: Path, prompt: str, text: str) -> float:
    """What plain transformers says of a text."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = [*tokenizer.encode(prompt + text), tokenizer.eos_token_id]
    with torch.no_grad():
        return float(model(torch.tensor([ids])).logits.item())


def test_the_figures_are_those_of_transformers_own_scores(run: Path, tmp_path: Path) -> None:
    done = evaluate(run, out=tmp_path, quiet=True)
    records = list(done.opened.records())
    pairs = np.array(
        [[scored(run / "model", str(r.prompt), str(text)) for text in (r.chosen, r.rejected)] for r in records]  # type: ignore[union-attr]
    )
    margin = pairs[:, 0] - pairs[:, 1]
    figures = done.figures
    assert figures["pairs"]["accuracy"] == pytest.approx((margin > 0).mean())
    assert figures["pairs"]["margin"] == pytest.approx(margin.mean(), abs=1e-5)
    scores = figures["scores"]
    assert [scores[key] for key in ("mean", "sd", "chosen", "rejected")] == pytest.approx(
        [pairs.mean(), pairs.std(), *pairs.mean(0)], abs=1e-5
    )
    length = np.array([[len(r.ids) for r in example.responses] for example in done.opened.examples])
    longer = length[:, 0] - length[:, 1]
    unequal = longer != 0
    assert scores["prefers_longer"] == pytest.approx((margin * longer > 0)[unequal].mean())
    assert scores["longer_is_better"] == pytest.approx((longer > 0)[unequal].mean())
    assert scores["length_correlation"] == pytest.approx(np.corrcoef(margin, longer)[0, 1], abs=1e-5)
    assert scores["prefers_longer_ci95"][0] < scores["prefers_longer"] < scores["prefers_longer_ci95"][1]
    assert {"calibration", "by_length", "by_source", "baselines"} <= figures.keys()
    assert "temperature" in figures["calibration"] or (margin > 0).all()


def test_its_report_has_scores_and_asks_for_no_answers(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    page = write(copy).read_text()
    assert "Baselines, calibration, accuracy by length and source:" in page
    assert "--judge JUDGE" not in page
    evaluate(copy, quiet=True)
    page = (copy / "report.html").read_text()
    assert "Of pairs of unequal length it prefers the longer response in" in page
    assert "Scores average" in page
    assert "--judge JUDGE" not in page


def test_a_policy_is_judged_by_a_reward_model_with_another_tokenizer(made: Made, tmp_path: Path) -> None:
    """A judge reads text, whatever tokens it came from: here a reward model of characters, for a policy of words."""
    reward = tmp_path / "reward"
    preftune.train(
        "scratch:llama",
        sandbox_rows(24),
        "bradley_terry",
        output=reward,
        quiet=True,
        train={"max_steps": 2},
        config={
            "model": {"scratch": {"hidden_size": 16, "layers": 1, "heads": 2, "vocab_size": 280}},
            "data": {"held_out": 0},
        },
    )
    done = evaluate(
        made("dpo"),
        out=tmp_path / "out",
        prompts=3,
        max_new_tokens=12,
        judging=Judging(judge=f"reward:{reward}", checks=0),
        quiet=True,
    )
    assert done.figures["win_rate"]["comparisons"] == 3
    line = json.loads((tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()[0])
    first = json.loads((tmp_path / "out" / "generations.jsonl").read_text().splitlines()[0])
    prompt = str(next(iter(done.opened.records())).prompt)
    assert line["scores"][0] == pytest.approx(scored(reward / "model", prompt, first["policy"]), abs=1e-5)


def two_labels(folder: Path) -> None:
    config = AutoModelForSequenceClassification.from_pretrained(folder).config
    config.num_labels = 2
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)


def with_nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["score.weight"][0, 3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def headless(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def more_words(folder: Path) -> None:
    values = json.loads((folder / "tokenizer.json").read_text())
    values["model"]["vocab"]["superb"] = 999
    (folder / "tokenizer.json").write_text(json.dumps(values))


def other_words(folder: Path) -> None:
    values = json.loads((folder / "tokenizer.json").read_text())
    vocab = values["model"]["vocab"]
    known = {word for text in TEXTS for word in text.replace(".", " .").replace(",", " ,").split()}
    values["model"]["vocab"] = {f"{word}@" if word in known else word: i for word, i in vocab.items()}
    (folder / "tokenizer.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (two_labels, "a reward model has one label, and "),
        (with_nan, "holds nan or infinity in score.weight (1 of 64 numbers)"),
        (headless, "its file of weights has no score.weight, which Qwen3ForSequenceClassification needs"),
        (more_words, "its tokenizer gives token 999 for row 0, but its model knows tokens 0 to "),
        (other_words, "knows no word of 2 answers (the first, on row 0: ' The jokes were superb.')"),
    ],
)
def test_reward_models_that_cannot_judge_are_refused_in_one_sentence(
    change: Callable[[Path], None], says: str, run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(run / "model", folder)
    change(folder)
    with pytest.raises(PreftuneError) as error, open_judge(f"reward:{folder}") as judge:
        judge.verdicts([Comparison("row 0", "A quiet comedy about two sisters.", TEXTS[0], TEXTS[1])])
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_one_unknown_word_is_no_reason_to_stop(run: Path) -> None:
    with open_judge(f"reward:{run}") as judge:
        found = judge.verdicts([Comparison("row 0", "A quiet comedy about two sisters.", " Zzz zzz.", " Zzz")])
        assert all(np.isfinite(found[0].scores))


def test_a_reward_model_is_trained_on_from_a_reward_model(run: Path, tmp_path: Path) -> None:
    """Its head is kept, not begun anew."""
    again: Any = preftune.train(
        run / "model",
        sandbox_rows(24),
        "bradley_terry",
        output=tmp_path / "again",
        quiet=True,
        train={"max_steps": 1},
        optim={"learning_rate": 1e-9},
    )
    head = load_file(run / "model" / "model.safetensors")["score.weight"]
    assert head.abs().max() > 0
    torch.testing.assert_close(again.model.score.weight.detach(), head, rtol=0, atol=1e-6)
