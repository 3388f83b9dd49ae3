import dataclasses

import numpy as np
import torch
from torch import tensor
from torch.nn.functional import cross_entropy

from preftune.data.examples import Example, Response
from preftune.data.packing import pack
from preftune.objectives.batch import LogProbs, Role
from preftune.objectives.sft import SFT


def demonstrations(lengths, weights):
    generator = np.random.default_rng(0)
    return [
        Example(
            np.array([1, 2], dtype=np.int32),
            (Response(generator.integers(0, 11, length).astype(np.int32), Role.CHOSEN),),
            weight=weight,
        )
        for length, weight in zip(lengths, weights, strict=True)
    ]


def mean(batch, policy):
    """Reduced as the training step does it."""
    weight_E = SFT().weight_E(batch)
    return (weight_E * SFT()(policy, None, batch, {}).loss_E).sum(), weight_E.sum()


def test_the_mean_is_cross_entropy_over_response_tokens():
    batch = pack(demonstrations([3, 8, 1], [1.0, 1.0, 1.0]))
    logits = torch.randn(12, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    logps_K = torch.log_softmax(logits, 1)[torch.arange(12), batch.target_K]
    total, weight = mean(batch, LogProbs(logps_K))
    expected = cross_entropy(logits, batch.target_K)
    torch.testing.assert_close(total / weight, expected, rtol=1e-12, atol=0)
    ours, theirs = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (total / weight, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)


def test_weights_count_tokens_and_add_up_over_any_cut():
    examples = demonstrations([3, 8, 1], [1.0, 0.5, 2.0])
    batch = pack(examples)
    assert SFT().weight_E(batch).tolist() == [3.0, 4.0, 2.0]
    logps_K = -torch.arange(12, dtype=torch.float64)
    total, weight = mean(batch, LogProbs(logps_K))
    assert total.item() == 3 + 0.5 * 52 + 2 * 11
    parts = [mean(pack(examples[:1]), LogProbs(logps_K[:3])), mean(pack(examples[1:]), LogProbs(logps_K[3:]))]
    assert sum(part for part, _ in parts).item() == total.item()
    assert sum(part for _, part in parts).item() == weight.item()


def test_of_a_pair_only_chosen_counts(batch, spread, draw):
    drawn = draw(batch, 1)
    policy = spread(batch, drawn)
    outcome = SFT()(policy, None, batch, {})
    expected = torch.stack([-chosen.mean() for chosen in drawn[0::2]])
    torch.testing.assert_close(outcome.loss_E, expected, rtol=1e-12, atol=0)
    worse = [tokens if index % 2 == 0 else tokens - 5 for index, tokens in enumerate(drawn)]
    assert torch.equal(SFT()(spread(batch, worse), None, batch, {}).loss_E, outcome.loss_E)
    assert outcome.rewards_R.isnan().all()


def test_examples_without_a_chosen_response_have_no_weight(batch, spread, draw):
    roles_R = batch.role_R.clone()
    roles_R[:2] = int(Role.LABELLED)
    other = dataclasses.replace(batch, role_R=roles_R)
    outcome = SFT()(spread(batch, draw(batch, 1)), None, other, {})
    assert outcome.loss_E[0] == 0
    assert SFT().weight_E(other).tolist() == [0.0, 3.5, 8.0, 1.0]


def test_tokens_that_are_no_targets_do_not_count():
    response = Response(np.array([4, 5, 6], dtype=np.int32), Role.CHOSEN, targets=np.array([True, False, True]))
    batch = pack([Example(np.array([1], dtype=np.int32), (response,))])
    outcome = SFT()(LogProbs(tensor([-1.0, -3.0])), None, batch, {})
    assert (outcome.loss_E.item(), SFT().weight_E(batch).item()) == (2.0, 2.0)
