"""The head alone, under training's precision: preftune's, at several sizes of tile, beside others' and a candidate.

    python benchmarks/cuda_heads.py cuda 0.6B 4096

Prints a line of JSON after each head, the last of which has all: for each head its seconds for forward and backward,
its peak memory beyond the inputs, and how far its log-probs (nats) and gradients (relative) are from float32 arithmetic
on the same bf16 values. These figures decide which head CUDA gets: the fastest whose errors are no larger than those of
today's.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from cuda_limit import DTYPE, timed
from cuda_settings import SHAPES
from torch import Tensor, nn

from preftune.policy import tiled_head
from preftune.policy.logprobs import token_logps
from preftune.policy.tiled_head import HeadRecipe

Head = Callable[[Tensor, nn.Parameter, Tensor], Tensor]
TILES_MB = (16, 64, 256, 1024)


def preftune(megabytes: int) -> Head:
    """preftune's own, with tiles of this size; in the backward too, so it stays set until the next one is made."""
    assert tiled_head.DEVICE_TILE_BYTES
    tiled_head.TILE_BYTES = tiled_head.DEVICE_TILE_BYTES = megabytes * 2**20

    def head(hidden_KH: Tensor, weight_VH: nn.Parameter, target_K: Tensor) -> Tensor:
        linear = nn.Linear(1, 1, bias=False, device="meta")
        linear.weight = weight_VH
        return token_logps(hidden_KH, linear, target_K, HeadRecipe())["logps_K"]

    return head


def candidate(megabytes: int) -> Head:
    """The one in Triton of benchmarks/cuda_triton_head.py."""
    from cuda_triton_head import TritonHead

    return lambda hidden, weight, target: TritonHead.apply(
        hidden, weight, None, target, HeadRecipe(), megabytes * 2**20
    )


def whole() -> Head:
    """All logits at once."""
    return lambda hidden, weight, target: (
        -nn.functional.cross_entropy(nn.functional.linear(hidden, weight).float(), target, reduction="none")
    )


def trl() -> Head:
    """TRL's: tiles of 4,096 targets by 32,768 tokens, a Triton kernel for the sums."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    def head(hidden_KH: Tensor, weight_VH: nn.Parameter, target_K: Tensor) -> Tensor:
        logps_K: Tensor = ChunkedLogProbFunction.apply(
            hidden_KH, weight_VH, None, target_K, 1.0, 32768, None, 1.0, ("log_probs",)
        )[0]
        return logps_K

    return head


def liger() -> Head:
    """Liger's fused linear cross-entropy, a loss for each token."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    def head(hidden_KH: Tensor, weight_VH: nn.Parameter, target_K: Tensor) -> Tensor:
        reduced = weight_VH.to(hidden_KH.dtype)
        found = liger_fused_linear_cross_entropy(hidden_KH, reduced, target_K, reduction="none")
        return -(found[0] if isinstance(found, tuple) else found)

    return head


def cut() -> Head:
    """Cut cross-entropy, with its filter of small gradients off."""
    from cut_cross_entropy import linear_cross_entropy

    return lambda hidden, weight, target: (
        -linear_cross_entropy(hidden, weight.to(hidden.dtype), target, reduction="none", filter_eps=None)
    )


def heads() -> dict[str, Callable[[], Head]]:
    """All of them, by name; each is imported when it is its turn."""
    found: dict[str, Callable[[], Head]] = {"whole logits": whole}
    for size in TILES_MB:
        found[f"preftune, tiles of {size} MB"] = lambda size=size: preftune(size)  # type: ignore[misc]
    for size in TILES_MB[2:]:
        found[f"Triton candidate, tiles of {size} MB"] = lambda size=size: candidate(size)  # type: ignore[misc]
    return {**found, "TRL": trl, "Liger": liger, "cut-cross-entropy": cut}


def measure(device: str, model: str, targets: int, repeats: int = 5) -> Iterator[dict[str, Any]]:
    """Every head on the same random values, and all so far after each; one that is not there, or fails, says why."""
    vocabulary, size = SHAPES[model]["vocab_size"], SHAPES[model]["hidden_size"]
    torch.manual_seed(0)
    with torch.device(device):
        hidden_KH = torch.randn(targets, size).to(DTYPE[device]).requires_grad_()
        weight_VH = nn.Parameter(torch.randn(vocabulary, size) * size**-0.5 * 2)  # logits of standard deviation 2
        target_K = torch.randint(vocabulary, (targets,))
        given_K = torch.randn(targets)
    rounded = nn.Parameter(weight_VH.detach().to(DTYPE[device]).float())
    plain = hidden_KH.detach().float().requires_grad_()
    truth = _run(whole(), plain, rounded, target_K, given_K)
    found: dict[str, Any] = {}
    for name, make in heads().items():
        try:
            found[name] = _one(make(), device, repeats, truth, (hidden_KH, weight_VH, target_K, given_K))
        except Exception as error:  # not installed, out of memory, a kernel that does not compile here
            found[name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        if device == "cuda":
            torch.cuda.empty_cache()
        yield {"model": model, "targets": targets, "heads": found}


def _one(
    head: Head, device: str, repeats: int, truth: list[Tensor], inputs: tuple[Tensor, nn.Parameter, Tensor, Tensor]
) -> dict[str, float]:
    context = torch.autocast("cuda", torch.bfloat16) if device == "cuda" else contextlib.nullcontext()

    def work() -> list[Tensor]:
        return _run(head, *inputs, context=context)

    got = work()
    errors = [(one.float() - true).norm() / true.norm() for one, true in zip(got[1:], truth[1:], strict=True)]
    worst = (got[0].float() - truth[0]).abs().max()
    del got
    peak = 0.0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    seconds = statistics.median(timed(work, device, repeats))
    if device == "cuda":
        peak = (torch.cuda.max_memory_allocated() - before) / 2**30
    return {
        "seconds": seconds,
        "peak_gb": peak,
        "logp_error": float(worst),
        "hidden_error": float(errors[0]),
        "weight_error": float(errors[1]),
    }


def _run(
    head: Head, hidden_KH: Tensor, weight_VH: nn.Parameter, target_K: Tensor, given_K: Tensor, context: Any = None
) -> list[Tensor]:
    """Log-probs, and the gradients of hidden states and weight."""
    with context or contextlib.nullcontext():
        logps_K = head(hidden_KH, weight_VH, target_K)
    gradients = torch.autograd.grad(logps_K, [hidden_KH, weight_VH], given_K.to(logps_K.dtype))
    return [logps_K.detach(), *gradients]


def main() -> None:
    """Device, model and number of targets from the command line."""
    said, sys.stdout = sys.stdout, sys.stderr
    for found in measure(sys.argv[1], sys.argv[2], int(sys.argv[3])):
        print(json.dumps(found), file=said, flush=True)


if __name__ == "__main__":
    main()
