"""The value network of PPO: what a response is expected to earn from each token on, and the advantages that follow.

Tensor names carry their shape: T targets of one response, K targets of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from preftune.data.examples import Example, Response
from preftune.data.packing import PackedBatch
from preftune.errors import PreftuneError
from preftune.evaluation.judges import REWARD
from preftune.objectives.ppo import PPO
from preftune.policy.policy import PolicyModule, values
from preftune.rlhf.advantages import Floats, KLController, generalised_advantages, token_rewards, whitened
from preftune.rlhf.value_network import first_weights, value_network
from preftune.training import state
from preftune.training.batches import torch_seed
from preftune.training.checkpoint import Tensors
from preftune.training.engine import prepare, whole
from preftune.training.feed import Feed
from preftune.training.optim import OptimConfig, optimizer, rate_at
from preftune.training.step import Micro
from preftune.training.zero import ZeroAccelerator

if TYPE_CHECKING:
    from preftune.rlhf.config import OnlineConfig
    from preftune.training.trainer import Trainer

PREFIX = "critic."  # of its tensors in a checkpoint
DROPOUT = 7  # stream of random numbers, beside those of training.batches and rlhf.plan


class Critic:
    """A value network with an optimiser of its own, and the price of KL that goes into its rewards.

    Args:
        module: around a one-label sequence classifier, as `value_network` makes it; on the policy's device.
        objective: PPO, with all that is set.
        feed: makes forwards; those of the policy.
        accelerator: that of the policy.
        seed: of the run.
        optim: how the policy is optimised: schedule, moments, clipping.
        learning_rate: the policy's peak; the value network's too, unless the objective has one for it.
        steps: optimiser steps of the run.

    Raises:
        PreftuneError: if weights are sharded, or scaled by a loss scaler (fp16).
    """

    def __init__(
        self,
        module: PolicyModule,
        objective: PPO,
        feed: Feed,
        accelerator: Accelerator,
        seed: int,
        optim: OptimConfig,
        learning_rate: float,
        steps: int,
    ) -> None:
        check_engine(accelerator)
        self.objective, self.feed, self.accelerator, self.seed = objective, feed, accelerator, seed
        self.optim, self.steps = optim, steps
        own = objective.value_learning_rate
        self.learning_rate = learning_rate if own is None else own
        self.controller = KLController(objective.beta, objective.target_kl, objective.horizon)
        self.prepared, self.optimizer = prepare(accelerator, module, optimizer(module, optim, self.learning_rate))
        self.seen: list[dict[str, float]] = []  # of the steps since the last line of metrics

    def prepare(self, examples: Sequence[Example]) -> tuple[list[Example], dict[str, float]]:
        """Rollouts with what PPO learns from: at each token "values" (of the network as it is), "returns" (what it is
        to learn) and "advantages".

        Args:
            examples: of a round; their responses have a score, "old_logps" and "reference_logps". Those of weight 0
                are given the same, and count in no mean.

        Returns:
            The examples, and figures of the round. kl: log-prob of a response under the policy less that under the
            reference, mean, nats. kl_coefficient: beta of this round. value_explained: share of the variance of returns
            that the values foresaw. value, return: their means. advantage_sd: before whitening.

        Raises:
            PreftuneError: if a response has no token, or a reward that is no finite number.
        """
        if not examples:
            raise ValueError("a round has examples")
        for one in examples:
            _check(one)
        beta, objective = self.controller.beta, self.objective
        flat = [(example, response) for example in examples for response in example.responses]
        counts = [example.weight > 0 for example, _ in flat]
        if not any(counts):
            counts = [True] * len(flat)
        values_R = self._values(examples)
        drift = [_token(response, "old_logps") - _token(response, "reference_logps") for _, response in flat]
        rewards = [
            token_rewards(gap, np.zeros_like(gap), response.score, beta)
            for (_, response), gap in zip(flat, drift, strict=True)
        ]
        if objective.whiten_rewards:
            rewards = whitened(rewards, counts, keep_mean=True)
        advantages = [
            generalised_advantages(reward_T, value_T, objective.gamma, objective.lam)
            for reward_T, value_T in zip(rewards, values_R, strict=True)
        ]
        returns = [advantage_T + value_T for advantage_T, value_T in zip(advantages, values_R, strict=True)]
        figures = _figures(drift, values_R, returns, advantages, counts) | {"kl_coefficient": beta}
        if objective.whiten_advantages:
            advantages = whitened(advantages, counts)
        self.controller.update(figures["kl"], sum(counts))
        made = iter(zip(values_R, returns, advantages, strict=True))

        def with_values(response: Response) -> Response:
            names = ("values", "returns", "advantages")
            found = {name: each.astype(np.float32) for name, each in zip(names, next(made), strict=True)}
            return replace(response, token={**response.token, **found})

        return [replace(one, responses=tuple(map(with_values, one.responses))) for one in examples], figures

    def learn(self, micros: Sequence[Micro], step: int) -> dict[str, float]:
        """One optimiser step of the clipped value loss, a mean over tokens of the optimiser batch.

        Args:
            micros: the forwards of the policy's step.
            step: number of the optimiser step, from 0.

        Returns:
            value_loss, value_clipped (share of tokens that the clip holds), value_gradient_norm (before clipping).

        Raises:
            PreftuneError: if the gradient is not finite; the weights are as they were.
        """
        device = self.feed.device
        weights = [_weight_K(micro) for micro in micros]
        total = self.accelerator.reduce(torch.stack([weight_K.sum() for weight_K in weights]).sum().to(device), "sum")
        total = torch.where(total == 0, torch.ones_like(total), total)
        loss = clipped = torch.zeros((), device=device)
        self.prepared.train()
        for number, (micro, weight_K) in enumerate(zip(micros, weights, strict=True)):
            torch.manual_seed(torch_seed(self.seed, DROPOUT, step, number, self.accelerator.process_index))
            with self._syncing(number, len(micros)):
                value_K = _required(values(self.prepared, micro.batch).value_K)
                loss_K, held_K = self._loss_K(value_K, micro.batch)
                part = (loss_K * weight_K).sum() / total
                self.accelerator.backward(part * self.accelerator.num_processes)
            loss, clipped = loss + part.detach(), clipped + (held_K * weight_K).sum() / total
        limit = math.inf if self.optim.max_grad_norm is None else self.optim.max_grad_norm
        norm = whole(torch.as_tensor(self.accelerator.clip_grad_norm_(self.prepared.parameters(), limit)))
        sums = self.accelerator.reduce(torch.stack([loss, clipped]), "sum")
        found = {"value_loss": float(sums[0]), "value_clipped": float(sums[1]), "value_gradient_norm": float(norm)}
        if not all(map(math.isfinite, found.values())):
            self.optimizer.zero_grad(set_to_none=True)
            raise PreftuneError(
                f"the value network's gradient of step {step + 1} is not finite (loss {found['value_loss']:.4g}): it "
                "was not taken; lower objective.value_learning_rate"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * rate_at(step, self.steps, self.optim)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.seen.append(found)
        return found

    def line(self) -> dict[str, float]:
        """Means of what `learn` gave since the last line."""
        seen, self.seen = self.seen, []
        return {name: float(np.mean([one[name] for one in seen])) for name in (seen[0] if seen else ())}

    def tensors(self) -> dict[str, Tensor]:
        """Weights and moments, for a checkpoint."""
        moments: Any = state.moments(self.prepared, self.optimizer)[0]  # whole: nothing is sharded here
        return {PREFIX + name: tensor for name, tensor in {**state.weights(self.prepared), **moments}.items()}

    def numbers(self) -> dict[str, Any]:
        """What a checkpoint keeps beside them."""
        moments = state.moments(self.prepared, self.optimizer)[1]
        return {"beta": self.controller.beta, "moments": moments, "seen": self.seen}

    def restore(self, tensors: Tensors, numbers: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, bit by bit.

        Raises:
            PreftuneError: if it is of another network.
        """
        state.restore(self.prepared, self.optimizer, Within(tensors, PREFIX), numbers["moments"])
        self.controller.beta, self.seen = numbers["beta"], list(numbers["seen"])

    def _loss_K(self, value_K: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Loss of each value, and 1 where the clip holds it."""
        zero_K = torch.zeros_like(value_K.detach())
        old_K, return_K = (batch.token.get(name, zero_K).nan_to_num().to(value_K) for name in ("values", "returns"))
        return clipped_value_loss(value_K, old_K, return_K, self.objective.value_clip)

    @torch.no_grad()
    def _values(self, examples: Sequence[Example]) -> list[Floats]:
        """The network's value before each target of each response, in order; those of all processes."""
        side, training = self.feed.side(examples), self.prepared.training
        own: list[Floats] = []
        self.prepared.eval()
        for micro in side:
            value_K = _required(values(self.prepared, micro.batch).value_K)
            if not micro.stand_in:
                pieces = value_K.double().cpu().split(micro.batch.length_R.tolist())
                own += [piece.numpy().copy() for piece in pieces]
        self.prepared.train(training)
        every = iter([piece for part in self.feed.group.gathered(own) for piece in part])
        order = [i for share in side.shares for forward in share.real for i in forward]
        found = {i: [next(every) for _ in examples[i].responses] for i in order}
        return [value_T for i in range(len(examples)) for value_T in found[i]]

    def _syncing(self, number: int, count: int) -> AbstractContextManager[Any]:
        """Processes exchange gradients in the last backward of a step only."""
        return nullcontext() if number == count - 1 else self.accelerator.no_sync(self.prepared)


def open_critic(trainer: Trainer, config: OnlineConfig) -> Critic:
    """The value network of a run. It begins as the reward model that the config names, else as that which judges, else
    as the policy under a new head.

    Raises:
        PreftuneError: if there can be none.
    """
    check_engine(trainer.accelerator)
    (term,) = trainer.terms
    objective = getattr(term.objective, "inner", term.objective)  # without its modifiers
    if not isinstance(objective, PPO):
        raise PreftuneError(
            f"objective {term.name} reads advantages, whose settings are those of PPO: make it a subclass of "
            "preftune.objectives.ppo.PPO"
        )
    judge = config.judge.removeprefix(REWARD) if config.judge.startswith(REWARD) else None
    start, said = first_weights(config.value, judge, trainer.tokenizer)
    trainer.messages += [] if said is None else [said]
    module = value_network(trainer.policy, start, trainer.tokenizer.pad_token_id)
    settings = trainer.config
    return Critic(
        module,
        objective,
        trainer.feed,
        trainer.accelerator,
        settings.seed,
        settings.optim,
        trainer.learning_rate,
        trainer.schedule.steps,
    )


def clipped_value_loss(value: Tensor, old: Tensor, target: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """Half the squared error of values, the larger of that of the value and that of the value held close to the old.

    Args:
        value: with gradient.
        old: before this round's steps.
        target: the return.
        clip: how far the value may go; None: any distance.

    Returns:
        The loss, and 1 where the clip holds it (no gradient), else 0.

    Example:
        >>> value, old = torch.tensor([1.0, 0.1]), torch.tensor([0.0, 0.0])
        >>> loss, held = clipped_value_loss(value, old, target=torch.tensor([1.5, 0.1]), clip=0.5)
        >>> loss.tolist(), held.tolist()  # (0.5 - 1.5)^2 / 2, more than (1 - 1.5)^2 / 2; and no error
        ([0.5, 0.0], [1.0, 0.0])
    """
    free = (value - target) ** 2 / 2
    if clip is None:
        return free, torch.zeros_like(free.detach())
    held = (old + (value - old).clamp(-clip, clip) - target) ** 2 / 2
    return torch.maximum(free, held), (held > free).to(free.dtype).detach()


def check_engine(accelerator: Accelerator) -> None:
    """Refuse ways of computing in which two networks cannot train side by side.

    Raises:
        PreftuneError: names the key.
    """
    if accelerator.is_fsdp2 or isinstance(accelerator, ZeroAccelerator):
        raise PreftuneError(
            "a value network trains beside the policy, and neither can be sharded yet: set train.strategy=ddp, or take "
            "an objective without a value network (rloo, grpo)"
        )
    if accelerator.mixed_precision == "fp16":
        raise PreftuneError("train.precision=fp16 does not go with a value network: set it to bf16 or fp32")


class Within(Tensors):
    """Those tensors of a checkpoint whose names begin alike, under the rest of their names."""

    def __init__(self, tensors: Tensors, prefix: str) -> None:
        self.tensors, self.prefix = tensors, prefix

    def __contains__(self, name: object) -> bool:
        return f"{self.prefix}{name}" in self.tensors

    def under(self, prefix: str) -> list[str]:  # noqa: D102
        return self.tensors.under(self.prefix + prefix)

    def dtype(self, name: str) -> torch.dtype:  # noqa: D102
        return self.tensors.dtype(self.prefix + name)

    def shape(self, name: str) -> list[int]:  # noqa: D102
        return self.tensors.shape(self.prefix + name)

    def whole(self, name: str) -> Tensor:  # noqa: D102
        return self.tensors.whole(self.prefix + name)

    def read_into(self, name: str, tensor: Tensor) -> None:  # noqa: D102
        self.tensors.read_into(self.prefix + name, tensor)


def _check(example: Example) -> None:
    """Refuse what cannot be learned from.

    Raises:
        PreftuneError: names the row of the prompt.
    """
    for response in example.responses:
        if response.length == 0:
            raise PreftuneError(f"a response to the prompt of row {example.row} has no token: leave the prompt out")
        if not math.isfinite(response.score):
            raise PreftuneError(
                f"a response to the prompt of row {example.row} has reward {response.score:g}, expected a finite "
                "number: mend what rewards it (online.judge)"
            )


def _token(response: Response, name: str) -> Floats:
    if name not in response.token:
        raise ValueError(f"rollouts must carry {name}")
    return response.token[name].astype(np.float64)


def _weight_K(micro: Micro) -> Tensor:
    """Weight of each target: that of its example; 0 where nothing is known of it."""
    batch = micro.batch
    weight_K = batch.weight_E[batch.example_R[batch.response_K]]
    returns_K = batch.token.get("returns")
    if micro.stand_in or returns_K is None:
        return torch.zeros_like(weight_K)
    return torch.where(returns_K.isnan(), 0.0, weight_K)


def _required(value_K: Tensor | None) -> Tensor:
    assert value_K is not None  # `values` fills it
    return value_K


def _figures(
    drift: Sequence[Floats],
    values_R: Sequence[Floats],
    returns: Sequence[Floats],
    advantages: Sequence[Floats],
    counts: Sequence[bool],
) -> dict[str, float]:
    def together(parts: Sequence[Floats]) -> Floats:
        return np.concatenate([part for part, counted in zip(parts, counts, strict=True) if counted])

    value_K, return_K = together(values_R), together(returns)
    spread = float(return_K.var())
    return {
        "kl": float(np.mean([gap.sum() for gap, counted in zip(drift, counts, strict=True) if counted])),
        "value": float(value_K.mean()),
        "return": float(return_K.mean()),
        # of returns that are all alike there is nothing to explain
        "value_explained": 1 - float((return_K - value_K).var()) / spread if spread > 0 else 0.0,
        "advantage_sd": float(together(advantages).std()),
    }
