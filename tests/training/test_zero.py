"""What is refused of DeepSpeed, before anything is read. What it computes: tests/distributed."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from preftune.config import RunConfig
from preftune.errors import PreftuneError
from preftune.training.zero import ZeroAccelerator, check_zero, zero_stage


def config(**blocks: object) -> RunConfig:
    return RunConfig.model_validate({"data": {"path": "sandbox"}, "model": {"path": "sandbox"}, **blocks})


ASKED = config(train={"strategy": "deepspeed"})


@pytest.fixture(autouse=True)
def two_processes(monkeypatch):
    for name in ("LOCAL_RANK", "RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")


def test_the_stage_is_what_accelerate_launch_was_told(monkeypatch):
    auto, ddp = config(), config(train={"strategy": "ddp"})
    assert [zero_stage(one.train) for one in (ASKED, auto, ddp)] == ["2", None, None]
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "1")
    assert [zero_stage(one.train) for one in (ASKED, auto, ddp)] == ["1", "1", None]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("WORLD_SIZE", "1", "this is one process: start it with a launcher"),
        ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3", "zero_stage: 3, expected 1 or 2: set it to 2, or take"),
        ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "0", "zero_stage: 0, expected 1 or 2"),
        (
            "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
            "cpu",
            "offload_optimizer_device: cpu, which is not supported",
        ),
        ("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "nvme", "offload_param_device: nvme, which is not supported"),
        ("ACCELERATE_DEEPSPEED_CONFIG_FILE", "ds.json", r"config file of DeepSpeed \(ds.json\), which is not read"),
    ],
)
def test_what_the_launcher_asks_for_is_refused_by_name(monkeypatch, name, value, said):
    monkeypatch.setenv(name, value)
    with pytest.raises(PreftuneError, match=said) as refused:
        check_zero(ASKED)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ({"train": {"compile": True}}, "train.compile=true does not go with DeepSpeed: set it to false"),
        ({"train": {"precision": "fp16"}}, "train.precision=fp16 does not go with DeepSpeed: set it to bf16"),
        (
            {"model": {"path": "sandbox", "lora": {}, "quantize": "4bit"}},
            "model.quantize=4bit does not go with DeepSpeed",
        ),
        ({"optim": {"name": "adamw_8bit"}}, "optim.name=adamw_8bit does not go with DeepSpeed: set it to adamw"),
    ],
)
def test_keys_that_do_not_go_with_it_are_refused_by_name(blocks, said):
    train = {"strategy": "deepspeed", **blocks.pop("train", {})}
    with pytest.raises(PreftuneError, match=said):
        check_zero(config(train=train, **blocks))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_that_train_must_be_float32(monkeypatch, dtype):
    """DeepSpeed would keep a copy in float32 that no checkpoint of ours holds."""
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator, module = ZeroAccelerator("2", cpu=True), nn.Linear(2, 2, dtype=dtype)
    with pytest.raises(PreftuneError, match=f"{str(dtype)[6:]}, but with DeepSpeed .* set model.dtype=fp32"):
        accelerator.prepare(module, torch.optim.AdamW(module.parameters()))


def test_deepspeed_must_be_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PreftuneError, match=r"needs DeepSpeed: pip install 'preftune\[deepspeed\]'"):
        check_zero(ASKED)
