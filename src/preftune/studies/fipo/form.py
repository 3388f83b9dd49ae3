"""What the study compares, and how large it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Decoding = Literal["greedy", "sampled"]
Split = Literal["validation", "test"]
DECODINGS: tuple[Decoding, ...] = ("greedy", "sampled")


@dataclass(frozen=True)
class Teacher:
    """Who wrote the rewrites that optimisers first learn from.

    Attributes:
        key: in files.
        name: in tables.
        plans: share of the rewrites that name the steps, in any of three wordings.
        usual: share that is the first idle wording; what is left are the other idle ones.
    """

    key: str
    name: str
    plans: float
    usual: float


TEACHERS = {
    "good": Teacher("good", "good teacher", plans=0.8, usual=0.04),
    "poor": Teacher("poor", "poor teacher", plans=0.4, usual=0.5),
}


@dataclass(frozen=True)
class Strategy:
    """How an optimiser is trained.

    Attributes:
        key: in files.
        name: in tables.
        objective: as `preftune.train` takes it.
        start: "untrained", or the strategy whose optimiser it goes on from.
        learns: from "rewrites" of the teacher, "pairs", pairs "shuffled" at random, or the "chosen" ones of pairs.
        iterative: whether naive prompts are replaced, in rounds, by rewrites that do better.
        paper: whether it is one of the paper's, which are chosen from; else a control.
    """

    key: str
    name: str
    objective: Mapping[str, Any]
    start: str = "sft"
    learns: Literal["rewrites", "pairs", "shuffled", "chosen"] = "pairs"
    iterative: bool = False
    paper: bool = True


DPO, IPO = {"name": "dpo", "beta": 0.1}, {"name": "ipo", "tau": 0.1, "average": "sum"}
STRATEGIES = {
    each.key: each
    for each in (
        Strategy("sft", "SFT", {"name": "sft"}, start="untrained", learns="rewrites"),
        Strategy("dpo", "DPO", DPO),
        Strategy("ipo", "IPO", IPO),
        Strategy("ipl-dpo", "IPL-DPO", DPO, iterative=True),
        Strategy("ipl-ipo", "IPL-IPO", IPO, iterative=True),
        Strategy("chosen", "SFT on chosen rewrites", {"name": "sft"}, learns="chosen", paper=False),
        Strategy("shuffled", "DPO on shuffled pairs", DPO, learns="shuffled", paper=False),
    )
}
PREFERENCE = tuple(key for key, each in STRATEGIES.items() if each.paper and each.learns == "pairs")


@dataclass(frozen=True)
class Form:
    """How large a study is.

    Attributes:
        seeds: of the optimisers; each has rewrites, pairs and questions of its own to learn from.
        teachers: of `TEACHERS`.
        strategies: of `STRATEGIES`, each after the one that it starts from.
        rewrites: of the teacher, that SFT learns from.
        first_updates: of SFT.
        asked: naive prompts with two rewrites each, judged by generators' answers.
        updates: on pairs, rounds together.
        rounds: of the iterative strategies.
        validation: questions that strategies are chosen on.
        test: questions of the tables.
        probed: questions on which a fixed prefix is chosen.
    """

    seeds: tuple[int, ...]
    teachers: tuple[str, ...]
    strategies: tuple[str, ...]
    rewrites: int
    first_updates: int
    asked: int
    updates: int
    rounds: int
    validation: int
    test: int
    probed: int


FULL = Form((1, 2, 3), tuple(TEACHERS), tuple(STRATEGIES), 6000, 150, 1500, 90, 3, 250, 500, 150)
QUICK = Form((1,), ("poor",), ("sft", "dpo", "ipl-ipo"), 3200, 80, 500, 40, 2, 40, 100, 20)
