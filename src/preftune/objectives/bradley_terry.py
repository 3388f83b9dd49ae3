"""The Bradley-Terry loss of reward models."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.objectives.base import Confidence, Objective, Outcome, State, check, check_label_smoothing, softened
from preftune.objectives.batch import Batch, LogProbs, pair_indices
from preftune.objectives.tokens import required

_NO_LOGPS = "BradleyTerry reads rewards of a scalar head, not log-probs: leave it out"


@dataclass(frozen=True)
class BradleyTerry(Objective):
    """Bradley-Terry: a reward model, by logistic regression on the difference of two rewards.

    Equation:
        loss = -log sigmoid(r_w - r_l - margin) + centring * (r_w + r_l)^2
        r_w and r_l are the scalar head's values of chosen and rejected; margin is 0, or the pair's gap

        With label smoothing e: (1 - e) * the loss + e * the loss with chosen and rejected exchanged, and -gap for gap.
        A confidence c in the data does the same with 1 - c.

    Source: Bradley and Terry 1952; as the loss of reward models, Christiano et al. 2017, arXiv 1706.03741, and Ouyang
        et al. 2022, arXiv 2203.02155. Margins: Touvron et al. 2023, "Llama 2", arXiv 2307.09288, equation 2. Centring:
        Eisenstein et al. 2023, "Helping or Herding?", arXiv 2312.09244. The default is the plain loss. Learning rate:
        Llama 2's smaller models.

    When to use: to train the reward model that PPO, best-of-n or a judge of new pairs needs. It trains a scalar head,
        and no policy. Rankings must be split into pairs; give each a weight of one over the number of pairs of its
        ranking, as Ouyang et al. do, if prompts are to count alike.

    In nats: rewards are log-odds. A difference of 1 nat is a preference of 0.73, of 2.2 nats one of 0.9. There is no
        beta: the policy that is trained on these rewards is given its own.

    Differs between libraries: TRL subtracts a column margin if there is one (margin: gap) and adds centring as
        center_rewards_coefficient, left out by default, 0.01 where its manual uses it. Llama 2's margins, 3, 2, 1, 0 or
        1, 2/3, 1/3, 0 for four ratings, are gaps that the data must hold.

    Args:
        margin: "none", or "gap": rewards should differ by the pair's gap, which every pair must then have, in the
            reward's own unit (the log-odds of a preference).
        label_smoothing: probability that a label is flipped, in [0, 0.5). Usual: 0 to 0.2.
        centring: weight of the square of the pair's summed rewards, >= 0, whose level the rest of the loss leaves open.
            Usual: 0 or 0.01.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace as Batch
        >>> batch = Batch(example_R=torch.tensor([0, 0]), role_R=torch.arange(2), weight_E=torch.ones(1),
        ...               confidence_E=torch.ones(1), gap_E=torch.tensor([0.5]))
        >>> policy = LogProbs(torch.empty(0), reward_R=torch.tensor([2.0, 0.5]))
        >>> outcome = BradleyTerry(margin="gap")(policy, None, batch, {})
        >>> round(outcome.loss_E.item(), 4)  # log(1 + exp(-(2 - 0.5 - 0.5)))
        0.3133
    """

    reference: ClassVar[bool] = False
    confidence: ClassVar[Confidence] = "mixed"
    needs: ClassVar[frozenset[str]] = frozenset({"reward_R"})
    refuses: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("average", "temperature", "tail_alpha", "tail_of", "wpo"), _NO_LOGPS
    )
    learning_rate: ClassVar[float] = 1e-5
    lora_learning_rate: ClassVar[float] = 1e-4

    margin: Literal["none", "gap"] = "none"
    label_smoothing: float = 0.0
    centring: float = 0.0

    def __post_init__(self) -> None:
        check(self.margin in ("none", "gap"), f'margin must be "none" or "gap", got {self.margin!r}')
        check_label_smoothing(self.label_smoothing)
        check(
            0 <= self.centring < math.inf,
            f"centring must be finite and >= 0, got {self.centring}: it is the weight of the squared sum of rewards; "
            "0.01 is usual",
        )
        if self.margin == "gap":
            object.__setattr__(self, "columns", frozenset({"gap"}))

    def __call__(self, policy: LogProbs, reference: LogProbs | None, batch: Batch, state: State) -> Outcome:
        reward_R = required(policy.reward_R, "BradleyTerry", "reward_R")

        def outcome(batch: Batch) -> Outcome:
            chosen_E, rejected_E = pair_indices(batch)
            return Outcome(self._loss_E(reward_R[chosen_E], reward_R[rejected_E], batch), reward_R.detach(), state)

        return softened(outcome, batch)

    def _loss_E(self, chosen_E: Tensor, rejected_E: Tensor, batch: Batch) -> Tensor:
        beyond_E = chosen_E - rejected_E
        if self.margin == "gap":
            beyond_E = beyond_E - batch.gap_E.to(beyond_E.dtype)
        right_E, wrong_E = -logsigmoid(beyond_E), -logsigmoid(-beyond_E)
        loss_E = (1 - self.label_smoothing) * right_E + self.label_smoothing * wrong_E
        return loss_E + self.centring * (chosen_E + rejected_E) ** 2
