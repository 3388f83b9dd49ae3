"""When a run saves what it needs to go on, and how it goes on from that."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from preftune.errors import PreftuneError
from preftune.training import checkpoint, metrics, state
from preftune.training.feed import Side
from preftune.training.saving import write_model
from preftune.training.stopping import Stopped, Stops
from preftune.training.window import Window

if TYPE_CHECKING:
    from preftune.training.trainer import Trainer

PROMPT_TOKENS = 24  # of a prompt, in failure.json
ONLINE = ("reward", "kl")  # what evaluations of an online run give
FALLS = frozenset({"loss", "kl"})  # metrics that are the better the smaller they are


class Keeper:
    """Saves a trainer's checkpoints, and puts a trainer back to where one was taken.

    Args:
        trainer: whose state it is.
        resumed: the checkpoint to go on from; None: the run begins.

    Attributes:
        stops: to be entered while training runs.
        ready: True once there is something to save.
    """

    def __init__(self, trainer: Trainer, resumed: Path | None) -> None:
        self.trainer, self.resumed = trainer, resumed
        self.accelerator, self.run, self.group = trainer.accelerator, trainer.folder.path, trainer.group
        alone = self.group.size == 1
        self.stops = Stops(trainer.config.train.grace_seconds, lambda: 2 * self._took + 1, alone)
        self._saved_at, self._took = time.monotonic(), 0.0
        self._last: tuple[int, bool] | None = None  # step and `pending` of the last checkpoint
        self.ready = False

    def after_step(self, improved: bool, lined: bool) -> None:
        """Save if it is due, and stop if somebody asked for it.

        Args:
            improved: this step's evaluation is the best so far.
            lined: True at the steps at which values are fetched in any case.
        """
        every = self.trainer.config.output.save_every
        stop, late = self._agreed(lined)
        if stop:
            self.stop()
        if late or improved or (every is not None and self.trainer.position.step % every == 0):
            self.save()

    def _agreed(self, lined: bool) -> tuple[bool, bool]:
        """True if the run is asked to stop, and if it is time for a checkpoint: on all processes, if on one."""
        minutes = self.trainer.config.output.save_minutes
        late = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        stop, device = self.stops.requested is not None, self.trainer.feed.device
        if self.group.size == 1:
            return stop, late
        if not (lined or device.type == "cpu"):
            return False, False  # to agree, processes would have to wait for their devices
        flags = torch.tensor([stop, late], dtype=torch.float32, device=device)
        stop, late = (self.accelerator.reduce(flags, "sum") > 0).tolist()
        return stop, late

    def stop(self) -> NoReturn:
        """Save, and end the run."""
        self.stops.last()
        at = self.trainer.position
        by = self.stops.requested or signal.SIGTERM  # which another process may have got
        go_on = f"to go on: preftune train --resume {self.run}"
        if not self.ready:
            raise Stopped(f"{by.name} stopped the run before it trained; {go_on}", by)
        if self._last != (at.step, at.pending):
            self.save()
        steps = self.trainer.schedule.steps
        raise Stopped(f"{by.name} stopped the run after step {at.step} of {steps}, with a checkpoint; {go_on}", by)

    def note_best(self, step: int, found: Mapping[str, Any]) -> bool:
        """True if this evaluation is the best so far, by `output.keep_best`."""
        name, best = self.trainer.config.output.keep_best, self.trainer.position.best
        if name is None or not isinstance(value := found.get(name), float):
            return False
        if best.get("metric") == name and not (value < best["value"] if name in FALLS else value > best["value"]):
            return False
        last = step == self.trainer.schedule.steps
        self.trainer.position.best = {
            "metric": name,
            "value": value,
            "step": step,
            "folder": "model" if last else checkpoint.name_of(step),
        }
        return not last

    def check_best(self, side: Side) -> None:
        """Refuse a metric that evaluation does not give, before anything is evaluated.

        Args:
            side: what is held out; one forward of it tells.

        Raises:
            PreftuneError: with those that it gives.
        """
        trainer, name = self.trainer, self.trainer.config.output.keep_best
        if name is None:
            return
        if trainer.rounds is not None:
            if not (trainer.rounds.evaluates and name in ONLINE):
                raise PreftuneError(
                    f"output.keep_best={name} is nothing that evaluations of an online run give: hold prompts out and "
                    f"take one of {', '.join(ONLINE)}"
                )
            return
        if not len(side):
            raise PreftuneError(
                f"output.keep_best={name} compares evaluations, but nothing is held out: set data.held_out"
            )
        scored = trainer.step.whole([trainer.step.evaluate(side[:1], trainer.states)])[0]
        table = metrics.table(scored.columns)
        examples = len(next(iter(table.values())))
        found = {"loss": scored.loss, **metrics.held_out(table, table, range(examples))}
        if not isinstance(found.get(name), float):
            known = sorted(key for key, value in found.items() if isinstance(value, float))
            raise PreftuneError(f"output.keep_best={name} is no held-out metric of this run; known: {', '.join(known)}")

    def save(self) -> None:
        """Write a checkpoint of the trainer as it is between two steps.

        Raises:
            PreftuneError: if the disk does not take it; the last one is as it was.
        """
        trainer, at, begun = self.trainer, self.trainer.position, time.perf_counter()
        trainer.look_at_values()
        main = self.group.main
        whole = trainer.state()
        tensors, numbers = self._collected()
        with self.stops.held():
            self._together(lambda: checkpoint.begin(self.run) if main else None)
            folder = self.run / checkpoint.TEMPORARY
            digests = self._together(lambda: checkpoint.write_tensors(folder, self.group.index, tensors), merge=True)

            def complete() -> None:
                if main:
                    write_model(folder, trainer.policy.lm, trainer.tokenizer, whole)
                    checkpoint.finish(self.run, at.step, numbers, digests)
                    self._clear()

            self._together(complete)
            self._last = (at.step, at.pending)
        self._saved_at, self._took = time.monotonic(), time.perf_counter() - begun
        trainer.window.since += self._took  # saving is not training

    def restore(self) -> None:
        """Put the trainer back to where the checkpoint was taken.

        Raises:
            PreftuneError: if the checkpoint is of another model.
        """
        assert self.resumed is not None
        trainer, numbers = self.trainer, checkpoint.position_of(self.resumed)
        tensors = checkpoint.Tensors(self.resumed)
        state.restore(trainer.prepared, trainer.optimizer, tensors, numbers["moments"])
        device = trainer.feed.device
        trainer.states = tuple(
            {name: tensors.whole(f"states.{i}.{name}").to(device) for name in names}
            for i, names in enumerate(numbers["states"])
        )
        if trainer.held_out is not None:
            trainer.held_out.start = {name: tensors.whole(f"start.{name}").numpy() for name in tensors.under("start.")}
        kept = {name: tensors.whole(f"window.{name}") for name in tensors.under("window.")}
        trainer.position, trainer.window = (
            state.Position(**numbers["position"]),
            Window.restored(numbers["window"], kept),
        )
        trainer.explosion.first_loss, trainer.explosion.start = numbers["explosion"]
        trainer.spikes.losses, trainer.spikes.said = numbers["spikes"]
        if trainer.rounds is not None:
            trainer.rounds.restore(tensors, numbers["rounds"])
        scaler = self.accelerator.scaler
        if scaler is not None and numbers["scaler"] is not None:
            scaler.load_state_dict(numbers["scaler"])
        state.restore_random(numbers["random"])
        if self.group.main:
            self._clear()  # which a kill may have cut short

    def _clear(self) -> None:
        """Remove the checkpoints that are not to be kept."""
        best = self.trainer.position.best
        kept = checkpoint.saved(self.run)[-self.trainer.config.output.keep_last :]
        checkpoint.clear(self.run, {*kept, *([best["step"]] if best else [])})

    def drop(self, step: int) -> None:
        """Remove checkpoints from a step on, whose weights have turned out to be of no use."""
        if self.group.main:
            checkpoint.clear(self.run, [one for one in checkpoint.saved(self.run) if one < step])

    def failed(self, reason: str, step: int, rows: Sequence[int], **values: float | None) -> str:
        """Write failure.json about a batch that stops the run, and say so after the reason."""
        kept = checkpoint.saved(self.run)
        last = checkpoint.name_of(kept[-1]) if kept else None
        known = {"reason": reason, "step": step, "rows": sorted(set(rows)), "prompts": self._prompts(step, set(rows))}
        self.trainer.folder.write_failure(**known, last_checkpoint=last, **values)
        return (
            reason
            + "; failure.json in the run folder lists the batch's rows"
            + (f", and the last good checkpoint is {last}" if last else "")
        )

    def _prompts(self, step: int, rows: set[int]) -> list[dict[str, Any]]:
        """How the prompts of a batch begin: in data of several files, rows of one number are told apart by them."""
        indices = next(self.trainer.schedule.after(max(0, step - 1))).tolist()
        examples = [one for one in (self.trainer.examples.train[i] for i in indices) if one.row in rows]
        text = self.trainer.tokenizer.decode
        return [{"row": one.row, "prompt": text(one.prompt[:PROMPT_TOKENS].tolist())} for one in examples]

    def _collected(self) -> tuple[dict[str, torch.Tensor | checkpoint.Fragment], dict[str, Any]]:
        """What the run goes on from: tensors, and numbers."""
        trainer = self.trainer
        tensors, moments = state.moments(trainer.prepared, trainer.optimizer)
        tensors |= state.weights(trainer.prepared)
        tensors |= {f"states.{i}.{name}": v for i, one in enumerate(trainer.states) for name, v in one.items()}
        start = (None if trainer.held_out is None else trainer.held_out.start) or {}
        tensors |= {f"start.{name}": torch.from_numpy(values) for name, values in start.items()}
        tensors |= {f"window.{name}": value for name, value in trainer.window.tensors().items()}
        tensors |= {} if trainer.rounds is None else trainer.rounds.tensors()
        numbers = {
            "position": asdict(trainer.position) | {"wall": trainer.wall},
            "processes": self.group.size,
            "files": trainer.folder.sizes(),
            "moments": moments,
            "states": [list(one) for one in trainer.states],
            "window": trainer.window.numbers(),
            "explosion": [trainer.explosion.first_loss, trainer.explosion.start],
            "spikes": [trainer.spikes.losses, trainer.spikes.said],
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            "random": state.random_state(),
            "rounds": None if trainer.rounds is None else trainer.rounds.numbers(),
        }
        return tensors, numbers

    def _together(self, work: Any, merge: bool = False) -> Any:
        """Do something on every process; if it fails on one, all say so, and what was half written goes."""
        error, result = None, None
        try:
            result = work()
        except OSError as found:
            error = found.strerror or str(found)
        error = next((one for one in self.group.gathered(error) if one is not None), None)
        if merge and error is None:
            result = {name: digest for part in self.group.gathered(result or {}) for name, digest in part.items()}
        if error is not None:
            if self.group.main:
                shutil.rmtree(self.run / checkpoint.TEMPORARY, ignore_errors=True)
            kept = checkpoint.saved(self.run)
            raise PreftuneError(
                f"cannot save a checkpoint of step {self.trainer.position.step} in {self.run} ({error}): make room "
                f"there, then go on {f'from step {kept[-1]} ' if kept else ''}with: preftune train --resume {self.run}"
            )
        return result
