from __future__ import annotations

import os
import subprocess
import sys

import miniatures
import pytest
import torch
from torch import nn

import preftune
from preftune.data.packing import pack
from preftune.errors import PreftuneError
from preftune.policy.compiling import check_compiles, compiled
from preftune.policy.policy import PolicyModule, logps

# the compiler's own
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def gradients_of(lm, policy: PolicyModule, examples) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    found = logps(policy, pack(examples)).logps_K
    (found * torch.linspace(-1, 2, len(found))).sum().backward()
    gradients = {name: gradient.clone() for name, gradient in miniatures.gradients(lm).items()}
    policy.zero_grad()
    return found.detach(), gradients


def test_compiled_layers_give_the_same_values_and_gradients_for_any_number_of_tokens():
    lm = miniatures.build("qwen3")
    policy = PolicyModule(lm, "tree").train()
    batches = [miniatures.pairs(), miniatures.pairs()[:2], miniatures.forest()]
    expected = [gradients_of(lm, policy, examples) for examples in batches]
    names = list(lm.state_dict())
    with compiled([policy]):
        for examples, (values_K, gradients) in zip(batches, expected, strict=True):
            found_K, found = gradients_of(lm, policy, examples)
            torch.testing.assert_close(found_K, values_K, rtol=0, atol=miniatures.EXACT)
            for name, gradient in gradients.items():
                assert (found[name] - gradient).abs().max() <= miniatures.EXACT * gradient.abs().max(), name
        assert list(lm.state_dict()) == names
    assert not any(module._compiled_call_impl for module in lm.modules())


def test_a_model_without_layers_is_refused():
    with pytest.raises(PreftuneError, match="Linear has no layers to compile; set it to false"):
        check_compiles(PolicyModule(nn.Linear(2, 2), "padded"))


def test_a_missing_compiler_is_named_before_anything_is_written(tmp_path):
    output = tmp_path / "run"
    words = ["train", "model.path=sandbox", "data.path=sandbox", "train.compile=true", f"output.path={output}"]
    environment = os.environ | {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "preftune", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "train.compile=true needs a working compiler for cpu (" in done.stderr.splitlines()[-1]
    assert not output.exists()


def test_a_compiled_run_learns_the_same_and_leaves_the_model_as_it_was(tmp_path):
    losses = []
    for on in (False, True):
        run = preftune.train(
            "sandbox",
            "sandbox",
            config={"data": {"limit": 80, "held_out": 16}},
            output=tmp_path / str(on),
            quiet=True,
            batch={"size": 16},
            train={"max_steps": 3, "log_every": 1, "compile": on},
            evaluate={"samples": 1},
        )
        losses.append([line["loss"] for line in run.history if line["kind"] == "train"])
        assert not any(module._compiled_call_impl for module in run.model.modules())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
