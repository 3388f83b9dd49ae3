"""The reference's log-probs: from a frozen copy, from the policy with its adapter off, or stored beforehand."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from preftune.data.examples import Example
from preftune.data.packing import PackedBatch
from preftune.objectives.batch import LogProbs
from preftune.policy.logprobs import Logits
from preftune.policy.policy import PolicyModule, base_model, forward_inputs, logps
from preftune.policy.stored import Shards, keys_of

HASHED_AT_ONCE = 32 * 2**20  # bytes: pieces that several threads hash side by side


class ReferenceConfig(BaseModel):
    """What the policy is compared with."""

    model_config = ConfigDict(extra="forbid")

    path: str | None = Field(None, description="folder or hub id of the reference; none: the policy's own start")
    kind: Literal["auto", "live", "stored"] = Field(
        "auto", description="live: computed in each step; stored: computed once before training; auto: live"
    )
    folder: str | None = Field(
        None, description="where stored log-probs are kept for the next run; none: in the cache folder"
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


class LiveReference(Reference):
    """A reference that computes.

    Attributes:
        module: what holds its weights.
    """

    module: PolicyModule

    def weights(self) -> dict[str, Tensor]:
        """What its values follow from, by name."""
        return dict(base_model(self.module.lm).state_dict())


class FrozenReference(LiveReference):
    """A frozen model of its own."""

    def __init__(self, module: PolicyModule) -> None:
        self.module = module.eval().requires_grad_(False)

    @classmethod
    def copy_of(cls, policy: PolicyModule, blank: bool = False) -> FrozenReference:
        """A copy of the policy as it is now; `blank`: with weights that were never written to."""
        return cls(blank_copy(policy, "cpu") if blank else copy.deepcopy(policy))

    @torch.no_grad()
    def logps(self, batch: PackedBatch, examples: Sequence[Example]) -> LogProbs:  # noqa: D102
        return logps(self.module, batch)

    @torch.no_grad()
    def logits(self, batch: PackedBatch, examples: Sequence[Example]) -> Logits:  # noqa: D102
        rows_KX = self.module("rows", forward_inputs(batch))["rows_KX"]
        return torch.no_grad()(lambda at: self.module.logits_of(rows_KX[at]))


class StartReference(LiveReference):
    """The policy itself, as long as nothing was trained: log-probs to store, without a second model in memory."""

    def __init__(self, policy: nn.Module, module: PolicyModule) -> None:
        """`policy` is what is called (wrapped or not); `module` what is inside."""
        self.policy, self.module = policy, module

    @torch.no_grad()
    def logps(self, batch: PackedBatch, examples: Sequence[Example]) -> LogProbs:  # noqa: D102
        with _without_dropout(self.policy):
            return logps(self.policy, batch)


class AdapterOffReference(LiveReference):
    """The policy's own base, with its adapter switched off: no second model in memory."""

    def __init__(self, policy: nn.Module, module: PolicyModule) -> None:
        """`policy` is what is called (wrapped or not); `module` what is inside, around a PEFT model."""
        self.policy, self.module = policy, module

    def weights(self) -> dict[str, Tensor]:
        """Those of the base, under the names that they have without an adapter."""
        return base_weights(self.module.lm)

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
        lm: Any = self.module.lm
        with _without_dropout(self.policy), lm.disable_adapter():
            yield


class StoredReference(Reference):
    """Log-probs computed before training, keyed by exact token ids: any change of tokens misses, any order hits.

    Attributes:
        notes: what to tell about them, one line each.
    """

    def __init__(self, shards: Shards, notes: Sequence[str] = ()) -> None:
        self.shards, self.notes = shards, list(notes)

    def logps(self, batch: PackedBatch, examples: Sequence[Example]) -> LogProbs:  # noqa: D102
        found_K, device = torch.from_numpy(self.shards.values(keys_of(examples))), batch.ids_T.device
        if device.type == "cuda":
            found_K = found_K.pin_memory()  # or the copy would wait for everything before it
        return LogProbs(found_K.to(device, non_blocking=True))


@contextmanager
def _without_dropout(policy: nn.Module) -> Iterator[None]:
    """The policy in evaluation mode: dropout would make the reference random."""
    training = policy.training
    policy.eval()
    try:
        yield
    finally:
        policy.train(training)


def blank_copy(module: PolicyModule, device: str) -> PolicyModule:
    """A copy without the contents of its weights: "meta", or in memory that is never written to."""
    memo: dict[int, Tensor] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device=device), parameter.requires_grad)
    if device == "meta":
        memo |= {id(buffer): torch.empty_like(buffer, device=device) for buffer in module.buffers()}
    return copy.deepcopy(module, memo)


def base_weights(lm: nn.Module) -> dict[str, Tensor]:
    """The weights under a PEFT model's adapters, under the names that they have without them."""
    base = base_model(lm)
    added = {"modules_to_save"}.union(*(getattr(module, "adapter_layer_names", ()) for module in base.modules()))
    found = {}
    for name, tensor in base.state_dict().items():
        path = name.split(".")
        if added.isdisjoint(path):
            found[".".join(part for part in path if part not in ("base_layer", "original_module"))] = tensor
    return found


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """A name for exact weights, in their precision; their order is all the same."""

    def digest(name: str, tensor: Tensor) -> bytes:
        # as plain tensors: quantised ones would move or convert themselves
        tensor = tensor.detach().as_subclass(torch.Tensor)
        whole = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.reshape(-1).view(torch.uint8)
        for piece in flat.split(HASHED_AT_ONCE):
            whole.update(piece.cpu().numpy())
        return whole.digest()

    names = sorted(weights)
    if any(isinstance(weights[name], DTensor) for name in names):
        # put together one after the other, in the same order on all processes
        whole = (w.full_tensor() if isinstance(w := weights[name], DTensor) else w for name in names)
        return hashlib.sha256(b"".join(map(digest, names, whole))).hexdigest()
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter
        return hashlib.sha256(b"".join(pool.map(digest, names, map(weights.__getitem__, names)))).hexdigest()
