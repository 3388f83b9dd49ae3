"""Making the reference that a run needs, and storing its log-probs in a pass of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from preftune.data.examples import Example
from preftune.errors import PreftuneError
from preftune.policy.layout import TOLERANCE, choose_layout, tree_error
from preftune.policy.loading import ModelConfig, load
from preftune.policy.policy import PolicyModule
from preftune.policy.reference import (
    AdapterOffReference,
    FrozenReference,
    Reference,
    ReferenceConfig,
    StoredReference,
    example_key,
    read_stored,
    weights_hash,
    write_stored,
)
from preftune.training.step import Micro


def live_reference(
    config: ReferenceConfig, model: ModelConfig, policy: PolicyModule, device: torch.device
) -> FrozenReference | None:
    """A reference model of its own, or None where the policy with its adapter off serves as one.

    To be called before training changes the policy.

    Raises:
        PreftuneError: if the model of `config.path` cannot be loaded, or is not exact in the policy's layout.
    """
    if config.path is not None:
        other = model.model_copy(update={"path": config.path, "lora": None, "quantize": "none", "revision": None})
        lm = load(other, seed=0, texts=list).lm
        module = PolicyModule(lm, "padded").to(device)
        if policy.layout == "tree":
            layout, reason = choose_layout(lm)
            if layout == "padded" or not tree_error(module) <= TOLERANCE:
                raise PreftuneError(
                    f"reference.path {config.path} is not exact on prompt trees ({reason}), on which the policy is "
                    "trained: set model.layout to padded"
                )
            module.use_layout("tree")
        return FrozenReference(module)
    return None if adapter_off_is_the_start(policy.lm) else FrozenReference.copy_of(policy)


def adapter_off_is_the_start(lm: nn.Module) -> bool:
    """True if switching the adapter off gives back the weights before training: biases that train with an adapter are
    the base's own, and stay as trained."""
    adapters = getattr(lm, "peft_config", {})
    return bool(adapters) and all(getattr(adapter, "bias", "none") == "none" for adapter in adapters.values())


def reference_for(frozen: FrozenReference | None, prepared: nn.Module, policy: PolicyModule) -> Reference:
    """The live reference; `prepared` is the policy as Accelerate wrapped it."""
    return AdapterOffReference(prepared, policy) if frozen is None else frozen


def stored_reference(
    live: Reference,
    lm: nn.Module,
    micros: Sequence[Sequence[Example]],
    prepare: Callable[[Sequence[Example]], Micro],
    folder: Path,
    precision: str,
) -> StoredReference:
    """Log-probs of every example under the live reference, computed once and kept in `folder`.

    The file is named after the weights and the precision, and each entry after its tokens, so any change of those
    misses and any reorder hits.

    Args:
        live: gives the log-probs that are not there yet.
        lm: the reference's weights, for their hash.
        micros: all examples, cut into forwards.
        prepare: examples -> batch on the device.
        folder: where the file lies.
        precision: of the computation.
    """
    path = folder / f"{weights_hash(lm)[:24]}-{precision}.safetensors"
    values = read_stored(path)
    missing = [micro for micro in micros if any(example_key(example) not in values for example in micro)]
    for examples in missing:
        micro = prepare(examples)
        logps_K = live.logps(micro.batch, examples).logps_K.float().cpu().numpy()
        ends = np.cumsum([sum(r.length for r in example.responses) for example in examples])
        for example, piece in zip(examples, np.split(logps_K, ends[:-1]), strict=True):
            values[example_key(example)] = np.ascontiguousarray(piece)
    if missing:
        write_stored(path, values)
    return StoredReference(values)
