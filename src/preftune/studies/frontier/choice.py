"""What is chosen on validation prompts, before any test prompt is looked at: a learning rate for each strength, and the
one strength by which a method is compared with others.

A policy that stays at its start has no regret to speak of, so the least regret is looked for among those that got
somewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from preftune.studies.frontier.cells import Outcome

ENOUGH = 0.75  # of the greatest gain of reward that a strength's learning rates reach
FAR = 1 / 3  # of what there is to gain could be had at the KL of a policy that is to be compared


def gain(outcome: Outcome) -> float:
    """Reward over the reference's."""
    return float(outcome.figures["reward"]) - float(outcome.figures["reference"])


def best_rate(outcomes: Sequence[Outcome]) -> Outcome | None:
    """That of the learning rate of least regret among those that reach three quarters of the greatest gain.

    Where the frontier is not known as far out as a policy has gone, its regret is not either; such a rate is chosen
    only if there is no other.

    Args:
        outcomes: of one method at one strength, a learning rate each.

    Returns:
        None if all of them failed.
    """
    done = [each for each in outcomes if each.failed is None]
    if not done:
        return None
    greatest = max(gain(each) for each in done)
    enough = [each for each in done if gain(each) >= min(greatest, ENOUGH * greatest)]
    return min(enough, key=_regret)


def best_strength(outcomes: Sequence[Outcome]) -> float | None:
    """The strength of least regret among those that go far enough for a third of all gain to be possible; the one that
    goes farthest, if none does.

    Args:
        outcomes: of one method at its chosen learning rates, a strength each.

    Returns:
        None if all of them failed.
    """
    done = [each for each in outcomes if each.failed is None]
    if not done:
        return None
    far = [each for each in done if _attainable(each) >= FAR]
    return min(far, key=_regret).cell.strength if far else max(done, key=_attainable).cell.strength


def _regret(outcome: Outcome) -> float:
    regret = outcome.figures["regret"]
    return float("inf") if regret is None else float(regret)


def _attainable(outcome: Outcome) -> float:
    share = outcome.figures["attainable"]
    return 1.0 if share is None else float(share)  # beyond the end of a sampled curve
