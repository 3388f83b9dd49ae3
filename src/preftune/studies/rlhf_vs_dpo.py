"""Two roads from the same preferences to a policy: a reward model and PPO, or DPO; what each takes, and where it leads.

Every stage is a run of its own process, started from its config file as a user would start it, and watched from
outside: its time, and its memory while it runs. What the policy was worth on the way is measured afterwards, on its
checkpoints, so that nothing of the measuring counts as training.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import yaml

from preftune.data.writing import write_records
from preftune.errors import PreftuneError
from preftune.files import write_whole
from preftune.quiet import without_progress_bars
from preftune.sandbox.preferences import PolicyEvaluation, base_model, evaluate_policy, held_out_pairs, pairs
from preftune.sandbox.world import MAX_RESPONSE_TOKENS, prompts
from preftune.studies.threads import one_thread
from preftune.training import checkpoint

WATCHED = 0.05  # seconds between two looks at a process's memory
# How a stage is carried out and watched; what decides its result is in its file.
CARRIED_OUT = ("train.device=cpu", "evaluate.samples=0", "doctor.answers=0", "output.keep_last=99")
MODELS = {
    "DPO": ("policy", "reference"),
    "reward model": ("reward model",),
    "PPO": ("policy", "reference", "reward model", "value network"),
}
ROADS: dict[str, tuple[str, ...]] = {"DPO": ("DPO",), "RLHF": ("reward model", "PPO")}


@dataclass(frozen=True)
class Form:
    """How large a study is.

    Attributes:
        pairs: that both roads learn from.
        rounds: of PPO, of `asked` prompts with four answers each.
        asked: prompts of a round.
        samples: answers to each held-out prompt in a look at a policy.
        seeds: each with pairs and runs of its own.
        hidden: size of the model on which memory is watched.
        steps: optimiser steps of that.
        looks: at a policy on its way.
    """

    pairs: int
    rounds: int
    asked: int
    samples: int
    seeds: tuple[int, ...]
    hidden: int
    steps: int
    looks: int


FULL = Form(pairs=4096, rounds=64, asked=64, samples=16, seeds=(0, 1, 2, 3, 4), hidden=512, steps=16, looks=12)
QUICK = Form(pairs=512, rounds=6, asked=32, samples=2, seeds=(0,), hidden=128, steps=3, looks=2)


@dataclass(frozen=True)
class Stage:
    """One run of one road, as it was watched.

    Attributes:
        road: "DPO" or "RLHF".
        name: "DPO", "reward model" or "PPO".
        seed: of the pairs and the run.
        wall: seconds from the start of its process to the end.
        training: seconds of its optimiser steps, sampling and scoring included.
        steps: optimiser steps.
        generated: tokens that it sampled.
        examples: that its steps learned from, each as often as it was.
        peak: of its process's memory, bytes.
        accuracy: on the held-out pairs at its end; None of PPO, whose data they are not.
    """

    road: str
    name: str
    seed: int
    wall: float
    training: float
    steps: int
    generated: int
    examples: int
    peak: int
    accuracy: float | None = None


@dataclass(frozen=True)
class Look:
    """What a policy was worth on its way.

    Attributes:
        road: "DPO" or "RLHF".
        seed: of the run.
        step: optimiser steps of its last stage by then.
        seconds: of training by then, the stages before included.
        generated: tokens sampled by then.
        reward: true reward, mean over answers to held-out prompts.
        kl: from the start, nats per answer.
        grammatical: share of the answers.
        parts: the components of the reward.
    """

    road: str
    seed: int
    step: int
    seconds: float
    generated: int
    reward: float
    kl: float
    grammatical: float
    parts: Mapping[str, float]


@dataclass(frozen=True)
class Memory:
    """Memory of one stage's process over time, on the larger model: seconds and bytes."""

    stage: str
    parameters: int
    seconds: Sequence[float]
    bytes: Sequence[int]


@dataclass(frozen=True)
class Compared:
    """What came out.

    Attributes:
        form: its size.
        stages: of all seeds.
        looks: likewise.
        memory: of each stage.
        configs: the files that the stages were started from, by stage.
    """

    form: Form
    stages: list[Stage]
    looks: list[Look]
    memory: list[Memory]
    configs: dict[str, str]

    def ends(self, road: str) -> list[Look]:
        """The last look of each seed."""
        last = {look.seed: look for look in self.looks if look.road == road}
        return list(last.values())

    def settings(self, stage: str) -> dict[str, Any]:
        """What had to be set for a stage, other than where things are."""
        return dict(_leaves(yaml.safe_load(self.configs[stage])))

    def lines(self, stage: str) -> int:
        """Lines of its config."""
        return len([line for line in self.configs[stage].splitlines() if line.strip()])


PLACES = ("path", "held_out_path", "judge")


def _leaves(values: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        elif key not in PLACES:
            yield above + key, value


def configs(form: Form) -> dict[str, str]:
    """The config files of the stages. Both roads have the same price of a nat: a reward model's rewards are log-odds of
    a preference, and so are beta times DPO's log-ratios."""
    data = "data:\n  path: pairs.jsonl\n  held_out_path: held_out.jsonl\n"
    return {
        "DPO": f"model:\n  path: sandbox\n{data}"
        "objective:\n  name: dpo\n  beta: 0.3\noptim:\n  learning_rate: 2e-3\nbatch:\n  size: 64\n",
        "reward model": f"model:\n  path: sandbox\n{data}"
        "objective:\n  name: bradley_terry\noptim:\n  learning_rate: 1e-2\nbatch:\n  size: 64\n",
        "PPO": f"model:\n  path: sandbox\n{data}"
        "objective:\n  name: ppo\n  beta: 0.3\n  value_clip: null\n  value_learning_rate: 5e-3\n"
        "optim:\n  learning_rate: 2e-3\nbatch:\n  size: 32\n"
        f"online:\n  judge: reward:reward-model\n  rounds: {form.rounds}\n  prompts: {form.asked}\n  samples: 4\n"
        f"  epochs: 2\n  max_new_tokens: {MAX_RESPONSE_TOKENS}\n  held_out: 0\n",
    }


def study(out: Path, quick: bool = False, show: bool = False) -> Compared:
    """Walk both roads for each seed, and write results.json, curves.csv, stages.csv and memory.csv.

    Args:
        out: folder of the study; seeds that are there already are kept.
        quick: one seed and small sizes.
        show: say what is under way.

    Raises:
        PreftuneError: if a stage fails, or the folder cannot be written to.
    """
    form = QUICK if quick else FULL
    files, stages, looks = configs(form), list[Stage](), list[Look]()
    for seed in form.seeds:
        folder = out / f"seed-{seed}"
        kept = folder / "found.json"
        known = _kept(kept, form, files)
        if known is None:
            _tell(show, f"seed {seed}")
            known = _seed(folder, seed, form, files, show)
            parts = [[asdict(one) for one in part] for part in known]
            whole = {"form": asdict(form), "configs": files, "stages": parts[0], "looks": parts[1]}
            write_whole(kept, json.dumps(whole).encode())
        stages += known[0]
        looks += known[1]
    _tell(show, "memory")
    memory = _memory(out / "memory", form, files)
    compared = Compared(form, stages, looks, memory, files)
    _write(out, compared)
    return compared


def _kept(path: Path, form: Form, files: Mapping[str, str]) -> tuple[list[Stage], list[Look]] | None:
    """What a seed came to, if it is done, in this form and from these configs."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["form"] != json.loads(json.dumps(asdict(form))) or found["configs"] != dict(files):
            return None
        return [Stage(**one) for one in found["stages"]], [Look(**one) for one in found["looks"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or not whole: it is made anew


def _seed(folder: Path, seed: int, form: Form, files: Mapping[str, str], show: bool) -> tuple[list[Stage], list[Look]]:
    """Both roads, one after the other, on the same pairs."""
    folder.mkdir(parents=True, exist_ok=True)
    write_records(folder / "pairs.jsonl", pairs(form.pairs, seed=seed))
    write_records(folder / "held_out.jsonl", held_out_pairs(256, seed=seed + 1))
    stages, looks = list[Stage](), list[Look]()
    for road, names in ROADS.items():
        before = 0.0
        for name in names:
            _tell(show, f"seed {seed}: {name}")
            stage, _ = _run(folder, road, name, seed, files[name], every=_every(form, name))
            stages.append(stage)
            if name == names[-1]:
                looks += _looks(folder / _folder(name), road, seed, before, form)
            before += stage.training
    return stages, looks


def _every(form: Form, name: str) -> int:
    """Optimiser steps between two checkpoints of a stage."""
    steps = form.pairs // 64 if name != "PPO" else form.rounds * 2 * -(-form.asked // 32)
    return max(1, steps // form.looks)


def _folder(name: str) -> str:
    return name.replace(" ", "-").lower()


def _run(
    folder: Path, road: str, name: str, seed: int, config: str, every: int | None, more: Sequence[str] = ()
) -> tuple[Stage, Memory]:
    """One stage, in a process of its own, watched."""
    file, output = folder / f"{_folder(name)}.yaml", _folder(name)
    file.write_text(config, encoding="utf-8")
    words = [f"seed={seed}", f"output.path={output}", "output.overwrite=true", "train.log_every=1", *CARRIED_OUT, *more]
    words += [] if every is None else [f"output.save_every={every}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    begun, seconds, sizes = time.perf_counter(), list[float](), list[int]()
    command = [sys.executable, "-m", "preftune", "train", file.name, "-q", *words]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as words_said,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=words_said, text=True
        ) as process,
    ):
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                size = watched.memory_info().rss
            except psutil.Error:  # it has just ended
                break
            seconds.append(time.perf_counter() - begun)
            sizes.append(size)
            time.sleep(WATCHED)
        process.wait()
        words_said.seek(0)
        said = words_said.read()
    if process.returncode:
        last = (said.strip().splitlines() or ["it says nothing"])[-1]
        raise PreftuneError(f"the stage {name} of seed {seed} failed in {folder}: {last.removeprefix('error: ')}")
    wall = time.perf_counter() - begun
    summary = json.loads((folder / output / "summary.json").read_text(encoding="utf-8"))
    rounds = [line for line in _lines(folder / output) if line["kind"] == "round"]
    generated = rounds[-1]["tokens_sampled"] if rounds else 0
    numbers = (summary["training_seconds"], summary["steps"], generated, summary["examples"])
    accuracy = summary["after"].get("preference_accuracy")
    return Stage(road, name, seed, wall, *numbers, max(sizes), accuracy), Memory(name, 0, seconds, sizes)


def _looks(run: Path, road: str, seed: int, before: float, form: Form) -> list[Look]:
    """What a policy was worth at its start, at its checkpoints and at its end."""
    from transformers import AutoModelForCausalLM

    reference, apart, lines = base_model(), prompts()[1], _lines(run)
    last = json.loads((run / "summary.json").read_text(encoding="utf-8"))["steps"]
    places: dict[int, Path | None] = {0: None}
    places |= {step: run / checkpoint.name_of(step) for step in checkpoint.saved(run)}
    places[last] = run / "model"
    found = []
    for step, path in sorted(places.items()):
        with one_thread(), without_progress_bars():
            lm = reference if path is None else AutoModelForCausalLM.from_pretrained(path).eval()
            seen: PolicyEvaluation = evaluate_policy(
                lm, reference, apart, samples_per_prompt=form.samples, seed=1000 + seed
            )
        seconds = sum(line["seconds"] for line in lines if line["kind"] == "train" and line["step"] <= step)
        sampled = [line["tokens_sampled"] for line in lines if line["kind"] == "round" and line["step"] < step]
        figures = (seen.true_reward, seen.kl, seen.grammatical, seen.components)
        found.append(Look(road, seed, step, before + seconds, max(sampled, default=0), *figures))
    return found


def _lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _memory(folder: Path, form: Form, files: Mapping[str, str]) -> list[Memory]:
    """Every stage once more, for a few steps on a model that is large enough for its copies to show."""
    folder.mkdir(parents=True, exist_ok=True)
    write_records(folder / "pairs.jsonl", pairs(256, seed=0))
    write_records(folder / "held_out.jsonl", held_out_pairs(16, seed=1))
    sizes = [f"model.scratch.hidden_size={form.hidden}", "model.scratch.layers=8", "model.scratch.heads=8"]
    found = []
    for road, names in ROADS.items():
        for name in names:
            more = ["model.path=scratch:qwen3", *sizes, f"train.max_steps={form.steps}", "batch.micro_size=8"]
            _, memory = _run(folder, road, name, 0, files[name], None, more)
            summary = json.loads((folder / _folder(name) / "summary.json").read_text(encoding="utf-8"))
            weights = summary["memory"]["weights"] // 4
            found.append(Memory(name, weights, memory.seconds, memory.bytes))
    return found


def _write(out: Path, found: Compared) -> None:
    try:
        (out / "results.json").write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
        _table(out / "stages.csv", [asdict(stage) for stage in found.stages])
        _table(out / "curves.csv", [{**asdict(look), "parts": None, **look.parts} for look in found.looks])
        rows = [
            {"stage": one.stage, "seconds": round(at, 3), "bytes": size}
            for one in found.memory
            for at, size in zip(one.seconds, one.bytes, strict=True)
        ]
        _table(out / "memory.csv", rows)
    except OSError as error:
        raise PreftuneError(f"cannot write into {out} ({error.strerror}): name another folder (--out)") from error


def _table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    names = [name for name in rows[0] if name != "parts"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _tell(show: bool, said: str) -> None:
    if show:
        print(said, file=sys.stderr, flush=True)
