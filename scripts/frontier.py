"""Draws the frontiers of both built-in worlds and writes the tables of docs/frontier.md.

make docs-frontier      (two minutes on one core, most of them for sampling)
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import preftune
from preftune.report.drawing import CHOSEN, HELD_OUT, OWN, REJECTED, TRAINING
from preftune.report.svg import Chart, Line, drawing
from preftune.sandbox import frontier as reviews
from preftune.sandbox import listed
from preftune.theory.frontier import Curve, SampledFrontier, best_of_n

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- {}: begin (make docs-frontier) -->", "<!-- {}: end -->"
BETAS = (3.0, 1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.05)
COLOURS = (HELD_OUT, REJECTED, CHOSEN)


def listed_figures() -> dict[str, Any]:
    """The listed world's frontier on its test prompts, and best of n beside it."""
    curve = listed.frontier(listed.TEST)
    reference, reward = listed.reference_logps(listed.TEST), listed.rewards(listed.TEST)
    draws = []
    for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        found = listed.worth(best_of_n(reference, reward, n), listed.TEST)
        bound = math.log(n) - (n - 1) / n
        draws.append({"n": n, "bound": bound, **vars(found)})
    return {
        "spread": math.sqrt(curve.spread),
        "best_reward": curve.best_reward,
        "curve": _points(curve),
        "best_of_n": draws,
    }


def reviews_figures(samples: int) -> dict[str, Any]:
    """The sandbox world's, from the base model's samples alone, and with those of a policy that DPO trained."""
    with tempfile.TemporaryDirectory() as folder:
        run = preftune.train(
            "sandbox",
            "sandbox",
            {"name": "dpo", "beta": 0.3},
            train={"epochs": 1},
            optim={"learning_rate": 1e-3},
            batch={"size": 64},
            evaluate={"samples": 0},
            doctor={"answers": 0},
            output=Path(folder) / "run",
            quiet=True,
        )
    alone = reviews.frontier(samples=samples)
    mixed = reviews.frontier(samples=samples, proposals=[run.model.eval()])
    return {"samples": samples, "alone": _points(alone), "mixed": _points(mixed)}


def _points(curve: Curve) -> dict[str, Any]:
    found: dict[str, Any] = {
        "beta": [None, *curve.beta_B.tolist()[1:]],  # JSON has no infinity, which is the reference's
        "kl": curve.kl_B.tolist(),
        "reward": curve.reward_B.tolist(),
        **{name: part.tolist() for name, part in curve.component_B.items()},
    }
    if isinstance(curve, SampledFrontier):
        columns = {"effective": curve.effective_B, "error": curve.error_B, "bias": curve.bias_B}
        found |= {name: column.tolist() for name, column in columns.items()}
    return found


def listed_table(found: dict[str, Any]) -> str:
    """Points of the listed world's curve, and best of n."""
    curve, names = found["curve"], listed.COMPONENTS
    beta = np.array([math.inf, *curve["beta"][1:]])
    lines = [f"| beta | KL, nats | reward | {' | '.join(names)} |", "|" + " --- |" * (3 + len(names))]
    for wanted in (math.inf, *BETAS, 0.0):
        i = int(np.abs(beta[1:-1] - wanted).argmin()) + 1 if 0 < wanted < math.inf else 0 if wanted else len(beta) - 1
        name = "the reference" if not i else "0: the best responses" if not wanted else f"{beta[i]:.2g}"
        values = (curve[key][i] for key in ("kl", "reward", *names))
        lines.append(f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} |")
    lines += ["", "| best of n | KL, nats | log n - (n - 1) / n | reward | share of the possible gain |"]
    lines.append("|" + " --- |" * 5)
    for draw in found["best_of_n"][1:]:
        numbers = f"{draw['kl']:.4f} | {draw['bound']:.4f} | {draw['reward']:.2f} | {draw['gain_share']:.3f}"
        lines.append(f"| {draw['n']} | {numbers} |")
    return "\n".join(lines)


def reviews_table(found: dict[str, Any]) -> str:
    """Points of the sampled curves."""
    lines = ["| beta | KL, nats | reward | standard error | too low by about | effective samples per prompt |"]
    lines.append("|" + " --- |" * 6)
    for key, title in (("alone", "samples of the base model"), ("mixed", "half of them of a policy that DPO trained")):
        curve = found[key]
        lines.append(f"| *{title}* | | | | | |")
        beta = np.array([math.inf, *curve["beta"][1:]])
        last = len(beta) - 1
        wanted = [beta for beta in (3.0, 1.5, 1.0, 0.85, 0.7, 0.6, 0.5) if beta > curve["beta"][-1]]
        for i in dict.fromkeys((*(int(np.abs(beta - each).argmin()) for each in wanted), last)):
            name = f"{beta[i]:.2g}" + (", the last" if i == last else "")
            values = (round(curve[column][i], 3) + 0.0 for column in ("kl", "reward", "error", "bias"))  # no -0.000
            numbers = " | ".join(f"{value:.3f}" for value in values)
            lines.append(f"| {name} | {numbers} | {curve['effective'][i]:,.0f} |")
    return "\n".join(lines)


def figure(found: dict[str, Any]) -> str:
    """Both worlds side by side, as SVG."""
    return drawing(
        [
            _chart("The listed world: reward", found["listed"]["curve"], (), found["listed"]["best_of_n"]),
            _chart("Its components", found["listed"]["curve"], listed.COMPONENTS, None),
            _chart("The world of film reviews: reward", found["reviews"]["mixed"], (), None, found["reviews"]["alone"]),
        ],
        "Greatest mean reward at each KL from the reference, in both built-in worlds",
    )


def _chart(
    title: str, curve: dict[str, Any], parts: tuple[str, ...], draws: list[dict[str, Any]] | None, other: Any = None
) -> Chart:
    x = np.linspace(0, curve["kl"][-1], 200)

    def along(points: dict[str, Any], name: str) -> np.ndarray:
        # in the root of KL, along which the curve begins straight
        return np.interp(np.sqrt(x), np.sqrt(points["kl"]), points[name], right=math.nan)

    lines = [Line(name, colour, along(curve, name)) for name, colour in zip(parts, COLOURS, strict=False)]
    if not parts:
        name = "the best there is" if other is None else "with a policy's samples"
        lines = [Line(name, HELD_OUT if other is None else OWN, along(curve, "reward"))]
    if other is not None:
        lines.append(Line("base model's alone", REJECTED, along(other, "reward"), dashed=True))
    if draws is not None:
        points = {name: [draw[name] for draw in draws] for name in ("kl", "reward")}
        points["kl"] = [max(nats, 0.0) for nats in points["kl"]]
        lines.append(Line("best of n", TRAINING, along(points, "reward"), dashed=True))
    return Chart(title, "KL from the reference, nats per response", x, tuple(lines))


def replaced(text: str, name: str, table: str) -> str:
    """The page with one of its generated parts made anew."""
    begin, end = BEGIN.format(name), END.format(name)
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}"


def main() -> None:
    """Compute, and write the figure, its data and the tables."""
    torch.set_num_threads(1)
    found = {"listed": listed_figures(), "reviews": reviews_figures(100_000)}
    (DOCS / "images" / "frontier.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
    (DOCS / "images" / "frontier.svg").write_text(figure(found), encoding="utf-8")
    page = DOCS / "frontier.md"
    text = replaced(page.read_text(encoding="utf-8"), "listed", listed_table(found["listed"]))
    page.write_text(replaced(text, "reviews", reviews_table(found["reviews"])), encoding="utf-8")
    print(f"wrote {page}, and its figure with data")


if __name__ == "__main__":
    main()
