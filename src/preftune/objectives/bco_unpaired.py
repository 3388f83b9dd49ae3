"""Binary classifier optimisation, on single responses."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch.nn.functional import logsigmoid

from preftune.objectives.base import Confidence, DataKind, Objective, Outcome, State, check_positive
from preftune.objectives.batch import Batch, LogProbs
from preftune.objectives.coupled import check_shift, first_shift, judged, running_mean
from preftune.objectives.tokens import ratios_R


@dataclass(frozen=True)
class BCOUnpaired(Objective):
    """BCO on single responses: a classifier that tells good from bad, its threshold the mean reward so far.

    Equation:
        good responses: loss = -log sigmoid(reward - shift)
        bad responses: loss = -log sigmoid(shift - reward)
        reward = beta * log(pi(response) / pi_ref(response))
        shift = mean of the rewards of all responses, good and bad, up to and with this batch, without gradient

        Batches of k steps ago count decay^k times as much as this one; with decay 1 the mean is over all. It is
        weighted: an example of weight 2 counts twice. The mean is kept as state, and updated before it is used. The
        loss of a pair is the mean over its two responses, half of what bco makes of it. A confidence c mixes:
        c * loss as labelled + (1 - c) * loss with the opposite label.

    Source: Jung et al. 2024, "Binary Classifier Optimization for Large Language Model Alignment", arXiv 2404.04656.
        Defaults beta 0.1 and decay 1: TRL's BCO trainer. Learning rate 5e-7: the authors', as others quote them.

    When to use: thumbs up and thumbs down without pairs, and batches too small, or prompts too alike, for KTO's
        mismatched responses. Where good and bad responses come from different prompts, weigh the bad ones by how likely
        their prompts are among the good ones (weight column): the paper's density ratio, kept in [0.5, 10] by TRL.

    In nats: a response that is good with probability p settles at (logit(p) + shift) / beta nats: 22 nats above the
        shift for p = 0.9 at beta 0.1. With certain labels good and bad part without end.

    Differs between libraries: TRL's BCO trainer and LLaMA-Factory update the mean before use and count all steps alike,
        as here. With shift none this is TRL's "bco_pair" of today, taken apart.

    Args:
        beta: strength of the pull towards the reference, reward per nat. Usual: 0.01 to 0.1.
        shift: "running": the mean reward so far; "none": 0.
        decay: weight of the batches before when a new one comes, in (0, 1]; 1 counts all batches alike. Usual: 1, or
            0.9 to 0.99 to follow a policy that moves fast. For shift "running" only.

    Example:
        >>> from preftune.objectives.batch import PlainBatch, Role
        >>> import torch
        >>> from torch import tensor
        >>> two, roles = torch.ones(2), torch.full((2,), int(Role.LABELLED))
        >>> batch = PlainBatch(torch.arange(2), torch.arange(2), roles, tensor([1.0, 0.0]), two, two, two, two)
        >>> objective, policy = BCOUnpaired(beta=0.5), LogProbs(tensor([-5.0, -9.0]))
        >>> outcome = objective(policy, LogProbs(tensor([-8.0, -8.0])), batch, objective.init())
        >>> [round(x, 4) for x in outcome.loss_E.tolist()]  # rewards 1.5 and -0.5, shift 0.5: log(1 + 1/e) each
        [0.3133, 0.3133]
    """

    data: ClassVar[DataKind] = "labels"
    couples: ClassVar[bool] = True
    confidence: ClassVar[Confidence] = "mixed"
    learning_rate: ClassVar[float] = 5e-7

    beta: float = 0.1
    shift: Literal["running", "none"] = "running"
    decay: float = 1.0

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "it is the reward per nat of log-ratio; 0.1 is usual")
        check_shift(self.shift, self.decay)

    def init(self) -> State:
        return first_shift(self.shift)

    def __call__(self, policy: LogProbs, reference: LogProbs | None, batch: Batch, state: State) -> Outcome:
        reward_R, found = self.beta * ratios_R("BCOUnpaired", policy, reference, batch), judged("BCOUnpaired", batch)
        above_J, after, extras = reward_R[found.index_J], state, {}
        if self.shift == "running":
            after = running_mean(state, above_J.detach(), found.weight_J, self.decay)
            above_J = above_J - after["mean"]
            extras = {"shift": after["mean"].expand(len(batch.weight_E))}
        loss_J = -found.good_J * logsigmoid(above_J) - (1 - found.good_J) * logsigmoid(-above_J)
        return Outcome(found.mean_E(loss_J), reward_R.detach(), after, extras)
