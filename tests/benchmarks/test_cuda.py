"""The CUDA benchmark, run for real where there is no GPU: the same script, in miniature."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the modules of the benchmark importable."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])


@pytest.mark.slow
def test_the_script_builds_checks_and_times_in_one_command(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/cuda.py", "--device", "cpu", "--tiny", "--batches", "2", "--kinds", "live"]
    command += ["--budget", "1500", "--out", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1600, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "cuda.json").read_text(encoding="utf-8"))
    page = (tmp_path / "cuda.md").read_text(encoding="utf-8")
    assert found["tests"]["files"] == ["tests/policy/test_varlen.py"]
    assert len(found["checks"]) >= 4
    assert all(verdict["holds"] for verdict in found["checks"])
    (row,) = found["rows"]
    ours = row["contenders"]["preftune"]
    assert row["median_tokens"] == pytest.approx([12, 5, 6], rel=0.2)
    assert 0 < ours["rate"] < row["limit"]["pairs_per_second"]
    assert ours["low"] <= ours["rate"] <= ours["high"]
    assert re.search(r"\| tiny \| tiny \(\d+ / \d / \d\) \| preftune \|", page)
    heads = found["heads"][0]["heads"]
    assert heads["preftune, tiles of 16 MB"]["logp_error"] < 1e-5
    for name, module in (("TRL, flash attention", "flash_attn"), ("TRL, Liger", "liger_kernel"), ("TRL", "trl")):
        if importlib.util.find_spec(module) is None:
            assert name in row["missing"]
            assert f"{name}: " in page
            assert "is not installed" in page
    if importlib.util.find_spec("trl") is not None:
        theirs = row["contenders"]["TRL"]
        assert abs(ours["exact_loss"] - theirs["exact_loss"]) < 1e-4
        assert sum(theirs["waits"].values()) > sum(ours["waits"].values())
        assert heads["TRL"]["hidden_error"] < 1e-5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks/cuda.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == "there is no CUDA device here: --device cpu --tiny shows that the script works"


@pytest.mark.usefixtures("benchmarks")
def test_each_kind_of_row_has_contenders_of_both() -> None:
    from cuda import KINDS
    from cuda_contenders import CONTENDERS

    for names in KINDS.values():
        assert set(names) <= set(CONTENDERS)
        assert sum(name.startswith("preftune") for name in names) == 1


@pytest.mark.usefixtures("benchmarks")
def test_shapes_have_the_sizes_they_are_named_after() -> None:
    from cuda_settings import SHAPES
    from transformers import Qwen3Config, Qwen3ForCausalLM

    for name, published in (("0.6B", 596_049_920), ("1.7B", 1_720_574_976)):
        with torch.device("meta"):
            model = Qwen3ForCausalLM(Qwen3Config(**SHAPES[name]))
        assert sum(p.numel() for p in model.parameters()) == published


@pytest.mark.usefixtures("benchmarks")
def test_lengths_are_those_that_are_named() -> None:
    """The medians of dialogues, and UltraFeedback's published means."""
    from cuda_settings import LENGTHS, MAX_LENGTH, generated

    pairs = generated(LENGTHS["dialogue"], 2000, 1000)
    lengths = np.array([[len(p.prompt), *(r.length for r in p.responses)] for p in pairs])
    assert np.abs(np.median(lengths, axis=0) / [96, 27, 36] - 1).max() < 0.05
    pairs = generated(LENGTHS["ultrafeedback"], 4000, 1000)
    lengths = np.array([[len(p.prompt), *(r.length for r in p.responses)] for p in pairs])
    assert lengths[:, 0].mean() == pytest.approx(185, rel=0.07)
    assert lengths[:, 1:].mean() == pytest.approx(305, rel=0.07)
    assert (lengths[:, :1] + lengths[:, 1:]).max() <= MAX_LENGTH


@pytest.mark.usefixtures("benchmarks")
def test_what_would_wait_for_a_gpu_is_found_and_nothing_else() -> None:
    from cuda_waits import waits

    values = torch.arange(6.0)
    with waits("cpu") as places:
        (values * 2).sum().sqrt()
        values[torch.tensor([1, 2])]
    assert not places
    with waits("cpu") as places:
        float(values.sum())
        values[values > 2]
        torch.nonzero(values)
    assert sorted(place.split(" ", 1)[1] for place in places) == ["(index by mask)", "(item)", "(nonzero)"]
    assert all("test_cuda.py" in place for place in places)


@pytest.mark.usefixtures("benchmarks")
def test_the_limit_is_the_time_of_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear layers as timed alone, attention at the best rate."""
    import cuda_limit
    from cuda_settings import batches_of, setting
    from limit import operations, products
    from transformers import Qwen3Config

    monkeypatch.setattr(cuda_limit, "_alone", lambda product, device: product.operations / 1e9)
    found = setting("tiny", "tiny", 2)
    needed = products(Qwen3Config(**found.shape), batches_of(found)[0])
    attention = sum(p.operations * count for p, count in needed.items() if p.batch > 1)
    expected = (operations(needed) - attention) / 1e9 + attention / 4e9
    assert cuda_limit.seconds(needed, "cpu", best=4e9) == pytest.approx(expected)
    assert cuda_limit.limit(found, "cpu", batches=1)["best_rate"] == pytest.approx(1e9)


@pytest.mark.usefixtures("benchmarks")
def test_the_candidate_head_in_triton_is_exact() -> None:
    """In Triton's interpreter, where Triton is installed."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", TRITON],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'benchmarks'}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


TRITON = """
import torch
from cuda_triton_head import TritonHead
from preftune.policy.logprobs import HeadRecipe

for recipe in (HeadRecipe(), HeadRecipe(0.5), HeadRecipe(1.3, 5.0)):
    torch.manual_seed(0)
    inputs = [torch.randn(7, 16), torch.randn(2500, 16), torch.randn(2500)]
    target, given = torch.randint(2500, (7,)), torch.randn(7)
    hidden, weight, bias = (each.clone().requires_grad_() for each in inputs)
    ours = TritonHead.apply(hidden, weight, bias, target, recipe, 3 * 4 * 2500)
    found = [ours, *torch.autograd.grad(ours, (hidden, weight, bias), given)]
    hidden, weight, bias = (each.double().requires_grad_() for each in inputs)
    logits = recipe.apply(hidden @ weight.t() + bias)
    true = logits.log_softmax(1).gather(1, target[:, None]).squeeze(1)
    for one, other in zip(found, [true, *torch.autograd.grad(true, (hidden, weight, bias), given.double())]):
        assert (one - other).norm() / other.norm() < 1e-6
"""


def test_rows_of_a_page_name_what_is_missing(benchmarks: Any) -> None:
    from cuda_page import page

    figures = {"rate": 4.0, "low": 3.0, "high": 5.0, "peak_gb": 2.0, "waits": {"here:1 (item)": 1.0}}
    row = {
        "model": "0.6B", "lengths": "dialogue", "median_tokens": [96.0, 27.0, 36.0], "tokens_per_pair": 160.0,
        "limit": {"pairs_per_second": 8.0}, "missing": {"TRL, Liger": "out of memory"},
        "contenders": {"preftune": figures, "TRL": {**figures, "rate": 2.0, "waits": None}},
    }  # fmt: skip
    machine = dict.fromkeys(("device", "torch", "cuda", "transformers", "trl", "triton", "liger_kernel"), "-")
    said = page({"machine": machine, "seconds": 1.0, "rounds": 2, "rows": [row], "heads": [], "missing": ["1.7B"]})
    assert "| 0.6B | dialogue (96 / 27 / 36) | preftune | 4.00 (3.00 to 5.00) | 640 | 50.0% | 2.0 GB | 2.00 |" in said
    assert "- 1.7B\n- 0.6B, dialogue, TRL, Liger: out of memory" in said
    assert "- 0.6B, preftune: 1 times a step\n  - here:1 (item): 1" in said
