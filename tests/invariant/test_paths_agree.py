"""Prompt trees, padded rows and one plain forward per response: the same log-probs and the same gradients."""

from __future__ import annotations

from dataclasses import replace

import miniatures
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from preftune.data.packing import PackedBatch, pack, pad
from preftune.policy.layout import TOLERANCE, choose_layout, tree_error
from preftune.policy.policy import PolicyModule, logps

FULL = {"layer_types": ["full_attention"] * miniatures.LAYERS}
WITH_TREES = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("qwen2", {}),
    ("qwen2", {"use_sliding_window": False, **FULL}),
    ("qwen3", {}),
    ("qwen3", {"use_sliding_window": False, **FULL}),
    ("mistral", {"sliding_window": miniatures.WINDOW}),
    ("mistral", {"sliding_window": None}),
    ("gemma", {}),
    ("phi3", {"sliding_window": miniatures.WINDOW}),
    ("phi3", {"sliding_window": None}),
    ("gpt_neox", {}),
    ("gpt2", {}),
    ("gemma2", {}),
    ("gemma3_text", {}),
    ("gpt_oss", {}),
]
# ALiBi, attention off the interface, state-space and hybrid layers, chunked attention
WITHOUT_TREES = (
    "bloom",
    "mpt",
    "falcon",
    "gptj",
    "mamba",
    "mamba2",
    "falcon_h1",
    "bamba",
    "jamba",
    "qwen3_next",
    "llama4_text",
)


def named(cases: list[tuple[str, dict]]) -> list:
    def name(overrides: dict) -> str:
        window = overrides.get("sliding_window", overrides.get("use_sliding_window", ""))
        return "tied" if "tie_word_embeddings" in overrides else f"window={window}" if overrides else "plain"

    return [pytest.param(kind, overrides, id=f"{kind}-{name(overrides)}") for kind, overrides in cases]


@pytest.mark.parametrize(("model_type", "overrides"), named(WITH_TREES))
def test_promise_13_trees_padded_rows_and_plain_forwards_agree(model_type, overrides):
    lm = miniatures.build(model_type, **overrides)
    examples = miniatures.pairs()
    expected = miniatures.plain(lm, examples)
    assert expected.logps_K.std() > 0.5, "weights so small that the test would see nothing"
    assert choose_layout(lm)[0] == "tree"
    for layout in ("tree", "padded"):
        found = miniatures.gap(lm, layout, expected, examples)
        assert found.values <= miniatures.EXACT, layout
        assert found.gradients <= miniatures.EXACT, layout


@pytest.mark.parametrize("model_type", WITHOUT_TREES)
def test_promise_13_architectures_without_trees_are_padded_by_name_and_exact(model_type):
    lm = miniatures.build(model_type)
    examples = miniatures.pairs()
    layout, reason = choose_layout(lm)
    assert layout == "padded"
    assert model_type in reason
    found = miniatures.gap(lm, "padded", miniatures.plain(lm, examples), examples)
    assert max(found.values, found.gradients) <= miniatures.EXACT


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gpt2"])
def test_promise_13_every_shape_of_example_agrees(model_type):
    lm = miniatures.build(model_type)
    examples = miniatures.forest()
    with torch.no_grad():
        expected_K = miniatures.separate(lm, examples)
        policy = PolicyModule(lm, "tree")
        for layout in ("tree", "padded"):
            policy.use_layout(layout)
            found = logps(policy, miniatures.batch_of(examples, layout))
            torch.testing.assert_close(found.logps_K.double(), expected_K, rtol=0, atol=miniatures.EXACT)


def test_promise_13_what_shares_a_batch_with_an_example_changes_nothing():
    lm = miniatures.build("mistral")
    examples = miniatures.pairs()
    policy = PolicyModule(lm, "tree")
    with torch.no_grad():
        together_K = logps(policy, pack(examples)).logps_K
        apart_K = torch.cat([logps(policy, pack([example])).logps_K for example in examples])
        turned_K = logps(policy, pack(examples[::-1])).logps_K
    counts = [sum(r.length for r in example.responses) for example in examples]
    turned_K = torch.cat(turned_K.split(counts[::-1])[::-1])
    torch.testing.assert_close(together_K, apart_K, rtol=0, atol=miniatures.EXACT)
    torch.testing.assert_close(together_K, turned_K, rtol=0, atol=miniatures.EXACT)


def test_promise_13_float64_agrees_to_its_own_precision():
    lm = miniatures.build("gpt2").double()
    examples = miniatures.pairs()
    expected = miniatures.plain(lm, examples)
    for layout in ("tree", "padded"):
        found = miniatures.gap(lm, layout, expected, examples)
        assert max(found.values, found.gradients) <= 1e-12, layout


def tree_logps(lm: PreTrainedModel, batch: PackedBatch) -> torch.Tensor:
    policy = PolicyModule(lm, "tree")
    with torch.no_grad():
        found_K = logps(policy, batch).logps_K
    policy.use_layout("padded")
    return found_K


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gpt2", "gpt_oss"])
def test_a_wrong_tree_would_be_seen(model_type):
    """Each kind of mistake in a batch moves log-probs a thousand times further than the tests let pass."""
    lm = miniatures.build(model_type)
    batch = pack(miniatures.pairs())
    right_K = tree_logps(lm, batch)
    tree = batch.tree
    assert tree is not None
    next_root = [max(p, 0) if p < 0 and s > 0 else p for s, p in enumerate(tree.parent)]
    mistakes = {
        "predicted from the token itself": replace(batch, source_K=batch.source_K + 1),
        "a response without its prompt": replace(batch, tree=replace(tree, parent=(-1,) * len(tree.parent))),
        "a prompt that sees another prompt": replace(batch, tree=replace(tree, parent=tuple(next_root))),
        "positions off by one for responses": replace(
            batch, position_T=batch.position_T + (batch.position_T >= len(miniatures.pairs()[0].prompt)).long()
        ),
    }
    for name, wrong in mistakes.items():
        assert (tree_logps(lm, wrong) - right_K).abs().max() > 1000 * miniatures.EXACT, name


@pytest.mark.parametrize("model_type", ["mistral", "phi3", "qwen2", "gemma2", "gemma3_text", "gpt_oss"])
def test_the_examples_cross_the_window(model_type):
    lm = miniatures.build(model_type)
    with torch.no_grad():
        narrow_K = miniatures.separate(lm, miniatures.pairs())
        wide_K = miniatures.separate(miniatures.build(model_type, sliding_window=64), miniatures.pairs())
    assert (narrow_K - wide_K).abs().max() > 0.1
    assert tree_error(PolicyModule(lm, "tree")) <= TOLERANCE


def test_padding_is_never_looked_at():
    lm = miniatures.build("llama")
    policy = PolicyModule(lm, "padded")
    batch = pad(miniatures.pairs())
    other = replace(batch, ids_T=torch.where(batch.attended_T, batch.ids_T, 5))
    assert not batch.attended_T.all()
    with torch.no_grad():
        assert torch.equal(logps(policy, batch).logps_K, logps(policy, other).logps_K)


def test_examples_of_one_token_each():
    lm = miniatures.build("qwen3")
    examples = [miniatures.pair(1, 1, 1, seed) for seed in range(2)]
    found = miniatures.gap(lm, "tree", miniatures.plain(lm, examples), examples)
    assert max(found.values, found.gradients) <= miniatures.EXACT
    assert np.isfinite(found.values)
