"""Whether prompt trees are exact for a model: a table of architectures, reasons against, a comparison before step 1.

transformers' attention interface swallows keyword arguments that a model does not know, so a model outside the table
could be silently wrong on trees. The table holds those that are exact in miniature, with windows of 8 tokens, against
one plain forward per response: `scripts/tree_safe.py` tries every type of the installed transformers, and the tests run
every entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from preftune.data.examples import Example, Response
from preftune.data.packing import PackedBatch, pack, pad
from preftune.errors import PreftuneError
from preftune.objectives.batch import Role
from preftune.policy.policy import Layout, PolicyModule, base_model, forward_inputs, logps

TREE_SAFE = frozenset(
    """
    afmoe apertus arcee aria_text axk1 beam biogpt bitnet cohere cohere2 cohere2_moe ctrl cwm deepseek_v2
    deepseek_v3 diffllama dots1 ernie4_5 ernie4_5_moe exaone4 exaone_moe flex_olmo flint gemma gemma2 gemma3_text
    gemma3n_text gemma4_text gemma4_unified_text glm glm4 glm4_moe glm4_moe_lite gpt2 gpt_bigcode gpt_neox gpt_oss
    granite granite_swa granitemoe granitemoe_swa granitemoeshared helium hrm_text hunyuan_v1_dense hunyuan_v1_moe
    hy_v3 hyperclovax internlm3 iquestcoder jais2 jetmoe kolibri1 laguna llama mellum mimo_v2_flash minicpm3
    minimax_m2 ministral ministral3 mistral mixtral modernbert-decoder nanochat olmo olmo2 olmo3 olmoe opt persimmon
    phi phi3 qwen2 qwen3 qwen3_moe seed_oss smollm3 solar_open starcoder2 vaultgemma youtu
    """.split()
)

# Layer types whose attention is over single tokens in path order; others (linear, chunked, state-space) are not.
KNOWN_LAYERS = frozenset({"full_attention", "sliding_attention"})
# RoPE whose frequencies depend on the longest path of the forward: a long example must run alone.
LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})
TOLERANCE = 1e-4


def choose_layout(lm: nn.Module) -> tuple[Layout, str]:
    """The fastest layout that is exact for this model by its type, and the reason in one clause."""
    model = base_model(lm)
    if not isinstance(model, PreTrainedModel):
        return "padded", f"{type(model).__name__} is no transformers model"
    config = model.config.get_text_config()
    if config.model_type not in TREE_SAFE:
        return "padded", f"model type {config.model_type} is not in the table of those exact on prompt trees"
    unknown = set(getattr(config, "layer_types", None) or ()) - KNOWN_LAYERS
    if unknown:
        return "padded", f"layer types {', '.join(sorted(unknown))} do not follow prompt trees"
    return "tree", f"model type {config.model_type} is exact on prompt trees"


def laid_out(
    lm: nn.Module,
    wanted: Layout | Literal["auto"],
    longest: int,
    on_main: Callable[[Callable[[], float]], float] = lambda find: find(),
) -> tuple[PolicyModule, list[str]]:
    """A model in the layout asked for; in trees only if they prove exact on this very model.

    Args:
        lm: the language model, adapters included.
        wanted: "auto" takes trees where they are exact, and padded rows elsewhere.
        longest: most tokens of a prompt with one response.
        on_main: has one of several processes find a value for all of them.

    Returns:
        The policy, and what to say about its layout.

    Raises:
        PreftuneError: if trees are asked for and are not exact.
    """
    if wanted == "padded":
        return PolicyModule(lm, "padded"), []
    layout, reason = choose_layout(lm)
    if layout == "padded":
        if wanted == "tree":
            raise PreftuneError(f"model.layout=tree is not exact here: {reason}; set it to auto or padded")
        return PolicyModule(lm, "padded"), [f"padded rows instead of prompt trees: {reason}"]
    policy = PolicyModule(lm, "tree")
    error = on_main(lambda: tree_error(policy, longest))
    if error <= (TOLERANCE if next(lm.parameters()).dtype == torch.float32 else 0.5):
        return policy, []
    if wanted == "tree":
        raise PreftuneError(f"model.layout=tree is off by {error:.2g} nats on this model: set it to padded")
    policy.use_layout("padded")
    known = math.isfinite(error)
    found = f"trees are off by {error:.2g} nats on this model" if known else "the model refuses trees"
    return policy, [f"padded rows instead of prompt trees: {found}"]


def original_context(lm: nn.Module) -> int | None:
    """Tokens beyond which RoPE changes with the length of the forward; None if it never does."""
    model = base_model(lm)
    if not isinstance(model, PreTrainedModel):
        return None
    config = model.config.get_text_config()
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    # one set of parameters, or one for each layer type
    every = [rope] if "rope_type" in rope else [part for part in rope.values() if isinstance(part, dict)]
    limits = [
        part.get("original_max_position_embeddings") or config.max_position_embeddings
        for part in every
        if part.get("rope_type") in LENGTH_DEPENDENT_ROPE
    ]
    return min(limits, default=None)


def tree_error(policy: PolicyModule, longest: int = 2048) -> float:
    """Largest difference between tree and padded log-probs in nats (or rewards) on two pairs that cross any window;
    infinite if the model refuses trees.

    The policy's layout and mode are left as they were.

    Args:
        policy: what to compare on.
        longest: most tokens of a prompt with one response; a window as wide as that cannot be crossed.
    """
    model: Any = policy.base
    config = model.config.get_text_config()
    window, context = (getattr(config, name, None) for name in ("sliding_window", "max_position_embeddings"))
    examples = _probe(config.vocab_size, window, longest if context is None else min(longest, context))
    layout, training = policy.layout, policy.training
    device = next(policy.parameters()).device
    policy.eval()
    try:
        with torch.no_grad():
            policy.use_layout("tree")
            try:
                tree_N = _said(policy, pack(examples).to(device))
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, TypeError, ValueError):  # what trees cannot honour is refused where it is met
                return math.inf
            policy.use_layout("padded")
            # one row at a time: padding itself is not on trial
            single = [Example(e.prompt, (r,)) for e in examples for r in e.responses]
            rows = [_said(policy, pad([example]).to(device)) for example in single]
    finally:
        policy.use_layout(layout)
        policy.train(training)
    return float((tree_N - torch.cat(rows)).abs().max())


def _said(policy: PolicyModule, batch: PackedBatch) -> Tensor:
    """Log-probs of the targets, or a reward model's values of the responses."""
    if policy.scores:
        return policy("score", forward_inputs(batch))["reward_R"]
    return logps(policy, batch).logps_K


def _probe(vocabulary: int, window: int | None, longest: int) -> Sequence[Example]:
    """Two pairs of random tokens, long enough for the responses to look past the window into the prompt."""
    rng = np.random.default_rng(0)
    answer = min(9, max(1, longest // 3))
    prompt = min(12 if window is None else window + 4, longest - answer)

    def ids(count: int) -> np.ndarray:
        return rng.integers(0, vocabulary, size=count).astype(np.int32)

    return [
        Example(
            ids(max(1, prompt - cut)),
            (Response(ids(answer), Role.CHOSEN), Response(ids(max(1, answer - 4)), Role.REJECTED)),
        )
        for cut in (0, 3)
    ]
