"""KL of the reference's next-token distributions from the policy's: exact, with gradient, without a logits matrix."""

from __future__ import annotations

from typing import Any

import miniatures
import pytest
import torch
from torch import Tensor

from preftune.data.packing import pack, pad
from preftune.policy.loading import LoraConfig, ModelConfig, adapt
from preftune.policy.logprobs import score
from preftune.policy.policy import PolicyModule, logps
from preftune.policy.reference import AdapterOffReference, FrozenReference, Reference, StoredReference

NEEDS = frozenset({"kl_K"})


def disturb(lm: torch.nn.Module, part: str = "") -> None:
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if part in name and parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


def rows(lm: Any) -> Tensor:
    """Log-softmax of every target's row, float64, from one plain forward of each response."""
    found = []
    for example in miniatures.pairs():
        for response in example.responses:
            ids = torch.as_tensor([*example.prompt.tolist(), *response.ids.tolist()])
            logits = lm(input_ids=ids[None]).logits[0].double()
            found.append(torch.log_softmax(logits, -1)[len(example.prompt) - 1 : -1])
    return torch.cat(found)


def case(kind: str) -> tuple[PolicyModule, Reference, Tensor]:
    """A policy that has left its start, its reference, and the reference's log-softmax of every row."""
    lm: Any = miniatures.build("qwen2" if kind != "softcap" else "gemma2")
    start = rows(lm).detach()
    if kind.startswith("adapter"):
        targets = "all-linear" if kind == "adapter" else ["q_proj", "lm_head"]
        lm = adapt(lm, ModelConfig(lora=LoraConfig(r=2, dropout=0.3, targets=targets)), seed=0)
    policy = PolicyModule(lm, "padded" if kind == "padded" else "tree").eval()
    reference: Reference
    reference = AdapterOffReference(policy, policy) if kind.startswith("adapter") else FrozenReference.copy_of(policy)
    disturb(lm)
    return policy, reference, start


@pytest.mark.parametrize("kind", ["full", "padded", "adapter", "adapter on the head", "softcap"])
def test_the_divergence_and_its_gradient_are_those_of_the_whole_matrix(kind, monkeypatch):
    monkeypatch.setattr("preftune.policy.logprobs.CALL_BYTES", 4 * miniatures.VOCABULARY * 7)  # several tiles
    policy, reference, start_KV = case(kind)
    examples = miniatures.pairs()
    batch = pad(examples) if kind == "padded" else pack(examples)
    weight_K = torch.linspace(-1, 2, len(batch.target_K))
    found = logps(policy, batch, NEEDS, reference.logits(batch, examples))
    assert found.kl_K is not None
    assert not policy.training
    (found.kl_K * weight_K + found.logps_K).sum().backward()
    gradients = miniatures.gradients(policy.lm)
    policy.zero_grad()

    plain = policy.lm
    policy.use_layout("padded")
    policy_KV = rows(plain)
    expected_K = (start_KV.exp() * (start_KV - policy_KV)).sum(1)
    assert expected_K.max() > 0.01, "the policy has not moved"
    torch.testing.assert_close(found.kl_K.double(), expected_K, rtol=0, atol=miniatures.EXACT)
    target_logps_K = policy_KV.gather(1, batch.target_K[:, None]).squeeze(1)
    (expected_K * weight_K + target_logps_K).sum().backward()
    largest = max(float(g.abs().max()) for g in gradients.values())
    for name, expected in miniatures.gradients(plain).items():
        assert float((gradients[name] - expected).abs().max()) <= miniatures.EXACT * largest, name


def test_the_divergence_is_zero_where_nothing_has_moved():
    policy = PolicyModule(miniatures.build("llama"), "tree").eval()
    batch, examples = pack(miniatures.pairs()), miniatures.pairs()
    found = logps(policy, batch, NEEDS, FrozenReference.copy_of(policy).logits(batch, examples))
    assert found.kl_K is not None
    assert float(found.kl_K.detach().abs().max()) <= 1e-6


def test_a_token_that_the_reference_never_gives_adds_nothing():
    logits = torch.tensor([[0.0, 0.0, 5.0]])
    other = torch.tensor([[0.0, 0.0, -torch.inf]])
    values = score(logits, torch.tensor([0]), NEEDS, other)
    assert float(values[1]) == pytest.approx(float(torch.logsumexp(logits, 1)) - torch.log(torch.tensor(2.0)).item())


def test_the_gradient_is_that_of_finite_differences():
    torch.manual_seed(0)
    other_NV = torch.randn(3, 5, dtype=torch.float64)

    def divergence(logits_NV: Tensor) -> Tensor:
        return score(logits_NV, torch.zeros(3, dtype=torch.long), NEEDS, other_NV)[1]

    assert torch.autograd.gradcheck(divergence, torch.randn(3, 5, dtype=torch.float64, requires_grad=True))


def test_without_logits_to_compare_with_it_is_refused():
    policy = PolicyModule(miniatures.build("llama"), "tree")
    with pytest.raises(ValueError, match="kl_K compares with another model's logits"):
        logps(policy, pack(miniatures.pairs()), NEEDS)
    with pytest.raises(ValueError, match="use a live reference"):
        StoredReference({}).logits(pack(miniatures.pairs()), miniatures.pairs())
