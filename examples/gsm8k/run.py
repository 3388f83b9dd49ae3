"""GSM8K, from worked answers to preferences: one scratch model, trained with SFT, then with DPO and with IPO.

python examples/gsm8k/run.py [--full DIR] [--out DIR] [--quick]
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from dataset import GSM8KData, load
from rich.console import Console
from rich.table import Table

import preftune
from preftune.data.records import Preference
from preftune.evaluation.intervals import accuracy_interval
from preftune.policy.scratch import ScratchConfig, build
from preftune.training.metrics import wins


@dataclass(frozen=True)
class Settings:
    """What decides the result; the README says how the values were found."""

    model: ScratchConfig
    sft_epochs: float
    sft_rate: float = 2e-3
    sft_batch: int = 8
    preference_epochs: float = 1.0
    preference_rate: float = 1e-4
    preference_batch: int = 16
    beta: float = 0.1
    tau: float = 0.1
    seed: int = 0


MODEL = ScratchConfig(vocab_size=2048, hidden_size=192, layers=3, heads=4, context=1024)
FULL = Settings(MODEL, sft_epochs=2)
SHIPPED = Settings(MODEL, sft_epochs=4)
QUICK = Settings(ScratchConfig(vocab_size=512, hidden_size=64, layers=2, heads=2, context=1024), sft_epochs=1)
QUICK_ROWS = 48


@dataclass(frozen=True)
class Score:
    """How often a rule prefers the right solution: share of held-out pairs, and its 95% interval over questions."""

    rule: str
    accuracy: float
    ci95: tuple[float, float]


def shorter(pairs: Sequence[Preference], tokenizer: Any) -> Score:
    """The rule that always prefers the response of fewer tokens; a tie counts one half."""
    lengths = [[len(tokenizer(text)["input_ids"]) for text in (pair.rejected, pair.chosen)] for pair in pairs]
    correct = wins(np.array([float(rejected - chosen) for rejected, chosen in lengths]))
    interval = accuracy_interval(correct, [pair.prompt for pair in pairs])
    return Score("always the shorter response (tokens)", float(correct.mean()), interval)


def read_score(rule: str, side: dict[str, Any], name: str) -> Score:
    """An accuracy as a run's summary has it."""
    low, high = side[f"{name}_ci95"]
    return Score(rule, side[name], (low, high))


def train_all(data: GSM8KData, settings: Settings, out: Path) -> dict[str, preftune.Run]:
    """SFT from scratch, then DPO and IPO from the folder that SFT left: the three runs by name."""
    model, tokenizer = build("qwen3", data.texts(), settings.model, settings.seed)
    shared: dict[str, Any] = {"overwrite": True, "seed": settings.seed}
    sft = preftune.train(
        model,
        data.demonstrations,
        "sft",
        tokenizer=tokenizer,
        output=out / "sft",
        config={"data": {"held_out": 0.02}},
        optim={"learning_rate": settings.sft_rate},
        train={"epochs": settings.sft_epochs},
        batch={"size": settings.sft_batch},
        **shared,
    )
    runs = {"sft": sft}
    for objective in ({"name": "dpo", "beta": settings.beta}, {"name": "ipo", "tau": settings.tau}):
        runs[str(objective["name"])] = preftune.train(
            str(out / "sft" / "model"),
            data.train,
            objective,
            held_out=data.held_out,
            output=out / str(objective["name"]),
            optim={"learning_rate": settings.preference_rate},
            train={"epochs": settings.preference_epochs},
            batch={"size": settings.preference_batch},
            **shared,
        )
    return runs


def results(data: GSM8KData, settings: Settings, runs: dict[str, preftune.Run], seconds: float) -> dict[str, Any]:
    """Everything that results.json holds."""
    dpo, ipo = runs["dpo"].summary, runs["ipo"].summary
    scores = [
        shorter(data.held_out, runs["sft"].tokenizer),
        read_score("log-probs of the SFT model", dpo["before"], "policy_accuracy"),
    ]
    for name, summary in (("DPO", dpo), ("IPO", ipo)):
        scores.append(read_score(f"{name}: implicit reward", summary["after"], "preference_accuracy"))
        scores.append(read_score(f"{name}: log-probs of the policy", summary["after"], "policy_accuracy"))
    keys = ("margin", "chosen_logp_per_token_change", "rejected_logp_per_token_change")
    return {
        "scores": [asdict(score) for score in scores],
        "changes": {name: {key: runs[name].summary["after"][key] for key in keys} for name in ("dpo", "ipo")},
        "held_out": {"pairs": len(data.held_out), "questions": len({pair.prompt for pair in data.held_out})},
        "train": {"demonstrations": len(data.demonstrations), "pairs": len(data.train)},
        "parameters": sum(p.numel() for p in runs["sft"].model.parameters()),
        "sft_loss": {side: runs["sft"].summary[side]["loss"] for side in ("before", "after")},
        "settings": {**asdict(settings), "model": settings.model.model_dump()},
        "seconds": {**{name: run.summary["seconds"] for name, run in runs.items()}, "in all": seconds},
    }


def heading(found: dict[str, Any]) -> str:
    """One line over the table."""
    held_out, train = found["held_out"], found["train"]
    return (
        f"{held_out['pairs']} held-out pairs of {held_out['questions']} questions; trained on "
        f"{train['demonstrations']:,} worked answers, then {train['pairs']:,} pairs; "
        f"{found['parameters'] / 1e6:.1f}M parameters; {found['seconds']['in all']:.0f} s"
    )


def as_rows(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The scores as text."""
    return [
        (score["rule"], f"{score['accuracy']:.3f}", f"{score['ci95'][0]:.3f} to {score['ci95'][1]:.3f}")
        for score in found["scores"]
    ]


HEADER = ("prefers the right solution by", "accuracy", "95% interval")


def as_markdown(found: dict[str, Any]) -> str:
    """The same as results.md."""
    lines = [HEADER, ("---",) * 3, *as_rows(found)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"# GSM8K\n\n{heading(found)}\n\n{table}\n"


def main() -> None:
    """Read the arguments, train, write and show the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", type=Path, help="folder with the full files of GSM8K; default: the shipped subset")
    parser.add_argument("--out", type=Path, default=Path("runs/gsm8k"), help="where to write")
    parser.add_argument("--quick", action="store_true", help="a few rows and a tiny model, to see that it works")
    args = parser.parse_args()
    started = time.perf_counter()
    data = load(args.full)
    settings = SHIPPED if args.full is None else FULL
    if args.quick:
        settings = QUICK
        data = replace(
            data,
            demonstrations=data.demonstrations[:QUICK_ROWS],
            train=data.train[:QUICK_ROWS],
            held_out=data.held_out[:QUICK_ROWS],
        )
    runs = train_all(data, settings, args.out)
    found = results(data, settings, runs, time.perf_counter() - started)
    (args.out / "results.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (args.out / "results.md").write_text(as_markdown(found), encoding="utf-8")
    table = Table(*HEADER, title=heading(found), title_justify="left")
    for row in as_rows(found):
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
