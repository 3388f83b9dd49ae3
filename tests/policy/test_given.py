from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import miniatures
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    T5Config,
    T5ForConditionalGeneration,
)

from preftune.errors import PreftuneError
from preftune.policy.given import check_given
from preftune.policy.loading import LoraConfig, ModelConfig, adapt
from preftune.policy.reward_head import with_reward_head


class Broken(nn.Module):
    """Fails as its author wrote it, over several lines."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(2, 2)

    def forward(self, input_ids: Tensor) -> Any:
        """No logits."""
        raise ValueError("this is not it:\n  no rows\nmore")


class Answer(nn.Module):
    """Gives what it was told to give."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.output, self.answer = nn.Linear(2, 2), answer

    def forward(self, input_ids: Tensor) -> Any:
        """What it was told to."""
        assert not self.training
        return self.answer


class WithDropout(nn.Module):
    """Runs, and would draw random numbers if it were in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.norm, self.dropout = nn.Embedding(7, 7), nn.BatchNorm1d(7), nn.Dropout(0.5)

    def forward(self, input_ids: Tensor) -> Any:
        """Logits of the next token."""
        return SimpleNamespace(logits=self.dropout(self.norm(self.tokens(input_ids).mT).mT))


def bart() -> Any:
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 1, "decoder_attention_heads": 1}
    return BartForConditionalGeneration(BartConfig(vocab_size=9, d_model=4, max_position_embeddings=8, **sizes))


def t5() -> Any:
    return T5ForConditionalGeneration(T5Config(vocab_size=9, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=2))


def bert_without_head() -> Any:
    sizes = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
    return BertModel(BertConfig(vocab_size=9, **sizes))


def with_nan(lm: Any) -> Any:
    with torch.no_grad():
        lm.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    return lm


LOGITS = r"must return an object with \.logits of shape \(rows, tokens, vocabulary\), got "


@pytest.mark.parametrize(
    ("lm", "sentence"),
    [
        (nn.Linear(2, 2), r"^Linear\.forward\(input_ids\) fails on 1 row of 2 tokens \(RuntimeError: .*\.logits$"),
        (Broken(), r"^Broken\.forward\(input_ids\) fails .*\(ValueError: this is not it: no rows\): give a causal"),
        (Answer(torch.zeros(1, 2, 3)), LOGITS + "none"),
        (Answer(None), LOGITS + "none"),
        (Answer(SimpleNamespace(logits=torch.zeros(2, 3))), LOGITS + r"shape \(2, 3\)"),
        (Answer(SimpleNamespace(logits=torch.zeros(2, 1, 3))), LOGITS + r"shape \(2, 1, 3\)"),
        (nn.ReLU(), "ReLU has no parameter that trains"),
        (miniatures.build("llama").requires_grad_(False), "LlamaForCausalLM has no parameter that trains"),
        (with_reward_head(miniatures.build("llama"), 0), "LlamaForSequenceClassification gives rewards"),
        (t5(), "T5ForConditionalGeneration is an encoder-decoder: give a causal language model"),
        (bart(), "BartForConditionalGeneration is an encoder-decoder: give a causal language model"),
        (bert_without_head(), "BertModel.*" + LOGITS + "none"),
        (with_nan(miniatures.build("llama")), r"the given LlamaForCausalLM holds nan or infinity in .*up_proj\.weight"),
    ],
    ids=lambda given: type(given).__name__ if isinstance(given, nn.Module) else "",
)
def test_what_cannot_be_trained_is_refused_in_one_sentence(lm, sentence):
    with pytest.raises(PreftuneError, match=sentence) as refused:
        check_given(lm, adapted=False, reward=False)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mixtral", "mamba", "bert"])
def test_language_models_pass(model_type):
    check_given(miniatures.build(model_type), adapted=False, reward=False)


def test_adapted_and_frozen_models_and_rewards_pass():
    check_given(adapt(miniatures.build("llama"), ModelConfig(lora=LoraConfig()), 0), adapted=False, reward=False)
    check_given(miniatures.build("llama").requires_grad_(False), adapted=True, reward=False)
    check_given(with_reward_head(miniatures.build("llama"), 0), adapted=False, reward=True)


@pytest.mark.parametrize("training", [True, False])
def test_the_trial_leaves_no_trace(training):
    lm = WithDropout().train(training)
    drawn = torch.get_rng_state()
    check_given(lm, adapted=False, reward=False)
    assert torch.equal(drawn, torch.get_rng_state())
    assert lm.training == lm.dropout.training == training
    assert int(lm.norm.num_batches_tracked) == 0
    assert all(parameter.grad is None for parameter in lm.parameters())
