from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import miniatures
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoTokenizer

from preftune.data.packing import pack
from preftune.errors import PreftuneError
from preftune.policy.loading import LoraConfig, ModelConfig, adapt, built_in_folder
from preftune.policy.policy import PolicyModule, logps
from preftune.policy.reference import (
    AdapterOffReference,
    FrozenReference,
    ReferenceConfig,
    StartReference,
    base_weights,
    weights_hash,
)
from preftune.training.references import adapter_off_is_the_start, live_reference, reference_for

CPU = torch.device("cpu")


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


def test_the_hash_of_weights_knows_names_shapes_and_scalars():
    def named(**weights: torch.Tensor) -> str:
        return weights_hash(weights)

    scalar, row = torch.tensor(1.0), torch.arange(6.0)
    first = named(scalar=scalar, row=row)
    assert named(row=row.clone(), scalar=scalar) == first, "order is no matter"
    others = [
        named(scalar=torch.tensor(2.0), row=row),
        named(scalar=scalar, row=row.view(2, 3)),
        named(scalar=scalar, row=row.double()),
        named(scalar=scalar, row=row.view(torch.int32)),
        named(scalar=scalar, line=row),
        named(scalar=scalar),
        named(),
    ]
    assert len({first, *others}) == 1 + len(others)


def test_the_hash_of_weights_reads_views_and_empty_ones_and_every_byte(monkeypatch):
    monkeypatch.setattr("preftune.policy.reference.HASHED_AT_ONCE", 64)
    whole = torch.arange(1000.0).view(40, 25)
    first = weights_hash({"w": whole.t(), "none": torch.empty(0, 3)})
    assert first == weights_hash({"w": whole.t().contiguous(), "none": torch.empty(0, 3)})
    for at in (0, 500, 999):
        other = whole.t().contiguous()
        other.view(-1)[at] += 1
        assert weights_hash({"w": other, "none": torch.empty(0, 3)}) != first


def test_an_adapter_is_no_part_of_the_weights_of_its_base():
    plain, lm = miniatures.build("qwen2"), adapted()
    weights = AdapterOffReference(PolicyModule(lm, "tree"), PolicyModule(lm, "tree")).weights()
    assert sorted(weights) == sorted(plain.state_dict())
    expected = weights_hash(plain.state_dict())
    assert weights_hash(weights) == expected
    disturb(lm)
    assert weights_hash(base_weights(lm)) == expected
    with torch.no_grad():
        next(p for name, p in lm.named_parameters() if "base_layer" in name)[0, 0] += 1e-6
    assert weights_hash(base_weights(lm)) != expected
    assert weights_hash(base_weights(plain)) == expected


def test_log_probs_to_store_take_no_second_model():
    lm = miniatures.build("llama", attention_dropout=0.5)
    policy = PolicyModule(lm, "tree").train()
    assert live_reference(ReferenceConfig(kind="stored"), ModelConfig(), policy, CPU) is None
    reference = reference_for(None, policy, policy)
    assert isinstance(reference, StartReference)
    assert reference.module is policy
    batch, examples = pack(miniatures.pairs()), miniatures.pairs()
    found_K = reference.logps(batch, examples).logps_K
    assert not found_K.requires_grad
    assert torch.equal(found_K, FrozenReference.copy_of(policy).logps(batch, examples).logps_K)
    assert policy.training
    assert all(p.requires_grad for p in lm.parameters())


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
