"""Language models of a few thousand weights, and the plainest way to get log-probs out of them.

Every architecture of transformers in miniature: two layers, hidden size 32, a window of 8 tokens where the architecture
has windows. The weights are made large, so that what a token sees shows in its logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from preftune.data.examples import Example, Response
from preftune.data.packing import LEAST_SHARED, PackedBatch, pack, pad
from preftune.objectives.batch import LogProbs, Role
from preftune.objectives.dpo import DPO
from preftune.policy.policy import Layout, PolicyModule, logps

VOCABULARY, WINDOW, LAYERS, LARGEST = 64, 8, 2, 2_000_000
BETA = 0.3
# What two ways of computing the same may differ by: nats, and gradients as a share of the largest one.
EXACT = 1e-5
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rotary_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "sliding_window": WINDOW,
    "use_sliding_window": True,
    "max_window_layers": 1,
    # mixtures of experts
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    # attention over compressed keys and values
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    # state-space layers
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_ssm": 64,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "is_decoder": True,
}
COMPRESSED = {"num_key_value_heads": 4}
OVERRIDES: dict[str, dict[str, Any]] = {
    "cohere": {"logit_scale": 0.5},
    "cohere2": {"logit_scale": 0.5},
    "cohere2_moe": {"logit_scale": 0.5},
    "dots1": {"n_shared_experts": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
    },
    "gemma4_unified_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "longcat_flash": {"ffn_hidden_size": 32, "expert_ffn_hidden_size": 16, "zero_expert_num": 1, "moe_topk": 2},
    "minicpm3": {"scale_emb": 1.0},
    "minimax_m3_vl_text": {"index_block_size": 4, "index_topk_blocks": 1, "index_n_heads": 2, "index_head_dim": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "chunk_size": 8},
    "modernbert-decoder": {"local_attention": WINDOW},
    "zaya": {"num_experts_per_tok": 1},
}


# A Qwen3 small enough to run and large enough that its products can be told apart.
COUNTED = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": True,
}


def build(model_type: str, seed: int = 0, noise: float = 0.25, **overrides: Any) -> PreTrainedModel:
    """A miniature in evaluation mode, float32.

    Args:
        model_type: as transformers names it.
        seed: of the weights.
        noise: standard deviation of what is added to every weight.
        overrides: fields of the config.

    Raises:
        ValueError: if the sizes do not make it a miniature.
    """
    config_class = CONFIG_MAPPING[model_type]
    known = set(config_class.__dataclass_fields__) | set(config_class.attribute_map)
    sizes = {name: value for name, value in SIZES.items() if name in known}
    if {"sliding_window", "layer_types"} <= known:
        sizes["layer_types"] = ["sliding_attention", "full_attention"]
    if "kv_lora_rank" in known:
        sizes |= COMPRESSED
        sizes.pop("head_dim", None)
    config = config_class(**(sizes | OVERRIDES.get(model_type, {}) | overrides))
    config.use_cache = False
    with torch.device("meta"):
        count = sum(p.numel() for p in AutoModelForCausalLM.from_config(config, dtype=torch.float32).parameters())
    if count > LARGEST:
        raise ValueError(f"{count:,} parameters")
    torch.manual_seed(seed)
    lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=noise)
    return lm


def ids(count: int, seed: int) -> np.ndarray:
    """Random tokens, none of them special."""
    return np.random.default_rng(seed).integers(3, VOCABULARY, size=count).astype(np.int32)


def pair(prompt: int, chosen: int, rejected: int, seed: int, **fields: Any) -> Example:
    """A pair of these lengths."""
    responses = (
        Response(ids(chosen, 3 * seed + 1), Role.CHOSEN),
        Response(ids(rejected, 3 * seed + 2), Role.REJECTED),
    )
    return Example(ids(prompt, 3 * seed), responses, row=seed, **fields)


def pairs() -> list[Example]:
    """Pairs in which prompts and responses are shorter and longer than the window, down to one token; and one whose
    responses begin alike."""
    return [pair(11, 7, 5, 0), pair(3, 9, 1, 1), pair(1, 4, 12, 2), alike(6, LEAST_SHARED + 2, 3, 7)]


def alike(prompt: int, shared: int, chosen: int, rejected: int) -> Example:
    """A pair whose responses begin with the same tokens."""
    start = ids(shared, 71)
    ends = (Role.CHOSEN, ids(chosen, 72)), (Role.REJECTED, ids(rejected, 73))
    return Example(ids(prompt, 70), tuple(Response(np.concatenate([start, end]), role) for role, end in ends), row=3)


def forest() -> list[Example]:
    """All that an example may be: a pair, a demonstration, rankings, a judged response with a baseline, turns that are
    read and not answered for, values per token."""
    turns = np.array([True, True, False, False, True, True, True])
    ranked = tuple(Response(ids(n, 60 + n), Role.RANKED, score=n / 10) for n in (3, 8, 1, 5))
    judged = Response(ids(6, 80), Role.LABELLED, score=1.0), Response(ids(4, 81), Role.BASELINE)
    advantages = {"advantage": np.linspace(-1, 1, 5, dtype=np.float32)}
    several = Response(ids(7, 90), Role.CHOSEN, targets=turns, token=advantages)
    return [
        pair(11, 7, 5, 0, weight=0.5, confidence=0.9, gap=2.0),
        Example(ids(4, 50), (Response(ids(9, 51), Role.CHOSEN),), row=3),
        Example(ids(10, 52), ranked, row=4),
        Example(ids(2, 53), judged, row=5),
        Example(ids(5, 54), (several,), row=6),
    ]


def separate(lm: nn.Module, examples: Sequence[Example]) -> Tensor:
    """Log-probs of all targets, shape K, float64: one plain forward of the model for each response."""
    found = []
    for example in examples:
        for response in example.responses:
            row = torch.as_tensor(np.concatenate([example.prompt, response.ids]), dtype=torch.long)
            logits = lm(input_ids=row[None]).logits[0].double()
            every = torch.log_softmax(logits[:-1], dim=-1).gather(1, row[1:, None]).squeeze(1)
            wanted = np.ones(len(response.ids), dtype=bool) if response.targets is None else response.targets
            found.append(every[len(example.prompt) - 1 :][torch.as_tensor(wanted)])
    return torch.cat(found)


def batch_of(examples: Sequence[Example], layout: Layout) -> PackedBatch:
    """The examples in one batch of a layout."""
    return pack(examples) if layout == "tree" else pad(examples)


def gradients(lm: nn.Module) -> dict[str, Tensor]:
    """The gradients of all parameters, which are then without any."""
    found = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for name, p in lm.named_parameters()
    }
    lm.zero_grad(set_to_none=True)
    return found


@dataclass(frozen=True)
class Plain:
    """What one plain forward per response gives on pairs.

    Attributes:
        logps_K: log-probs of all targets, in nats.
        reference_K: log-probs of a made-up reference, one to two nats away on each response.
        gradients: of the DPO loss.
    """

    logps_K: Tensor
    reference_K: Tensor
    gradients: dict[str, Tensor]


def plain(lm: nn.Module, examples: Sequence[Example]) -> Plain:
    """Log-probs and gradients of a DPO loss that is written out here, response by response."""
    logps_K = separate(lm, examples)
    lengths = [response.length for example in examples for response in example.responses]
    shifts = np.random.default_rng(7).uniform(-1, 1, size=len(lengths))
    pieces = logps_K.split(lengths)
    reference_K = torch.cat([p.detach() + s / len(p) for p, s in zip(pieces, shifts, strict=True)])
    delta_R = torch.stack([(p - r).sum() for p, r in zip(pieces, reference_K.split(lengths), strict=True)])
    (-logsigmoid(BETA * (delta_R[0::2] - delta_R[1::2]))).mean().backward()
    return Plain(logps_K.detach(), reference_K, gradients(lm))


@dataclass(frozen=True)
class Gap:
    """How far a layout is from plain forwards: values in nats, gradients as a share of the largest one."""

    values: float
    gradients: float


def gap(lm: PreTrainedModel, layout: Layout, expected: Plain, examples: Sequence[Example]) -> Gap:
    """The largest differences between a layout of ours and plain forwards. The model's attention is put back."""
    policy = PolicyModule(lm, layout)
    try:
        batch = batch_of(examples, layout)
        found = logps(policy, batch)
        DPO(beta=BETA)(
            found, LogProbs(expected.reference_K.to(found.logps_K.dtype)), batch, {}
        ).loss_E.mean().backward()
    finally:
        policy.use_layout("padded")
    ours = gradients(lm)
    scale = max(float(g.abs().max()) for g in expected.gradients.values())
    return Gap(
        float((found.logps_K.detach() - expected.logps_K).abs().max()),
        max(float((ours[name] - g).abs().max()) for name, g in expected.gradients.items()) / scale,
    )


def verdict(model_type: str) -> tuple[str, str]:
    """Whether prompt trees are exact for a type: "exact", "inexact", "refused" or "unbuilt", and the figures or why.

    Where float32 rounds too much to tell (norms of small vectors, large logits), float64 decides.
    """
    for dtype in (torch.float32, torch.float64):
        try:
            lm = build(model_type).to(dtype)
            expected = plain(lm, pairs())
        except Exception as error:  # each family fails in its own way when it does not come in these sizes
            return "unbuilt", _brief(error)
        try:
            found = gap(lm, "tree", expected, pairs())
        except Exception as error:
            return "refused", _brief(error)
        reason = f"values {found.values:.1e}, gradients {found.gradients:.1e}, {str(dtype).removeprefix('torch.')}"
        if max(found.values, found.gradients) <= EXACT:
            return "exact", reason
        if max(found.values, found.gradients) > 100 * EXACT:  # no rounding
            break
    return "inexact", reason


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
