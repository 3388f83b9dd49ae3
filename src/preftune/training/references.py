"""Making the reference that a run needs, and storing its log-probs in a pass of its own."""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from preftune.cache import cache_folder
from preftune.data.examples import Example
from preftune.errors import PreftuneError
from preftune.files import write_whole
from preftune.policy.layout import TOLERANCE, choose_layout, tree_error
from preftune.policy.loading import ModelConfig, load
from preftune.policy.policy import PolicyModule
from preftune.policy.reference import (
    AdapterOffReference,
    FrozenReference,
    LiveReference,
    Reference,
    ReferenceConfig,
    StartReference,
    StoredReference,
    weights_hash,
)
from preftune.policy.stored import Shards, keys_of
from preftune.training.batches import lengths
from preftune.training.processes import Group
from preftune.training.progress import Bar
from preftune.training.step import Micro

if TYPE_CHECKING:
    from preftune.training.trainer import Trainer

# Tokens of a forward of the pass. More are no faster; without gradient, these need less memory than training.
FORWARD_TOKENS = 8192
FORMAT = 1  # to be raised when the same weights and tokens give other log-probs than before, or files change
# A pass that is stopped loses what came after its last shard.
SHARD_SECONDS, SHARD_BYTES = 30.0, 64 * 2**20
# Fields of a model's config that say nothing about its log-probs.
INDIFFERENT = frozenset({"_name_or_path", "architectures", "transformers_version", "use_cache", "dtype", "torch_dtype"})


def live_reference(
    config: ReferenceConfig, model: ModelConfig, policy: PolicyModule, device: torch.device, group: Group | None = None
) -> FrozenReference | None:
    """A reference model of its own, or None where the policy serves as one: with its adapter off, or, for log-probs to
    store, as it is before training.

    To be called before training changes the policy. Of processes that will shard it, the main one has its weights, and
    finds out whether it fits.

    Args:
        config: which reference.
        model: config of the policy.
        policy: not yet wrapped.
        device: on which the reference is to compute, unless it will be sharded.
        group: the processes that will shard it; None: it stays whole.

    Raises:
        PreftuneError: if the model of `config.path` cannot be loaded, or is not exact in the policy's layout.
    """
    blank = group is not None and not group.main
    if config.path is not None:
        other = model.model_copy(update={"path": config.path, "lora": None, "quantize": "none", "revision": None})
        lm = load(other, seed=0, texts=list, blank=blank).lm
        module = PolicyModule(lm, "padded")
        if group is None:
            module.to(device)
        if policy.layout == "tree":
            layout, reason = choose_layout(lm)
            if layout == "padded" or not (blank or tree_error(module) <= TOLERANCE):
                raise PreftuneError(
                    f"reference.path {config.path} is not exact on prompt trees ({reason}), on which the policy is "
                    "trained: set model.layout to padded"
                )
            module.use_layout("tree")
        return FrozenReference(module)
    if config.kind == "stored" or adapter_off_is_the_start(policy.lm):
        return None
    return FrozenReference.copy_of(policy, blank)


def adapter_off_is_the_start(lm: nn.Module) -> bool:
    """True if switching the adapter off gives back the weights before training: biases that train with an adapter are
    the base's own, and stay as trained."""
    adapters = getattr(lm, "peft_config", {})
    return bool(adapters) and all(getattr(adapter, "bias", "none") == "none" for adapter in adapters.values())


def reference_for(frozen: FrozenReference | None, prepared: nn.Module, policy: PolicyModule) -> LiveReference:
    """The live reference; `prepared` is the policy as Accelerate wrapped it."""
    if frozen is not None:
        return frozen
    if adapter_off_is_the_start(policy.lm):
        return AdapterOffReference(prepared, policy)
    return StartReference(prepared, policy)


def reference_of(trainer: Trainer, frozen: FrozenReference | None) -> Reference | None:
    """What a trainer's objective compares with: computed in each step, or stored now, before training; None if with
    nothing.

    Args:
        trainer: with its policy wrapped and its feed made; it is told what to know about stored log-probs.
        frozen: from `live_reference`; its memory is freed once its log-probs are stored.

    Raises:
        PreftuneError: if an objective needs more of a reference than can be stored.
    """
    if not any(term.objective.reference for term in trainer.terms):
        return None
    live, config = reference_for(frozen, trainer.prepared, trainer.policy), trainer.config
    if config.reference.kind != "stored":
        return live
    for term in trainer.terms:
        if "kl_K" in term.objective.needs:
            raise PreftuneError(
                f"objective {term.name} compares whole next-token distributions with the reference's, but "
                "reference.kind=stored keeps the log-probs of the data's tokens only: set it to live"
            )
    folder = config.reference.folder
    stored = stored_reference(
        live,
        (trainer.examples.train, trainer.examples.held_out),
        Forwards(trainer.feed.prepare, config.batch.micro_tokens, trainer.feed.alone_above),
        trainer.precision,
        cache_folder("references") if folder is None else Path(folder).expanduser(),
        trainer.show and trainer.accelerator.is_main_process,
        trainer.group,
    )
    trainer.messages.extend(stored.notes)
    if frozen is not None and not trainer.accelerator.is_fsdp2:
        frozen.module.to("meta")  # its work is done: free the memory
    return stored


@dataclass(frozen=True)
class Forwards:
    """How examples become forwards of a pass.

    Attributes:
        prepare: examples -> batch on the device.
        most_tokens: of a forward, if fewer than `FORWARD_TOKENS`; a longer example runs alone.
        alone_above: an example with a longer path than this runs alone (length-dependent RoPE).
    """

    prepare: Callable[[Sequence[Example]], Micro]
    most_tokens: int | None = None
    alone_above: int | None = None


def stored_reference(
    live: LiveReference,
    sides: Sequence[Sequence[Example]],
    forwards: Forwards,
    precision: str,
    root: Path,
    show: bool = False,
    group: Group | None = None,
) -> StoredReference:
    """Log-probs of every example under the live reference, computed where they are not stored yet, and stored.

    What was computed lies in a folder named after everything its values follow from (see `identity`), and there under
    each example's exact tokens: any change of those misses, any order hits. It is written in shards, as the pass goes
    on: the next pass continues where one was stopped, or where a shard was damaged.

    Two passes over the same examples give the same bits, in any order of the examples and however often they were
    stopped: forwards are cut by length and key alone. Beside other examples, or in smaller forwards, the same example
    may get values that are rounded otherwise.

    Args:
        live: gives the log-probs that are not there yet.
        sides: all examples, training and held out.
        forwards: how to compute them.
        precision: of the computation, in Accelerate's words.
        root: folder of all stored log-probs.
        show: draw a progress bar.
        group: the processes that share the pass; none: this one alone.

    Raises:
        PreftuneError: if the folder cannot be written to, or is not the same for all processes.
    """
    group = group or Group()
    basis = json.dumps(identity(live, precision), indent=1, sort_keys=True, default=str)
    shards = Shards(root / hashlib.sha256(basis.encode()).hexdigest()[:32])
    notes = [
        f"{name} of the stored reference is damaged and was put away; what it held is computed anew ({shards.folder})"
        for name in shards.damaged
    ]
    keys_N = keys_of(chain.from_iterable(sides))
    there_N = group.told(shards.has(keys_N))  # before anybody adds to it
    if not there_N.all():
        try:
            shards.folder.mkdir(parents=True, exist_ok=True)
            write_whole(shards.folder / "identity.json", basis.encode())
            _compute(live, sides, keys_N, there_N, forwards, shards, show, group)
        except OSError as error:
            raise PreftuneError(
                f"cannot keep the reference's log-probs in {shards.folder}: {error.strerror}; name another folder "
                "(reference.folder), or set reference.kind to live"
            ) from error
    group.wait()
    shards.refresh()
    if not shards.has(keys_N).all():
        raise PreftuneError(
            f"process {group.index} of {group.size} does not find the reference's log-probs that others stored in "
            f"{shards.folder}: name a folder that all machines share (reference.folder)"
        )
    reused = int(there_N.sum())
    notes.append(
        f"log-probs of the reference: {reused} of {len(keys_N)} examples reused, {len(keys_N) - reused} computed "
        f"({shards.folder})"
    )
    return StoredReference(shards, notes)


def identity(live: LiveReference, precision: str) -> dict[str, object]:
    """Everything besides tokens that log-probs follow from, rounding that differs from machine to machine apart.

    Layout, compilation, device and versions are in it because the policy's own log-probs, which are compared with
    these, are rounded in their way; and because a fault that is mended in one of them must not live on here.
    """
    base: Any = live.module.base
    backends: Any = torch.backends
    own = isinstance(base, PreTrainedModel)
    config = {k: v for k, v in base.config.to_dict().items() if k not in INDIFFERENT} if own else repr(base)
    return {
        "format": FORMAT,
        "weights": weights_hash(live.weights()),
        "model": f"{type(base).__module__}.{type(base).__qualname__}",
        "config": config,
        "attention": base.config._attn_implementation if own else None,
        "layout": live.module.layout,
        "compiled": any(getattr(module, "_compiled_call_impl", None) is not None for module in base.modules()),
        "precision": precision,
        "products": [of.fp32_precision for of in (backends, backends.cuda.matmul, backends.mkldnn.matmul)],
        "device": next(live.module.parameters()).device.type,
        **{name: version(name) for name in ("preftune", "torch", "transformers")},
    }


def _compute(
    live: LiveReference,
    sides: Sequence[Sequence[Example]],
    keys_N: NDArray[np.bytes_],
    there_N: NDArray[np.bool_],
    forwards: Forwards,
    shards: Shards,
    show: bool,
    group: Group,
) -> None:
    """The pass: forwards of what is missing, in shards."""
    groups = _missing_groups(live.module.layout, sides, keys_N, there_N, forwards)
    alone = group.size == 1
    if alone:
        # runs started together go about it in different orders, look at each other's shards, and share the work
        secrets.SystemRandom().shuffle(groups)
    else:  # in step with each other: one forward of each process at a time
        own = range(group.index, -(-len(groups) // group.size) * group.size, group.size)
        groups = [groups[i] if i < len(groups) else [] for i in own]
        in_vain = min(np.flatnonzero(~there_N).tolist(), key=lambda i: _at(sides, i).tokens)
    done: list[tuple[NDArray[np.bytes_], list[int], NDArray[np.float32]]] = []
    begun = time.monotonic()
    with Bar(sum(map(len, groups)), show, title="reference") as bar:
        for forward in groups:
            if not forward:
                examples = [_at(sides, in_vain)]
                live.logps(forwards.prepare(examples).batch, examples)
            elif not alone or not shards.has(keys_N[forward]).all():
                examples = [_at(sides, index) for index in forward]
                logps_K = live.logps(forwards.prepare(examples).batch, examples).logps_K.float().cpu().numpy()
                done.append((keys_N[forward], [sum(r.length for r in e.responses) for e in examples], logps_K))
                large = sum(part[2].nbytes for part in done) >= SHARD_BYTES
                if large or time.monotonic() - begun >= SHARD_SECONDS:
                    _write(shards, done)
                    done, begun = [], time.monotonic()
            bar.advance(len(forward))
        if done:
            _write(shards, done)


def _write(shards: Shards, done: Sequence[tuple[NDArray[np.bytes_], list[int], NDArray[np.float32]]]) -> None:
    keys, targets, logps = zip(*done, strict=True)
    shards.write(np.concatenate(keys), np.array([n for part in targets for n in part]), np.concatenate(logps))


def _missing_groups(
    layout: str,
    sides: Sequence[Sequence[Example]],
    keys_N: NDArray[np.bytes_],
    there_N: NDArray[np.bool_],
    forwards: Forwards,
) -> list[list[int]]:
    """The forwards of what is missing, as indices of examples.

    They are cut from all examples, so that a pass which continues another computes the other's forwards; what is
    missing of forwards of which a part is there (data that grew) is cut anew.
    """
    lengths_N3 = np.concatenate([lengths(side) for side in sides if len(side)])
    _, first_N = np.unique(keys_N, return_index=True)
    order_N = first_N[np.argsort(-lengths_N3[first_N, 1], kind="stable")]  # by length, then by key
    groups = _cut(order_N, layout, lengths_N3, forwards)
    whole = [group for group in groups if not there_N[group].any()]
    rest = [i for group in groups if there_N[group].any() for i in group if not there_N[i]]
    return whole + _cut(np.array(rest, dtype=np.int64), layout, lengths_N3, forwards)


def _cut(order_N: NDArray[np.int64], layout: str, lengths_N3: NDArray[np.int64], forwards: Forwards) -> list[list[int]]:
    """Consecutive groups within the budget, of indices in order of falling length."""
    budget = min(FORWARD_TOKENS, forwards.most_tokens or FORWARD_TOKENS)
    groups: list[list[int]] = []
    width, used = math.inf, 0
    for index, (tokens, path, rows) in zip(order_N.tolist(), lengths_N3[order_N].tolist(), strict=True):
        alone = forwards.alone_above is not None and width > forwards.alone_above  # the last group's longest
        cost = tokens if layout == "tree" else rows * width
        if alone or not groups or used + cost > budget:
            groups.append([])
            width, used = path, 0
            cost = tokens if layout == "tree" else rows * width
        groups[-1].append(index)
        used += cost
    return groups


def _at(sides: Sequence[Sequence[Example]], index: int) -> Example:
    """An example by its index in all sides, one after the other."""
    for side in sides:
        if index < len(side):
            return side[index]
        index -= len(side)
    raise IndexError(index)
