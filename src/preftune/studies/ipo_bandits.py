"""The bandits of the IPO paper (Azar et al. 2023, arXiv 2310.12036, sections 5.3 and 5.4), run again.

A policy is a softmax over two or three actions, trained with Adam on mini-batches of preference pairs, once with DPO
and once with IPO. DPO's beta is what the paper calls tau. All seeds, data sets, taus and objectives train at once in
one tensor; Adam works element by element, so each trains as it would alone.

The paper does not print its taus, nor where logits start; here they start at 0, which is the reference.

Tensor names carry their shape: O objectives, U taus, D data sets, S seeds, B pairs of a mini-batch, A actions,
R recorded steps, C steps of a chunk.
"""

from __future__ import annotations

import csv
import json
import math
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from preftune.errors import PreftuneError
from preftune.objectives.dpo import DPO
from preftune.objectives.ipo import IPO
from preftune.objectives.pairs import PairObjective, Pairs
from preftune.report.bandits import page
from preftune.studies.threads import one_thread
from preftune.theory.tabular import ipo_optimum

TAUS = (0.1, 0.5, 1.0, 5.0)
OBJECTIVES = ("dpo", "ipo")
SEEDS = 10
BATCH = 9
LEARNING_RATE = 0.01
RECORDS = 100
_T95 = 2.262157  # Student's t for SEEDS - 1 degrees of freedom
_CHUNK = 1000  # steps whose mini-batches are drawn at once


@dataclass(frozen=True)
class DataSet:
    """Preference pairs over actions.

    Attributes:
        key: short name, fit for a file or an HTML id.
        title: what it is.
        note: how to read its figure.
        actions: number of actions; their names are letters from a.
        pairs: (preferred, other) each, drawn with equal probability.
    """

    key: str
    title: str
    note: str
    actions: int
    pairs: tuple[tuple[int, int], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The actions."""
        return tuple("abc"[: self.actions])

    def ipo_optimum(self, tau: float) -> Tensor:
        """Probabilities of the actions where IPO leads, shape A, exactly."""
        wins_AA = torch.zeros(self.actions, self.actions, dtype=torch.float64)
        for better, worse in self.pairs:
            wins_AA[better, worse] += 1
        return ipo_optimum(torch.full((self.actions,), -math.log(self.actions)), wins_AA, tau).exp()


TWO = DataSet(
    "two-actions",
    "Two actions, one always preferred",
    "Section 5.3.1 of the paper. DPO goes to the corner at every tau, at the pace that beta allows; IPO stops at "
    "sigmoid(1 / (2 tau)).",
    2,
    ((0, 1),),
)
ORDER = DataSet(
    "total-order",
    "Total order: a over b, b over c, a over c",
    "The paper's data set D1 and Figure 1. DPO ends at a alone, whatever beta is; IPO keeps all three actions alive, "
    "the more so the larger tau is.",
    3,
    ((0, 1), (1, 2), (0, 2)),
)
CYCLE = DataSet(
    "cycle",
    "Cycle: a over b, b over c, c over a",
    "The paper's data set D2, which it does not plot. Nothing is better than anything else, and both objectives wander "
    "around the uniform policy; their mini-batches rarely hold the three pairs equally often.",
    3,
    ((0, 1), (1, 2), (2, 0)),
)
PRINTED = DataSet(
    "d3-as-printed",
    "D3 as printed: a over b, b over a",
    "The paper's data set D3 as its text prints it. c occurs in no pair, so neither objective moves it: this cannot be "
    "what the paper's Figure 2 shows, where DPO sends c to 0.",
    3,
    ((0, 1), (1, 0)),
)
ONE_LOSS = DataSet(
    "d3-one-loss",
    "D3 with one loss for c: a over b, b over a, b over c",
    "A reading of D3 that does give the paper's Figure 2 (our conjecture): a and c never meet, and c loses once. DPO "
    "sends c to 0 at any tau, IPO lowers it by as much as tau allows.",
    3,
    ((0, 1), (1, 0), (1, 2)),
)
DATA = (TWO, ORDER, CYCLE, PRINTED, ONE_LOSS)


@dataclass(frozen=True)
class Form:
    """How long a rerun is, and how close to their limits its policies have to come.

    Attributes:
        steps: of Adam.
        corner: probability of the best action that DPO has to pass where beta <= 1.
        tolerance: total variation that mini-batches may leave between IPO's mean policy and its optimum.
    """

    steps: int
    corner: float
    tolerance: float


FULL = Form(18_000, 0.999, 0.02)
QUICK = Form(2_000, 0.98, 0.03)  # DPO is on its way to the corner then, IPO has arrived


@dataclass(frozen=True)
class Curves:
    """Policies of a data set over training.

    Attributes:
        data: what they trained on.
        taus: tau of IPO, and beta of DPO.
        step_R: number of Adam steps taken.
        logps_ROUSA: log-probabilities of the actions; objectives as in OBJECTIVES.
    """

    data: DataSet
    taus: tuple[float, ...]
    step_R: tuple[int, ...]
    logps_ROUSA: Tensor

    @property
    def mean_ROUA(self) -> Tensor:
        """Mean probability of each action over seeds."""
        return self.logps_ROUSA.exp().mean(3)

    @property
    def half_width_ROUA(self) -> Tensor:
        """Half of the 95% interval of that mean (Student's t)."""
        return _T95 * self.logps_ROUSA.exp().std(3) / math.sqrt(SEEDS)

    @property
    def settled_OUA(self) -> Tensor:
        """Mean probability of each action over seeds and the last quarter of training: mini-batches keep a policy
        moving around its optimum."""
        return self.mean_ROUA[3 * len(self.step_R) // 4 :].mean(0)

    @property
    def gap_ROU(self) -> Tensor:
        """Log-ratio of the first action to the last one, in nats, mean over seeds: what the losses widen."""
        return (self.logps_ROUSA[..., 0] - self.logps_ROUSA[..., -1]).mean(3)


@dataclass(frozen=True)
class Limit:
    """Something that theory says of a rerun, and whether it came out.

    Attributes:
        data: key of the data set.
        objective: name of the objective.
        tau: tau of IPO, beta of DPO.
        says: the limit, in words.
        expected: its value, or the bound.
        measured: what came out.
        held: True if it did.
    """

    data: str
    objective: str
    tau: float
    says: str
    expected: float
    measured: float
    held: bool


@dataclass(frozen=True)
class Study:
    """A finished rerun.

    Attributes:
        out: folder with results.json, curves.csv and ipo-bandits.html.
        form: what was run.
        seconds: wall time of the training.
        curves: one for each data set.
        limits: all that were checked.
    """

    out: Path
    form: Form
    seconds: float
    curves: tuple[Curves, ...]
    limits: tuple[Limit, ...]

    @property
    def page(self) -> Path:
        """The figures."""
        return self.out / "ipo-bandits.html"


def study(out: Path, quick: bool = False, seed: int = 0) -> Study:
    """Rerun the bandits, and write results.json, curves.csv and ipo-bandits.html into a folder.

    Args:
        out: the folder; made if it is missing.
        quick: 2,000 steps instead of the paper's 18,000.
        seed: of the mini-batches; whole number >= 0.

    Raises:
        PreftuneError: if the folder cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PreftuneError(f"cannot make the folder {out} ({error.strerror}): name another with --out") from None
    form, began = QUICK if quick else FULL, time.perf_counter()
    curves = rerun(DATA, form.steps, seed)
    seconds = time.perf_counter() - began
    found = Study(out, form, seconds, curves, tuple(limits(curves, form)))
    words = ["preftune", "study", "ipo-bandits", "--out", str(out), "--seed", str(seed), *["--quick"] * quick]
    _write_results(found, seed)
    _write_curves(found)
    page(found, shlex.join(words)).write(found.page)
    return found


@one_thread()
def rerun(data: Sequence[DataSet], steps: int, seed: int, taus: Sequence[float] = TAUS) -> tuple[Curves, ...]:
    """Train a policy for each data set, objective, tau and seed, all in one tensor.

    Args:
        data: what to train on.
        steps: of Adam.
        seed: of the mini-batches, which all objectives and taus share.
        taus: tau of IPO and beta of DPO.
    """
    actions = max(each.actions for each in data)
    objectives: list[PairObjective] = [*(DPO(beta=tau) for tau in taus), *(IPO(tau=tau) for tau in taus)]
    logits_OUDSA = torch.zeros(len(OBJECTIVES), len(taus), len(data), SEEDS, actions)
    for d, each in enumerate(data):
        logits_OUDSA[:, :, d, :, each.actions :] = -math.inf  # actions that others have: probability 0, no gradient
    logits_OUDSA.requires_grad_()
    optimiser = torch.optim.Adam([logits_OUDSA], lr=LEARNING_RATE, fused=True)
    reference_D = torch.tensor([-math.log(each.actions) for each in data])
    reference_DSB = reference_D[:, None, None].expand(-1, SEEDS, BATCH)
    one_DSB, unknown_DSB = torch.ones_like(reference_DSB), torch.full_like(reference_DSB, math.nan)
    generator = torch.Generator().manual_seed(seed)
    record_at = {round(steps * i / RECORDS) for i in range(RECORDS + 1)}
    step_R, recorded = [], []
    for step in range(steps + 1):
        logps_OUDSA = torch.log_softmax(logits_OUDSA, dim=-1)
        if step in record_at:
            step_R.append(step)
            recorded.append(logps_OUDSA.detach())
        if step == steps:
            break
        if step % _CHUNK == 0:
            drawn_CDSB2 = _draw(data, generator)
        sides = drawn_CDSB2[step % _CHUNK].expand(*logits_OUDSA.shape[:2], -1, -1, -1, -1).unbind(-1)
        chosen, rejected = (logps_OUDSA.gather(-1, side).flatten(0, 1).unbind() for side in sides)
        losses = [
            objective.pair_loss(
                Pairs(chosen_DSB, rejected_DSB, reference_DSB, reference_DSB, one_DSB, one_DSB, one_DSB, unknown_DSB)
            )
            for objective, chosen_DSB, rejected_DSB in zip(objectives, chosen, rejected, strict=True)
        ]
        (logits_OUDSA.grad,) = torch.autograd.grad(torch.stack(losses).mean(-1).sum(), logits_OUDSA)
        optimiser.step()
    logps_ROUDSA = torch.stack(recorded).double()
    return tuple(
        Curves(each, tuple(taus), tuple(step_R), logps_ROUDSA[:, :, :, d, :, : each.actions])
        for d, each in enumerate(data)
    )


def _draw(data: Sequence[DataSet], generator: torch.Generator) -> Tensor:
    """Mini-batches for a chunk of steps, uniform with replacement: better and worse action, shape CDSB2."""
    drawn = []
    for each in data:
        index = torch.randint(len(each.pairs), (_CHUNK, SEEDS, BATCH), generator=generator)
        drawn.append(torch.tensor(each.pairs)[index])
    return torch.stack(drawn, dim=1)


def limits(curves: Sequence[Curves], form: Form) -> list[Limit]:
    """What theory says of the curves, and whether it holds."""
    by_key = {each.data.key: each for each in curves}
    found = []
    for u, tau in enumerate(curves[0].taus):
        for key in (TWO.key, ORDER.key):
            found += _dpo_without_bound(by_key[key], u, tau, form)
        for each in curves:
            found.append(_ipo_at_its_optimum(each, u, tau, form))
        found += _action_c(by_key, u, tau, form)
    return found


def _dpo_without_bound(curves: Curves, u: int, tau: float, form: Form) -> list[Limit]:
    """DPO under preferences that never contradict each other: the corner, or still on the way to it."""
    key, best = curves.data.key, float(curves.mean_ROUA[-1, 0, u, 0])
    gap_R = curves.gap_ROU[:, 0, u]
    growth = float(gap_R[-1] - gap_R[3 * len(gap_R) // 4])
    says = "growth of log pi(first) / pi(last) in the last quarter, nats, above"
    found = [Limit(key, "dpo", tau, says, 0.02, growth, growth > 0.02)]
    if tau <= 1:
        found.append(Limit(key, "dpo", tau, "probability of a, above", form.corner, best, best > form.corner))
    return found


def _ipo_at_its_optimum(curves: Curves, u: int, tau: float, form: Form) -> Limit:
    distance = float((curves.settled_OUA[1, u] - curves.data.ipo_optimum(tau)).abs().sum() / 2)
    says = "total variation to the closed form over the last quarter, at most"
    return Limit(curves.data.key, "ipo", tau, says, form.tolerance, distance, distance <= form.tolerance)


def _action_c(by_key: dict[str, Curves], u: int, tau: float, form: Form) -> list[Limit]:
    """The two readings of D3 by what becomes of c under DPO."""
    printed, one_loss = (float(by_key[each.key].mean_ROUA[-1, 0, u, 2]) for each in (PRINTED, ONE_LOSS))
    still = Limit(PRINTED.key, "dpo", tau, "probability of c stays", 1 / 3, printed, abs(printed - 1 / 3) < 0.01)
    if tau > 1:
        return [still]
    bound = 1 - form.corner
    return [still, Limit(ONE_LOSS.key, "dpo", tau, "probability of c, below", bound, one_loss, one_loss < bound)]


def _write_results(found: Study, seed: int) -> None:
    policies = [
        {
            "data": each.data.key,
            "pairs": ["".join(each.data.names[i] for i in pair) for pair in each.data.pairs],
            "objective": objective,
            "tau": tau,
            "probability": _rounded(each.mean_ROUA[-1, o, u]),
            "probability_ci95": _rounded(each.half_width_ROUA[-1, o, u]),
            "closed_form": _rounded(each.data.ipo_optimum(tau)) if objective == "ipo" else None,
            "log_ratio": round(float(each.gap_ROU[-1, o, u]), 4),
        }
        for each in found.curves
        for o, objective in enumerate(OBJECTIVES)
        for u, tau in enumerate(each.taus)
    ]
    results = {
        "source": "Azar et al. 2023, arXiv 2310.12036, sections 5.3.1 and 5.4",
        "steps": found.form.steps,
        "seeds": SEEDS,
        "batch": BATCH,
        "learning_rate": LEARNING_RATE,
        "seed": seed,
        "seconds": round(found.seconds, 1),
        "policies": policies,
        "limits": [asdict(limit) for limit in found.limits],
    }
    (found.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _write_curves(found: Study) -> None:
    with (found.out / "curves.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["data", "objective", "tau", "step", "action", "probability", "low", "high"])
        for each in found.curves:
            mean, half = each.mean_ROUA, each.half_width_ROUA
            for o, objective in enumerate(OBJECTIVES):
                for u, tau in enumerate(each.taus):
                    for r, step in enumerate(each.step_R):
                        for a, name in enumerate(each.data.names):
                            middle, width = float(mean[r, o, u, a]), float(half[r, o, u, a])
                            ends = (f"{value:.6g}" for value in (middle, middle - width, middle + width))
                            rows.writerow([each.data.key, objective, tau, step, name, *ends])


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]
