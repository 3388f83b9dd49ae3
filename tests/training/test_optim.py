from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from preftune.errors import PreftuneError
from preftune.objectives import terms
from preftune.training.optim import (
    OptimConfig,
    check_optimizer,
    default_learning_rate,
    optimizer,
    rate_at,
    state_bytes,
)

STEPS = 20


def rates(**fields) -> list[float]:
    config = OptimConfig(**fields)
    return [rate_at(step, STEPS, config) for step in range(STEPS)]


def test_warmup_rises_in_equal_steps_and_reaches_the_peak():
    assert rates(warmup_steps=4, schedule="constant")[:6] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert rates(warmup_ratio=0.1, schedule="constant")[:3] == [0.5, 1, 1]


def test_no_warmup_starts_at_the_peak():
    assert rates(warmup_steps=0)[0] == rates(warmup_ratio=0.0)[0] == 1


def test_linear_and_cosine_worked_by_hand():
    linear, cosine = rates(warmup_steps=4, schedule="linear"), rates(warmup_steps=4, schedule="cosine")
    assert linear[4] == cosine[4] == 1
    assert linear[12] == cosine[12] == pytest.approx(0.5)
    assert linear[8] == pytest.approx(0.75)
    assert cosine[8] == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert linear[-1] == pytest.approx(1 / 16)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 7, STEPS, 3 * STEPS])
def test_rates_are_shares_of_the_peak_and_never_zero(schedule, warmup):
    found = rates(schedule=schedule, warmup_steps=warmup)
    assert all(0 < rate <= 1 for rate in found)
    peak = found.index(max(found))
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)


def test_the_rate_is_a_function_of_the_step():
    config = OptimConfig()
    assert [rate_at(step, 7, config) for step in (3, 0, 3)] == [rate_at(step, 7, config) for step in (3, 0, 3)]
    assert 0 < rate_at(0, 1, config) <= 1


def model() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    net.append(nn.Linear(3, 2).requires_grad_(False))
    return net


def test_matrices_decay_and_norms_and_biases_do_not():
    net = model()
    groups = optimizer(net, OptimConfig(weight_decay=0.1), 1e-2).param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {name: decays.get(id(p)) for name, p in net.named_parameters()} == {
        "0.weight": 0.1, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "2.weight": None, "2.bias": None,
    }  # fmt: skip


def test_settings_reach_the_optimiser():
    groups = optimizer(model(), OptimConfig(betas=(0.8, 0.9), eps=1e-6), 3e-2).param_groups
    assert all((g["lr"], g["betas"], g["eps"]) == (3e-2, (0.8, 0.9), 1e-6) for g in groups)


def test_one_step_worked_by_hand():
    """The first step of AdamW moves against the gradient's sign by the learning rate, after decay."""
    net = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(2.0)
    step = optimizer(net, OptimConfig(weight_decay=0.5), 0.1)
    net(torch.ones(1, 1)).sum().backward()
    step.step()
    assert net.weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1, abs=1e-6)


def test_a_model_without_matrices_trains():
    assert len(optimizer(nn.LayerNorm(3), OptimConfig(), 1e-3).param_groups) == 1


def test_default_rates_fall_with_the_size_of_the_model():
    dpo = terms("dpo")
    sizes = [10**5, 10**7, 10**9, 7 * 10**9]
    full = [default_learning_rate(dpo, size, lora=False) for size in sizes]
    assert full == sorted(full, reverse=True)
    assert full[2] == dpo[0].objective.learning_rate
    assert 1e-7 < full[3] < 1e-6
    assert full[0] == 1e-3


def test_adapters_never_train_more_slowly_than_all_weights_would():
    for objective in ("dpo", "ipo", "sft"):
        for size in (10**5, 10**9, 10**11):
            full, lora = (default_learning_rate(terms(objective), size, lora=lora) for lora in (False, True))
            assert lora >= full
    assert default_learning_rate(terms("dpo"), 10**9, lora=True) == terms("dpo")[0].objective.lora_learning_rate


def test_the_first_term_sets_the_default():
    mix = [{"name": "dpo", "weight": 1.0}, {"name": "sft", "weight": 0.1}]
    assert default_learning_rate(terms(mix), 10**9, False) == default_learning_rate(terms("dpo"), 10**9, False)


INSTALLED = importlib.util.find_spec("bitsandbytes") is not None


@pytest.mark.skipif(INSTALLED, reason="bitsandbytes is installed")
def test_a_missing_package_is_named_with_the_command_that_installs_it():
    said = r"optim\.name=adamw_8bit needs bitsandbytes: pip install 'preftune\[quant\]', or set optim\.name=adamw$"
    with pytest.raises(PreftuneError, match=said):
        check_optimizer(OptimConfig(name="adamw_8bit"), "auto")
    with pytest.raises(PreftuneError, match=said):
        optimizer(model(), OptimConfig(name="adamw_8bit"), 1e-3)


@pytest.mark.parametrize("name", ["paged_adamw", "paged_adamw_8bit"])
def test_paged_moments_without_cuda_are_refused_with_the_name_that_works(name):
    with pytest.raises(PreftuneError, match=f"optim.name={name} .*: set it to {name.removeprefix('paged_')}$"):
        check_optimizer(OptimConfig(name=name), "cpu")


def test_plain_adamw_needs_nothing():
    check_optimizer(OptimConfig(), "auto")


def wide() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(100, 300), nn.ReLU(), nn.Linear(300, 10), nn.LayerNorm(10))


def losses(config: OptimConfig, net: nn.Module) -> list[float]:
    step, found = optimizer(net, config, 1e-2), []
    inputs, wanted = torch.randn(64, 100), torch.randn(64, 10)
    for _ in range(20):
        loss = (net(inputs) - wanted).square().mean()
        loss.backward()
        step.step()
        step.zero_grad()
        found.append(loss.item())
    held = [value for state in step.state.values() for key, value in state.items() if key not in ("qmap1", "qmap2")]
    sizes = [value.nbytes for value in held if isinstance(value, torch.Tensor) and value.ndim]
    assert sum(sizes) == state_bytes(config, list(net.parameters()))
    return found


def test_the_bytes_of_moments_are_counted():
    assert losses(OptimConfig(), wide())[-1] < 1
    assert state_bytes(OptimConfig(), wide().bfloat16().parameters()) * 2 == state_bytes(
        OptimConfig(), wide().parameters()
    )
    large = [nn.Parameter(torch.empty(200_000, device="meta")), nn.Parameter(torch.empty(50, device="meta"))]
    eight = 2 * 4 * math.ceil(200_000 / 256)
    for name, expected in {
        "adamw": 8 * 200_050,
        "adamw_8bit": 2 * 200_000 + eight + 400,
        "paged_adamw": 400,
        "paged_adamw_8bit": eight + 400,
    }.items():
        assert state_bytes(OptimConfig(name=name), large) == expected


@pytest.mark.skipif(not INSTALLED, reason="bitsandbytes is not installed")
def test_moments_in_8_bits_train_as_those_in_32_do():
    """On the CPU, too. Matrices of 30,000 and 3,000 weights: the second is too small for 8 bits."""
    full, eight = (losses(OptimConfig(name=name), wide()) for name in ("adamw", "adamw_8bit"))
    assert eight[0] == full[0]
    assert eight[-1] == pytest.approx(full[-1], rel=0.05)
    assert eight[-1] < 0.7 * full[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"learning_rate": 0.0}, {"learning_rate": -1e-5}, {"warmup_ratio": 1.0}, {"warmup_steps": -1}, {"eps": 0.0},
        {"name": "sgd"}, {"weight_decay": -0.1}, {"max_grad_norm": 0.0}, {"betas": (0.9, 1.0)}, {"betas": (-0.1, 0.9)},
        {"schedule": "step"}, {"lr": 1e-3}, {"warmup_steps": 3, "warmup_ratio": 0.2},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(fields):
    with pytest.raises(ValidationError):
        OptimConfig(**fields)
