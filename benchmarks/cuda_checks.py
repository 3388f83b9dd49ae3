"""What must hold before anything is timed: trees over the GPU's kernels say what padded rows of eager attention say.

    python benchmarks/cuda_checks.py cuda

Prints one line of JSON: for each check what was found, what was allowed, and whether it holds.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import torch
from cuda_settings import batches_of, models_on, setting
from torch import Tensor

from preftune.data.packing import pack, pad
from preftune.policy.policy import Layout, PolicyModule, logps

Values = dict[str, list[Tensor]]


def checks(device: str) -> list[dict[str, Any]]:
    """Log-probs and gradients of one batch, four ways."""
    found = setting("tiny", "dialogue", 1)
    batch = batches_of(found)[0]
    models = models_on(found, device)
    truth = _values(models[0], batch, device, "padded", "eager", torch.float32)
    trees = _values(models[0], batch, device, "tree", "eager", torch.float32)
    verdicts = [
        _verdict(f"float32, trees against padded rows, {what}", _error(trees, truth, what), 1e-4) for what in truth
    ]
    padded = _values(models[0], batch, device, "padded", "sdpa", torch.bfloat16)
    trees = _values(models[0], batch, device, "tree", "sdpa", torch.bfloat16)
    for what in truth:  # bf16 is off by itself: trees may not be further off than rows are, but for luck
        allowed = 1.5 * _error(padded, truth, what) + 1e-4
        verdicts.append(_verdict(f"bf16, trees against float32 rows, {what}", _error(trees, truth, what), allowed))
    return verdicts


def _values(lm: Any, batch: Any, device: str, layout: Layout, attention: str, dtype: torch.dtype) -> Values:
    """Log-probs and the gradients of all weights, under autocast if that is asked for."""
    lm.set_attn_implementation(attention)
    module = PolicyModule(lm, layout)
    module.zero_grad()
    reduced = dtype != torch.float32
    with torch.autocast(device, dtype) if reduced else contextlib.nullcontext():
        logps_K = logps(module, (pack(batch) if layout == "tree" else pad(batch)).to(device)).logps_K
    (logps_K * torch.linspace(-1, 1, len(logps_K), device=device)).sum().backward()
    module.use_layout("padded")
    gradients = [p.grad.detach().clone() for p in lm.parameters() if p.grad is not None]
    return {"log-probs": [logps_K.detach()], "gradients": gradients}


def _error(found: Values, truth: Values, what: str) -> float:
    """Norm of the difference by the norm of the truth, over everything at once."""
    of, true = (torch.cat([each.float().flatten() for each in values[what]]) for values in (found, truth))
    return float((of - true).norm() / true.norm())


def _verdict(name: str, error: float, allowed: float) -> dict[str, Any]:
    return {"check": name, "error": error, "allowed": allowed, "holds": error <= allowed}


def main() -> None:
    """The device from the command line."""
    said, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps(checks(sys.argv[1])), file=said)


if __name__ == "__main__":
    main()
