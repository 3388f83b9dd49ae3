"""The table of architectures that are exact on prompt trees, and what becomes of a model that is in it wrongly."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import miniatures
import pytest
import torch
from transformers import AutoTokenizer

import preftune
from preftune.errors import PreftuneError
from preftune.policy import layout
from preftune.policy.layout import TOLERANCE, TREE_SAFE, choose_layout, tree_error
from preftune.policy.loading import built_in_folder
from preftune.policy.policy import PolicyModule

# Windows that never reach the attention, positions read off the token ids, layers beside the attention: trees run on
# these without a complaint, and are wrong.
SILENTLY_WRONG = ("phimoe", "qwen2_moe", "falcon_h1", "roberta")


@pytest.mark.parametrize("model_type", sorted(TREE_SAFE))
def test_every_type_in_the_table_is_exact_on_trees(model_type):
    assert miniatures.verdict(model_type)[0] == "exact", miniatures.verdict(model_type)[1]


@pytest.mark.parametrize("model_type", SILENTLY_WRONG)
def test_types_that_are_silently_wrong_are_not_in_the_table(model_type):
    lm = miniatures.build(model_type)
    assert choose_layout(lm)[0] == "padded"
    found = miniatures.gap(lm, "tree", miniatures.plain(lm, miniatures.pairs()), miniatures.pairs())
    assert found.values > 0.1, "exact by now: it may join the table"


@pytest.mark.parametrize(
    ("model_type", "overrides", "layer"),
    [
        ("llama4_text", {}, "chunked_attention"),
        ("qwen3_next", {}, "linear_attention"),
        ("falcon_h1", {}, "hybrid"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "conv"),
        ("jamba", {}, "linear_attention"),
    ],
)
def test_layers_beyond_full_and_sliding_are_refused_by_name(monkeypatch, model_type, overrides, layer):
    monkeypatch.setattr(layout, "TREE_SAFE", TREE_SAFE | {model_type})
    chosen, reason = choose_layout(miniatures.build(model_type, **overrides))
    assert chosen == "padded"
    assert layer in reason


@pytest.mark.parametrize("model_type", ["bloom", "mpt", "falcon", "gptj", "mamba", "nemotron", "doge"])
def test_the_comparison_before_step_1_is_infinite_where_trees_are_refused(model_type):
    lm = miniatures.build(model_type)
    assert tree_error(PolicyModule(lm, "tree")) == math.inf


@pytest.mark.parametrize("model_type", SILENTLY_WRONG)
def test_the_comparison_before_step_1_sees_what_is_silently_wrong(model_type):
    lm = miniatures.build(model_type).train()
    policy = PolicyModule(lm, "tree")
    assert tree_error(policy) > 100 * TOLERANCE
    assert policy.layout == "tree"
    assert lm.training


def rows(count: int) -> list[dict[str, str]]:
    """Pairs in the words of the built-in world."""
    genres, subjects = ("comedy", "drama"), ("city", "war")
    return [
        {
            "prompt": f"a {genres[i % 2]} about a {subjects[i // 2 % 2]} .",
            "chosen": "the plot was good .",
            "rejected": "the plot was bad and the music was bad .",
        }
        for i in range(count)
    ]


def run(tmp_path: Path, model_type: str, wanted: str = "auto", **overrides) -> preftune.Run:
    tokenizer = AutoTokenizer.from_pretrained(built_in_folder())
    lm = miniatures.build(model_type, vocab_size=len(tokenizer), **overrides)
    return preftune.train(
        lm,
        rows(4),
        tokenizer=tokenizer,
        output=tmp_path / "run",
        quiet=True,
        config={"data": {"held_out": 0}, "model": {"layout": wanted}},
        batch={"size": 4},
        evaluate={"samples": 0},
        train={"device": "cpu", "precision": "fp32"},
    )


@pytest.mark.parametrize("model_type", ["phimoe", "bloom"])
def test_a_type_that_is_wrongly_in_the_table_trains_on_padded_rows_with_a_message(monkeypatch, tmp_path, model_type):
    monkeypatch.setattr(layout, "TREE_SAFE", TREE_SAFE | {model_type})
    summary = run(tmp_path, model_type).summary
    assert summary["layout"] == "padded"
    assert any("padded rows instead of prompt trees" in message for message in summary["messages"])


def test_a_type_outside_the_table_trains_on_padded_rows_with_a_message(tmp_path):
    summary = run(tmp_path, "mpt").summary
    assert summary["layout"] == "padded"
    assert any("padded rows instead of prompt trees: model type mpt" in message for message in summary["messages"])


def test_a_type_in_the_table_trains_on_trees(tmp_path):
    summary = run(tmp_path, "mistral").summary
    assert summary["layout"] == "tree"
    assert not summary["messages"]


@pytest.mark.parametrize(("model_type", "added"), [("mpt", set()), ("phimoe", {"phimoe"})])
def test_trees_asked_for_where_they_are_wrong_stop_the_run(monkeypatch, tmp_path, model_type, added):
    monkeypatch.setattr(layout, "TREE_SAFE", TREE_SAFE | added)
    with pytest.raises(PreftuneError, match=r"model\.layout=tree"):
        run(tmp_path, model_type, "tree")


def test_the_comparison_leaves_no_gradient_behind():
    lm = miniatures.build("llama")
    tree_error(PolicyModule(lm, "tree"))
    assert all(p.grad is None for p in lm.parameters())
    assert torch.is_grad_enabled()


def test_the_script_behind_the_table_runs():
    script = Path(__file__).parents[2] / "scripts" / "tree_safe.py"
    done = subprocess.run([sys.executable, script, "llama", "bloom"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()[:2]] == [["llama", "exact"], ["bloom", "refused"]]
