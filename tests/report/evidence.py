"""Files that other commands add to a run folder, in their layouts, generated with seeds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

WORDS = "the a film plot was really not superb dull hero music loved hated gripping and but of editing".split()


def text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(words))


def share(value: float, half: float) -> tuple[float, list[float]]:
    return value, [round(value - half, 4), round(value + half, 4)]


def sides(name: str, value: float, half: float) -> dict[str, Any]:
    return {name: value, f"{name}_ci95": [value - half, value + half]}


def evaluation(seed: int = 0) -> dict[str, Any]:
    draw = random.Random(seed)
    bins = [
        {"confidence": 0.525 + 0.05 * i, "accuracy": a, "ci95": [a - 0.08, min(1, a + 0.07)], "pairs": 90 - 8 * i}
        for i, a in enumerate(min(1.0, 0.5 + 0.045 * i + draw.uniform(-0.02, 0.04)) for i in range(10))
    ]

    def slices(key: str, names: list[str]) -> list[dict[str, Any]]:
        return [
            {
                key: name,
                "pairs": draw.randint(40, 200),
                **sides("accuracy", draw.uniform(0.6, 0.85), 0.06),
                "margin": 0.4,
            }
            for name in names
        ]

    def answers(length: float) -> dict[str, Any]:
        return {
            **sides("mean_length", length, 0.6),
            **sides("end_rate", 0.96, 0.01),
            "repetition": 0.031,
            "distinct_1": 0.11,
            "distinct_2": 0.37,
        }

    return {
        "made": "2026-11-22T12:00:00+00:00",
        "command": "preftune evaluate runs/demo",
        "model": "runs/demo",
        "against": "sandbox",
        "data": {"path": "runs/demo/data/held_out.jsonl", "pairs": 512, "prompts": 256},
        "pairs": {
            **sides("accuracy", 0.746, 0.038),
            **sides("policy_accuracy", 0.545, 0.045),
            **sides("margin", 0.514, 0.066),
            "margin_sd": 0.758,
            "delta": 1.713,
        },
        "calibration": {
            **sides("ece", 0.034, 0.012),
            "temperature": 1.31,
            "ece_with_temperature": 0.018,
            "bins": bins,
        },
        "by_length": slices("bucket", ["1 to 12 tokens", "13 to 16 tokens", "17 to 20 tokens", "21 tokens or more"]),
        "by_source": slices("source", ["reviews/a.jsonl", "reviews/b.jsonl"]),
        "baselines": {"longer": sides("accuracy", 0.504, 0.043), "reference": sides("accuracy", 0.496, 0.043)},
        "generation": {
            "prompts": 256,
            "samples_per_prompt": 2,
            "temperature": 1.0,
            "policy": answers(20.4),
            "against": answers(15.6),
            "kl": {"per_response": 2.29, "per_response_se": 0.028, "per_token": 0.112, "per_token_se": 0.0014},
        },
        "win_rate": {
            "judge": "true reward",
            "comparisons": 512,
            "prompts": 256,
            **sides("win_rate", 0.81, 0.034),
            **sides("length_controlled", 0.77, 0.041),
            "wins": 402,
            "ties": 26,
            "losses": 84,
            "flipped": 0.0,
            "unanswered": 0,
            "judge_check": {"pairs": 200, **sides("agreement", 0.92, 0.037), "flipped": 0.01},
        },
    }


def generations(count: int = 6, seed: int = 1) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [
        {
            "prompt": f"A film about {draw.choice(WORDS)}.",
            "policy": text(draw, 18),
            "against": text(draw, 14),
            "policy_tokens": 24,
            "against_tokens": 18,
            "policy_ended": i % 3 > 0,
            "against_ended": True,
        }
        for i in range(count)
    ]


def credit(count: int = 4, tokens: int = 40, seed: int = 2) -> list[dict[str, Any]]:
    draw = random.Random(seed)

    def side(drift: float) -> dict[str, Any]:
        reference = [-draw.expovariate(0.8) for _ in range(tokens)]
        ratio = [draw.gauss(drift, 0.15) + (draw.random() < 0.08) * draw.choice([-2.5, 2.5]) for _ in range(tokens)]
        return {
            "tokens": [(" " if i else "") + draw.choice(WORDS) for i in range(tokens)],
            "credit": [None if i == 0 else 0.3 * r for i, r in enumerate(ratio)],
            "logps": [a + r for a, r in zip(reference, ratio, strict=True)],
            "reference_logps": reference,
        }

    return [
        {"row": 7 * i, "prompt": f"A film about {i}.", "beta": 0.3, "chosen": side(0.04), "rejected": side(-0.06)}
        for i in range(count)
    ]


def data_doctor() -> dict[str, Any]:
    return {
        "rows": 4096,
        "findings": [
            {
                "name": "duplicates",
                "severity": "warning",
                "text": "12 rows repeat an earlier one (pairs.jsonl row 40 repeats row 3, ...)",
                "count": 12,
                "policy": "warn",
            },
            {
                "name": "identical",
                "severity": "error",
                "text": "3 left out: 3 because chosen and rejected are identical (pairs.jsonl row 9, ...)",
                "count": 3,
                "policy": "drop",
            },
        ],
        "figures": {
            "longer_wins": 0.504,
            "longer_wins_ci95": [0.488, 0.519],
            "label_noise": {
                "from_repeats": 0.083,
                "from_repeats_ci95": [0.05, 0.12],
                "questions_answered_twice": 64,
                "from_confidences": None,
            },
        },
    }


def symptom(step: int, rule: str = "length_exploitation", severity: str = "warning") -> dict[str, Any]:
    return {
        "kind": "doctor",
        "step": step,
        "rule": rule,
        "severity": severity,
        "value": 1.31,
        "figure": "answers are 31% longer than at the start",
        "explanation": "Answers grow longer while the share of pairs won by the shorter response falls. "
        "A judge that likes length will reward this without any gain in quality.",
        "remedy": "Use an objective that normalises length (simpo, r_dpo), or raise beta.",
        "rows": [3, 17, 204],
    }


def add(folder: Path, **files: Any) -> Path:
    """Write files into a run folder: objects as NAME.json, lists as NAME.jsonl."""
    for name, content in files.items():
        if isinstance(content, list):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        else:
            (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def everything(folder: Path) -> Path:
    """All of them, with a finding of the training doctor at the end of metrics.jsonl."""
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
        for row in (symptom(16), symptom(32), symptom(16, "likelihood_displacement", "information")):
            metrics.write(json.dumps(row) + "\n")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    summary["doctor"] = [symptom(32), symptom(16, "likelihood_displacement", "information")]
    return add(
        folder,
        evaluation=evaluation(),
        generations=generations(),
        credit=credit(),
        data_doctor=data_doctor(),
        summary=summary,
    )
