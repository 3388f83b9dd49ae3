"""The general form of preference optimisation: regression on a transformed preference probability."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from preftune.errors import PreftuneError
from preftune.importing import imported
from preftune.objectives.base import Confidence, check, check_positive
from preftune.objectives.batch import beside
from preftune.objectives.pairs import PairObjective, Pairs

Psi = Callable[[Tensor], Tensor]
Given = Callable[[Any], Any]  # what users give

NAMED: Mapping[str, Psi] = {
    "identity": lambda q: q,
    "logit": torch.logit,
    "log": torch.log,
    "square": torch.square,
    "root": torch.sqrt,
    "arcsine": lambda q: torch.asin(torch.sqrt(q)),
}


@dataclass(frozen=True)
class PsiPO(PairObjective):
    """PsiPO: least squares towards a function Psi of the probability that chosen is better.

    Equation:
        loss = (delta - (Psi(p) - Psi(1 - p)) / (2 tau))^2
        delta = log(pi(chosen) / pi_ref(chosen)) - log(pi(rejected) / pi_ref(rejected))

        p is the pair's confidence c, if a label is right with probability `p`: c * p + (1 - c) * (1 - p). Log-ratios
        are those of whole responses (modifiers.average: mean, for nats per token).

        The paper's policy maximises E[Psi(p(y better than y'))] - tau * KL(pi || pi_ref), with y' from the policy mu
        that wrote the data. For two responses, drawn equally often by mu, the minimum of this loss is that policy. For
        more it is if Psi(q) + Psi(1 - q) is constant (identity, logit, arcsine: `exact` is True). For other Psi what is
        optimised is the antisymmetrised (Psi(q) - Psi(1 - q)) / 2: so square is the identity here, and log half of
        logit.

    Source: Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human Preferences",
        arXiv 2310.12036, equations 6 and 7; regression as in their section 5 for Psi = identity. With identity and
        p = 1 this is IPO, with target 1 / (2 tau); with logit its minimum is DPO's under Bradley-Terry, for beta = tau.

    When to use: pairs with a probability (several annotators, a judge's scores) whose meaning for the reward you want
        to choose. identity keeps the target finite; logit takes the probability for that of a Bradley-Terry model, so
        its target grows without bound as p -> 1: this is how DPO overfits labels that never contradict each other.

    In nats: delta is drawn to 1 / (2 tau) at most with identity, 5 nats at tau 0.1; with logit to logit(p) / tau, 22
        nats for p = 0.9 at tau 0.1, and without bound as p -> 1.

    Differs between libraries: none that we know has it. With soft labels IPO is the same as identity here, up to a
        constant.

    Args:
        psi: identity, logit, log, square, root, arcsine; or a function of your own, as "package.module:function", or
            itself when constructed in Python. It increases, and takes probabilities: a float64 tensor, or if it cannot
            take that, or gives no tensor of that shape, one by one as Python's own numbers (math:sqrt).
        tau: regularisation. The target is in nats: 1 / (2 tau) at most for identity, logit(p) / tau for logit. Usual:
            0.05 to 1.
        p: probability that a label is right, in [0.5, 1]; for data that gives no confidence. Usual: 1, or the share of
            annotators who agree.
        clamp: probabilities are kept in [clamp, 1 - clamp]; 0 clamps nothing, and refuses a p with an infinite target.
            Usual: 0, or 0.01 with logit.

    Example:
        >>> from torch import tensor
        >>> result = PsiPO(psi="logit", tau=0.5, p=0.75).on_pairs(
        ...     tensor([-5.0]), tensor([-10.0]), tensor([-6.0]), tensor([-9.0]))
        >>> round(result.loss.item(), 4)  # delta = 2, target = log(3) / 0.5 = 2.1972
        0.0389
    """

    confidence: ClassVar[Confidence] = "read"
    refuses: ClassVar[Mapping[str, str]] = {"label_smoothing": "set p on psi_po itself, to 1 - label_smoothing"}

    psi: str | Given = "identity"
    tau: float = 0.1
    p: float = 1.0
    clamp: float = 0.0

    def __post_init__(self) -> None:
        check_positive("tau", self.tau, "the target log-ratio difference is divided by 2 tau")
        check(
            0.5 <= self.p <= 1,
            f"p must be in [0.5, 1], got {self.p}: it is the probability that a label is right",
        )
        check(0 <= self.clamp < 0.5, f"clamp must be in [0, 0.5), got {self.clamp}: p is kept in [clamp, 1 - clamp]")
        object.__setattr__(self, "_psi", _increasing(_function(self.psi), self._name))

    @property
    def exact(self) -> bool:
        """True if Psi(q) + Psi(1 - q) is constant, so that the minimum is PsiPO's for any number of responses; if not,
        (Psi(q) - Psi(1 - q)) / 2 is optimised in place of Psi."""
        q = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
        both = self._apply(q) + self._apply(1 - q)
        return bool((both - both.mean()).abs().max() <= 1e-9 * (1 + both.abs().max()))

    def notes(self) -> list[str]:
        if self.exact:
            return []
        return [
            f"psi {self._name} is trained as its antisymmetrised form, (Psi(q) - Psi(1 - q)) / 2, as Psi(q) + "
            "Psi(1 - q) is not constant: with more than two responses to a prompt the minimum is not the policy that "
            "maximises E[Psi] (preftune.theory.tabular.psi_po_gap gives the distance)"
        ]

    def target(self, confidence: Tensor) -> Tensor:
        """Where delta is drawn to, in nats, for the probability that chosen is better; any one shape.

        Raises:
            PreftuneError: if it is not finite.
        """
        c = confidence.detach().cpu().double()  # not every device has float64
        p = (c * self.p + (1 - c) * (1 - self.p)).clamp(self.clamp, 1 - self.clamp)
        target = (self._apply(p) - self._apply(1 - p)) / (2 * self.tau)
        if not bool(target.isfinite().all()):
            worst = p[~target.isfinite()].flatten()[0].item()
            raise PreftuneError(
                f"psi {self._name} has no finite target for a preference probability of {worst:g}: set clamp (0.01, "
                "say), or p below 1, or give the data confidences below 1"
            )
        return target

    def pair_loss(self, pairs: Pairs) -> Tensor:
        delta_E = pairs.delta_E
        known_E = pairs.confidence_E if pairs.confidence_at_hand_E is None else pairs.confidence_at_hand_E
        return (delta_E - beside(self.target(known_E).to(delta_E.dtype), delta_E)) ** 2

    def reward(self, ratio: Tensor, length: Tensor) -> Tensor:
        return self.tau * ratio

    def describe(self) -> dict[str, Any]:
        """The hyperparameters, by field name; a function as package.module:function.

        Raises:
            PreftuneError: if psi is a function that no name leads to.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if not isinstance(self.psi, str):
            module, name = getattr(self.psi, "__module__", None), getattr(self.psi, "__qualname__", "<none>")
            if module in (None, "__main__") or "<" in name or "." in name:
                raise PreftuneError(
                    f"psi is the function {name}, which no config can name: define it at the top of a module of its own"
                )
            values["psi"] = f"{module}:{name}"
        return values

    @property
    def _name(self) -> str:
        return self.psi if isinstance(self.psi, str) else getattr(self.psi, "__qualname__", "function")

    def _apply(self, q: Tensor) -> Tensor:
        try:
            return self._psi(q)  # type: ignore[attr-defined,no-any-return]
        except Exception as error:  # whatever a user's function does
            raise PreftuneError(f"psi {self._name} failed on probabilities of pairs: {_short(error)}") from error


def _increasing(psi: Given, name: str) -> Psi:
    """A function of probabilities as one of tensors.

    Raises:
        ValueError: unless it is finite inside (0, 1) and increases.
    """
    q = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    found, problem = psi, "it gave no tensor of the same shape"
    try:
        values = psi(q)
    except Exception as error:  # whatever a user's function does
        values, problem = None, _short(error)
    if not (isinstance(values, Tensor) and values.shape == q.shape):
        found = _one_by_one(psi)
        try:
            float(psi(0.5))  # inside, no value is an error
            values = found(q)
        except Exception as error:
            alone = f"on a probability by itself ({_short(error)})"
            raise ValueError(f"psi {name} failed on a tensor of probabilities ({problem}) and {alone}") from error
    check(bool(values.isfinite().all()), f"psi {name} must give a finite number for each probability inside (0, 1)")
    check(
        bool((values.diff() > 0).all()),
        f"psi {name} must increase: where it does not, a response that is preferred more often would be rewarded less",
    )
    return found


def _one_by_one(psi: Given) -> Psi:
    """A function of numbers as one of tensors; NaN where it has no value, such as the logarithm of 0."""

    def value(q: float) -> float:
        try:
            return float(psi(q))
        except (ArithmeticError, ValueError):
            return math.nan

    return lambda q: torch.tensor([value(each) for each in q.flatten().tolist()], dtype=torch.float64).reshape(q.shape)


def _short(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _function(psi: str | Given) -> Given:
    """Psi by name."""
    if not isinstance(psi, str):
        check(callable(psi), f"psi must be a name or a function, got {psi!r}")
        return psi
    if psi in NAMED:
        return NAMED[psi]
    module, colon, name = psi.partition(":")
    known = ", ".join(NAMED)
    check(bool(colon and module and name), f"psi must be one of {known}, or package.module:function, got {psi!r}")
    try:
        function = getattr(imported(module), name)
    except (Exception, SystemExit) as error:  # whatever a user's module does while it is imported
        raise ValueError(f"psi {psi} cannot be imported: {_short(error)}") from error
    check(callable(function), f"psi {psi} is of type {type(function).__name__}, expected a function")
    return function  # type: ignore[no-any-return]
