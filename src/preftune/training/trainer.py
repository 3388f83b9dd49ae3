"""The loop: batches in order, optimiser steps, evaluation, metrics, saved models."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from preftune.cache import cache_folder
from preftune.config import RunConfig
from preftune.data.dataset import Examples
from preftune.errors import PreftuneError
from preftune.objectives.registry import Term
from preftune.policy.causality import check_causal
from preftune.policy.compiling import check_compiles, compiled
from preftune.policy.layout import TOLERANCE, choose_layout, original_context, tree_error
from preftune.policy.loading import vocabulary
from preftune.policy.policy import PolicyModule
from preftune.policy.reference import Reference
from preftune.policy.tiled_head import release
from preftune.training import metrics
from preftune.training.batches import Schedule, lengths
from preftune.training.engine import make_accelerator, prepare, prepare_reference, used, whole_state
from preftune.training.feed import Feed
from preftune.training.gate import ExplosionGate, check_start
from preftune.training.held_out import HeldOut, answers, fixed_prompts
from preftune.training.memory import foresee
from preftune.training.optim import UNUSUAL_RATE, default_learning_rate, optimizer, rate_at
from preftune.training.processes import current
from preftune.training.progress import Bar
from preftune.training.references import Forwards, live_reference, reference_for, stored_reference
from preftune.training.run_folder import RunFolder
from preftune.training.saving import save
from preftune.training.step import Scored, States, Step

Probe = Callable[[nn.Module], Mapping[str, Any]]
# Types of device whose values can be looked at in every step, for nothing has to be finished first.
AT_HAND = frozenset({"cpu"})


@dataclass
class Window:
    """What happened since the last line of metrics.

    Attributes:
        since: when it began.
        scored: steps whose values were fetched and found in order.
        waiting: steps whose values are still on the device.
    """

    since: float
    scored: list[Scored] = field(default_factory=list)
    waiting: list[Scored] = field(default_factory=list)


class Trainer:
    """Trains one policy on one set of examples, and fills a run folder.

    Args:
        lm: the language model, adapters included.
        tokenizer: to turn samples into text.
        examples: both sides of the data.
        terms: the objective.
        config: the whole run's.
        folder: where everything is written.
        probe: measures the policy's language model before and after training; its values join the summary.
        show: draw a progress bar.
    """

    def __init__(
        self,
        lm: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        examples: Examples,
        terms: tuple[Term, ...],
        config: RunConfig,
        folder: RunFolder,
        probe: Probe | None = None,
        show: bool = True,
    ) -> None:
        self.tokenizer, self.examples, self.terms = tokenizer, examples, terms
        self.config, self.folder, self.probe, self.show = config, folder, probe, show
        self.messages: list[str] = list(examples.messages)
        self.accelerator = make_accelerator(config.train, config.output.trackers, folder)
        self.precision = self.accelerator.mixed_precision
        self.group = current()
        if not self.accelerator.is_fsdp2:  # which moves a layer at a time, and keeps a share of it
            lm.to(self.accelerator.device)
        self.lengths_N3 = lengths(examples.train)
        self.policy = self._policy(lm)
        check_causal(self.policy, examples.train)
        device, context, pad_id = self.accelerator.device, original_context(lm), tokenizer.pad_token_id or 0
        self.feed = Feed(self.policy, config.batch, context, device, pad_id, self.group)
        frozen = None
        if any(term.objective.reference for term in terms):
            frozen = live_reference(config.reference, config.model, self.policy, self.accelerator.device)
            if frozen is not None:  # computed in the policy's precision, or the two would differ before step 1
                frozen.module = prepare_reference(self.accelerator, frozen.module)
        rate = config.optim.learning_rate
        if rate is None:
            count = sum(p.numel() for p in lm.parameters())
            rate = default_learning_rate(terms, count, config.model.lora is not None)
        self.learning_rate = rate
        if rate > UNUSUAL_RATE:
            self.messages.append(f"optim.learning_rate={rate:g} is far above what AdamW is used with (1e-7 to 1e-2)")
        made = optimizer(self.policy, config.optim, rate)
        self.prepared, self.optimizer = prepare(self.accelerator, self.policy, made)
        reference = self._reference(frozen)
        self.step = Step(self.prepared, reference, terms, self.accelerator, config.seed)
        self.schedule = self._schedule()
        self.states: States = tuple(term.objective.init() for term in terms)
        self.memory = foresee(self.step, config, self.feed, self.schedule, examples)
        self.compiled: list[PolicyModule] = []
        if config.train.compile:
            check_compiles(self.policy)
            self.compiled = [self.policy] if frozen is None else [self.policy, frozen.module]
        self.explosion = ExplosionGate(vocabulary(lm))
        self.writes = not self.policy.scores and hasattr(lm, "generate")
        if config.evaluate.samples and not self.writes and not self.policy.scores:
            self.messages.append(f"no samples are taken: {type(lm).__name__} has no method generate")

    def fit(self) -> dict[str, Any]:
        """Train. Returns the summary (without writing it).

        Raises:
            PreftuneError: if the reference is not the policy's start, or a step is not finite.
        """
        started = time.perf_counter()
        for message in (*self.messages, *([self.memory["said"]] if self.show else [])) if self.group.main else ():
            print(f"note: {message}", file=sys.stderr)
        if self.step.reference is not None and self.config.reference.path is None and self.config.train.check_start:
            first = self.feed.cut(self.schedule.first, self.lengths_N3)[0]
            micro = self.feed.prepare([self.examples.train[i] for i in first])
            check_start(self.prepared, self.step.reference, micro, self.precision)
        side = self.feed.side(self.examples.held_out)
        held_out = HeldOut(self.step, side, side.ordered) if len(side) else None
        prompts = fixed_prompts(self.examples.held_out, self.examples.train, self.config.evaluate.samples)
        before = self._look("start", held_out, prompts, 0)
        try:
            with compiled(self.compiled) if self.compiled else nullcontext():
                seconds, trained = self._loop(held_out)
        finally:
            release()
        after = self._look("end", held_out, prompts, self.schedule.steps)
        self.explosion.check(after, 0.0, self.schedule.steps + 1)
        for tracker in self.accelerator.trackers:
            tracker.finish()
        return {
            "objective": "+".join(term.name for term in self.terms),
            "steps": self.schedule.steps,
            "seconds": time.perf_counter() - started,
            "training_seconds": seconds,
            "examples": trained,
            "pairs_per_second": trained / seconds,
            "learning_rate": self.learning_rate,
            "layout": self.policy.layout,
            "precision": self.precision if self.precision != "no" else "fp32",
            "device": self.accelerator.device.type,
            "before": before,
            "after": after,
            "memory": self.memory,
            "messages": self.messages,
        }

    def state(self) -> dict[str, Tensor]:
        """The language model's weights (those that train, for adapters), for saving."""
        found = whole_state(self.accelerator, self.prepared)
        return {name.removeprefix("lm."): value for name, value in found.items()}

    def _policy(self, lm: nn.Module) -> PolicyModule:
        """The policy in the layout asked for; trees only if they prove exact on this very model."""
        wanted = self.config.model.layout
        layout, reason = choose_layout(lm)
        if wanted == "padded":
            return PolicyModule(lm, "padded")
        if layout == "padded":
            if wanted == "tree":
                raise PreftuneError(f"model.layout=tree is not exact here: {reason}; set it to auto or padded")
            self.messages.append(f"padded rows instead of prompt trees: {reason}")
            return PolicyModule(lm, "padded")
        policy = PolicyModule(lm, "tree")
        longest = max(int(side[:, 1].max(initial=0)) for side in (self.lengths_N3, lengths(self.examples.held_out)))
        error = tree_error(policy, longest)
        exact = error <= (TOLERANCE if next(lm.parameters()).dtype == torch.float32 else 0.5)
        if not exact:
            if wanted == "tree":
                raise PreftuneError(f"model.layout=tree is off by {error:.2g} nats on this model: set it to padded")
            found = (
                f"trees are off by {error:.2g} nats on this model"
                if math.isfinite(error)
                else "the model refuses trees"
            )
            self.messages.append(f"padded rows instead of prompt trees: {found}")
            policy.use_layout("padded")
        return policy

    def _reference(self, frozen: Any) -> Reference | None:
        if not any(term.objective.reference for term in self.terms):
            return None
        live = reference_for(frozen, self.prepared, self.policy)
        if self.config.reference.kind != "stored":
            return live
        for term in self.terms:
            if "kl_K" in term.objective.needs:
                raise PreftuneError(
                    f"objective {term.name} compares whole next-token distributions with the reference's, but "
                    "reference.kind=stored keeps the log-probs of the data's tokens only: set it to live"
                )
        folder = self.config.reference.folder
        stored = stored_reference(
            live,
            (self.examples.train, self.examples.held_out),
            Forwards(self.feed.prepare, self.config.batch.micro_tokens, self.feed.alone_above),
            self.precision,
            cache_folder("references") if folder is None else Path(folder).expanduser(),
            self.show and self.accelerator.is_main_process,
            self.group,
        )
        self.messages.extend(stored.notes)
        if frozen is not None and not self.accelerator.is_fsdp2:
            frozen.module.to("meta")  # its work is done: free the memory
        return stored

    def _schedule(self) -> Schedule:
        """The optimiser batches of the whole run."""
        config = self.config
        # responses of other prompts tell something where there are other prompts
        baselines = any(term.objective.baselines for term in self.terms)
        return Schedule(
            self.feed.costs(self.lengths_N3),
            config.batch,
            config.seed,
            config.train.epochs,
            config.train.max_steps,
            max(term.objective.least_examples for term in self.terms),
            [hash(example.prompt.tobytes()) for example in self.examples.train] if baselines else None,
        )

    def _loop(self, held_out: HeldOut | None) -> tuple[float, int]:
        """All optimiser steps. Returns the seconds they took, evaluation and saving apart, and the examples seen."""
        config, steps = self.config, self.schedule.steps
        seconds, trained, window = 0.0, 0, Window(time.perf_counter())
        with (
            Bar(steps, self.show and self.accelerator.is_main_process) as bar,
            closing(self.feed.batches(self.examples.train, self.lengths_N3, self.schedule)) as batches,
        ):
            for step, micros in enumerate(batches):
                rate = self.learning_rate * rate_at(step, steps, config.optim)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                scored = self.step.train(micros, self.states, self.optimizer, step, config.optim.max_grad_norm)
                self.states = scored.states
                window.waiting.append(scored)
                bar.advance()
                done = step + 1
                evaluate = held_out and config.evaluate.every and done % config.evaluate.every == 0 and done < steps
                save_now = config.output.save_every and done % config.output.save_every == 0
                log_now = done % config.train.log_every == 0 or done == steps or evaluate or save_now
                if log_now or self.feed.device.type in AT_HAND:
                    self._check(window)
                if log_now:
                    elapsed = time.perf_counter() - window.since
                    seconds += elapsed
                    trained += sum(len(scored.rows) for scored in window.scored)
                    line = self._line(window, done, done / self.schedule.per_epoch, rate, elapsed)
                    self._log(line)
                    bar.show(line)
                    if evaluate:
                        assert held_out is not None
                        self._log({"kind": "eval", "step": done, **held_out.evaluate(self.states)})
                    if save_now:
                        self._save_checkpoint(done)
                    window = Window(time.perf_counter())
        return seconds, trained

    def _check(self, window: Window) -> None:
        """Fetch the values of the steps that wait, and stop the run if one of them is not in order."""
        for scored in self.step.whole(window.waiting):
            scored.require_finite()
            found = metrics.summarise(metrics.table(scored.columns))
            self.explosion.check(found, scored.loss, scored.step + 1, scored.rows)
            window.scored.append(scored)
        window.waiting.clear()

    def _line(self, window: Window, step: int, epoch: float, rate: float, elapsed: float) -> dict[str, Any]:
        """One line of training metrics."""
        examples = sum(len(scored.rows) for scored in window.scored)
        tokens = sum(scored.tokens for scored in window.scored)
        return {
            "kind": "train",
            "step": step,
            "epoch": epoch,
            "loss": sum(len(scored.rows) * scored.loss for scored in window.scored) / examples,
            **metrics.summarise(metrics.table([piece for scored in window.scored for piece in scored.columns])),
            "gradient_norm": sum(scored.gradient_norm or 0.0 for scored in window.scored) / len(window.scored),
            "learning_rate": rate,
            "pairs_per_second": examples / elapsed,
            "tokens_per_second": tokens / elapsed,
            "padding_share": 1 - tokens / sum(scored.computed for scored in window.scored),
            "seconds": elapsed,
        }

    def _look(self, when: str, held_out: HeldOut | None, prompts: list[list[int]], step: int) -> dict[str, Any]:
        """Held-out metrics, samples and the probe, at the start or at the end."""
        found: dict[str, Any] = {}
        if held_out is not None:
            found = held_out.evaluate(self.states)
            self._log({"kind": "eval", "step": step, **found})
        if prompts and self.writes:
            ends = self.examples.end_ids
            sampled = answers(self.policy, self.tokenizer, prompts, self.config.evaluate, ends, self.config.seed)
            self.folder.append_samples({"when": when, "step": step, **one} for one in sampled)
        if self.probe is not None:
            found |= used(self.policy, self.probe)
        return {name: value for name, value in found.items() if not name.endswith("_histogram")}

    def _log(self, line: Mapping[str, Any]) -> None:
        self.folder.append_metrics(line)
        numbers = {f"{line['kind']}/{k}": v for k, v in line.items() if isinstance(v, int | float) and k != "step"}
        self.accelerator.log(numbers, step=line["step"])

    def _save_checkpoint(self, step: int) -> None:
        state = self.state()
        if not self.group.main:
            return
        save(self.folder, f"checkpoints/step-{step:06d}", self.policy.lm, self.tokenizer, state)
        saved = sorted((self.folder.path / "checkpoints").iterdir())
        for old in saved[: -self.config.output.keep]:
            shutil.rmtree(old)
