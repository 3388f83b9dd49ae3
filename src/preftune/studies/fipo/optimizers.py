"""Optimisers trained as a user would train them, and asked for rewrites."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from preftune.api import train
from preftune.evaluation.models import ROUNDS_CONFIG
from preftune.prompting.generators import GeneratorSampling, open_generator
from preftune.prompting.records import PromptPair
from preftune.prompting.rewriter import Asked as Wanted
from preftune.prompting.rewriter import Rewriter
from preftune.prompting.template import FILE
from preftune.prompting.training import resume_prompts, train_prompts
from preftune.sandbox.tasks import LONGEST, SEEN, TEMPLATE, folder_of
from preftune.studies.fipo.form import Decoding, Strategy

BATCH = {"sft": 64, "pairs": 32}
SAMPLING = {  # sampled: as the paper does
    "greedy": GeneratorSampling(max_new_tokens=LONGEST),
    "sampled": GeneratorSampling(max_new_tokens=LONGEST, temperature=0.8, top_p=0.95),
}
Rows = list[dict[str, str]]


def input_of(prompt: str) -> str:
    """What an optimiser reads when it is asked to rewrite a naive prompt."""
    return TEMPLATE.optimizer_input(prompt, 0) + TEMPLATE.plain_end


def rewrite_rows(rewrites: Iterable[tuple[str, str]]) -> Rows:
    """Naive prompts and a rewrite of each, as rows that SFT reads."""
    return [{"prompt": input_of(prompt), "completion": f" {rewrite}"} for prompt, rewrite in rewrites]


def pair_rows(pairs: Iterable[PromptPair]) -> Rows:
    """Pairs as rows that preference objectives read."""
    return [
        {"prompt": input_of(pair.prompt), "chosen": f" {pair.chosen}", "rejected": f" {pair.rejected}"}
        for pair in pairs
    ]


def trained(
    strategy: Strategy,
    start: Path,
    rows: Sequence[Mapping[str, Any]],
    updates: int,
    rate: float,
    seed: int,
    to: Path,
) -> None:
    """Train an optimiser by `preftune.train`, and keep its model and its measurements.

    Args:
        strategy: whose objective it has.
        start: model that it starts from; objectives on pairs compare with it.
        rows: what it learns from.
        updates: optimiser steps.
        rate: peak learning rate.
        seed: of the order of the rows.
        to: folder for the model, which is there in whole or not at all.
    """
    kind = "sft" if strategy.objective["name"] == "sft" else "pairs"
    # few naive prompts come up twice, and the order in which they do is part of what is drawn
    rows = random.Random(seed).sample(list(rows), len(rows))
    run = to.with_name(f"{to.name}.run")
    done = train(
        str(start),
        rows,
        dict(strategy.objective),
        output=run,
        overwrite=True,
        quiet=True,
        config=_settings(kind, len(rows), updates, rate, seed),
    )
    _keep(done.path, to)
    shutil.rmtree(run)


def trained_in_rounds(
    strategy: Strategy,
    start: Path,
    pairs: Sequence[PromptPair],
    rounds: int,
    updates: int,
    rate: float,
    seed: int,
    to: Path,
) -> list[float]:
    """Train an optimiser by iterative preference learning, as `preftune prompts train` does: after each round but the
    last it rewrites the prompts of the pairs, and a rewrite takes a prompt's place where more of the generators that it
    may learn from answer it right. The reference is the optimiser of the start throughout.

    Args:
        strategy: whose objective it has.
        start: model that it starts from.
        pairs: what it learns from.
        rounds: how many.
        updates: optimiser steps, rounds together.
        rate: peak learning rate of each.
        seed: of the order of the rows, and of what is drawn.
        to: folder for the model, which is there in whole or not at all.

    Returns:
        The share of the rewrites that was accepted, in each round but the last.
    """
    folder = to.with_name(f"{to.name}.rounds")
    prompts = {
        "template": str(folder_of("optimizer") / FILE),
        "rounds": rounds,
        "discriminator": "task",
        "generator": [f"sandbox:{name}" for name in SEEN],
        "checker": "preftune.studies.fipo.answers:right",
        "max_new_tokens": LONGEST,
        "cases": False,
        "extra": False,
        "facts": False,  # neither do the other strategies leave rewrites out
        "measured": 0,
    }
    config = {
        "model": {"path": str(start)},
        "objective": dict(strategy.objective),
        "output": {"path": str(folder)},
        "prompts": prompts,
        **_settings("pairs", len(pairs), updates // rounds, rate, seed),
    }
    if (folder / ROUNDS_CONFIG).is_file():
        done = resume_prompts(folder, quiet=True)
    else:
        done = train_prompts(config, pairs=pairs, quiet=True)
    _keep(done.run.path, to)
    shutil.rmtree(folder)
    return [line["accepted"] / line["proposed"] for line in done.rounds[:-1]]


def _settings(kind: str, rows: int, updates: int, rate: float, seed: int) -> dict[str, Any]:
    """Blocks of a config, without what the study does not look at."""
    return {
        "data": {"workers": 1, "held_out": 0.0},
        "batch": {"size": min(BATCH[kind], rows)},
        "optim": {"learning_rate": rate},
        "train": {"max_steps": updates, "check_memory": False, "device": "cpu"},
        "evaluate": {"samples": 0},
        "doctor": {"answers": 0},
        "seed": seed,
    }


def _keep(run: Path, to: Path) -> None:
    """A run's model as a folder of its own, with its measurements and with how it is asked."""
    shutil.rmtree(to, ignore_errors=True)
    model = run / "model"
    shutil.copy(run / "metrics.jsonl", model / "metrics.jsonl")
    TEMPLATE.write(model / FILE)  # so that it can be used by its folder's name
    model.rename(to)


def rewrites(model: Path, prompts: Sequence[str], decoding: Decoding, seed: int) -> list[str]:
    """What an optimiser makes of naive prompts.

    Args:
        model: folder of the optimiser.
        prompts: naive ones.
        decoding: greedy, or sampled as the paper does (temperature 0.8, top-p 0.95).
        seed: of what is drawn.
    """
    with Rewriter(open_generator(str(model)), TEMPLATE) as rewriter:
        wanted = [Wanted(prompt) for prompt in prompts]
        return [" ".join(text.split()) for (text,) in rewriter.rewrite(wanted, replace(SAMPLING[decoding], seed=seed))]
