"""Before step 1: a reference that is declared a copy of the policy's start must agree with it."""

from __future__ import annotations

import torch
from torch import nn

from preftune.errors import PreftuneError
from preftune.policy.policy import logps
from preftune.policy.reference import Reference
from preftune.training.step import Micro

# Nats per response token by which two forwards of the same weights may differ, by precision of the computation.
TOLERANCE = {"no": 1e-5, "bf16": 2e-2, "fp16": 2e-3}


def check_start(policy: nn.Module, reference: Reference, micro: Micro, precision: str) -> float:
    """Largest difference between policy and reference on a response, in nats per token.

    Args:
        policy: the policy as prepared, at global step 0.
        reference: declared to be a copy of the policy's start.
        micro: examples to compare on.
        precision: Accelerate's name of the precision.

    Raises:
        PreftuneError: if they differ by more than the precision explains.
    """
    training = policy.training
    policy.eval()
    with torch.no_grad():
        ours = logps(policy, micro.batch).sums_R(micro.batch)
        theirs = reference.logps(micro.batch, micro.examples).sums_R(micro.batch)
    policy.train(training)
    gap_R = (ours - theirs).abs() / micro.batch.length_R
    worst = int(gap_R.argmax())
    gap = float(gap_R[worst])
    if not gap <= TOLERANCE[precision]:
        row = micro.examples[int(micro.batch.example_R[worst])].row
        raise PreftuneError(
            f"the reference is not the policy's start: on a response of row {row} they differ by {gap:.2g} nats per "
            f"token (at most {TOLERANCE[precision]:g} in this precision): check model, adapter and reference.path"
        )
    return gap
