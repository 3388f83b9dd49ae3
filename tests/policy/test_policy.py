from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import miniatures
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from preftune.data.examples import Example, Response
from preftune.data.packing import pack, pad
from preftune.objectives.batch import Role
from preftune.policy.layout import choose_layout
from preftune.policy.loading import LoraConfig, ModelConfig, adapt
from preftune.policy.policy import Layout, PolicyModule, logps
from preftune.policy.tree_attention import NAME

LAYOUTS: tuple[Layout, ...] = ("tree", "padded")


class Lstm(nn.Module):
    """Ten lines that are a language model."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(miniatures.VOCABULARY, 16)
        self.cell = nn.LSTM(16, 16, batch_first=True)
        self.out = nn.Linear(16, miniatures.VOCABULARY)

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=3 * self.out(self.cell(self.embed(input_ids))[0]))


def turns() -> list[Example]:
    """A response of several turns: the user's turn in its middle is read, and not answered for."""
    targets = np.array([True, True, False, False, False, True, True])
    response = Response(miniatures.ids(7, 90), Role.CHOSEN, targets=targets)
    other = Response(miniatures.ids(4, 91), Role.REJECTED)
    return [Example(miniatures.ids(5, 92), (response, other)), miniatures.pair(11, 4, 6, 3)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "modernbert-decoder"])
def test_promise_05_what_the_model_says_at_prompt_positions_changes_nothing(model_type, layout):
    """Noise on every row that predicts a prompt token, the user's later turns included, right before the head."""
    lm: Any = miniatures.build(model_type)
    examples = turns()
    policy = PolicyModule(lm, layout)
    batch = miniatures.batch_of(examples, layout)
    logps(policy, batch).logps_K.sum().backward()
    clean, gradients = logps(policy, batch).logps_K.detach(), miniatures.gradients(lm)
    scored = torch.zeros(batch.tokens, dtype=torch.bool)
    scored[batch.source_K] = True
    noisy_rows = [~scored]

    def disturb(module: nn.Module, arguments: Any, output: Any) -> Any:
        hidden = output.last_hidden_state
        rows = noisy_rows[0].view(hidden.shape[:2])[..., None]
        output["last_hidden_state"] = torch.where(rows, hidden + 10 * torch.randn_like(hidden), hidden)
        return output

    handle = lm.base_model.register_forward_hook(disturb)
    noisy = logps(policy, batch).logps_K
    noisy.sum().backward()
    found = miniatures.gradients(lm)
    assert torch.equal(noisy.detach(), clean)
    assert all(torch.allclose(found[name], gradient, atol=1e-5) for name, gradient in gradients.items())
    noisy_rows[0] = scored
    with torch.no_grad():
        assert (logps(policy, batch).logps_K - clean).abs().max() > 0.1, "the noise would not be seen"
    handle.remove()


def test_promise_05_the_first_response_token_is_predicted_from_the_last_prompt_token():
    examples = turns()
    for batch in (pack(examples), pad(examples)):
        first_K = torch.tensor([int((batch.response_K == r).nonzero()[0]) for r in range(len(batch.length_R))])
        prompts = [len(e.prompt) for e in examples for _ in e.responses]
        assert batch.position_T[batch.source_K[first_K]].tolist() == [n - 1 for n in prompts]
        last = [examples[int(e)].prompt[-1] for e in batch.example_R]
        assert batch.ids_T[batch.source_K[first_K]].tolist() == [int(i) for i in last]


def test_any_module_with_logits_has_exact_log_probs_and_gradients_on_padded_rows():
    lm = Lstm()
    assert choose_layout(lm) == ("padded", "Lstm is no transformers model")
    policy = PolicyModule(lm, "padded")
    examples = miniatures.pairs()
    expected_K = miniatures.separate(lm, examples)
    expected_K.sum().backward()
    gradients = miniatures.gradients(lm)
    found_K = logps(policy, pad(examples)).logps_K
    found_K.sum().backward()
    torch.testing.assert_close(found_K.double(), expected_K, rtol=0, atol=miniatures.EXACT)
    scale = max(float(g.abs().max()) for g in gradients.values())
    for name, gradient in miniatures.gradients(lm).items():
        assert (gradient - gradients[name]).abs().max() <= miniatures.EXACT * scale, name


def test_trees_are_refused_for_a_module_that_is_no_transformers_model():
    with pytest.raises(ValueError, match="Lstm is no transformers model"):
        PolicyModule(Lstm(), "tree")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mistral", "gpt_oss"])
def test_gradient_checkpointing_changes_nothing(model_type, layout):
    lm: Any = miniatures.build(model_type).train()
    examples = miniatures.pairs()
    policy = PolicyModule(lm, layout)
    runs: list[int] = []
    for module in lm.modules():
        if "Attention" in type(module).__name__:
            module.register_forward_hook(lambda *_: runs.append(1))
    found = {}
    for checkpointing in (False, True):
        if checkpointing:
            adapt(lm, ModelConfig(gradient_checkpointing=True), seed=0)
        runs.clear()
        torch.manual_seed(0)  # GPT-2 has dropout
        values_K = logps(policy, miniatures.batch_of(examples, layout)).logps_K
        values_K.sum().backward()
        assert len(runs) == miniatures.LAYERS * (2 if checkpointing else 1)
        found[checkpointing] = values_K.detach(), miniatures.gradients(lm)
    assert torch.equal(found[False][0], found[True][0])
    scale = max(float(g.abs().max()) for g in found[False][1].values())
    for name, gradient in found[False][1].items():
        assert (gradient - found[True][1][name]).abs().max() <= 1e-6 * scale, name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_adapter_on_attention_and_mlp_trains_alike_on_every_path(layout):
    lm: Any = adapt(miniatures.build("qwen3"), ModelConfig(lora=LoraConfig(r=4)), seed=0).eval()
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.linspace(-0.5, 0.5, parameter.numel()).view_as(parameter))
    expected = miniatures.plain(lm, miniatures.pairs())
    assert sum(bool(g.any()) for g in expected.gradients.values()) >= 7 * miniatures.LAYERS
    found = miniatures.gap(lm, layout, expected, miniatures.pairs())
    assert max(found.values, found.gradients) <= miniatures.EXACT


@pytest.mark.parametrize("dropout", [{"attention_dropout": 0.5}, {"resid_pdrop": 0.5, "attn_pdrop": 0.5}])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dropout_is_on_in_training_alone_and_a_function_of_the_seed(dropout, layout):
    lm = miniatures.build("llama" if "attention_dropout" in dropout else "gpt2", **dropout)
    policy = PolicyModule(lm, layout)
    batch = miniatures.batch_of(miniatures.pairs(), layout)

    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        with torch.no_grad():
            return logps(policy, batch).logps_K

    calm_K = draw(0)
    assert torch.equal(calm_K, draw(1))
    policy.train()
    assert torch.equal(draw(0), draw(0))
    assert (draw(0) - draw(1)).abs().max() > 0.01
    assert (draw(0) - calm_K).abs().max() > 0.01


def test_generating_puts_back_attention_layout_and_mode_even_after_an_error():
    lm: Any = miniatures.build("llama").train()
    own = lm.config._attn_implementation
    policy = PolicyModule(lm, "tree").train()
    assert lm.config._attn_implementation == NAME

    def fail() -> None:
        with policy.generating() as inner:
            assert inner is lm
            assert lm.config._attn_implementation == own
            assert not torch.is_grad_enabled()
            assert not lm.training
            prompt = torch.as_tensor(miniatures.ids(5, 0))[None].long()
            generated = lm.generate(prompt, max_new_tokens=3, do_sample=False, pad_token_id=0)
            assert generated.shape[1] <= 8
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (policy.layout, lm.config._attn_implementation) == ("tree", NAME)
    assert lm.training
    assert torch.is_grad_enabled()


def test_a_forward_whose_attention_ignores_the_tree_is_stopped():
    policy = PolicyModule(miniatures.build("bloom"), "tree")
    with pytest.raises(RuntimeError, match="0 of 2 attention layers of BloomForCausalLM used the prompt tree"):
        logps(policy, pack(miniatures.pairs()))


def test_tree_attention_without_a_tree_is_stopped():
    policy = PolicyModule(miniatures.build("llama"), "tree")
    with pytest.raises(RuntimeError, match="needs the batch's tree"):
        logps(policy, pad(miniatures.pairs()))


def test_an_unknown_op_is_refused():
    policy = PolicyModule(miniatures.build("llama"), "padded")
    with pytest.raises(ValueError, match="unknown op 'guess'"):
        policy("guess", {})


def test_moving_between_layouts_gives_the_same_log_probs():
    lm = miniatures.build("mistral")
    policy = PolicyModule(lm, "padded")
    examples = miniatures.pairs()
    with torch.no_grad():
        first_K = logps(policy, pad(examples)).logps_K
        policy.use_layout("tree")
        tree_K = logps(policy, pack(examples)).logps_K
        policy.use_layout("padded")
        again_K = logps(policy, pad(examples)).logps_K
    assert torch.equal(first_K, again_K)
    torch.testing.assert_close(first_K, tree_K, rtol=0, atol=miniatures.EXACT)
