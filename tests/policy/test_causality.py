from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import miniatures
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertLMHeadModel

from preftune.data.examples import Example, Response
from preftune.errors import PreftuneError
from preftune.objectives.batch import Role
from preftune.policy.causality import check_causal
from preftune.policy.layout import choose_layout
from preftune.policy.loading import LoraConfig, ModelConfig, adapt
from preftune.policy.policy import PolicyModule
from preftune.policy.reward_head import with_reward_head

# dense, old, with windows, mixtures of experts, states, convolutions, encoders that were made decoders
CAUSAL = ["gpt2", "llama", "gemma2", "gemma3_text", "opt", "bloom", "mixtral", "phimoe", "aria_text", "hunyuan_v1_moe"]
CAUSAL += ["mamba", "mamba2", "rwkv", "bert", "roberta", "qwen3_next", "deepseek_v3", "minimax_m3_vl_text"]


PAIRS = miniatures.pairs()


class Recurrent(nn.Module):
    """A module of the user's own, with a table of few positions."""

    def __init__(self, both_ways: bool, positions: int = 128, vocabulary: int = miniatures.VOCABULARY) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, 8), nn.Embedding(positions, 8)
        self.states = nn.LSTM(8, 8, batch_first=True, bidirectional=both_ways)
        self.output = nn.Linear(16 if both_ways else 8, vocabulary)

    def forward(self, input_ids: Tensor) -> Any:
        """Logits of the next token."""
        read = self.tokens(input_ids) + self.places(torch.arange(input_ids.shape[1]))
        return SimpleNamespace(logits=self.output(self.states(read)[0]))


def bert(**fields: Any) -> Any:
    """As it is made by who knows nothing of `is_decoder`, with weights as small as they are at first."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertLMHeadModel(BertConfig(**sizes, intermediate_size=64, **fields))


def refusal(policy: PolicyModule, examples: list[Example] | None = None) -> str:
    with pytest.raises(PreftuneError) as refused:
        check_causal(policy, examples or PAIRS)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", CAUSAL)
def test_causal_models_pass(model_type, dtype):
    lm: Any = miniatures.build(model_type)
    check_causal(PolicyModule(lm.to(dtype), choose_layout(lm)[0]), PAIRS)


@pytest.mark.parametrize(
    ("lm", "advice"),
    [
        (bert(), "set is_decoder to true in its config"),
        (miniatures.build("roberta", is_decoder=False), "set is_decoder to true in its config"),
        (miniatures.build("xlm"), "set causal to true in its config"),
        (
            miniatures.build("gemma3_text", use_bidirectional_attention=True),
            "set use_bidirectional_attention to false in its config",
        ),
        (Recurrent(both_ways=True), "take a causal language model"),
    ],
    ids=lambda given: type(given).__name__ if isinstance(given, nn.Module) else "",
)
def test_models_that_look_ahead_are_refused(lm, advice):
    message = refusal(PolicyModule(lm, "padded"))
    assert message.startswith(
        f"{type(lm).__name__} looks ahead: other tokens at the end of a row move its log-probs before them"
    )
    assert advice in message


def test_adapters_do_not_hide_it():
    refused = PolicyModule(adapt(bert(), ModelConfig(lora=LoraConfig(r=2)), seed=0), "padded")
    assert refusal(refused).startswith("BertLMHeadModel looks ahead")
    check_causal(PolicyModule(adapt(bert(is_decoder=True), ModelConfig(lora=LoraConfig(r=2)), seed=0), "padded"), PAIRS)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text"])
def test_reward_models_are_judged_by_their_hidden_states(model_type):
    """Their heads are zero at first, and give the same value to everything."""
    check_causal(PolicyModule(with_reward_head(miniatures.build(model_type), pad_id=0), "tree"), PAIRS)


def test_a_reward_model_that_looks_ahead_is_refused():
    lm = with_reward_head(miniatures.build("gemma3_text", use_bidirectional_attention=True), pad_id=0)
    assert "looks ahead: other tokens at the end of a row move its hidden states before them" in refusal(
        PolicyModule(lm, "padded")
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_layout_mode_and_gradients_are_left_as_they_were(layout, training):
    lm: Any = miniatures.build("llama", attention_dropout=0.5).train(training)
    policy = PolicyModule(lm, layout).train(training)
    attention = lm.config._attn_implementation
    check_causal(policy, PAIRS)
    assert (policy.layout, policy.training, lm.training) == (layout, training, training)
    assert lm.config._attn_implementation == attention
    assert all(parameter.grad is None for parameter in lm.parameters())


def short(prompt: list[int], chosen: list[int], rejected: list[int]) -> list[Example]:
    ids = [np.array(given, dtype=np.int32) for given in (prompt, chosen, rejected)]
    return [Example(ids[0], (Response(ids[1], Role.CHOSEN), Response(ids[2], Role.REJECTED)), row=0)]


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(
    ("examples", "positions", "vocabulary"),
    [
        (short([1], [0], [1]), 2, 2),
        (short([3, 4], [5, 6], [5]), 4, 7),
        (short([0, 1, 1, 0], [0, 1, 0], [1]), 8, 2),
        (PAIRS, 18, 64),
    ],
)
def test_small_tables_of_positions_and_tokens_suffice(examples, positions, vocabulary, both_ways):
    torch.manual_seed(0)
    policy = PolicyModule(Recurrent(both_ways, positions, vocabulary), "padded")
    if both_ways:
        assert refusal(policy, examples).startswith("Recurrent looks ahead")
    else:
        check_causal(policy, examples)


def test_data_of_one_token_shows_nothing():
    check_causal(PolicyModule(Recurrent(both_ways=True), "padded"), short([5], [5, 5], [5]))


def test_it_reads_two_short_rows_whatever_the_data():
    read: list[tuple[int, ...]] = []
    lm = Recurrent(both_ways=False)
    lm.register_forward_pre_hook(lambda _, given: read.append(tuple(given[0].shape)))
    check_causal(PolicyModule(lm, "padded"), [replace(miniatures.pair(400, 60, 50, 0), row=n) for n in range(500)])
    assert read == [(1, 16), (1, 16)]


def test_it_costs_next_to_nothing():
    policy = PolicyModule(miniatures.build("llama"), "tree")
    check_causal(policy, PAIRS)
    started = time.perf_counter()
    check_causal(policy, PAIRS)
    assert time.perf_counter() - started < 0.5
