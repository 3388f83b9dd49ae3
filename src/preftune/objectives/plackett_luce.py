"""DPO on rankings."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune.objectives.base import Confidence, DataKind, Objective, Outcome, State, check, check_positive, softened
from preftune.objectives.batch import Batch, LogProbs, at_hand, beside, scores_R
from preftune.objectives.tokens import ratios_R


@dataclass(frozen=True)
class PlackettLuce(Objective):
    """Plackett-Luce: DPO on rankings of n responses, of which each is chosen among those that are no better.

    Equation:
        loss = -sum over places k of log(exp(r_k) / (exp(r_k) + sum over j ranked below k of exp(r_j)))
        r = beta * log(pi(response) / pi_ref(response))

        With two responses it is DPO. Between responses of equal score it has no opinion: each competes with those of
        strictly lower score alone, so that a winner over n - 1 tied others gives its probability to come first. An
        example without any order has no loss and no weight. In pairs with a confidence below 1 the loss is the expected
        one, as in DPO.

    Source: Rafailov et al. 2023, "Direct Preference Optimization", arXiv 2305.18290, appendix A.3; beta 0.1 as there.
        With top 1 it is the loss of S-DPO (Chen et al. 2024, "On Softmax Direct Preference Optimization for
        Recommendation", arXiv 2406.09215), which has one chosen response and several rejected ones.

    When to use: several responses to each prompt that one judge has ranked or scored. It says more than the best and
        the worst of them as a pair. Where only the upper places can be trusted, set top.

    In nats: a response that gains 10 nats on another at beta 0.1 becomes e times as likely to be chosen before it. The
        loss starts at the log of the number of orders: 0.69 for 2 responses, 3.18 for 4.

    Differs between libraries: most split rankings into pairs and train DPO on all of them: another loss, with the same
        optimum if the rankings are those of a Plackett-Luce model.

    Args:
        beta: strength of the pull towards the reference, reward per nat. Usual: 0.01 to 0.5.
        top: how many places count, from the first; responses behind them are still competitors. Null: all.
            Usual: null, or 1.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace as Batch
        >>> batch = Batch(response_K=torch.arange(3), example_R=torch.tensor([0, 0, 0]), role_R=torch.full((3,), 2),
        ...               score_R=torch.tensor([0.1, 0.9, 0.5]), length_R=torch.ones(3), weight_E=torch.ones(1),
        ...               confidence_E=torch.ones(1))
        >>> policy, reference = LogProbs(torch.tensor([0.25, 0.5, 0.25]).log()), LogProbs(torch.full((3,), 0.25).log())
        >>> outcome = PlackettLuce(beta=1.0)(policy, reference, batch, {})
        >>> round(outcome.loss_E.exp().item(), 4)  # ratios 1, 2, 1: first with 2 / (2 + 1 + 1), second with 1 / (1 + 1)
        4.0
    """

    data: ClassVar[DataKind] = "rankings"
    confidence: ClassVar[Confidence] = "mixed"

    beta: float = 0.1
    top: int | None = None

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, "it is the reward per nat of log-ratio; 0.1 is usual")
        check(
            self.top is None or self.top >= 1,
            f"top must be >= 1, got {self.top}: it is how many places count; leave it out to count all",
        )

    def weight_E(self, batch: Batch) -> Tensor:
        _, below_ENN = _orders(at_hand(batch))
        return batch.weight_E * beside(below_ENN.any(dim=(1, 2)), batch.weight_E)

    def __call__(self, policy: LogProbs, reference: LogProbs | None, batch: Batch, state: State) -> Outcome:
        ratio_R = ratios_R("PlackettLuce", policy, reference, batch)

        def outcome(batch: Batch) -> Outcome:
            return Outcome(self._loss_E(ratio_R, batch), self.beta * ratio_R.detach(), state)

        return softened(outcome, batch)

    def _loss_E(self, ratio_R: Tensor, batch: Batch) -> Tensor:
        index_EN, below_ENN = _orders(at_hand(batch))
        counts_EN = below_ENN.any(dim=2)
        if self.top is not None:
            counts_EN &= below_ENN.sum(dim=1) < self.top  # fewer than so many are better
        example_M, place_M = counts_EN.nonzero().unbind(dim=1)
        found = (index_EN[example_M], index_EN[example_M, place_M], below_ENN[example_M, place_M], example_M)
        rivals_MN, own_M, below_MN, example_M = (beside(each, ratio_R) for each in found)
        ahead_MN = self.beta * (ratio_R[rivals_MN] - ratio_R[own_M][:, None])
        # with x = log of the sum of exp(r_j - r_k), the place costs log(1 + exp(x)): nothing is lost where x << 0
        rivals_M = ahead_MN.masked_fill(~below_MN, -torch.inf).logsumexp(dim=1)
        loss_E = ratio_R.new_zeros(len(index_EN))
        return loss_E.index_add(0, example_M, -logsigmoid(-rivals_M))


def _orders(batch: Batch) -> tuple[Tensor, Tensor]:
    """Who is better than whom.

    Returns:
        Indices of each example's responses, shape (E, N) with N responses at most (0 where there are fewer), and
        whether the third index's response has a strictly lower score than the second's, shape (E, N, N).
    """
    order_R = torch.argsort(batch.example_R, stable=True)
    example_R = batch.example_R[order_R]
    count_E = torch.bincount(example_R, minlength=len(batch.weight_E))
    column_R = torch.arange(len(order_R), device=order_R.device) - (count_E.cumsum(0) - count_E)[example_R]
    index_EN = order_R.new_zeros(len(count_E), int(count_E.max()))
    index_EN[example_R, column_R] = order_R
    score_EN = batch.score_R.new_full(index_EN.shape, torch.nan)  # no comparison with NaN holds
    score_EN[example_R, column_R] = scores_R(batch)[order_R]
    return index_EN, score_EN[:, None, :] < score_EN[:, :, None]
