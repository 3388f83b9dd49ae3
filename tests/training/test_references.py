from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import miniatures
import numpy as np
import pytest
import torch
from torch import nn

import preftune
from preftune.data.examples import Example
from preftune.data.packing import PackedBatch, pack, pad
from preftune.errors import PreftuneError
from preftune.objectives.batch import LogProbs
from preftune.policy.loading import LoraConfig, ModelConfig, adapt
from preftune.policy.policy import PolicyModule
from preftune.policy.reference import AdapterOffReference, FrozenReference, LiveReference, StartReference
from preftune.sandbox.preferences import rows
from preftune.training import references
from preftune.training.references import Forwards, stored_reference
from preftune.training.step import Micro

FORWARDS = Forwards(lambda examples: Micro(examples, pack(examples)), most_tokens=60)


class Counting(LiveReference):
    """Counts the examples and forwards that a live reference is asked for."""

    def __init__(self, inner: LiveReference) -> None:
        self.inner, self.module = inner, inner.module
        self.asked: list[list[int]] = []

    def weights(self) -> dict[str, torch.Tensor]:
        return self.inner.weights()

    def logps(self, batch: PackedBatch, examples: Sequence[Example]) -> LogProbs:
        self.asked.append([example.row for example in examples])
        return self.inner.logps(batch, examples)

    @property
    def examples(self) -> int:
        return sum(len(forward) for forward in self.asked)


def counting(lm: nn.Module | None = None, layout: Any = "tree") -> Counting:
    return Counting(FrozenReference.copy_of(PolicyModule(miniatures.build("llama") if lm is None else lm, layout)))


def several(count: int = 40, seed: int = 0) -> list[Example]:
    random = np.random.default_rng(seed)
    return [miniatures.pair(*random.integers(2, 12, 3).tolist(), row) for row in range(count)]


def bits(reference: Any, examples: Sequence[Example]) -> bytes:
    return b"".join(reference.logps(pack([one]), [one]).logps_K.numpy().tobytes() for one in examples)


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_stored_log_probs_equal_live_ones_in_any_order_and_grouping(tmp_path, layout):
    live = counting(miniatures.build("mistral"), layout)
    prepare = pack if layout == "tree" else pad
    forwards = Forwards(lambda examples: Micro(examples, prepare(examples)), most_tokens=60)
    examples = [*miniatures.forest(), *several()]
    stored = stored_reference(live, [examples[:7], [], examples[7:]], forwards, "no", tmp_path)
    assert live.examples == len(examples)
    for micro in (examples[:2], examples[::-1], [examples[3], examples[0], examples[3]]):
        found_K = stored.logps(pack(micro), micro).logps_K
        expected_K = live.logps(prepare(micro), micro).logps_K
        torch.testing.assert_close(found_K, expected_K, rtol=0, atol=miniatures.EXACT)


def test_two_passes_are_bit_identical_in_any_order_and_however_they_are_divided_into_sides(tmp_path):
    examples = several()
    live = counting()
    first = stored_reference(live, [examples], FORWARDS, "no", tmp_path / "a")
    shuffled = [examples[i] for i in np.random.default_rng(1).permutation(len(examples))]
    second = stored_reference(live, [shuffled[:9], shuffled[9:] + shuffled[:3]], FORWARDS, "no", tmp_path / "b")
    assert live.examples == 2 * len(examples), "equal examples are computed once"
    assert bits(first, examples) == bits(second, examples)
    forwards = sorted(sorted(one) for one in live.asked)
    assert forwards[::2] == forwards[1::2]


def test_reordering_hits_and_a_second_run_computes_nothing(tmp_path):
    examples = several()
    live = counting()
    first = stored_reference(live, [examples], FORWARDS, "no", tmp_path)
    assert "0 of 40 examples reused, 40 computed" in first.notes[-1]
    again = counting()
    second = stored_reference(again, [examples[::-1]], FORWARDS, "no", tmp_path)
    assert again.asked == []
    assert "40 of 40 examples reused, 0 computed" in second.notes[-1]
    assert str(tmp_path) in second.notes[-1]
    assert bits(first, examples) == bits(second, examples)


def test_what_is_new_is_computed_alone_and_what_was_there_stays(tmp_path):
    examples = several(80)
    live = counting()
    first = stored_reference(live, [examples[:60]], FORWARDS, "no", tmp_path)
    known = bits(first, examples[:60])
    live.asked.clear()
    second = stored_reference(live, [examples], FORWARDS, "no", tmp_path)
    assert sorted(row for forward in live.asked for row in forward) == list(range(60, 80))
    assert len(live.asked) < 20, "forwards of several"
    assert bits(second, examples[:60]) == known


def test_promise_18_a_changed_token_or_target_misses(tmp_path):
    example, other = several(2)
    first = other.responses[0]
    longer = replace(first, ids=np.concatenate([first.ids, first.ids[:1]]))
    masked = replace(longer, targets=np.arange(len(longer.ids)) > 0)
    live = counting()
    for changes, response in enumerate((first, longer, masked), start=1):
        changed = replace(other, responses=(response, *other.responses[1:]))
        stored = stored_reference(live, [[example], [changed]], FORWARDS, "no", tmp_path)
        assert live.examples == 1 + changes
        expected_K = live.inner.logps(pack([changed]), [changed]).logps_K
        torch.testing.assert_close(
            stored.logps(pack([changed]), [changed]).logps_K, expected_K, rtol=0, atol=miniatures.EXACT
        )


CHANGES = {
    "a weight": {"change": "weight"},
    "the precision of the weights": {"change": "dtype"},
    "the precision of the run": {"precision": "bf16"},
    "the layout": {"layout": "padded"},
    "a field of the config": {"overrides": {"rms_norm_eps": 1e-2}},
    "the type of model": {"model_type": "mistral"},
    "a version": {"change": "version"},
    "how products are computed": {"change": "matmul"},
    "compilation": {"change": "compile"},
}


@pytest.mark.parametrize("what", CHANGES)
def test_promise_18_another_model_or_precision_misses(tmp_path, monkeypatch, what):
    def run(change="", precision="no", layout="tree", model_type="llama", overrides=None):
        lm = miniatures.build(model_type, **(overrides or {}))
        if change == "weight":
            with torch.no_grad():
                lm.lm_head.weight[0, 0] += 1e-6
        elif change == "dtype":
            lm.double()
        elif change == "version":
            monkeypatch.setattr(references, "version", lambda name: f"{name} of tomorrow")
        elif change == "matmul":
            torch.backends.cuda.matmul.fp32_precision = "tf32"
        live = counting(lm, layout)
        if change == "compile":  # what is compiled is not copied with the model
            live.module.base.model.norm.compile(backend="eager")
        prepare = pack if layout == "tree" else pad
        forwards = Forwards(lambda examples: Micro(examples, prepare(examples)))
        stored_reference(live, [several(3)], forwards, precision, tmp_path)
        return live.examples

    assert [run(), run()] == [3, 0]
    try:
        assert run(**CHANGES[what]) == 3
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_says_what_its_log_probs_follow_from(tmp_path):
    stored_reference(counting(), [several(2)], FORWARDS, "no", tmp_path)
    (folder,) = tmp_path.iterdir()
    told = json.loads((folder / "identity.json").read_text())
    assert told["model"].endswith("LlamaForCausalLM")
    assert told["config"]["hidden_size"] == 32
    assert told["torch"] == torch.__version__.partition("+")[0] or told["torch"] == torch.__version__
    assert (told["precision"], told["layout"], told["device"]) == ("no", "tree", "cpu")


def test_a_base_under_an_adapter_and_the_same_model_alone_share_their_log_probs(tmp_path):
    examples = several()
    lm = adapt(miniatures.build("qwen2"), ModelConfig(lora=LoraConfig(r=4, dropout=0.3)), seed=0)
    policy = PolicyModule(lm, "tree").train()
    under = Counting(AdapterOffReference(policy, policy))
    stored = stored_reference(under, [examples], FORWARDS, "no", tmp_path)
    alone = PolicyModule(miniatures.build("qwen2"), "tree").train()
    other = Counting(StartReference(alone, alone))
    stored_reference(other, [examples], FORWARDS, "no", tmp_path)
    assert (under.examples, other.examples) == (40, 0)
    expected_K = other.inner.logps(pack(examples), examples).logps_K
    torch.testing.assert_close(
        stored.logps(pack(examples), examples).logps_K, expected_K, rtol=0, atol=miniatures.EXACT
    )


def test_a_module_of_ones_own_is_stored_too(tmp_path):
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table = nn.Embedding(64, 64)

        def forward(self, input_ids: torch.Tensor) -> Any:
            return type("Output", (), {"logits": self.table(input_ids)})

    forwards = Forwards(lambda examples: Micro(examples, pad(examples)))
    counts = []
    for _ in range(2):
        live = counting(Own(), "padded")
        stored = stored_reference(live, [several()], forwards, "no", tmp_path)
        counts.append(live.examples)
    assert counts == [40, 0]
    batch = pad(several(2))
    assert torch.equal(stored.logps(batch, several(2)).logps_K, live.inner.logps(batch, several(2)).logps_K)


def test_forwards_keep_to_the_limits(tmp_path):
    examples = several(60)
    for layout, prepare in (("tree", pack), ("padded", pad)):
        made: list[PackedBatch] = []

        def make(examples: Sequence[Example], prepare: Any = prepare, made: Any = made) -> Micro:
            made.append(prepare(examples))
            return Micro(examples, made[-1])

        forwards = Forwards(make, most_tokens=100, alone_above=19)
        stored_reference(counting(layout=layout), [examples], forwards, "no", tmp_path)
        assert all(batch.tokens <= 100 or batch.examples == 1 for batch in made)
        # all but the last of those that may share a forward are well filled
        shared = sorted(batch.tokens for batch in made if batch.examples > 1)
        assert len(shared) > 3
        assert shared[1] > 60
        for batch in made:
            longest = int(batch.position_T.max()) + 1 if layout == "tree" else batch.row_length
            assert longest <= 19 or batch.examples == 1


def test_shards_are_written_as_the_pass_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(references, "SHARD_SECONDS", 0.0)
    live = counting()
    stored_reference(live, [several()], FORWARDS, "no", tmp_path)
    assert len(list(tmp_path.glob("*/*.shard"))) == len(live.asked)
    monkeypatch.setattr(references, "SHARD_SECONDS", 1e9)
    for size, shards in ((1, len(live.asked)), (10**9, 1)):
        monkeypatch.setattr(references, "SHARD_BYTES", size)
        stored_reference(counting(), [several()], FORWARDS, "no", tmp_path / str(size))
        assert len(list((tmp_path / str(size)).glob("*/*.shard"))) == shards


SLOW = """
import sys, time
from pathlib import Path
sys.path[:0] = {paths}
from test_references import *
references.SHARD_SECONDS = 0.0

class Slow(Counting):
    def logps(self, batch, examples):
        time.sleep({pause})
        return super().logps(batch, examples)

print("ready", flush=True)
sys.stdin.readline()
live = Slow(counting().inner)
stored_reference(live, [several()], FORWARDS, "no", Path(sys.argv[1]))
print(live.examples, flush=True)
"""


def started(folder: Path, pause: float) -> subprocess.Popen[str]:
    """A process that makes the pass, once it is told to."""
    paths = [str(Path(__file__).parent), str(Path(miniatures.__file__).parent)]
    words = [sys.executable, "-c", SLOW.format(paths=paths, pause=pause), str(folder)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_a_pass_that_is_killed_goes_on_from_its_last_shard(tmp_path):
    process = started(tmp_path / "killed", pause=0.2)
    go(process)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "killed").glob("*/*.shard"))) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    examples, live = several(), counting()
    went_on = stored_reference(live, [examples], FORWARDS, "no", tmp_path / "killed")
    whole = stored_reference(counting(), [examples], FORWARDS, "no", tmp_path / "whole")
    assert 0 < live.examples < len(examples)
    assert f"{len(examples) - live.examples} of 40 examples reused, {live.examples} computed" in went_on.notes[-1]
    assert bits(went_on, examples) == bits(whole, examples)


def test_two_processes_at_once_share_the_work(tmp_path):
    both = [started(tmp_path / "shared", pause=0.05) for _ in range(2)]
    for process in both:
        go(process)
    counts = [int(process.communicate(timeout=60)[0]) for process in both]
    examples = several()
    assert len(examples) <= sum(counts) < 2 * len(examples)
    live = counting()
    found = stored_reference(live, [examples], FORWARDS, "no", tmp_path / "shared")
    assert live.asked == []
    assert len(found.notes) == 1, "nothing is damaged"
    alone = stored_reference(counting(), [examples], FORWARDS, "no", tmp_path / "alone")
    assert bits(found, examples) == bits(alone, examples)


@pytest.mark.parametrize("damage", ["one bit", "cut short"])
def test_a_damaged_shard_is_named_and_made_anew(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(references, "SHARD_SECONDS", 0.0)
    examples = several()
    expected = bits(stored_reference(counting(), [examples], FORWARDS, "no", tmp_path), examples)
    path = sorted(tmp_path.glob("*/*.shard"))[2]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 8]) if damage == "one bit" else whole[: len(whole) // 2])
    live = counting()
    mended = stored_reference(live, [examples], FORWARDS, "no", tmp_path)
    assert len(live.asked) == 1
    assert path.name in mended.notes[0]
    assert "damaged" in mended.notes[0]
    assert bits(mended, examples) == expected
    assert path.read_bytes() == whole


def test_the_pass_shows_how_far_it_is(tmp_path, capsys):
    stored_reference(counting(), [several()], FORWARDS, "no", tmp_path, show=True)
    assert "40/40" in capsys.readouterr().err
    stored_reference(counting(), [several()], FORWARDS, "no", tmp_path, show=True)
    assert capsys.readouterr().err == ""


def test_a_folder_that_cannot_be_written_to_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(PreftuneError, match=r"file.*reference\.folder"):
        stored_reference(counting(), [several(2)], FORWARDS, "no", tmp_path / "file")


# --- in runs ----------------------------------------------------------------------------------------------------------


def trained(folder: Path, **settings: Any) -> preftune.Run:
    blocks: dict[str, Any] = {
        "reference": {"kind": "stored"},
        "evaluate": {"samples": 0},
        "train": {"max_steps": 2, "device": "cpu"},
        "optim": {"learning_rate": 1e-3},
    }
    for name, value in settings.items():
        blocks[name] = {**blocks.get(name, {}), **value} if isinstance(value, dict) and name != "objective" else value
    objective = blocks.pop("objective", "dpo")
    return preftune.train("sandbox", rows(24), objective, output=folder, quiet=True, config=blocks)


def computed(run: preftune.Run) -> int:
    (note,) = [message for message in run.summary["messages"] if "log-probs of the reference" in message]
    return int(note.partition("reused, ")[2].partition(" ")[0])


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_promise_18_a_sweep_makes_one_pass(cache, tmp_path):
    assert computed(trained(tmp_path / "first")) == 24
    others: list[dict[str, Any]] = [
        {},
        {"objective": {"name": "dpo", "beta": 0.5}},
        {"objective": "ipo"},
        {"optim": {"learning_rate": 1e-4}, "batch": {"size": 4}, "model": {"gradient_checkpointing": True}},
        {"data": {"held_out": 0.25}, "seed": 1},
        {"model": {"lora": {"r": 4}}},
    ]
    assert [computed(trained(tmp_path / str(i), **other)) for i, other in enumerate(others)] == [0] * len(others)
    assert not (tmp_path / "first" / "reference").exists()
    assert (cache / "references").is_dir()


def test_a_run_from_a_warm_cache_is_the_same_run(cache, tmp_path):
    cold, warm = (trained(tmp_path / name) for name in ("cold", "warm"))
    assert [computed(run) for run in (cold, warm)] == [24, 0]
    files = [(run.path / "model" / "model.safetensors").read_bytes() for run in (cold, warm)]
    assert files[0] == files[1]
    told = yaml_of(cold), yaml_of(warm)
    assert told[0] == told[1]


def yaml_of(run: preftune.Run) -> str:
    return (run.path / "config.yaml").read_text().replace(str(run.path), "")


@pytest.mark.parametrize(
    "settings",
    [
        {"model": {"dtype": "bf16"}},
        {"train": {"precision": "bf16"}},
        {"model": {"layout": "padded"}},
        {"model": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}},
        {"data": {"rendering": {"max_length": 20, "truncate": "response_end"}}},
    ],
    ids=str,
)
def test_promise_18_what_changes_values_misses(cache, tmp_path, settings):
    assert computed(trained(tmp_path / "first")) == 24
    assert computed(trained(tmp_path / "second", **settings)) > 0


def test_another_folder_may_be_named(cache, tmp_path):
    named = {"kind": "stored", "folder": str(tmp_path / "mine")}
    assert [computed(trained(tmp_path / name, reference=named)) for name in ("a", "b")] == [24, 0]
    assert list((tmp_path / "mine").glob("*/*.shard"))
    assert not (cache / "references").exists()
