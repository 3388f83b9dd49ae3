"""`evaluate` with answers from behind an endpoint, on loopback."""

import json
from pathlib import Path

import pytest
from evaluation.runs import Made
from loopback import Proxy
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from preftune.cli import app
from preftune.errors import PreftuneError
from preftune.evaluation.endpoint_writer import Answering
from preftune.evaluation.evaluate import evaluate
from preftune.policy.loading import built_in_folder


def test_both_sides_come_from_endpoints_and_are_replayed(made: Made, proxy: Proxy, tmp_path: Path) -> None:
    out = tmp_path / "evaluation"
    words = ["evaluate", str(made("dpo")), "--out", str(out), "--prompts", "3", "--max-new-tokens", "8", "--quiet"]
    words += ["--endpoint", f"{proxy.url}#sandbox", "--against-endpoint", proxy.url, "--temperature", "0"]
    first = CliRunner().invoke(app, words)
    assert first.exit_code == 0, first.output
    figures = json.loads((out / "evaluation.json").read_text())
    assert {figures["generation"][side]["model"] for side in ("policy", "against")} == {f"{proxy.url}#sandbox"}
    assert f"policy: answers of {proxy.url}#sandbox" in first.output
    assert "kl" not in figures["generation"]
    assert "no KL divergence is measured: it is estimated on tokens" in first.output
    lines = [json.loads(line) for line in (out / "generations.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    assert all(line["policy"] == line["against"] and 0 < line["policy_tokens"] <= 8 for line in lines)
    assert all('"text"' in (out / f"calls-{side}.jsonl").read_text() for side in ("policy", "against"))
    asked = [body for body in proxy.bodies if body]  # without those for the name of the model
    assert [body["max_tokens"] for body in asked] == [8] * 6
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0, again.output
    assert [body for body in proxy.bodies if body] == asked


def test_an_endpoint_is_all_that_a_model_is_compared_with(files: dict[str, Path], proxy: Proxy, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(built_in_folder())
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=128, n_embd=8, n_layer=1, n_head=1)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    done = evaluate(
        tmp_path / "model",
        data=files["pairs"],
        out=tmp_path,
        prompts=2,
        max_new_tokens=10_000,
        answering=Answering(against=f"{proxy.url}#sandbox"),
        quiet=True,
    )
    assert done.figures["generation"]["against"]["model"] == f"{proxy.url}#sandbox"
    assert "model" not in done.figures["generation"]["policy"]
    fits = done.figures["generation"]["max_new_tokens"]
    assert 0 < fits < 128
    words = [answer.words for group in done.generated.policy for answer in group] if done.generated else []
    assert done.figures["generation"]["policy"]["distinct_1"] == pytest.approx(
        len({word for answer in words for word in answer}) / sum(map(len, words))  # as the other side's
    )
    assert len({body["seed"] for body in proxy.bodies}) == 2  # prompts draw apart
    assert {body["max_tokens"] for body in proxy.bodies} == {fits}


def test_what_cannot_be_answered_says_so(made: Made, tmp_path: Path) -> None:
    with pytest.raises(PreftuneError, match="prompts is 0"):
        evaluate("sandbox", prompts=0, answering=Answering(policy="http://127.0.0.1:1/v1#m"))
    with pytest.raises(PreftuneError, match="is no URL of an endpoint"):
        evaluate("sandbox", out=tmp_path, answering=Answering(policy="127.0.0.1"))
    with pytest.raises(PreftuneError, match="reward model, which writes no answers"):
        evaluate(made("reward"), out=tmp_path, answering=Answering(policy="http://127.0.0.1:1/v1#m"), quiet=True)
