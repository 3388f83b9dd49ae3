from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import miniatures
import numpy as np
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoTokenizer

from preftune.data.examples import Example, Response
from preftune.data.packing import PackedBatch, pack
from preftune.errors import PreftuneError
from preftune.objectives.batch import LogProbs, Role
from preftune.policy.loading import LoraConfig, ModelConfig, adapt, built_in_folder
from preftune.policy.policy import PolicyModule, logps
from preftune.policy.reference import (
    AdapterOffReference,
    FrozenReference,
    Reference,
    ReferenceConfig,
    StoredReference,
    example_key,
    read_stored,
    weights_hash,
    write_stored,
)
from preftune.training.references import adapter_off_is_the_start, live_reference, reference_for, stored_reference
from preftune.training.step import Micro

CPU = torch.device("cpu")


def prepare(examples: Sequence[Example]) -> Micro:
    return Micro(examples, pack(examples))


def disturb(lm: torch.nn.Module, part: str = "", by: float = 0.3) -> None:
    """What training does to weights, at a stroke."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if parameter.requires_grad and part in name:
                parameter.add_(torch.randn_like(parameter), alpha=by)


def adapted(bias: Any = "none", **overrides: Any) -> Any:
    return adapt(
        miniatures.build("qwen2", **overrides), ModelConfig(lora=LoraConfig(r=4, bias=bias, dropout=0.3)), seed=0
    )


class Counting(Reference):
    """Counts the examples that a live reference is asked for."""

    def __init__(self, inner: Reference) -> None:
        self.inner, self.asked = inner, 0

    def logps(self, batch: PackedBatch, examples: Sequence[Example]) -> LogProbs:
        self.asked += len(examples)
        return self.inner.logps(batch, examples)


def test_a_frozen_copy_stays_where_the_policy_started():
    lm = miniatures.build("llama")
    policy = PolicyModule(lm, "tree").train()
    reference = FrozenReference.copy_of(policy)
    batch = pack(miniatures.pairs())
    start_K = logps(policy, batch).logps_K.detach()
    disturb(lm)
    found_K = reference.logps(batch, miniatures.pairs()).logps_K
    assert torch.equal(found_K, start_K)
    assert not found_K.requires_grad
    assert all(not p.requires_grad for p in reference.module.parameters())
    assert all(p.requires_grad for p in lm.parameters())
    assert (logps(policy, batch).logps_K - start_K).abs().max() > 0.1


def test_promise_09_an_adapter_that_is_off_is_the_base_model():
    base = miniatures.build("qwen2")
    examples = miniatures.pairs()
    with torch.no_grad():
        expected_K = miniatures.separate(base, examples)
        exact_K = logps(PolicyModule(miniatures.build("qwen2"), "tree"), pack(examples)).logps_K
    lm = adapted()
    policy = PolicyModule(lm, "tree")
    reference = reference_for(live_reference(ReferenceConfig(), ModelConfig(), policy, CPU), policy, policy)
    assert isinstance(reference, AdapterOffReference)
    for trained in (False, True):
        if trained:
            disturb(lm)
        found_K = reference.logps(pack(examples), examples).logps_K
        assert torch.equal(found_K, exact_K)
        torch.testing.assert_close(found_K.double(), expected_K, rtol=0, atol=miniatures.EXACT)
    with torch.no_grad():
        assert (logps(policy, pack(examples)).logps_K - found_K).abs().max() > 0.1, "the adapter is still off"


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_promise_09_biases_that_train_with_the_adapter_do_not_move_the_reference(bias):
    lm = adapted(bias=bias)
    assert not adapter_off_is_the_start(lm)
    policy = PolicyModule(lm, "tree").eval()
    batch = pack(miniatures.pairs())
    reference = reference_for(live_reference(ReferenceConfig(), ModelConfig(), policy, CPU), policy, policy)
    with torch.no_grad():
        start_K = logps(policy, batch).logps_K
    disturb(lm, "bias")
    assert torch.equal(reference.logps(batch, miniatures.pairs()).logps_K, start_K)
    careless = AdapterOffReference(policy, policy)
    with pytest.warns(UserWarning, match="bias"):
        off_K = careless.logps(batch, miniatures.pairs()).logps_K
    assert (off_K - start_K).abs().max() > 0.1, "the adapter alone would have done"


@pytest.mark.parametrize("kind", ["copy", "adapter off"])
def test_promise_10_two_reference_passes_are_bit_identical_whatever_the_policy_does(kind):
    dropout = {"attention_dropout": 0.5}
    lm = adapted(**dropout) if kind == "adapter off" else miniatures.build("llama", **dropout)
    policy = PolicyModule(lm, "tree").train()
    reference = AdapterOffReference(policy, policy) if kind == "adapter off" else FrozenReference.copy_of(policy)
    batch, examples = pack(miniatures.pairs()), miniatures.pairs()
    torch.manual_seed(1)
    first_K = reference.logps(batch, examples).logps_K
    torch.manual_seed(2)
    assert torch.equal(reference.logps(batch, examples).logps_K, first_K)
    assert policy.training
    with torch.no_grad():
        assert not torch.equal(logps(policy, batch).logps_K, logps(policy, batch).logps_K), "no dropout to see"


def test_the_policy_trains_on_after_a_reference_pass_that_failed():
    policy = PolicyModule(adapted(), "tree").train()
    reference = AdapterOffReference(policy, policy)
    broken = replace(pack(miniatures.pairs()), source_K=torch.tensor([10_000]))
    with pytest.raises(IndexError):
        reference.logps(broken, miniatures.pairs())
    assert policy.training
    assert not any(m.disable_adapters for m in policy.modules() if isinstance(m, BaseTunerLayer))


def test_stored_log_probs_equal_live_ones_in_any_order_and_grouping(tmp_path):
    policy = PolicyModule(miniatures.build("mistral"), "tree")
    live = FrozenReference.copy_of(policy)
    examples = miniatures.forest()
    micros = [examples[:2], examples[2:]]
    stored = stored_reference(live, policy.lm, micros, prepare, tmp_path, "no")
    for micro in (*micros, examples[::-1], [examples[3], examples[0]]):
        found_K = stored.logps(pack(micro), micro).logps_K
        expected_K = live.logps(pack(micro), micro).logps_K
        torch.testing.assert_close(found_K, expected_K, rtol=0, atol=1e-6)
    for micro in micros:
        assert torch.equal(stored.logps(pack(micro), micro).logps_K, live.logps(pack(micro), micro).logps_K)


def test_what_is_stored_is_not_computed_again_in_any_order(tmp_path):
    policy = PolicyModule(miniatures.build("llama"), "tree")
    live = Counting(FrozenReference.copy_of(policy))
    examples = miniatures.pairs()
    stored_reference(live, policy.lm, [examples], prepare, tmp_path, "no")
    assert live.asked == len(examples)
    stored_reference(live, policy.lm, [[e] for e in examples[::-1]], prepare, tmp_path, "no")
    assert live.asked == len(examples)


def changed(example: Example, what: str) -> Example:
    first, *others = example.responses
    ids = first.ids.copy()
    ids[-1] += 1
    keep = np.arange(len(first.ids)) > 0
    changes = {
        "a response token": replace(example, responses=(replace(first, ids=ids), *others)),
        "a prompt token": replace(example, prompt=example.prompt[::-1].copy()),
        "a target": replace(example, responses=(replace(first, targets=keep), *others)),
        "the order of responses": replace(example, responses=example.responses[::-1]),
        "where the prompt ends": replace(
            example,
            prompt=example.prompt[:-1],
            responses=(replace(first, ids=np.concatenate([example.prompt[-1:], first.ids])), *others),
        ),
    }
    return changes[what]


@pytest.mark.parametrize(
    "what", ["a response token", "a prompt token", "a target", "the order of responses", "where the prompt ends"]
)
def test_any_change_of_tokens_misses(tmp_path, what):
    policy = PolicyModule(miniatures.build("llama"), "tree")
    live = Counting(FrozenReference.copy_of(policy))
    example = miniatures.pair(11, 7, 5, 0)
    stored_reference(live, policy.lm, [[example]], prepare, tmp_path, "no")
    other = changed(example, what)
    assert example_key(other) != example_key(example)
    stored = stored_reference(live, policy.lm, [[example], [other]], prepare, tmp_path, "no")
    assert live.asked == 2
    for one in (example, other):
        expected_K = live.logps(pack([one]), [one]).logps_K
        assert torch.equal(stored.logps(pack([one]), [one]).logps_K, expected_K)


def test_what_is_no_token_hits(tmp_path):
    example = miniatures.pair(4, 3, 2, 0)
    first, second = example.responses
    relabelled = (Response(first.ids, Role.RANKED, score=3.0), second)
    assert example_key(replace(example, responses=relabelled, row=9, weight=2.0)) == example_key(example)


@pytest.mark.parametrize("what", ["a weight", "the precision of the weights", "the precision of the run"])
def test_another_model_or_precision_misses(tmp_path, what):
    lm = miniatures.build("llama")
    live = Counting(FrozenReference.copy_of(PolicyModule(lm, "tree")))
    example = miniatures.pair(11, 7, 5, 0)
    stored_reference(live, lm, [[example]], prepare, tmp_path, "no")
    if what == "a weight":
        with torch.no_grad():
            lm.lm_head.weight[0, 0] += 1e-6
    elif what == "the precision of the weights":
        lm.double()
    stored_reference(live, lm, [[example]], prepare, tmp_path, "bf16" if what == "the precision of the run" else "no")
    assert live.asked == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_the_hash_of_weights_knows_names_shapes_and_scalars():
    module = torch.nn.Module()
    module.register_buffer("scalar", torch.tensor(1.0))
    module.register_buffer("row", torch.arange(6.0))
    first = weights_hash(module)
    assert weights_hash(module) == first
    module.register_buffer("scalar", torch.tensor(2.0))
    assert weights_hash(module) != first
    module.register_buffer("scalar", torch.tensor(1.0))
    module.register_buffer("row", torch.arange(6.0).view(2, 3))
    assert weights_hash(module) != first


def test_stored_files_are_whole_or_absent(tmp_path):
    path = tmp_path / "deep" / "values.safetensors"
    assert read_stored(path) == {}
    write_stored(path, {"a": np.arange(3, dtype=np.float32)})
    assert read_stored(path)["a"].tolist() == [0, 1, 2]
    assert [p.name for p in path.parent.iterdir()] == ["values.safetensors"]


def test_stored_log_probs_carry_no_gradient():
    example = miniatures.pair(4, 3, 2, 0)
    stored = StoredReference({example_key(example): np.zeros(5, dtype=np.float32)})
    assert not stored.logps(pack([example]), [example]).logps_K.requires_grad


def saved(folder: Path, model_type: str) -> str:
    tokenizer = AutoTokenizer.from_pretrained(built_in_folder())
    miniatures.build(model_type, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_reference_of_its_own_is_loaded_and_frozen(tmp_path):
    path = saved(tmp_path, "llama")
    policy = PolicyModule(miniatures.build("llama", seed=1, vocab_size=84), "tree")
    reference = live_reference(ReferenceConfig(path=path), ModelConfig(), policy, CPU)
    assert reference is not None
    assert reference.module.layout == "tree"
    examples = miniatures.pairs()
    expected = miniatures.build("llama", vocab_size=len(AutoTokenizer.from_pretrained(path)))
    with torch.no_grad():
        expected_K = miniatures.separate(expected, examples)
    found_K = reference.logps(pack(examples), examples).logps_K
    torch.testing.assert_close(found_K.double(), expected_K, rtol=0, atol=miniatures.EXACT)


def test_a_reference_that_cannot_read_trees_is_refused_by_name(tmp_path):
    path = saved(tmp_path, "bloom")
    policy = PolicyModule(miniatures.build("llama"), "tree")
    with pytest.raises(PreftuneError, match=r"reference\.path .* is not exact on prompt trees .*bloom.*padded"):
        live_reference(ReferenceConfig(path=path), ModelConfig(), policy, CPU)
    policy.use_layout("padded")
    assert live_reference(ReferenceConfig(path=path), ModelConfig(), policy, CPU) is not None
