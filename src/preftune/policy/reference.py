"""The reference's log-probs: from a frozen copy, from the policy with its adapter off, or stored beforehand."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from preftune.data.examples import Example
from preftune.data.packing import PackedBatch
from preftune.objectives.batch import LogProbs
from preftune.policy.logprobs import Logits
from preftune.policy.policy import PolicyModule, base_model, forward_inputs, logps


class ReferenceConfig(BaseModel):
    """What the policy is compared with."""

    model_config = ConfigDict(extra="forbid")

    path: str | None = Field(None, description="folder or hub id of the reference; none: the policy's own start")
    kind: Literal["auto", "live", "stored"] = Field(
        "auto", description="live: computed in each step; stored: computed once before training; auto: live"
    )


class Reference(ABC):
    """Gives the reference's log-probs of batches."""

    @abstractmethod
    def logps(self, batch: PackedBatch, examples: Sequence[Example]) -> LogProbs:
        """Log-probs of the batch's targets, without gradient.

        Args:
            batch: the batch, on the policy's device.
            examples: the examples it was made from, in order.
        """

    def logits(self, batch: PackedBatch, examples: Sequence[Example]) -> Logits:
        """Gives the logits of any slice of the batch's targets, without gradient. Arguments as for `logps`.

        Raises:
            ValueError: if there are none, because log-probs were stored.
        """
        raise ValueError(f"{type(self).__name__} has log-probs of the data's tokens alone: use a live reference")


class FrozenReference(Reference):
    """A frozen model of its own."""

    def __init__(self, module: PolicyModule) -> None:
        self.module = module.eval().requires_grad_(False)

    @classmethod
    def copy_of(cls, policy: PolicyModule) -> FrozenReference:
        """A copy of the policy as it is now."""
        return cls(copy.deepcopy(policy))

    @torch.no_grad()
    def logps(self, batch: PackedBatch, examples: Sequence[Example]) -> LogProbs:  # noqa: D102
        return logps(self.module, batch)

    @torch.no_grad()
    def logits(self, batch: PackedBatch, examples: Sequence[Example]) -> Logits:  # noqa: D102
        rows_KX = self.module("rows", forward_inputs(batch))["rows_KX"]
        return torch.no_grad()(lambda at: self.module.logits_of(rows_KX[at]))


class AdapterOffReference(Reference):
    """The policy's own base, with its adapter switched off: no second model in memory."""

    def __init__(self, policy: nn.Module, module: PolicyModule) -> None:
        """`policy` is what is called (wrapped or not); `module` what is inside, around a PEFT model."""
        self.policy, self.module = policy, module

    @torch.no_grad()
    def logps(self, batch: PackedBatch, examples: Sequence[Example]) -> LogProbs:  # noqa: D102
        with self._adapter_off():
            return logps(self.policy, batch)

    @torch.no_grad()
    def logits(self, batch: PackedBatch, examples: Sequence[Example]) -> Logits:  # noqa: D102
        with self._adapter_off():
            rows_KX = self.policy("rows", forward_inputs(batch))["rows_KX"]

        @torch.no_grad()
        def logits(at: slice) -> Tensor:
            with self._adapter_off():
                return self.module.logits_of(rows_KX[at])

        return logits

    @contextmanager
    def _adapter_off(self) -> Iterator[None]:
        training = self.policy.training
        self.policy.eval()  # dropout would make the reference random
        try:
            lm: Any = self.module.lm
            with lm.disable_adapter():
                yield
        finally:
            self.policy.train(training)


class StoredReference(Reference):
    """Log-probs computed once, keyed by exact token ids: any change of tokens misses, any order hits."""

    def __init__(self, values: Mapping[str, np.ndarray]) -> None:
        """`values` maps `example_key` to the log-probs of the example's targets, in order."""
        self.values = values

    def logps(self, batch: PackedBatch, examples: Sequence[Example]) -> LogProbs:  # noqa: D102
        found: list[Tensor] = [torch.from_numpy(self.values[example_key(example)]) for example in examples]
        return LogProbs(torch.cat(found).to(batch.ids_T.device))


def example_key(example: Example) -> str:
    """A name for an example's exact tokens, targets included."""
    digest = hashlib.sha256(np.asarray(example.prompt, dtype=np.int32).tobytes())
    for response in example.responses:
        digest.update(b"|")
        digest.update(np.asarray(response.ids, dtype=np.int32).tobytes())
        if response.targets is not None:
            digest.update(b"/" + response.targets.tobytes())
    return digest.hexdigest()[:32]


def weights_hash(lm: nn.Module) -> str:
    """A name for a model's exact weights, in their precision."""
    digest = hashlib.sha256()
    for name, tensor in sorted(base_model(lm).state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_stored(path: Path) -> dict[str, np.ndarray]:
    """Stored log-probs of a file that `write_stored` wrote; none if there is no such file."""
    from safetensors.numpy import load_file

    return load_file(path) if path.is_file() else {}


def write_stored(path: Path, values: Mapping[str, np.ndarray]) -> None:
    """Write log-probs under a temporary name, then rename, so that a reader never sees half a file."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(dict(values), temporary)
    temporary.replace(path)
