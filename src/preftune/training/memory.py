"""How much memory training takes at its peak, found out before the first step.

The heaviest forward and backward are rehearsed on tensors without contents (torch's FakeTensorMode): the modules
themselves run, so whatever attention, head, adapter, checkpointing or precision there is comes into the account, and
nothing is computed. What lives at the same time is added up, operator by operator.
"""

from __future__ import annotations

import logging
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from preftune.policy.policy import PolicyModule, logps, rewards
from preftune.policy.reference import AdapterOffReference, LiveReference, Reference, StartReference
from preftune.training.batches import Indices, lengths
from preftune.training.feed import Feed
from preftune.training.optim import OptimConfig, state_bytes, step_bytes
from preftune.training.room import amount, available, refuse
from preftune.training.step import WITH_GRADIENT, Micro, Step
from preftune.training.zero import shared_out

if TYPE_CHECKING:
    from preftune.config import RunConfig
    from preftune.data.dataset import Examples
    from preftune.training.blueprint import Blueprint

# What a forward cannot do on tensors without contents: branch on a number, or make a shape of values.
UNKNOWN = "its forward depends on values, or on code that torch cannot follow without them"
# Optimiser batches among which the heaviest forward is looked for, and how many of each kind are looked at closely.
LOOKED_AT, KEPT = 20_000, 4
MORE = 1.05  # times as many tokens or targets are worth a rehearsal of their own
DEVICE_OF: Any = torch.ops.prim.device.default
VALUE_OF: Any = torch.ops.aten._local_scalar_dense.default


class UnknownError(Exception):
    """Memory that cannot be told without computing."""


@dataclass(frozen=True)
class Estimate:
    """The most memory that training holds at once on the policy's device, in bytes.

    Attributes:
        weights: of the policy, buffers included.
        reference: weights of a reference model of its own.
        optimizer: moments.
        gradients: of everything that trains.
        activations: what else a forward and backward, or the optimiser's step, needs at the peak.
    """

    weights: int
    reference: int
    optimizer: int
    gradients: int
    activations: int

    @property
    def peak(self) -> int:
        """All of them."""
        return self.weights + self.reference + self.optimizer + self.gradients + self.activations

    @property
    def held(self) -> int:
        """What is held already before the first step."""
        return self.weights + self.reference

    def summary(self) -> dict[str, int]:
        """For a run's summary."""
        return {"peak": self.peak, **asdict(self)}


def estimate(
    step: Step, optim: OptimConfig, micros: Sequence[Micro], evaluated: Sequence[Micro], again: bool
) -> Estimate:
    """What training with these heaviest forwards takes.

    Args:
        step: with the policy as prepared, and its reference.
        optim: which optimiser.
        micros: the heaviest forwards of training, made for this: they are of no use afterwards.
        evaluated: the heaviest forwards of evaluation, likewise.
        again: True if an optimiser step has several forwards, so that gradients are held during the later ones.

    Raises:
        UnknownError: if the forward cannot be followed without computing it.
    """
    policy, reference = step.policy, step.reference
    trained = [p for p in policy.parameters() if p.requires_grad]
    own = _size(_tensors(policy))
    whole = _size([*_tensors(policy), *(_tensors(reference.module) if isinstance(reference, LiveReference) else ())])
    gradients = sum(p.numel() * p.element_size() for p in trained)
    rehearsal = Rehearsal.of(step)
    done = [rehearse(rehearsal, micro, trains=True, again=again) for micro in micros]
    kept = max((left - gradients for _, left in done), default=0)  # buffers that the next step uses again
    peaks = [peak for peak, _ in done]
    peaks += [kept + rehearse(rehearsal, micro, trains=False, again=False)[0] for micro in evaluated]
    peaks.append(kept + gradients + step_bytes(optim, trained))
    return Estimate(own, whole - own, state_bytes(optim, trained), gradients, max(peaks) - gradients)


def foresee(
    step: Step,
    config: RunConfig,
    feed: Feed,
    schedule: Iterable[Indices],
    examples: Examples,
    blueprint: Blueprint | None = None,
) -> dict[str, int | str]:
    """What training takes and what there is, in bytes, and under "said" in a sentence.

    Args:
        step: with the policy as prepared, and its reference.
        config: of the run.
        feed: makes forwards.
        schedule: the optimiser batches.
        examples: both sides of the data.
        blueprint: of policy and reference as they were before they were sharded, if they are.

    Raises:
        PreftuneError: if it does not fit.
    """
    if not config.train.check_memory:
        return {"said": "nobody looked at whether this fits into memory: train.check_memory=false"}
    lengths_N3 = lengths(examples.train)
    trained = [feed.cut(batch, lengths_N3) for batch in heaviest(schedule, feed.costs(lengths_N3))]
    again = any(len(forwards) > 1 for forwards in trained)
    micros = largest([feed.prepare([examples.train[i] for i in one]) for forwards in trained for one in forwards])
    lengths_N3 = lengths(examples.held_out)
    looks = map(np.array, feed.cut(np.arange(len(lengths_N3)), lengths_N3))
    looked = heaviest(looks, feed.costs(lengths_N3))
    evaluated = [feed.prepare([examples.held_out[i] for i in one]) for one in looked]
    try:
        looked_at = largest(evaluated, micros)
        if blueprint is None:
            expected = shared_out(estimate(step, config.optim, micros, looked_at, again), step.accelerator)
        else:
            expected = blueprint.estimate(step.needs, config.optim, micros, looked_at, again, feed.group.size)
    except UnknownError as error:
        return {"said": f"no estimate of memory: {error}"}
    room = available(next(step.policy.parameters()).device)
    if room is None:
        return {"said": f"training takes about {amount(expected.peak)} of memory", **expected.summary()}
    refuse(expected, room, config, micros[0])
    there = room + expected.held
    said = f"training takes about {amount(expected.peak)} of {amount(there)} of memory"
    return {"said": said, **expected.summary(), "available": there}


def heaviest(batches: Iterable[Indices], costs_N: Indices) -> list[Indices]:
    """The optimiser batches that may hold the heaviest forward: those of most tokens and those of the longest examples.

    Args:
        batches: indices of examples.
        costs_N: tokens that a forward of each example computes.
    """
    looked_at = list(islice(batches, LOOKED_AT))
    chosen: dict[int, None] = {}
    for weight in (np.sum, np.max):
        weights = np.array([weight(costs_N[batch]) for batch in looked_at])
        chosen |= dict.fromkeys(int(i) for i in np.argsort(-weights, kind="stable")[:KEPT])
    return [looked_at[i] for i in chosen]


def largest(forwards: Sequence[Micro], beyond: Sequence[Micro] = ()) -> list[Micro]:
    """Of these forwards the one with most tokens and, if it has clearly more targets, the one with most targets.

    Args:
        forwards: to choose from.
        beyond: forwards that are rehearsed anyway: none is chosen that has no more of anything than one of them.
    """
    chosen: list[Micro] = []
    for side in (0, 1):
        first = max(forwards, key=lambda micro: _sizes(micro)[side], default=None)
        known = max((_sizes(micro)[side] for micro in (*chosen, *beyond)), default=0)
        if first is not None and _sizes(first)[side] > MORE * known:
            chosen.append(first)
    return chosen


def _sizes(micro: Micro) -> tuple[int, int]:
    """Tokens that a forward computes, those counted once more that each segment looks back at; and its targets."""
    tokens, tree = micro.batch.tokens, micro.batch.tree
    if tree is not None:
        tokens += sum(tree.length[s] for segment in range(len(tree.length)) for s in tree.ancestors(segment))
    return tokens, len(micro.batch.target_K)


class Rehearsal(nn.Module):
    """One forward under policy and reference, and the policy's backward, as a step does them."""

    def __init__(self, policy: nn.Module, reference: Reference | None, needs: frozenset[str]) -> None:
        super().__init__()
        self.policy, self.needs = policy, needs
        self.live: Reference | None = reference if isinstance(reference, LiveReference) else None
        if isinstance(reference, LiveReference):
            self.reference = reference.module  # so that its weights are swapped, too

    @classmethod
    def of(cls, step: Step) -> Rehearsal:
        """As this step does them, without a word to other processes."""
        policy, reference = step.policy, step.reference
        if isinstance(inner := getattr(policy, "module", None), PolicyModule):  # DDP's, or DeepSpeed's
            policy = inner
            if isinstance(reference, StartReference | AdapterOffReference):
                reference = type(reference)(policy, reference.module)
        return cls(policy, reference, step.needs)

    def forward(self, micro: Micro, trains: bool, again: bool) -> None:
        """Run it; nothing is kept."""
        self.policy.train(trains)
        if again:
            for parameter in self.policy.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        reference = None if self.live is None else self.live.logps(micro.batch, micro.examples)
        with torch.set_grad_enabled(trains):
            scored = self._policy(micro)
        if trains:
            values = [value for name in WITH_GRADIENT if (value := getattr(scored, name)) is not None]
            torch.stack([value.sum() for value in values]).sum().backward()
        del reference

    def _policy(self, micro: Micro) -> Any:
        if "reward_R" in self.needs:
            return rewards(self.policy, micro.batch)
        other = None
        if "kl_K" in self.needs and self.live is not None:
            other = self.live.logits(micro.batch, micro.examples)
        return logps(self.policy, micro.batch, self.needs, other)


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that operators give, for as long as they live.

    Attributes:
        live: bytes that live now.
        peak: the most that lived at once.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        """`known` tensors, and what operators give of their storage, are not counted."""
        super().__init__()
        self.live = self.peak = 0
        self.seen: dict[int, weakref.ref[Any]] = {}
        for tensor in known:
            self._see(tensor.untyped_storage(), 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator and look at what it gives."""
        if func is DEVICE_OF and hasattr(args[0], "fake_device"):  # asked for more often than all others together
            return args[0].fake_device
        if func is VALUE_OF and args[0].dtype == torch.bool:  # what forwards ask is as a rule whether all is well
            return True
        rule = RULES.get(func)
        given = func(*args, **(kwargs or {})) if rule is None else rule(*args)
        for tensor in given if isinstance(given, tuple | list) else (given,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._see(storage, storage.nbytes())
        return given

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """True: nothing here is compiled."""
        return True

    def _see(self, storage: Any, size: int) -> None:
        key = id(storage)
        if key in self.seen and self.seen[key]() is storage:
            return

        def gone(reference: weakref.ref[Any]) -> None:
            self.live -= size
            if self.seen.get(key) is reference:  # the next one may have got the same id
                del self.seen[key]

        self.seen[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)


def _grouped_product(left: Tensor, right: Tensor, ends: Tensor | None = None, *rest: Any) -> Tensor:
    """What a product of groups of rows gives (mixtures of experts); torch's own rule knows bf16 alone."""
    if left.ndim == right.ndim == 2 and ends is not None:
        return left.new_empty(len(ends), left.shape[0], right.shape[1])
    return left.new_empty(*left.shape[:-1], right.shape[-1])


RULES: dict[Any, Callable[..., Tensor]] = {torch.ops.aten._grouped_mm.default: _grouped_product}


def rehearse(
    rehearsal: Rehearsal, micro: Micro, trains: bool, again: bool, computed: torch.dtype | None = None
) -> tuple[int, int]:
    """The most bytes that one forward, and backward if it trains, holds besides weights and moments; and what it leaves
    behind, gradients included.

    Args:
        rehearsal: of policy and reference; weights on the meta device are taken to be on the batch's.
        micro: the forward.
        trains: False for one without backward.
        again: True if gradients are held already.
        computed: type that weights of floating point are taken to be of; None: of their own.

    Raises:
        UnknownError: if the forward cannot be followed without computing it.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    def there(tensor: Tensor) -> Tensor:
        if tensor.device.type != "meta":
            return fake.from_tensor(tensor)
        dtype = computed if computed is not None and tensor.is_floating_point() else tensor.dtype
        with fake:
            made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device=micro.batch.ids_T.device)
        return made.requires_grad_(tensor.requires_grad)

    # quantised weights are of types of their own, and know what they are made of: they stay, and are read as they are
    named = [
        (n, t)
        for n, t in (*rehearsal.named_parameters(), *rehearsal.named_buffers())
        if type(t) in (Tensor, nn.Parameter)
    ]
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with _nothing_changes(rehearsal):
        try:
            state: dict[str, Tensor] = {name: there(tensor) for name, tensor in named}
            tensors: dict[str, Any] = {
                field.name: fake.from_tensor(value)
                for field in fields(micro.batch)
                if isinstance(value := getattr(micro.batch, field.name), Tensor)
            }
            copy = Micro(micro.examples, replace(micro.batch, **tensors))
            counter = LiveBytes(state.values())
            with fake, counter:
                torch.func.functional_call(rehearsal, state, (copy, trains, again))
            del copy, tensors
            left = counter.live
        except Exception as error:  # as many kinds as there are models; none of them may stop a run
            raise UnknownError(f"{UNKNOWN} ({type(error).__name__})") from error
    return counter.peak, left


@contextmanager
def _nothing_changes(module: nn.Module) -> Iterator[None]:
    """Leave modules, buffers, the random state, logs and compiled code as they are, whatever a forward does to them."""
    kept = [(part, dict(vars(part)), {k: _copied(v) for k, v in vars(part).items()}) for part in module.modules()]
    shared = [(values, values.copy()) for values in _shared_buffers()]
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    silent = logger.disabled
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        logger.disabled = True
        for buffers, _ in shared:
            buffers.clear()
        try:
            yield
        finally:
            logger.disabled = silent
            for buffers, before in shared:
                buffers[:] = before
            for part, values, contents in kept:
                vars(part).clear()
                vars(part).update(values)
                for key, inner in contents.items():
                    if inner is not None:
                        values[key].clear()
                        values[key].update(inner)


def _shared_buffers() -> list[list[Tensor]]:
    """What our own modules keep from one forward for the next: lists of tensors, some of them empty so far."""
    ours = [module for name, module in sys.modules.items() if name.startswith("preftune.")]
    lists = [value for module in ours for value in vars(module).values() if isinstance(value, list)]
    return [values for values in lists if all(isinstance(value, Tensor) for value in values)]


def _copied(value: Any) -> dict[Any, Any] | None:
    return value.copy() if isinstance(value, dict) else None


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _size(tensors: Iterable[Tensor]) -> int:
    """Bytes of what these tensors share or hold alone."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
