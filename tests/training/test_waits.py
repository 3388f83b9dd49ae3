"""No value of a step is read while it runs: a GPU would have to finish its work before the program could go on.

On a CPU there is nothing to wait for, so what would wait is recognised by its operation: one that gives a number to
Python, or a shape that depends on values. What is computed from the policy's weights or from the batch counts as being
on the device; the batch as it was packed is at hand.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import miniatures
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForSequenceClassification

from preftune.data.examples import Example, Response
from preftune.data.packing import PackedBatch, pack, pad
from preftune.objectives import registry, terms
from preftune.objectives.base import DataKind, Objective
from preftune.objectives.batch import Role
from preftune.policy import tiled_head
from preftune.policy.loading import LoraConfig, ModelConfig, adapt
from preftune.policy.policy import Layout, PolicyModule
from preftune.policy.reference import FrozenReference, Reference
from preftune.training.batches import BatchConfig
from preftune.training.feed import Feed
from preftune.training.optim import OptimConfig, optimizer
from preftune.training.references import reference_for
from preftune.training.scored import fetch
from preftune.training.step import Micro, Step

ATEN = torch.ops.aten
WAITING = {
    ATEN._local_scalar_dense, ATEN.nonzero, ATEN.masked_select, ATEN.bincount, ATEN.equal, ATEN.is_nonzero,
    ATEN._unique2, ATEN.unique_consecutive, ATEN.unique_dim, ATEN.histc,
}  # fmt: skip
INDEXING = {ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_}
ROLES: Mapping[DataKind, tuple[Role, ...]] = {
    "pairs": (Role.CHOSEN, Role.REJECTED),
    "labels": (Role.LABELLED,),
    "rankings": (Role.RANKED,) * 3,
    "demonstrations": (Role.CHOSEN,),
    "rollouts": (Role.RANKED,) * 3,
}


class Watch(TorchDispatchMode):
    """Names the operations that would wait, with the line that asks for each."""

    def __init__(self, there: Sequence[Tensor]) -> None:
        super().__init__()
        self.there = {id(tensor): tensor for tensor in there}  # kept alive, so that no id is given away again
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        result = func(*args, **(kwargs or {}))
        if any(id(tensor) in self.there for tensor in given):
            self.there |= {id(leaf): leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
            if self._waits(func.overloadpacket, args, kwargs or {}):
                at = [frame for frame in traceback.extract_stack()[:-1] if "/torch/" not in frame.filename][-1]
                self.found[f"{func} in {at.filename}:{at.lineno} {at.name}"] += 1
        return result

    def _waits(self, packet: Any, args: Any, kwargs: Any) -> bool:
        if packet in INDEXING:
            return any(i is not None and i.dtype in (torch.bool, torch.uint8) and id(i) in self.there for i in args[1])
        if packet is ATEN.repeat_interleave:
            return kwargs.get("output_size") is None
        return packet in WAITING


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks at values on the CPU alone, where it costs nothing, does as elsewhere."""
    monkeypatch.setattr(tiled_head, "_SHIFTLESS_DEVICES", ())


def moved(batch: PackedBatch) -> PackedBatch:
    """The batch as if it were on another device."""
    copies = {f.name: v.clone() for f in fields(batch) if isinstance(v := getattr(batch, f.name), Tensor)}
    return replace(batch, **copies, token={name: v.clone() for name, v in batch.token.items()}, at_hand=batch)


def examples(objective: Objective) -> list[Example]:
    """Nine examples of the kind that an objective learns from."""
    found = []
    for row in range(9):
        roles = ROLES[objective.data] + ((Role.BASELINE,) if objective.baselines else ())
        answers = tuple(
            Response(
                miniatures.ids(2 + (5 * row + 3 * i) % 6, 100 * row + i),
                role,
                float((row + i) % 3) if role is Role.RANKED else float(row % 3 > 0),
                token={name: np.full(2 + (5 * row + 3 * i) % 6, -1.5, np.float32) for name in objective.carried},
            )
            for i, role in enumerate(roles)
        )
        confidence = 1.0 if objective.confidence == "unused" else 0.8
        found.append(Example(miniatures.ids(2 + row % 5, 100 * row + 50), answers, row, row % 3 + 0.5, confidence, 1.0))
    return found


def model(scores: bool) -> Any:
    if not scores:
        return miniatures.build("llama", attention_dropout=0.1)
    sizes = {name: value for name, value in miniatures.SIZES.items() if name in LlamaConfig.__dataclass_fields__}
    return LlamaForSequenceClassification(LlamaConfig(**sizes, num_labels=1))


def waits(spec: Any, layout: Layout = "tree", adapter: bool = False) -> Counter[str]:
    """What two steps of two forwards each would wait for."""
    objective = terms(spec)
    lm = model("reward_R" in objective[0].objective.needs)
    if adapter:
        lm = adapt(lm, ModelConfig(lora=LoraConfig(r=2, dropout=0.1)), seed=0)
    policy = PolicyModule(lm, layout)
    reference: Reference | None = None
    if any(term.objective.reference for term in objective):
        reference = reference_for(None if adapter else FrozenReference.copy_of(policy), policy, policy)
    step = Step(policy, reference, objective, Accelerator(cpu=True), 0)
    adamw = optimizer(policy, OptimConfig(), 1e-3)
    whole = examples(objective[0].objective)
    batches = [moved(pack(part) if layout == "tree" else pad(part)) for part in (whole[:4], whole[4:])]
    micros = [Micro(part, batch) for part, batch in zip((whole[:4], whole[4:]), batches, strict=True)]
    there = [v for batch in batches for f in fields(batch) if isinstance(v := getattr(batch, f.name), Tensor)]
    there += [value for batch in batches for value in batch.token.values()]
    states, scored = tuple(term.objective.init() for term in objective), []
    with Watch([*policy.parameters(), *there]) as watch:
        for number in range(2):
            scored.append(step.train(micros, states, adamw, number, 1.0))
            states = scored[-1].states
    for one in fetch(scored):
        one.require_finite()
        assert one.columns
    return watch.found


@pytest.mark.parametrize("name", registry.names())
def test_no_objective_waits(name):
    assert not waits(name)


MIXES: dict[str, Any] = {
    "dpo and sft": [{"name": "dpo", "weight": 0.5}, {"name": "sft", "weight": 0.5}],
    "coupled and not": [{"name": "bco"}, {"name": "sft", "weight": 0.1}],
    "light tails": {"name": "dpo", "modifiers": {"tail_alpha": 0.5, "average": "mean"}},
    "penalties": {"name": "dpo", "modifiers": {"ratio_penalty": 0.1, "drop_penalty": 0.1}},
    "doubt as weight": {"name": "ipo", "modifiers": {"confidence": "weight"}},
    "flipped labels": {"name": "ipo", "modifiers": {"label_smoothing": 0.1}},
}


@pytest.mark.parametrize("spec", MIXES.values(), ids=list(MIXES))
def test_no_mix_or_modifier_waits(spec):
    assert not waits(spec)


@pytest.mark.parametrize("name", ["dpo", "bco"])
def test_no_adapter_waits(name):
    assert not waits(name, adapter=True)


def test_the_watch_sees_what_waits():
    there = torch.arange(6.0)
    with Watch([there]) as watch:
        assert float(there.sum()) == 15
        (there + 1).nonzero()
        there[there > 2] = there.new_zeros(3)
        torch.arange(3).nonzero()
        there[torch.arange(3)].sum()
    assert sorted(place.split(" in ")[0] for place in watch.found) == [
        "aten._local_scalar_dense.default",
        "aten.index_put_.default",
        "aten.nonzero.default",
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_a_gpu_never_waits(name, layout):
    """torch's own watch: whatever would wait is an error."""
    objective = terms(name)
    lm = model("reward_R" in objective[0].objective.needs)
    accelerator = Accelerator(mixed_precision="bf16")
    policy = PolicyModule(lm.to(accelerator.device), layout)
    reference = FrozenReference.copy_of(policy)
    prepared, adamw = accelerator.prepare(policy, optimizer(policy, OptimConfig(), 1e-3))
    step = Step(prepared, reference, objective, accelerator, 0)
    feed = Feed(policy, BatchConfig(micro_size=4), None, accelerator.device, 0)
    whole = examples(objective[0].objective)
    states, scored = tuple(term.objective.init() for term in objective), []
    try:
        for number in range(3):
            micros = feed.side(whole)
            torch.cuda.set_sync_debug_mode("error" if number else "default")  # kernels are loaded in the first step
            scored.append(step.train(micros, states, adamw, number, 1.0))
            torch.cuda.set_sync_debug_mode("default")
            states = scored[-1].states
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one in fetch(scored):
        one.require_finite()
        assert one.columns
