"""Optimisers trained as a user would train them, and asked for rewrites."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from preftune.api import train
from preftune.prompting.generators import GeneratorSampling, open_generator
from preftune.prompting.records import PromptPair
from preftune.prompting.rewriter import Asked as Wanted
from preftune.prompting.rewriter import Rewriter
from preftune.prompting.template import FILE
from preftune.sandbox.tasks import LONGEST, TEMPLATE
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


def pair_rows(pairs: Iterable[PromptPair], prompts: Mapping[str, str]) -> Rows:
    """Pairs as rows that preference objectives read.

    Args:
        pairs: of rewrites.
        prompts: what stands in place of a naive prompt, by the pair's id.
    """
    return [
        {
            "prompt": input_of(prompts.get(pair.id, pair.prompt)),
            "chosen": f" {pair.chosen}",
            "rejected": f" {pair.rejected}",
        }
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
    reference: Path,
) -> None:
    """Train an optimiser by `preftune.train`, and keep its model and its measurements.

    Args:
        strategy: whose objective it has.
        start: model that it starts from.
        rows: what it learns from.
        updates: optimiser steps.
        rate: peak learning rate.
        seed: of the order of the rows.
        to: folder for the model, which is there in whole or not at all.
        reference: model that objectives on pairs compare with.
    """
    kind = "sft" if strategy.objective["name"] == "sft" else "pairs"
    # few naive prompts come up twice, and the order in which they do is part of what is drawn
    rows = random.Random(seed).sample(list(rows), len(rows))
    run = to.with_name(f"{to.name}.run")
    config: dict[str, Any] = {"data": {"workers": 1, "held_out": 0.0}}
    if kind == "pairs" and reference != start:
        config["reference"] = {"path": str(reference)}
    done = train(
        str(start),
        rows,
        dict(strategy.objective),
        output=run,
        overwrite=True,
        quiet=True,
        config=config,
        batch={"size": min(BATCH[kind], len(rows))},
        optim={"learning_rate": rate},
        train={"max_steps": updates, "check_memory": False, "device": "cpu"},
        evaluate={"samples": 0},
        doctor={"answers": 0},
        seed=seed,
    )
    shutil.rmtree(to, ignore_errors=True)
    model = done.path / "model"
    shutil.copy(done.path / "metrics.jsonl", model / "metrics.jsonl")
    TEMPLATE.write(model / FILE)  # so that it can be used by its folder's name
    model.rename(to)
    shutil.rmtree(run)


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
