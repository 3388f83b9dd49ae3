"""How much memory there is: on the device, on the machine, and as far as its control groups allow; and what to do where
it is too little."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from preftune.errors import PreftuneError
from preftune.training.step import Micro

if TYPE_CHECKING:
    from preftune.config import RunConfig
    from preftune.training.memory import Estimate

SAID = 4  # pieces of advice


def available(device: torch.device, root: Path = Path("/")) -> int | None:
    """Bytes that may still be taken on a device; None if it does not say.

    Args:
        device: of the policy.
        root: where `proc` and `sys` lie.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu":
        return None
    lines = _read(root / "proc/meminfo").splitlines()
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min([*free, *_group_rooms(root)], default=None)


def _group_rooms(root: Path) -> Iterator[int]:
    """What the control groups that this process is in still allow it, in bytes."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, kinds, path = line.split(":", 2)
        if number == "0":
            mount, most, used = "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in kinds.split(","):
            mount, most, used = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        own = Path(mount, path.lstrip("/"))
        for folder in (own, *own.parents):  # in a container, its own group is mounted as the outermost one
            limit, held = (_read(root / folder / name).strip() for name in (most, used))
            if limit.isdigit() and held.isdigit():
                stat = dict(pair.split() for pair in _read(root / folder / "memory.stat").splitlines())
                yield int(limit) - int(held) + int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def amount(size: int) -> str:
    """Bytes as one reads them."""
    value, unit = (size / 1e9, "GB") if size >= 1e9 else (size / 1e6, "MB")
    return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"


def refuse(expected: Estimate, room: int, config: RunConfig, forward: Micro) -> None:
    """Refuse a run that does not fit, with advice: what saves most comes first.

    Args:
        expected: of the run.
        room: bytes that may still be taken.
        config: of the run.
        forward: the heaviest one of training.

    Raises:
        PreftuneError: if it does not fit.
    """
    if expected.peak - expected.held <= room:
        return
    advice = [text for saved, text in sorted(_advice(expected, config, forward), reverse=True)]
    raise PreftuneError(
        f"training would take about {amount(expected.peak)}, but there are {amount(room + expected.held)}: "
        + "".join(f"{text}, or " for text in advice[:SAID])
        + "go on all the same with train.check_memory=false"
    )


def _advice(expected: Estimate, config: RunConfig, forward: Micro) -> Iterator[tuple[int, str]]:
    """What would save memory, and about how much."""
    model, tokens = config.model, forward.batch.tokens
    stored = not model.path.startswith("scratch:")
    examples = len(forward.examples)
    if examples > 1:
        text = f"lower batch.micro_tokens (the largest forward has {tokens})"
        yield expected.activations * (examples - 1) // examples, text
    if not model.gradient_checkpointing:
        yield expected.activations * 2 // 3, "set model.gradient_checkpointing=true"
    if model.lora is None and stored:
        saved = expected.gradients + expected.optimizer + (0 if config.reference.path else expected.reference)
        yield saved, "train adapters (model.lora={})"
    elif model.quantize == "none" and stored:
        yield expected.weights * 3 // 4, "set model.quantize=4bit"
    if config.reference.kind != "stored" and expected.reference:
        yield expected.reference, "set reference.kind=stored"
    if config.optim.name == "adamw":
        yield expected.optimizer * 3 // 4, "set optim.name=adamw_8bit"
