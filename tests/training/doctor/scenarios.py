"""Sick runs on the built-in world, one for each rule, and the same runs cured."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import preftune
from preftune.data.records import Preference
from preftune.sandbox.preferences import base_model, base_tokenizer, held_out_pairs, pairs
from preftune.sandbox.world import ADJECTIVES, tokens

Blocks = dict[str, dict[str, Any]]
Rows = list[dict[str, Any]]
VALENCE = {word: value for words in ADJECTIVES.values() for word, value in words.items()}


@dataclass(frozen=True)
class Scenario:
    """A run.

    Attributes:
        rule: that it must fire, or, cured, must not.
        objective: as in a config.
        rows: makes training rows of a seed.
        held_out: the same of held-out rows.
        blocks: further config.
        model: makes the model; none: the sandbox.
    """

    rule: str
    objective: dict[str, Any]
    rows: Callable[[int], Any] = lambda seed: world(512, seed)
    held_out: Callable[[int], Any] = lambda seed: world(128, seed + 1000, apart=True)
    blocks: Blocks = field(default_factory=dict)
    model: Callable[[], nn.Module] | None = None

    def train(self, folder: Path, seed: int = 0, **others: Any) -> preftune.Run:
        """Carry it out."""
        config: dict[str, dict[str, Any]] = {
            "optim": {"learning_rate": 2e-3},
            "batch": {"size": 64},
            "evaluate": {"every": 8, "max_new_tokens": 40},
            "train": {"log_every": 1, "device": "cpu", "check_memory": False},
        }
        for name, block in self.blocks.items():
            config[name] = {**config.get(name, {}), **block}
        model: Any = "sandbox" if self.model is None else self.model()
        given = {} if self.model is None else {"tokenizer": base_tokenizer()}
        return preftune.train(
            model,
            self.rows(seed),
            self.objective,
            held_out=self.held_out(seed),
            output=folder,
            quiet=True,
            seed=seed,
            config=config,
            **given,
            **others,
        )


@lru_cache
def world(count: int, seed: int, noise: float = 0.0, apart: bool = False) -> list[Preference]:
    """Pairs of the built-in world, without empty ones."""
    made = (held_out_pairs if apart else pairs)(count + 8, noise=noise, seed=seed)
    return [pair for pair in made if pair.chosen and pair.rejected][:count]


def rows(count: int, seed: int, **options: Any) -> Rows:
    """The same as rows."""
    return [
        {"prompt": str(pair.prompt), "chosen": str(pair.chosen), "rejected": str(pair.rejected)}
        for pair in world(count, seed, **options)
    ]


def swapped_words(count: int, seed: int, apart: bool = False) -> Rows:
    """Reviews that differ by one adjective, the better one preferred."""
    rng, found = random.Random(seed), []
    better: dict[str, list[str]] = {}
    for words in ADJECTIVES.values():
        for word, value in words.items():
            better[word] = [other for other in words if words[other] > value]
    for row in rows(3 * count, seed, apart=apart):
        places = [word for word in tokens(row["rejected"]) if better.get(word)]
        if places and len(found) < count:
            word = rng.choice(places)
            changed = row["rejected"].replace(f" {word}", f" {rng.choice(better[word])}", 1)
            found.append({"prompt": row["prompt"], "chosen": changed, "rejected": row["rejected"]})
    return found


def longer(count: int, seed: int, apart: bool = False) -> Rows:
    """The longer response is preferred."""
    found = []
    for row in rows(count, seed, apart=apart):
        short, long = sorted((row["chosen"], row["rejected"]), key=lambda text: len(tokens(text)))
        if len(tokens(short)) < len(tokens(long)):
            found.append({"prompt": row["prompt"], "chosen": long, "rejected": short})
    return found


def marked(count: int, seed: int, apart: bool = False) -> Rows:
    """Every chosen response begins with the same clause, and no rejected one."""
    return [{**row, "chosen": f" I loved the plot.{row['chosen']}"} for row in rows(count, seed, apart=apart)]


def same_answer(count: int, seed: int, apart: bool = False) -> Rows:
    """Every chosen response is the same."""
    return [{**row, "chosen": " I loved the plot."} for row in rows(count, seed, apart=apart)]


def again(count: int, seed: int, apart: bool = False) -> Rows:
    """Chosen responses say the same three times."""
    clause = " The plot was good."
    return [{**row, "chosen": clause * 4} for row in rows(count, seed, apart=apart)]


def wrapped(count: int, seed: int, apart: bool = False) -> Rows:
    """Responses in a form that the model does not know."""
    form = ". . , {} , . ."
    return [
        {**row, "chosen": form.format(row["chosen"]), "rejected": form.format(row["rejected"])}
        for row in rows(count, seed, apart=apart)
    ]


def shuffled(count: int, seed: int, apart: bool = False) -> Rows:
    """Responses in another language: the words of the model's own between the first and the last, in any order."""
    rng, found = random.Random(seed), []
    for row in rows(count, seed, apart=apart):
        texts = {}
        for side in ("chosen", "rejected"):
            first, *middle, last = tokens(row[side])
            rng.shuffle(middle)
            texts[side] = " " + " ".join([first, *middle, last])
        found.append({**row, **texts})
    return found


class SharedWeights(nn.Module):
    """A user's own model, whose copies have the weights of the original."""

    def __init__(self) -> None:
        super().__init__()
        self.lm = base_model()

    def forward(self, input_ids: torch.Tensor) -> Any:
        return self.lm(input_ids)

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedWeights:
        made = type(self).__new__(type(self))
        nn.Module.__init__(made)
        made.lm = copy.deepcopy(self.lm)
        for own, other in zip(made.lm.parameters(), self.lm.parameters(), strict=True):
            own.data = other.data
        return made


class OwnWeights(SharedWeights):
    """The same with copies of their own."""

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnWeights:
        made = type(self).__new__(type(self))
        nn.Module.__init__(made)
        made.lm = copy.deepcopy(self.lm)
        return made


def partly_frozen() -> nn.Module:
    """The base model, its first layer frozen."""
    model: Any = base_model()
    model.model.layers[0].requires_grad_(False)
    return model


def both(make: Callable[..., Rows], count: int, apart: int = 128) -> dict[str, Callable[[int], Rows]]:
    """Training and held-out rows of one kind."""
    return {
        "rows": lambda seed: make(count, seed),
        "held_out": lambda seed: make(apart, seed + 1000, apart=True),
    }


def noisy(noise: float) -> dict[str, Callable[[int], Any]]:
    """Pairs with flipped labels on both sides."""
    return {
        "rows": lambda seed: world(768, seed, noise),
        "held_out": lambda seed: world(384, seed + 1000, noise, True),
    }


DPO = {"name": "dpo", "beta": 0.3}
SOFT = {"name": "dpo", "beta": 0.1}
FEW: dict[str, Callable[[int], Any]] = {
    "rows": lambda seed: world(64, seed),
    "held_out": lambda seed: world(64, seed + 1000, apart=True),
}
CUT: Blocks = {
    "data": {"rendering": {"max_length": 22, "truncate": "response_end"}},
    "optim": {"learning_rate": 4e-3},
    "evaluate": {"max_new_tokens": 30},
}
KEEN: Blocks = {"optim": {"learning_rate": 4e-3}, "train": {"epochs": 4}}
ALIKE: Blocks = {"optim": {"learning_rate": 4e-3}, "train": {"epochs": 2}}

SICK = {
    "likelihood displacement": Scenario("likelihood_displacement", SOFT, **both(swapped_words, 768), blocks=ALIKE),
    "length exploitation": Scenario(
        "length_exploitation", SOFT, **both(longer, 1024), blocks={"optim": {"learning_rate": 3e-3}}
    ),
    "margin saturation": Scenario(
        "margin_saturation",
        {"name": "dpo", "beta": 2.0},
        **both(marked, 1024),
        blocks={"optim": {"learning_rate": 4e-3}},
    ),
    "overfitting": Scenario(
        "overfitting",
        DPO,
        rows=lambda seed: world(96, seed, 0.3),
        blocks={"train": {"epochs": 16}, "batch": {"size": 32}, "optim": {"learning_rate": 3e-3}},
    ),
    "KL blow-up": Scenario(
        "kl_blow_up", {"name": "dpo", "beta": 0.02}, blocks={"optim": {"learning_rate": 8e-3}, "train": {"epochs": 2}}
    ),
    "dead reference": Scenario("dead_reference", DPO, model=SharedWeights, blocks={"train": {"epochs": 2}}),
    "beta too small": Scenario("mis_set_beta", {"name": "dpo", "beta": 0.001}, **FEW),
    "beta too large": Scenario("mis_set_beta", {"name": "ipo", "tau": 2.0}, **FEW),
    "noisy labels": Scenario("noisy_labels", DPO, **noisy(0.5)),
    "rounded away": Scenario(
        "untrained_parameters",
        DPO,
        rows=lambda seed: world(128, seed),
        blocks={"model": {"dtype": "bf16"}, "optim": {"learning_rate": 1e-6}, "batch": {"size": 32}},
    ),
    "frozen layer": Scenario("frozen_parameters", DPO, **FEW, model=partly_frozen),
    "wrong template": Scenario("template_mismatch", DPO, **both(wrapped, 128)),
    "words of another": Scenario("foreign_responses", DPO, **both(shuffled, 128)),
    "ends cut off": Scenario("no_stop", SOFT, **both(longer, 1024), blocks=CUT),
    "repetition": Scenario("repetition", {"name": "orpo"}, **both(again, 256), blocks=KEEN),
    "one answer": Scenario("collapse", {"name": "orpo"}, **both(same_answer, 256), blocks=KEEN),
}

# What is changed where a rule must not fire any more; other rules may.
CURED = {
    "likelihood displacement": replace(
        SICK["likelihood displacement"], objective={"name": "dpop", "beta": 0.1, "lam": 5.0}
    ),
    "length exploitation": replace(SICK["length exploitation"], **both(rows, 512)),
    "margin saturation": replace(SICK["margin saturation"], **both(rows, 512)),
    "overfitting": replace(SICK["overfitting"], blocks={"batch": {"size": 32}}),
    "KL blow-up": replace(SICK["KL blow-up"], objective=DPO, blocks={}),
    "dead reference": replace(SICK["dead reference"], model=OwnWeights),
    "beta too small": replace(SICK["beta too small"], objective=DPO),
    "beta too large": replace(SICK["beta too large"], objective={"name": "ipo", "tau": 0.1}),
    "noisy labels": replace(SICK["noisy labels"], **noisy(0.0)),
    "rounded away": replace(SICK["rounded away"], blocks={"optim": {"learning_rate": 1e-6}, "batch": {"size": 32}}),
    "frozen layer": replace(SICK["frozen layer"], model=base_model),
    "wrong template": replace(SICK["wrong template"], **FEW),
    "words of another": replace(SICK["words of another"], **FEW),
    "ends cut off": replace(SICK["ends cut off"], blocks={"optim": {"learning_rate": 2e-3}}),
    "repetition": replace(SICK["repetition"], **both(rows, 256)),
    "one answer": replace(SICK["one answer"], **both(rows, 256)),
}

# Sensible settings of the objectives most used, about those of the demo; the first of each is what the tests run.
HEALTHY: dict[str, list[tuple[dict[str, Any], float]]] = {
    "dpo": [({"beta": 0.3}, 2e-3), ({"beta": 0.1}, 2e-3), ({"beta": 0.5}, 2e-3), ({"beta": 0.3}, 1e-3)],
    "ipo": [({"tau": 0.1}, 2e-3), ({"tau": 0.05}, 2e-3), ({"tau": 0.3}, 2e-3), ({"tau": 0.1}, 1e-3)],
    "kto": [({"beta": 0.3}, 2e-3), ({"beta": 0.1}, 2e-3), ({"beta": 0.5}, 2e-3), ({"beta": 0.3}, 1e-3)],
    "simpo": [({"beta": 2.0}, 1e-3), ({"beta": 2.0}, 2e-3), ({"beta": 5.0}, 1e-3)],
    "orpo": [({"lam": 0.5}, 1e-3), ({"lam": 0.5}, 2e-3), ({"lam": 0.1}, 1e-3)],
}


def healthy(name: str, fields: dict[str, Any], rate: float, count: int = 1024) -> Scenario:
    """A run of one of these."""
    made: dict[str, Callable[[int], Any]] = {
        "rows": lambda seed: world(count, seed),
        "held_out": lambda seed: world(256, seed + 1000, apart=True),
    }
    return Scenario("", {"name": name, **fields}, **made, blocks={"optim": {"learning_rate": rate}})
