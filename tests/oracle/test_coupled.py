"""Objectives that look at the whole batch, on a softmax policy, against the exact answers of `oracle.coupled`."""

import numpy as np
import pytest
import torch
from oracle.coupled import LEVELS, MOSTLY, RESTS, Judged
from oracle.world import trained_by_adam
from torch import tensor

from preftune.objectives import registry
from preftune.theory import tabular


def label(case):
    return "-".join([case.name, *(f"{key}={value}" for key, value in case.fields.items())])


def rest_of(case):
    return trained_by_adam(registry.build(case.name, **case.fields), case.world, steps=600, rate=0.05, decay=1e-3)[-1]


@pytest.mark.parametrize("case", RESTS, ids=label)
def test_training_comes_to_rest_at_the_exact_answer(case):
    assert tabular.total_variation(rest_of(case), case.optimum) < 1e-4


@pytest.mark.parametrize("case", LEVELS, ids=label)
def test_training_comes_to_rest_where_an_independent_formula_is_level(case):
    found = rest_of(case)
    p, start = found.exp().numpy(), case.world.reference.numpy()
    assert np.abs(p - start).max() > 0.05
    slopes = case.slopes((found - case.world.reference_logps).numpy(), case.world, **case.fields)
    at_start = case.slopes(np.zeros(len(p)), case.world, **case.fields)
    assert np.abs(slopes - p * slopes.sum()).max() < 1e-3 * np.abs(at_start).max()


@pytest.mark.parametrize(("lambda_u", "sign"), [(3.9, -1), (4.1, 1)])
def test_ktos_lambdas_say_from_which_share_of_good_verdicts_on_a_response_goes_up(lambda_u, sign):
    """Good in 8 of 10 cases: the sides are even where lambda_u is 4 times lambda_d. Of both responses, so that each
    can be moved by itself."""
    loss = Judged(MOSTLY.reference, tensor([0.8, 0.8])).loss(registry.build("kto", beta=0.5, lambda_u=lambda_u))
    logps = (MOSTLY.reference_logps - 0.3).requires_grad_()
    (slopes,) = torch.autograd.grad(loss(logps), logps)
    assert (torch.sign(slopes) == sign).all()
