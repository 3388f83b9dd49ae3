from __future__ import annotations

from typing import Any

import miniatures
import pytest
import torch
from torch import nn

from preftune.errors import PreftuneError
from preftune.policy.loading import LoraConfig, ModelConfig, adapt
from preftune.policy.weights import check_finite, check_precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_a_single_number_that_is_none_is_found(number, dtype):
    lm: Any = miniatures.build("llama").to(dtype)
    check_finite(lm, "m")
    with torch.no_grad():
        lm.model.layers[1].self_attn.q_proj.weight[-1, -1] = number
    with pytest.raises(
        PreftuneError, match=r"^m holds nan or infinity in model\.layers\.1\.self_attn\.q_proj\.weight \(1 "
    ):
        check_finite(lm, "m")


def test_large_numbers_are_numbers_though_their_sum_is_none():
    lm = nn.Linear(64, 64).half()
    with torch.no_grad():
        lm.weight.fill_(60000)
    assert lm.weight.sum().isinf()
    check_finite(lm, "m")


def test_packed_numbers_are_not_looked_at():
    """bitsandbytes keeps bytes, sometimes under the name of another type."""
    lm = nn.Module()
    lm.bytes = nn.Parameter(torch.full((4,), 255, dtype=torch.uint8), requires_grad=False)
    lm.eight = nn.Parameter(torch.full((4,), torch.nan).to(torch.float8_e4m3fn), requires_grad=False)
    lm.stored: Any = nn.Parameter(torch.full((4,), torch.nan, dtype=torch.bfloat16), requires_grad=False)
    lm.stored.quant_state = "what the bytes mean"
    lm.away = nn.Parameter(torch.empty(4, device="meta"))
    check_finite(lm, "m")


def test_half_precision_may_be_frozen_but_not_train():
    lm: Any = miniatures.build("llama").half()
    with pytest.raises(PreftuneError, match=r"^model\.embed_tokens\.weight would train in fp16, .* model\.dtype=fp32"):
        check_precision(lm)
    check_precision(lm.requires_grad_(False))
    check_precision(miniatures.build("llama").bfloat16())
    check_precision(adapt(lm, ModelConfig(lora=LoraConfig(r=2)), seed=0))  # adapters are in fp32
    with pytest.raises(PreftuneError, match="bias would train in fp16"):
        check_precision(adapt(miniatures.build("gpt2").half(), ModelConfig(lora=LoraConfig(bias="all")), seed=0))
