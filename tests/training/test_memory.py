"""The estimate of a run's memory against what the allocator, and the operating system, say it took."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniatures import pair
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.modeling_outputs import CausalLMOutput

import preftune
from preftune.config import RunConfig, TrainConfig
from preftune.data.dataset import Examples
from preftune.data.packing import pack
from preftune.errors import PreftuneError
from preftune.objectives import terms
from preftune.policy import tiled_head
from preftune.policy.loading import LoraConfig, ModelConfig, adapt
from preftune.policy.policy import PolicyModule, logps
from preftune.sandbox.preferences import base_tokenizer, rows
from preftune.training import memory, trainer
from preftune.training.memory import Estimate, heaviest, largest
from preftune.training.room import amount, available, refuse
from preftune.training.run_folder import RunFolder
from preftune.training.step import Micro
from preftune.training.trainer import Trainer

GB = 10**9


def model(**fields: Any) -> Qwen3ForCausalLM:
    sizes = {"vocab_size": 2048, "hidden_size": 128, "num_hidden_layers": 3, "intermediate_size": 384}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512}
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**(sizes | heads | {"tie_word_embeddings": False} | fields)))


def pairs(count: int, start: int = 0) -> list[Any]:
    rng = np.random.default_rng(start)
    return [pair(*(int(n) for n in rng.integers(20, 90, 3)), seed=start + i) for i in range(count)]


Make = Callable[..., Trainer]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to use again of what other tests left."""
    monkeypatch.setattr(tiled_head, "_free", [])


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A trainer over random pairs, on the CPU."""

    def made(lm: nn.Module | None = None, held_out: int = 2, objective: str = "dpo", **blocks: Any) -> Trainer:
        config = RunConfig(**{"batch": {"size": 6}, "evaluate": {"samples": 0}, **blocks})
        train = TrainConfig(**{"max_steps": 3, "device": "cpu", **blocks.get("train", {})})
        config = config.model_copy(update={"train": train})
        lm = adapt(model() if lm is None else lm, config.model, seed=0)
        examples = Examples(pairs(18), pairs(held_out, 100), [])
        folder = RunFolder.create(tmp_path / f"run-{len(list(tmp_path.iterdir()))}")
        return Trainer(lm, base_tokenizer(), examples, terms(objective), config, folder, show=False)

    return made


def measured(work: Callable[[], Any], path: Path) -> int:
    """The most bytes that torch's CPU allocator gave out at once, of those that it gave out during `work`."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    seen.export_chrome_trace(str(path))
    events = [e["args"] for e in json.loads(path.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    before = events[0]["Total Allocated"] - events[0]["Bytes"]  # the profiler goes on counting from earlier uses
    return max(event["Total Allocated"] for event in events) - before


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"model": {"lora": {}}},
    "gradient checkpointing": {"model": {"gradient_checkpointing": True}},
    "stored reference": {"reference": {"kind": "stored"}},
    "padded": {"model": {"layout": "padded"}},
    "large vocabulary": {"sizes": {"vocab_size": 40_000, "tie_word_embeddings": True}},
    "large vocabulary, several forwards": {"sizes": {"vocab_size": 40_000}, "batch": {"size": 6, "micro_size": 2}},
    "bf16": {"train": {"precision": "bf16"}},
    "bf16, lora, gradient checkpointing": {
        "model": {"lora": {}, "gradient_checkpointing": True},
        "train": {"precision": "bf16"},
    },
    "no reference": {"objective": "simpo"},
    "whole distributions": {"objective": "tdpo"},
    "coupled": {"objective": "aot", "batch": {"size": 6, "micro_size": 2}},
    "much to evaluate": {"held_out": 40, "model": {"gradient_checkpointing": True}},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_promise_16_the_estimate_is_within_a_tenth_of_what_the_allocator_gave_out(
    name: str, make: Make, tmp_path: Path
) -> None:
    blocks = dict(CONFIGURATIONS[name])
    built = make(model(**blocks.pop("sizes", {})), **blocks)
    expected = built.memory
    held = expected["weights"] + expected["reference"]
    took = held + measured(built.fit, tmp_path / "trace.json")
    assert expected["peak"] == pytest.approx(took, rel=0.1)
    assert expected["peak"] == sum(
        expected[part] for part in ("weights", "reference", "optimizer", "gradients", "activations")
    )


SCRIPT = """
import ctypes, gc, sys, test_memory, torch
from pathlib import Path
torch.set_num_threads(1)

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

made = test_memory.make.__wrapped__(Path(sys.argv[1]))(
    test_memory.model(vocab_size=40_000), train={"max_steps": 2}
)
gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = status("VmRSS")
made.fit()
expected = made.memory
print(expected["peak"] - expected["weights"] - expected["reference"], status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no peak to reset")
def test_the_estimate_is_within_a_tenth_of_what_the_process_grew_by(tmp_path: Path) -> None:
    """With each large tensor mapped for itself: glibc's heap keeps freed pieces, which no estimate knows."""
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path]
    settings = {"MALLOC_MMAP_THRESHOLD_": str(2**17), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], env=os.environ | settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    expected, grew = (int(word) for word in done.stdout.split()[-2:])
    assert expected == pytest.approx(grew, rel=0.1)


def test_the_estimate_follows_what_the_head_keeps(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"vocab_size": 40_000}
    before = make(model(**sizes)).memory["activations"]
    monkeypatch.setattr(tiled_head, "KEPT_BYTES", 0)
    assert make(model(**sizes)).memory["activations"] < 0.8 * before


def test_checkpointing_recomputes_each_layer_alone_is_exact_on_trees_and_lowers_the_peak(tmp_path: Path) -> None:
    plain, checkpointed = (_one_step(checkpointing, tmp_path / "trace.json") for checkpointing in (False, True))
    layers = [str(number) for number in range(6)]
    assert plain.order == [f"forward {n}" for n in layers] + [f"backward {n}" for n in reversed(layers)]
    # each layer comes again just before its own backward: no other one's activations are there with its own
    again = [f"{what} {n}" for n in reversed(layers) for what in ("forward", "backward")]
    assert checkpointed.order == [f"forward {n}" for n in layers] + again
    for ours, theirs in zip(checkpointed.gradients, plain.gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert checkpointed.peak < 0.6 * plain.peak


@dataclass
class Done:
    order: list[str]
    gradients: list[torch.Tensor | None]
    peak: int


def _one_step(checkpointing: bool, path: Path) -> Done:
    lm: Any = adapt(model(num_hidden_layers=6), ModelConfig(gradient_checkpointing=checkpointing), seed=0)
    policy = PolicyModule(lm, "tree").train()
    order: list[str] = []
    for number, layer in enumerate(lm.model.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, number=number: order.append(f"forward {number}"))
        layer.mlp.down_proj.weight.register_post_accumulate_grad_hook(
            lambda _, number=number: order.append(f"backward {number}")
        )
    peak = measured(lambda: logps(policy, pack(pairs(6))).logps_K.sum().backward(), path)
    return Done(order, [parameter.grad for parameter in policy.parameters()], peak)


def test_the_rehearsal_changes_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = {"model": {"lora": {"dropout": 0.5}, "gradient_checkpointing": True}}
    found = []
    for rehearsed in (True, False):
        if not rehearsed:
            monkeypatch.setattr(trainer, "foresee", lambda *_: {"said": ""})
        made = make(**blocks)
        loss = made.fit()["after"]["loss"]
        found.append((loss, made.state()))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(weights, found[1][1][name]) for name, weights in found[0][1].items())


class Reading(nn.Module):
    """Any module with logits, which may look at its values, and keeps what it computed."""

    def __init__(self, looks: bool) -> None:
        super().__init__()
        self.table, self.out, self.looks = nn.Embedding(64, 8), nn.Linear(8, 64), looks
        self.last: torch.Tensor | None = None
        self.kept: dict[int, torch.Tensor] = {}

    def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:
        hidden = self.table(input_ids).cumsum(1)
        self.last = hidden
        hidden = hidden + self.kept.setdefault(input_ids.shape[1], torch.ones(1, input_ids.shape[1], 1))
        if self.looks and float(hidden.detach().sum()) > 1e9:
            hidden = -hidden
        return CausalLMOutput(logits=self.out(hidden))


@pytest.mark.parametrize("looks", [False, True])
def test_a_forward_that_looks_at_its_values_trains_without_an_estimate(looks: bool, make: Make) -> None:
    made = make(Reading(looks))
    assert ("peak" in made.memory) != looks
    assert ("no estimate of memory: " in made.memory["said"]) == looks
    assert made.fit()["steps"] == 3


def test_the_summary_holds_the_estimate_and_the_start_says_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {"train": {"max_steps": 1}, "evaluate": {"samples": 0}}
    run = preftune.train("sandbox", rows(24), output=tmp_path / "run", **settings)
    found = run.summary["memory"]
    assert 0 < found["weights"] < found["peak"] < found["available"]
    assert f"note: {found['said']}\n" in capfd.readouterr().err
    assert found["said"].startswith(f"training takes about {amount(found['peak'])} of ")


def test_what_does_not_fit_is_refused_before_anything_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"train": {"max_steps": 1}, "evaluate": {"samples": 0}, "quiet": True, "output": tmp_path / "run"}
    first = preftune.train("sandbox", rows(24), **settings).summary
    monkeypatch.setattr(memory, "available", lambda _: 10**6)
    with pytest.raises(PreftuneError, match=r"training would take about .* MB, but there are .* MB: ") as refused:
        preftune.train("sandbox", rows(24), overwrite=True, **settings)
    assert "\n" not in str(refused.value)
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == json.loads(json.dumps(first))
    settings["train"] = {"max_steps": 1, "check_memory": False}
    assert preftune.train("sandbox", rows(24), overwrite=True, **settings).summary["steps"] == 1


def refusal(expected: Estimate, examples: int = 8, **blocks: Any) -> str:
    few = pairs(examples)
    with pytest.raises(PreftuneError) as refused:
        refuse(expected, GB, RunConfig(**blocks), Micro(few, pack(few)))
    return str(refused.value)


def test_advice_says_first_what_saves_most() -> None:
    said = refusal(Estimate(2 * GB, 2 * GB, 4 * GB, 2 * GB, 30 * GB))
    assert said.startswith("training would take about 40 GB, but there are 5.0 GB: lower batch.micro_tokens")
    named = ["batch.micro_tokens", "model.gradient_checkpointing", "model.lora", "optim.name=adamw_8bit"]
    places = [said.index(key) for key in [*named, "train.check_memory=false"]]
    assert places == sorted(places)

    said = refusal(Estimate(20 * GB, 20 * GB, 40 * GB, 20 * GB, 3 * GB))
    assert said.index("model.lora") < said.index("adamw_8bit") < said.index("reference.kind=stored")


def test_advice_names_nothing_that_is_done_already_or_cannot_help() -> None:
    done = {"model": {"gradient_checkpointing": True, "lora": {}}, "optim": {"name": "adamw_8bit"}}
    said = refusal(Estimate(20 * GB, 0, 0, 0, 3 * GB), examples=1, **done)
    assert "set model.quantize=4bit" in said
    for key in ("micro_tokens", "gradient_checkpointing", "model.lora", "adamw_8bit", "reference.kind"):
        assert key not in said
    said = refusal(Estimate(2 * GB, 2 * GB, 4 * GB, 2 * GB, 3 * GB), model={"path": "scratch:qwen3"})
    assert "model.lora" not in said


def test_what_fits_is_not_refused() -> None:
    few = pairs(2)
    refuse(Estimate(GB, GB, 0, 0, GB), GB, RunConfig(), Micro(few, pack(few)))


def test_the_heaviest_batches_are_those_of_most_tokens_and_of_the_longest_example() -> None:
    costs_N = np.array([1] * 40 + [5, 5, 5, 5, 9])
    batches = [np.arange(i, i + 4) for i in range(0, 40, 4)] + [np.array([40, 41, 42, 43]), np.array([44])]
    found = heaviest(batches, costs_N)
    assert [list(batch) for batch in found[:2]] == [[40, 41, 42, 43], [44]]
    assert heaviest([], costs_N) == []


def test_the_largest_forwards_are_those_of_most_tokens_and_of_most_targets() -> None:
    made = [Micro(each, pack(each)) for each in ([pair(90, 5, 5, 0)], [pair(20, 30, 30, 1)], [pair(5, 5, 5, 2)])]
    assert largest(made) == made[:2]
    assert largest(made[1:]) == [made[1]]
    assert largest(made[2:], made[:1]) == []
    assert largest([]) == []


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


MEMINFO = {"proc/meminfo": "MemTotal:       8000000 kB\nMemAvailable:   5000000 kB\n"}
TWO = {
    "proc/self/cgroup": "0::/jobs/one\n",
    "sys/fs/cgroup/jobs/memory.max": "3000000\n",
    "sys/fs/cgroup/jobs/memory.current": "2500000\n",
    "sys/fs/cgroup/jobs/memory.stat": "anon 5\ninactive_file 100000\n",
    "sys/fs/cgroup/jobs/one/memory.max": "max\n",
    "sys/fs/cgroup/jobs/one/memory.current": "1000\n",
    "sys/fs/cgroup/jobs/one/memory.stat": "",
}
ONE = {
    "proc/self/cgroup": "5:cpu:/\n4:memory:/docker/abc\n",  # as seen in a container, where only the top is there
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "4000000\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000000\n",
    "sys/fs/cgroup/memory/memory.stat": "inactive_file 7\ntotal_inactive_file 500000\n",
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (MEMINFO, 5_000_000 * 1024),
        (MEMINFO | TWO, 600_000),
        (MEMINFO | ONE, 3_500_000),
        (TWO, 600_000),
        ({}, None),
    ],
)
def test_room_is_what_the_machine_has_or_its_control_groups_leave(
    files: dict[str, str], expected: int | None, tmp_path: Path
) -> None:
    write(tmp_path, files)
    assert available(torch.device("cpu"), tmp_path) == expected


@pytest.mark.skipif(not Path("/proc/meminfo").is_file(), reason="no /proc")
def test_this_machine_has_room() -> None:
    room = available(torch.device("cpu"))
    assert room is not None
    assert 10**7 < room < 10**14


def test_an_unknown_device_says_nothing() -> None:
    assert available(torch.device("meta")) is None


def test_amounts_read_well() -> None:
    assert [amount(n) for n in (345_678, 7_600_000, 412_800_000, 1_240_000_000, 23 * GB, 139 * GB)] == [
        "0.3 MB", "7.6 MB", "413 MB", "1.2 GB", "23 GB", "139 GB",
    ]  # fmt: skip


def test_adapters_take_no_reference_of_their_own(make: Make) -> None:
    assert make(model={"lora": LoraConfig().model_dump()}).memory["reference"] == 0
