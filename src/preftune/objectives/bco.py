"""Binary classifier optimisation, on pairs."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch.nn.functional import logsigmoid

from preftune.objectives.base import Confidence, Objective, Outcome, State, check_positive, softened
from preftune.objectives.batch import Batch, LogProbs, pair_indices
from preftune.objectives.coupled import check_shift, first_shift, running_mean
from preftune.objectives.tokens import ratios_R


@dataclass(frozen=True)
class BCO(Objective):
    """BCO: a classifier that tells chosen from rejected responses, its threshold the mean reward so far.

    Equation:
        loss = -log sigmoid(r_w - shift) - log sigmoid(-(r_l - shift))
        r_w = beta * log(pi(chosen) / pi_ref(chosen)), r_l = beta * log(pi(rejected) / pi_ref(rejected))
        shift = mean of the rewards of all responses, chosen and rejected, up to and with this batch, without gradient

        Batches of k steps ago count decay^k times as much as this one; with decay 1 the mean is over all. It is
        weighted: an example of weight 2 counts twice. The mean is kept as state, and updated before it is used.

    Source: Jung et al. 2024, "Binary Classifier Optimization for Large Language Model Alignment", arXiv 2404.04656.
        Defaults: beta 0.01 and learning rate 5e-7, theirs as others quote them; decay 1: TRL.

    When to use: pairs of which chosen responses are to become likelier themselves, not only likelier than rejected
        ones; each response is compared with the average, so noise in one half of a pair does not reach the other.

    In nats: where labels are right with probability p, rewards settle logit(p) above and below the shift: log-ratios
        2 * logit(p) / beta apart, 439 nats for p = 0.9 at beta 0.01. With certain labels they part without end.

    Differs between libraries: the shift came to TRL with BCO, which updates it before use, and is in LLaMA-Factory;
        TRL's DPO trainer dropped it in early 2026, and its "bco_pair" now is this loss with shift none. The formula
        that TRL's manual gave for it is DPO's.

    Args:
        beta: strength of the pull towards the reference, reward per nat. Usual: 0.01 to 0.1.
        shift: "running": the mean reward so far; "none": 0.
        decay: weight of the batches before when a new one comes, in (0, 1]; 1 counts all batches alike. Usual: 1, or
            0.9 to 0.99 to follow a policy that moves fast. For shift "running" only.

    Example:
        >>> from torch import tensor
        >>> result = BCO(beta=0.5).on_pairs(
        ...     tensor([-5.0]), tensor([-9.0]), tensor([-8.0]), tensor([-8.0]))
        >>> round(result.loss.item(), 4)  # rewards 1.5 and -0.5, shift 0.5: 2 * log(1 + 1/e)
        0.6265
    """

    couples: ClassVar[bool] = True
    confidence: ClassVar[Confidence] = "mixed"
    learning_rate: ClassVar[float] = 5e-7

    beta: float = 0.01
    shift: Literal["running", "none"] = "running"
    decay: float = 1.0

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "it is the reward per nat of log-ratio; 0.01 is usual")
        check_shift(self.shift, self.decay)

    @property
    def needs_tokens(self) -> bool:
        return False

    def init(self) -> State:
        return first_shift(self.shift)

    def __call__(self, policy: LogProbs, reference: LogProbs | None, batch: Batch, state: State) -> Outcome:
        reward_R = self.beta * ratios_R("BCO", policy, reference, batch)
        shift, after, extras = reward_R.new_zeros(()), state, {}
        if self.shift == "running":
            index = torch.cat(pair_indices(batch))
            after = running_mean(state, reward_R[index].detach(), batch.weight_E.repeat(2), self.decay)
            shift = after["mean"]
            extras = {"shift": shift.expand(len(batch.weight_E))}

        def outcome(batch: Batch) -> Outcome:
            chosen_E, rejected_E = pair_indices(batch)
            loss_E = -logsigmoid(reward_R[chosen_E] - shift) - logsigmoid(shift - reward_R[rejected_E])
            return Outcome(loss_E, reward_R.detach(), after, extras)

        return softened(outcome, batch)
