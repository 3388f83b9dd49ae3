"""The loop: batches in order, optimiser steps, evaluation, metrics, saved models."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from preftune.config import RunConfig
from preftune.data.dataset import Examples
from preftune.errors import PreftuneError
from preftune.objectives.registry import Term, data_kind
from preftune.policy.causality import check_causal
from preftune.policy.compiling import check_compiles, compiled
from preftune.policy.layout import laid_out, original_context
from preftune.policy.loading import vocabulary
from preftune.policy.policy import PolicyModule
from preftune.policy.reference import FrozenReference, Reference
from preftune.policy.tiled_head import release
from preftune.rlhf.plan import Planned, Rota
from preftune.rlhf.rollouts import CarriedReference
from preftune.rlhf.rounds import Rounds
from preftune.training import metrics
from preftune.training.batches import Schedule, lengths
from preftune.training.blueprint import Blueprint
from preftune.training.credit import first_pairs, pair_credits
from preftune.training.doctor.examiner import Examiner
from preftune.training.engine import COMPUTED, make_accelerator, prepare, prepare_reference, used, whole_state
from preftune.training.feed import Feed
from preftune.training.gate import ExplosionError, ExplosionGate, SpikeWatch, check_start
from preftune.training.held_out import AnswersHeldOut, HeldOut
from preftune.training.keeper import Keeper
from preftune.training.memory import foresee
from preftune.training.optim import UNUSUAL_RATE, default_learning_rate, optimizer, rate_at
from preftune.training.processes import current
from preftune.training.progress import Bar
from preftune.training.references import live_reference, reference_for, reference_of
from preftune.training.room import amount
from preftune.training.run_folder import RunFolder
from preftune.training.scored import Scored, States
from preftune.training.state import Position, are_finite
from preftune.training.step import Step
from preftune.training.stopping import Overdue
from preftune.training.window import Window

Probe = Callable[[nn.Module], Mapping[str, Any]]
# Types of device whose values can be looked at in every step, for nothing has to be finished first.
AT_HAND = frozenset({"cpu"})


class Trainer:
    """Trains one policy on one set of examples, and fills a run folder.

    Args:
        lm: the language model, adapters included.
        tokenizer: to turn samples into text.
        examples: both sides of the data.
        terms: the objective.
        config: the whole run's.
        folder: where everything is written.
        checkpoint: a checkpoint of the same run to go on from; the model given is the one that the run began with.
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
        checkpoint: Path | None = None,
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
        if self.group.main:  # others may be without weights
            check_causal(self.policy, examples.train)
        device, context, pad_id = self.accelerator.device, original_context(lm), tokenizer.pad_token_id or 0
        self.feed = Feed(self.policy, config.batch, context, device, pad_id, self.group)
        frozen, compares = None, any(term.objective.reference for term in terms)
        if config.online is not None:
            compares = config.online.reference != "last_round"
        if compares:
            sharing = self.group if self.accelerator.is_fsdp2 else None
            frozen = live_reference(config.reference, config.model, self.policy, device, sharing)
            if frozen is None and config.online is not None and config.online.reference == "moving":
                frozen = FrozenReference.copy_of(self.policy)
        blueprint = None
        if self.accelerator.is_fsdp2:
            live = any(term.objective.reference for term in terms) and config.reference.kind != "stored"
            blueprint = Blueprint.of(self.policy, frozen if live else None, live, COMPUTED.get(self.precision))
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
        self.schedule: Schedule | Rota = self._schedule()
        reference: Reference | None = None
        if isinstance(examples, Planned):
            reference = CarriedReference() if any(term.objective.reference for term in terms) else None
            self.compared: Reference | None = reference_for(frozen, self.prepared, self.policy) if compares else None
        else:
            reference = self.compared = reference_of(self, frozen)
        self.step = Step(self.prepared, reference, terms, self.accelerator, config.seed)
        self.rounds: Rounds | None = None
        self.states: States = tuple(term.objective.init() for term in terms)
        if isinstance(examples, Planned):
            self.rounds = Rounds(self, examples, cast(Any, self.compared))
        self.memory = foresee(self.step, config, self.feed, self.schedule, examples, blueprint)
        if self.rounds is not None and (beside := self.rounds.value_bytes):
            self.memory |= {
                "value_network": beside,
                "said": f"{self.memory['said']}, its value network {amount(beside)}",
            }
        self.compiled: list[PolicyModule] = []
        if config.train.compile:
            check_compiles(self.policy)
            self.compiled = [self.policy] if frozen is None else [self.policy, frozen.module]
        self.explosion = ExplosionGate(vocabulary(lm))
        self.spikes = SpikeWatch()
        self.position, self.window = Position(), Window()
        side = self.feed.side(examples.held_out)
        self.held_out: HeldOut | AnswersHeldOut | None = None
        if self.rounds is not None:
            self.held_out = AnswersHeldOut(self.rounds) if self.rounds.evaluates else None
        elif len(side):
            self.held_out = HeldOut(self.step, side, side.ordered)
        self.keeper, self.started = Keeper(self, checkpoint), time.perf_counter()
        if config.evaluate.samples and not hasattr(lm, "generate") and not self.policy.scores:
            self.messages.append(f"no samples are taken: {type(lm).__name__} has no method generate")
        self.keeper.check_best(side)
        self.examiner = Examiner(self)

    def fit(self) -> dict[str, Any]:
        """Train. Returns the summary (without writing it).

        Raises:
            PreftuneError: if the reference is not the policy's start, or a step is not finite.
        """
        self.started = time.perf_counter()
        for message in (*self.messages, *([self.memory["said"]] if self.show else [])):
            self._note(message)
        try:
            after = self._train()
        except Overdue:
            self.keeper.stop()
        finally:
            release()
            if self.rounds is not None:
                self.rounds.close()
        self.keeper.stops.not_any_more()
        at = self.position
        self.explosion.check(after, 0.0, self.schedule.steps + 1)
        self.keeper.note_best(self.schedule.steps, after)
        for tracker in self.accelerator.trackers:
            tracker.finish()
        return {
            "objective": "+".join(term.name for term in self.terms),
            "steps": self.schedule.steps,
            "seconds": self.wall,
            "training_seconds": at.seconds,
            "examples": at.examples,
            "pairs_per_second": at.examples / at.seconds,
            "learning_rate": self.learning_rate,
            "layout": self.policy.layout,
            "precision": self.precision if self.precision != "no" else "fp32",
            "device": self.accelerator.device.type,
            "before": at.before,
            "after": after,
            **({"best": at.best} if at.best else {}),
            "doctor": self.examiner.doctor.standing(),
            "memory": self.memory,
            "messages": [*self.messages, *at.notes],
        }

    def _train(self) -> dict[str, Any]:
        """Look, take all steps, and look again. Returns the last look."""
        stops = self.keeper.stops
        stops.at_once()
        self._check_start()
        if self.keeper.resumed is None:
            self.position.before = self._look("start", 0)
        else:
            self.keeper.restore()
            self.examiner.restore()
        self.keeper.ready = True
        self.examiner.stop_if_asked()
        stops.step_by_step()
        with compiled(self.compiled) if self.compiled else nullcontext():
            self._loop()
        stops.at_once()
        after = self._look("end", self.schedule.steps)
        if self.rounds is not None:  # nothing of what it learned from is held out
            return after
        pairs = first_pairs(self.examples.held_out, self.config.evaluate.credit)
        if pairs and self.step.reference is not None:
            self.folder.write_credit(pair_credits(self.step, self.feed, pairs, self.tokenizer))
        return after

    @property
    def wall(self) -> float:
        """Seconds that the run took so far, in this process and those before it."""
        return self.position.wall + time.perf_counter() - self.started

    def state(self) -> dict[str, Tensor]:
        """The language model's weights (those that train, for adapters), for saving."""
        found = whole_state(self.accelerator, self.prepared)
        return {name.removeprefix("lm."): value for name, value in found.items()}

    def _policy(self, lm: nn.Module) -> PolicyModule:
        """The policy in the layout asked for; trees only if they prove exact on this very model."""
        longest = max(int(side[:, 1].max(initial=0)) for side in (self.lengths_N3, lengths(self.examples.held_out)))
        policy, said = laid_out(lm, self.config.model.layout, longest, self.group.on_main)
        self.messages.extend(said)
        return policy

    def _schedule(self) -> Schedule | Rota:
        """The optimiser batches of the whole run."""
        config = self.config
        if config.online is not None:
            count, kind = len(self.examples.train), data_kind(self.terms)
            return Rota(count, config.online, config.batch, kind, config.seed, config.train.max_steps)
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

    def _loop(self) -> None:
        """All optimiser steps that are still to be taken."""
        steps, at = self.schedule.steps, self.position
        if self.rounds is None:
            batches = self.feed.batches(self.examples.train, self.lengths_N3, self.schedule.after(at.step))
        else:
            batches = self.rounds.batches(at.step)
        with Bar(steps, self.show and self.accelerator.is_main_process) as bar, closing(batches):
            bar.advance(at.step)
            if at.pending:
                self._after_step(bar)
            for step, micros in enumerate(batches, start=at.step):
                for group in self.optimizer.param_groups:
                    group["lr"] = self._rate(step)
                scored = self.step.gradient(micros, self.states, step, self.config.optim.max_grad_norm)
                with self.keeper.stops.held():
                    with self._failures(scored):
                        self.step.take(self.optimizer, scored)
                        if self.rounds is not None:
                            self.rounds.learn(micros, step)
                    self.states = scored.states
                    self.window.waiting.append(scored)
                    at.step, at.pending = step + 1, True
                bar.advance()
                self._after_step(bar)

    def _after_step(self, bar: Bar) -> None:
        """What is due after an optimiser step: a line of metrics, an evaluation, a checkpoint."""
        config, at, steps = self.config, self.position, self.schedule.steps
        evaluates = self.held_out is not None and config.evaluate.every is not None and at.step < steps
        evaluate = self.held_out if evaluates and at.step % (config.evaluate.every or 1) == 0 else None
        log_now = at.step % config.train.log_every == 0 or at.step == steps or evaluate is not None
        if log_now or self.feed.device.type in AT_HAND:
            self.look_at_values()
        improved = False
        if log_now:
            line = self.examiner.note_parameters(self._line())
            bar.show(line)
            found = None
            if evaluate is not None:
                found = {**evaluate.evaluate(self.states), **self.examiner.look(texts=False)[0]}
            with self.keeper.stops.held():
                at.seconds += line["seconds"]
                self._log(line)
                if found is not None:
                    self._log({"kind": "eval", "step": at.step, **found})
                    improved = self.keeper.note_best(at.step, found)
                self.examiner.judge()
                self.window = Window()
        at.pending = False
        if log_now:
            self.examiner.stop_if_asked()
        self.keeper.after_step(improved, log_now)

    def look_at_values(self) -> None:
        """Fetch the values of the steps that wait, and stop the run if one of them is not in order.

        Raises:
            PreftuneError: if one is not.
        """
        if not self.window.waiting:
            return
        with self.keeper.stops.held():  # or what is broken off here would be counted twice
            for scored in self.step.whole(self.window.waiting):
                self._look_at(scored)
            self.window.waiting.clear()

    def _look_at(self, scored: Scored) -> None:
        with self._failures(scored):
            scored.require_finite()
            found = metrics.summarise(metrics.table(scored.columns))
            self.explosion.check(found, scored.loss, scored.step + 1, scored.rows)
        if said := self.spikes.check(scored.loss, scored.step + 1, scored.rows):
            self._note(said)
            self.position.notes.append(said)
        self.window.finish(scored)
        self.position.examples += len(scored.rows)

    @contextmanager
    def _failures(self, scored: Scored) -> Iterator[None]:
        """Keep with the run what is known of a step that stops it."""
        try:
            yield
        except PreftuneError as error:
            values = {"loss": scored.loss, "gradient_norm": scored.gradient_norm}
            if isinstance(error, ExplosionError) or not all(self.group.gathered(are_finite(self.prepared))):
                self.keeper.drop(scored.step)
            raise PreftuneError(self.keeper.failed(str(error), scored.step + 1, scored.rows, **values)) from error

    def _rate(self, step: int) -> float:
        return self.learning_rate * rate_at(step, self.schedule.steps, self.config.optim)

    def _line(self) -> dict[str, Any]:
        """One line of training metrics."""
        done = self.position.step
        found = {"kind": "train", "step": done, "epoch": done / self.schedule.per_epoch, **self.window.line()}
        found |= {} if self.rounds is None else self.rounds.line()
        return {**found, "learning_rate": self._rate(done - 1)}

    def _look(self, when: str, step: int) -> dict[str, Any]:
        """Held-out metrics, samples and the probe, at the start or at the end."""
        found = {} if self.held_out is None else self.held_out.evaluate(self.states)
        measured, sampled = self.examiner.look(texts=True)
        found |= {name: value for name, value in measured.items() if name not in found}
        probed: Mapping[str, Any] = {} if self.probe is None else used(self.policy, self.probe)
        with self.keeper.stops.held():
            if found:
                self._log({"kind": "eval", "step": step, **found})
            if sampled:
                self.folder.append_samples({"when": when, "step": step, **one} for one in sampled)
            self.examiner.judge(probed)
        return {name: value for name, value in (found | dict(probed)).items() if not name.endswith("_histogram")}

    def _check_start(self) -> None:
        """Refuse a reference that is declared the policy's start, and is not."""
        reference, config = self.compared, self.config
        if reference is None or config.reference.path is not None or not config.train.check_start:
            return
        first = self.feed.cut(self.schedule.first, self.lengths_N3)[0]
        micro = self.feed.prepare([self.examples.train[i] for i in first])
        try:
            check_start(self.prepared, reference, micro, self.precision)
        except PreftuneError as error:
            raise PreftuneError(self.keeper.failed(str(error), 0, [one.row for one in micro.examples])) from error

    def _note(self, said: object) -> None:
        if self.group.main:
            print(f"note: {said}", file=sys.stderr)

    def _log(self, line: Mapping[str, Any]) -> None:
        self.folder.append_metrics(line)
        self.examiner.see(line)
        numbers = {f"{line['kind']}/{k}": v for k, v in line.items() if isinstance(v, int | float) and k != "step"}
        self.accelerator.log(numbers, step=line["step"])
