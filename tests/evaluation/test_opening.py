from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from evaluation.runs import Made

from preftune import train
from preftune.data.records import Message
from preftune.errors import PreftuneError
from preftune.evaluation.answers import Sampling, prompts_of
from preftune.evaluation.chat import Chat
from preftune.evaluation.generating import generate
from preftune.evaluation.models import find, load_policy
from preftune.evaluation.opening import open_for_evaluation
from preftune.evaluation.scoring import score
from preftune.sandbox.preferences import base_model, base_tokenizer, rows


def test_a_run_that_was_moved_is_evaluated_where_it_is(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made("dpo"), tmp_path / "moved")
    ours, theirs = score(open_for_evaluation(made("dpo"))), score(open_for_evaluation(tmp_path / "moved"))
    assert [one.margin for one in ours] == [one.margin for one in theirs]


def test_a_run_of_a_model_given_as_an_object(tmp_path: Path) -> None:
    """Its start is looked for where the object came from, and anything else is refused."""
    run = train(
        base_model(),
        rows(48),
        tokenizer=base_tokenizer(),
        output=tmp_path / "given",
        quiet=True,
        config={"evaluate": {"samples": 0}, "train": {"max_steps": 1}},
    )
    opened = open_for_evaluation(run.path)
    found = [one.margin for one in score(opened)]
    assert sum(found) / len(found) == pytest.approx(run.summary["after"]["margin"], abs=1e-6)
    assert opened.rows()[0].keys() == {"prompt", "chosen", "rejected"}

    manifest = json.loads((run.path / "manifest.json").read_text())
    (run.path / "manifest.json").write_text(json.dumps({**manifest, "start_sha256": "of another"}))
    with pytest.raises(PreftuneError, match=r"has changed since .*; or name what to compare with \(--against\)"):
        open_for_evaluation(run.path)
    named = open_for_evaluation(run.path, against="sandbox")
    assert [one.margin for one in score(named)] == pytest.approx(found, abs=1e-6)


def test_conversations_are_read_and_answered_as_in_training(tmp_path: Path) -> None:
    talks = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"].strip()}],
            "rejected": [{"role": "assistant", "content": row["rejected"].strip()}],
        }
        for row in rows(48)
    ]
    settings = {"evaluate": {"samples": 0}, "train": {"max_steps": 1}, "data": {"held_out": 0.25}}
    run = train("sandbox", talks, output=tmp_path / "run", quiet=True, config=settings)
    opened = open_for_evaluation(run.path)
    logged = run.summary["after"]
    found = [one.margin for one in score(opened)]
    assert sum(found) / len(found) == pytest.approx(logged["margin"], abs=1e-6)
    prompt = prompts_of(opened, 1)[0]
    assert prompt.source == (Message("user", opened.rows()[0]["prompt"][0]["content"]),)
    answers = generate(opened, [prompt], Sampling(max_new_tokens=6, temperature=0)).policy
    chat = Chat(str(run.path), max_new_tokens=6, temperature=0)
    assert isinstance(prompt.source[0], Message)
    assert chat.answer(prompt.source[0].content) == answers[0][0].text


def test_an_adapter_of_another_model_is_refused(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(made("lora"), folder)
    shutil.copy(made("reward-lora") / "model" / "adapter_model.safetensors", folder / "model")
    with pytest.raises(PreftuneError, match=r"does not belong to this model|cannot be read"):
        load_policy(find(folder))


def test_reward_models_are_compared_with_nothing(made: Made) -> None:
    with pytest.raises(PreftuneError, match="is a reward model, which gives no log-probs to compare"):
        open_for_evaluation(made("reward"), against="sandbox")


def test_one_process_evaluates(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PreftuneError, match="runs in one process"):
        open_for_evaluation(made("dpo"))
