"""Memory per device of a large model whose weights are sharded over many: `python scripts/plan_memory.py`.

Nothing is loaded or computed: the model is laid out without contents, and one forward and backward of it is rehearsed
(training/memory.py, training/blueprint.py). Attention is taken as on CPUs. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse

import numpy as np
import peft
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from preftune.data.examples import Example, Response
from preftune.data.packing import pack
from preftune.objectives.batch import Role
from preftune.policy.policy import PolicyModule
from preftune.policy.reference import FrozenReference
from preftune.training.blueprint import Blueprint
from preftune.training.memory import Estimate
from preftune.training.optim import OptimConfig
from preftune.training.step import Micro

# Sizes of Llama 3 70B.
SIZES = {
    "vocab_size": 128_256,
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
}
WAYS = ("full, reference stored", "full, reference live", "LoRA (r 16), its base the reference")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=SIZES["num_hidden_layers"])
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--pairs", type=int, default=1, help="in a forward")
    parser.add_argument("--tokens", type=int, default=1024, help="of a prompt, and of each of its two responses")
    given = parser.parse_args()
    tokens = forward(given.pairs, given.tokens).batch.tokens
    print(f"| GB per device, {tokens} tokens to a forward | " + " | ".join(map(str, given.devices)) + " |")
    print("|---|" + "---|" * len(given.devices))
    for way in WAYS:
        drawn = blueprint(way, given.layers)
        found = [estimated(drawn, forward(given.pairs, given.tokens), devices) for devices in given.devices]
        print(f"| {way} | " + " | ".join(f"{one.peak / 1e9:.0f}" for one in found) + " |")


def forward(pairs: int, tokens: int) -> Micro:
    """Pairs of random tokens."""
    random = np.random.default_rng(0)

    def ids() -> np.ndarray:
        return random.integers(0, SIZES["vocab_size"], tokens).astype(np.int32)

    roles = (Role.CHOSEN, Role.REJECTED)
    examples = [Example(ids(), tuple(Response(ids(), role) for role in roles)) for _ in range(pairs)]
    return Micro(examples, pack(examples))


def blueprint(way: str, layers: int) -> Blueprint:
    """The model, trained in one of the ways, computing in bf16."""
    with torch.device("meta"):
        lm = LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_hidden_layers": layers, "use_cache": False}))
    lm.to(torch.bfloat16 if "LoRA" in way else torch.float32)
    lm.gradient_checkpointing_enable({"use_reentrant": False})
    if "LoRA" in way:
        lm.enable_input_require_grads()
        lm = peft.get_peft_model(lm, peft.LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    policy = PolicyModule(lm, "tree")
    frozen = FrozenReference.copy_of(policy) if "live" in way else None
    return Blueprint.of(policy.train(), frozen, "stored" not in way, torch.bfloat16)


def estimated(drawn: Blueprint, micro: Micro, devices: int) -> Estimate:
    """With several forwards to an optimiser step."""
    return drawn.estimate(frozenset(), OptimConfig(), [micro], [], True, devices)


if __name__ == "__main__":
    main()
