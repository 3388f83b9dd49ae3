"""Do PPO, online DPO and DPO come to the exact optimum where enough is sampled?

On eight prompts of the listed world, so that what is measured is learning and not how well it carries over to other
prompts. All three are run at the same price of a nat, with the true reward: PPO scores its own samples by it, DPO and
online DPO learn from preferences whose probabilities follow it (Bradley-Terry), given as probabilities. What is exact
is their reward, their KL, and the best reward at that KL.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from preftune.api import train
from preftune.errors import PreftuneError
from preftune.run import Run
from preftune.sandbox import listed
from preftune.studies.threads import one_thread

PROMPTS = tuple(listed.TRAIN[:8])
BETA = 0.5  # at which the best policy has more than half of all that can be gained
JUDGE = "preftune.sandbox.listed:true_reward_judge"
BOUND, LEAST = 0.05, 0.5  # regret that is little; share of the attainable gain from which on it says something


@dataclass(frozen=True)
class Form:
    """How much each learns from.

    Attributes:
        pairs: of DPO, each seen `epochs` times.
        epochs: passes over them.
        rounds: of online DPO, of 256 pairs each.
        asked: rounds of PPO, of 512 samples each.
        seeds: of data, order and samples.
    """

    pairs: int
    epochs: float
    rounds: int
    asked: int
    seeds: tuple[int, ...]


FULL = Form(pairs=32_768, epochs=2, rounds=120, asked=100, seeds=(0, 1, 2))
QUICK = Form(pairs=2048, epochs=2, rounds=8, asked=6, seeds=(0,))


@dataclass(frozen=True)
class Reached:
    """Where a method came to.

    Attributes:
        method: "PPO", "online DPO" or "DPO".
        seed: of its run.
        samples: responses that it learned from.
        seconds: of its run.
        reward: exact mean of the true reward.
        components: those that it is made of.
        kl: from the reference, nats, exact.
        regret: share of the best gain at that KL that it lacks.
        attainable: that best gain, as a share of all that can be gained at any KL.
    """

    method: str
    seed: int
    samples: int
    seconds: float
    reward: float
    components: Mapping[str, float]
    kl: float
    regret: float
    attainable: float

    @property
    def held(self) -> bool:
        """True if it came close where it says something."""
        return self.regret <= BOUND and self.attainable >= LEAST


def study(out: Path, quick: bool = False, show: Callable[[Reached], object] = lambda _: None) -> list[Reached]:
    """Run the methods, and keep what came out in results.jsonl; what stands there is not run again.

    Args:
        out: folder of the study.
        quick: one seed and a few seconds; too little to come close.
        show: told each result.

    Raises:
        PreftuneError: if the folder cannot be used.
    """
    form, path = QUICK if quick else FULL, out / "results.jsonl"
    try:
        out.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [json.loads(line) for line in lines]
        known = {(one["method"], one["seed"]): Reached(**one["found"]) for one in kept if one["form"] == _plain(form)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PreftuneError(f"{path} cannot be read ({error}): name another folder (--out)") from error
    found = []
    for seed in form.seeds:
        for method, run in METHODS.items():
            one = known.get((method, seed))
            if one is None:
                one = _reached(method, run, form, seed)
                line = {"method": method, "seed": seed, "form": _plain(form), "found": asdict(one)}
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            show(one)
            found.append(one)
    return found


def _plain(form: Form) -> Any:
    return json.loads(json.dumps(asdict(form)))


@one_thread()
def _reached(method: str, run: Callable[[Form, int, Path], tuple[Run, int]], form: Form, seed: int) -> Reached:
    with tempfile.TemporaryDirectory(prefix="preftune-reach-") as folder:
        begun = time.perf_counter()
        done, samples = run(form, seed, Path(folder) / "run")
        seconds = time.perf_counter() - begun
    assert done.model is not None  # this process has trained it
    worth = listed.evaluate(done.model, PROMPTS)
    return Reached(
        method,
        seed,
        samples,
        seconds,
        worth.reward,
        dict(worth.components),
        worth.kl,
        worth.regret,
        worth.attainable_share,
    )


def _dpo(form: Form, seed: int, folder: Path) -> tuple[Run, int]:
    source = listed.bradley_terry()
    rows = []
    for row in listed.rows(source, form.pairs, prompts=PROMPTS, seed=seed):
        words = [row[name].strip() for name in ("chosen", "rejected")]
        p = float(source.probability(row["prompt"], *words))
        chosen, rejected = (row["chosen"], row["rejected"]) if p >= 0.5 else (row["rejected"], row["chosen"])
        rows.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected, "confidence": max(p, 1 - p)})
    settings = {"optim": {"learning_rate": 4e-3}, "batch": {"size": 64}, "train": {"epochs": form.epochs}}
    return _run(rows, {"name": "dpo", "beta": BETA}, seed, folder, settings), 2 * form.pairs


def _online_dpo(form: Form, seed: int, folder: Path) -> tuple[Run, int]:
    online = {"rounds": form.rounds, "prompts": 256, "samples": 2, "labels": "soft"}
    settings = {"optim": {"learning_rate": 3e-3}, "batch": {"size": 32}, "online": online}
    return _run(_asked(), {"name": "dpo", "beta": BETA}, seed, folder, settings), 512 * form.rounds


def _ppo(form: Form, seed: int, folder: Path) -> tuple[Run, int]:
    online = {"rounds": form.asked, "prompts": 64, "samples": 8, "epochs": 2}
    settings = {"optim": {"learning_rate": 3e-3}, "batch": {"size": 16}, "online": online}
    objective = {"name": "ppo", "beta": BETA, "value_learning_rate": 5e-3, "value_clip": None}
    return _run(_asked(), objective, seed, folder, settings), 512 * form.asked


def _asked() -> list[dict[str, str]]:
    return [{"prompt": prompt} for prompt in PROMPTS]


def _run(
    rows: list[dict[str, Any]], objective: Mapping[str, Any], seed: int, folder: Path, settings: Mapping[str, Any]
) -> Run:
    """A run as anybody would start it, with nothing measured on the way."""
    config: dict[str, Any] = {
        "data": {"rendering": listed.RENDERING},
        "evaluate": {"samples": 0},
        "doctor": {"answers": 0},
        "train": {"log_every": 50, "check_memory": False, "device": "cpu", **settings.get("train", {})},
        "optim": {"schedule": "cosine", **settings["optim"]},
        "batch": settings["batch"],
        "seed": seed,
    }
    if "online" in settings:
        config["online"] = {"judge": JUDGE, "max_new_tokens": listed.LONGEST, "held_out": 0, **settings["online"]}
    return train(listed.reference_folder(), rows, objective, held_out=[], output=folder, quiet=True, config=config)


METHODS: dict[str, Callable[[Form, int, Path], tuple[Run, int]]] = {
    "PPO": _ppo,
    "online DPO": _online_dpo,
    "DPO": _dpo,
}
