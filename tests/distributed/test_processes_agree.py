"""Two processes come to what one comes to: weights, losses and metrics, however examples are shared out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from preftune.policy.loading import built_in_folder
from preftune.policy.stored import Shards
from tests.distributed.conftest import WITH_DEEPSPEED, ZERO

# Which runs (see runs.py) each strategy makes, all in one launch: starting takes longer than they do.
MADE = {
    "ddp": ("dpo", "lora-stored", "kto", "single", "online", "ppo"),
    "fsdp2": ("dpo", "stored", "lora", "mix", "tdpo", "single", "single-coupled"),
    "zero1": ("dpo", "lora-stored", "single"),
    "zero2": ("dpo", "stored", "lora", "mix", "tdpo", "single", "single-coupled"),
}
STRATEGIES = [pytest.param(strategy, marks=WITH_DEEPSPEED if strategy in ZERO else ()) for strategy in MADE]
COUPLES = [pytest.param(*one.values, name, marks=one.marks) for one in STRATEGIES for name in MADE[one.values[0]]]
TIMED = {"kind", "seconds", "pairs_per_second", "tokens_per_second", "padding_share"}
# Differences of whole responses' log-probs of up to 60 nats, each of which float32 rounds by 2e-6.
SUMMED = ("delta", "margin", "chosen_reward", "rejected_reward")

One = Callable[[str], Path]
Two = Callable[[str, str], Path]


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    every = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if line["kind"] == kind]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(next(iter(folder.glob("*.safetensors"))))


def both(one_process: One, two_processes: Two, strategy: str, name: str) -> tuple[Path, Path]:
    return one_process(name), two_processes(strategy, ",".join(MADE[strategy])) / name


@pytest.mark.parametrize(("strategy", "name"), COUPLES)
def test_steps_are_those_of_one_process(one_process: One, two_processes: Two, strategy: str, name: str) -> None:
    one, two = both(one_process, two_processes, strategy, name)
    expected, found = lines(one, "train"), lines(two, "train")
    assert len(expected) == len(found) == 3
    assert expected[0]["gradient_norm"] > 1e-3
    for line, other in zip(expected, found, strict=True):
        assert line.keys() == other.keys()
        for key in line.keys() - TIMED:
            assert other[key] == pytest.approx(line[key], rel=1e-5, abs=1e-5), (key, line["step"])


@pytest.mark.parametrize(("strategy", "name"), COUPLES)
def test_metrics_of_held_out_pairs_know_no_remainder(
    one_process: One, two_processes: Two, strategy: str, name: str
) -> None:
    """13 pairs (or one) in forwards of two on two processes: stand-ins there are, and none of them is seen."""
    one, two = both(one_process, two_processes, strategy, name)
    expected, found = lines(one, "eval"), lines(two, "eval")
    assert len(expected) == len(found) >= 4
    for line, other in zip(expected, found, strict=True):
        assert line.keys() == other.keys()
        for key in line.keys() - {"kind", "chosen_reward_histogram", "rejected_reward_histogram"}:
            # at the start, nothing was trained; later, the weights themselves are rounded in another way
            slack = 2e-5 if key.startswith(SUMMED) else 1e-6 if line["step"] == 0 else 1e-5
            slack = 1e-2 if key == "delta_length_correlation" else slack  # of deltas as small as their rounding
            assert other[key] == pytest.approx(line[key], rel=slack, abs=slack), (key, line["step"])


@pytest.mark.parametrize(("strategy", "name"), COUPLES)
def test_models_are_whole_and_those_of_one_process(
    one_process: One, two_processes: Two, strategy: str, name: str
) -> None:
    one, two = both(one_process, two_processes, strategy, name)
    expected, found = weights(one / "model"), weights(two / "model")
    assert expected.keys() == found.keys()
    base = weights(built_in_folder())
    moved = (
        max(float((expected[key] - base[key]).abs().max()) for key in expected if key in base)
        if ("lora" not in name)
        else max(float(value.abs().max()) for key, value in expected.items() if "lora_B" in key)
    )
    assert moved > 1e-3
    for key, value in expected.items():
        assert found[key].shape == value.shape
        assert float((found[key] - value).abs().max()) <= 1e-5, key


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_weights_lie_as_asked_for(two_processes: Two, strategy: str) -> None:
    """On CPUs, Accelerate takes a plugin for FSDP and trains with DDP, without a word."""
    seen = json.loads((two_processes(strategy, ",".join(MADE[strategy])) / "seen.json").read_text())
    assert seen.keys() == set(MADE[strategy])
    for one in seen.values():
        assert len(one["sharded"]) > 10
        assert one["wrapped"].startswith({"fsdp2": "FSDP", "ddp": "Distributed"}.get(strategy, "DeepSpeed"))
        assert set(one["sharded"]) == {strategy == "fsdp2"}
        assert one["same_states"]
        # where weights are shared out, one process reads them and sends them
        assert one["reads"] == ([1, 0] if strategy == "fsdp2" else [1, 1])
        if strategy in ZERO:  # each process has half of the moments: of weights in float32, two for each
            assert one["stage"] == ZERO[strategy]
            assert one["moments"] == pytest.approx(one["trained"], rel=0.01)
    assert "mix" not in seen or seen["mix"]["states"] > 0  # there was a state to compare


def test_sharded_runs_load_in_plain_transformers(two_processes: Two) -> None:
    folder = two_processes("fsdp2", ",".join(MADE["fsdp2"]))
    model = AutoModelForCausalLM.from_pretrained(folder / "dpo" / "model")
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for p in AutoModelForCausalLM.from_pretrained(built_in_folder()).parameters()
    )
    assert (folder / "lora" / "checkpoints" / "step-000002" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(("strategy", "name"), [("ddp", "lora-stored"), ("fsdp2", "stored")])
def test_stored_log_probs_are_made_once(two_processes: Two, strategy: str, name: str) -> None:
    """Each process computes its share: no example stands in two shards."""
    two = two_processes(strategy, ",".join(MADE[strategy])) / name
    (folder,) = (two.parent / "cache" / "references").iterdir()
    shards = Shards(folder)
    written = sum(int.from_bytes(path.read_bytes()[:8], "little") for path in folder.glob("*.shard"))
    assert len(list(folder.glob("*.shard"))) == 2
    assert written == len(shards) == 33
    assert "0 of 33 examples reused" in " ".join(json.loads((two / "summary.json").read_text())["messages"])
