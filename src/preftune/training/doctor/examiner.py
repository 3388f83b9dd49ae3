"""The doctor at a trainer's side: measures what it needs, judges what was logged, says it, and stops if asked."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from preftune.data.examples import Example
from preftune.errors import PreftuneError
from preftune.evaluation.sampling import Sampled
from preftune.objectives.batch import Role
from preftune.policy.compiling import uncompiled
from preftune.policy.reference import FrozenReference, Reference, StoredReference
from preftune.training import checkpoint
from preftune.training.doctor import measuring
from preftune.training.doctor.judge import Doctor
from preftune.training.doctor.reach import reach
from preftune.training.doctor.record import Facts, Finding, Line, number
from preftune.training.held_out import answers, as_text, fixed_prompts, prompts_wanted

if TYPE_CHECKING:
    from preftune.training.trainer import Trainer

SCORED = 64  # chosen responses whose beginnings and ends are looked at before training
COMPARED = 512  # pairs among which those are looked for that displace
NAMED = 5  # rows that a finding names
SETTLED = 3  # steps after warmup by which whatever trains has moved
DISPLACEMENT = "likelihood_displacement"


class Examiner:
    """Measures and judges one trainer's run.

    Args:
        trainer: with everything made, before its first step.

    Attributes:
        doctor: what judges; on the main process alone it knows the run so far.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.config, self.group = trainer, trainer.config.doctor, trainer.group
        self.doctor = Doctor(self.config, self._facts())
        self.parameters = measuring.Parameters(trainer.prepared)
        self.settled = self.doctor.record.facts.warmup + SETTLED
        writes = not trainer.policy.scores and hasattr(trainer.policy.lm, "generate")
        wanted = prompts_wanted(trainer.config.evaluate, self.config) if writes else 0
        self.prompts = fixed_prompts(trainer.examples.held_out, trainer.examples.train, wanted)
        self.reason: str | None = None  # why the run is to stop, on all processes

    def look(self, texts: bool) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Let the policy answer the fixed prompts.

        Args:
            texts: True if answers to the first prompts are to be kept as text.

        Returns:
            What the answers are like, and lines for samples.jsonl.
        """
        if not self.prompts or not (texts or self.config.answers):
            return {}, []
        trainer, config = self.trainer, self.trainer.config
        each = max(1, self.config.answers // len(self.prompts))
        ends, pad_id = trainer.examples.end_ids, trainer.tokenizer.pad_token_id or 0
        with uncompiled(trainer.policy):
            drawn = answers(trainer.policy, self.prompts, each, config.evaluate, ends, pad_id, config.seed)
        drawn = self.group.told(drawn)  # one token that rounding decides would put the processes at odds
        lines = [
            as_text(trainer.tokenizer, prompt, drawn[each * i])
            for i, prompt in enumerate(self.prompts[: config.evaluate.samples])
        ]
        return (self._measured(drawn) if self.config.answers else {}), (lines if texts else [])

    def note_parameters(self, line: dict[str, Any]) -> dict[str, Any]:
        """The line of training metrics, with the parameters that have stayed as they were: once all should have moved,
        and at the end."""
        step, steps = line["step"], self.trainer.schedule.steps
        before = step - len(self.trainer.window.finished)
        if before < self.settled <= step or step == steps:
            stayed = self.parameters.stayed(self.group)
            line["untrained_share"] = self.parameters.share(stayed)
            if stayed:
                line["untrained"] = stayed[:NAMED]
        return line

    def see(self, line: Line) -> None:
        """Take note of a line of metrics."""
        if self.group.main:
            self.doctor.see(line)

    def judge(self, probed: Mapping[str, Any] | None = None) -> None:
        """Say what is wrong, as far as it has not been said; to be called on all processes after lines were logged.

        Args:
            probed: what the user's probe has measured, at the start and at the end.
        """
        if probed:
            self._note_probed(probed)
        found = self.doctor.judge() if self.group.main else []
        names = self.group.told([one.rule.name for one in found])
        rows = self._displacing() if DISPLACEMENT in names else []
        for one in found:
            finding = Finding(one.rule, one.sign, one.step, rows if one.rule.name == DISPLACEMENT else ())
            self.trainer._log(finding.line())
            print(f"doctor: {finding.sentence()}", file=sys.stderr)
            if self.reason is None and self.config.stops(finding.rule.name, finding.rule.severity):
                self.reason = finding.clause()
        if names:
            self.reason = self.group.told(self.reason)

    def stop_if_asked(self) -> None:
        """End the run, with a checkpoint, if a rule has fired that is to stop it; at its end there is nothing to stop.

        Raises:
            PreftuneError: says which rule.
        """
        step, steps = self.trainer.position.step, self.trainer.schedule.steps
        if self.reason is None or step >= steps:
            return
        keeper = self.trainer.keeper
        keeper.stops.last()
        keeper.save()
        raise PreftuneError(
            f"the training doctor stopped the run (doctor.stop) at {self.reason}; {checkpoint.name_of(step)} is kept, "
            f"and preftune train --resume {keeper.run} goes on in spite of it"
        )

    def restore(self) -> None:
        """Take note of everything that was logged before this run went on."""
        path = self.trainer.folder.path / "metrics.jsonl"
        if self.group.main and path.exists():
            self.doctor.read(path.read_text(encoding="utf-8").splitlines())
        before = self.trainer.position.before
        self._note_probed(before)

    def _note_probed(self, values: Mapping[str, Any]) -> None:
        numbers = {key: number(values, key) for key in values}
        self.doctor.record.probes.append({key: value for key, value in numbers.items() if value is not None})

    def _measured(self, drawn: Sequence[Sampled]) -> dict[str, float]:
        """Figures of the answers, against the reference if it can be asked; at the start also against the data."""
        trainer = self.trainer
        found = measuring.of_answers(drawn)
        side = trainer.feed.side(measuring.as_examples(self.prompts, drawn))
        reference = trainer.compared
        if isinstance(reference, Reference) and not isinstance(reference, StoredReference):
            own = measuring.scored(trainer.prepared, side, self.group)
            found |= measuring.against_reference(own, measuring.scored(reference, side, self.group))
        if trainer.position.step == 0 and trainer.rounds is None and (chosen := self._chosen()):
            scores = measuring.scored(trainer.prepared, trainer.feed.side(chosen), self.group)
            found |= measuring.boundaries(drawn, scores)
            found.setdefault("chosen_logp_per_token", scores.per_token)
        return found

    def _chosen(self) -> list[Example]:
        """Some good responses of the data."""
        examples = self.trainer.examples
        found = []
        for example in list((examples.held_out or examples.train)[:SCORED]):
            best = _best(example)
            if best is not None:
                found.append(Example(example.prompt, (best,), example.row))
        return found

    def _displacing(self) -> list[int]:
        """Rows of the training pairs that push likelihoods down most."""
        trainer = self.trainer
        pairs = [pair for one in list(trainer.examples.train[:COMPARED]) if (pair := _pair(one)) is not None]
        if not pairs:
            return []
        if trainer.policy.head is None:
            return [row for _, row in measuring.alike(pairs)[:NAMED]]
        reference = trainer.step.reference
        module = reference.module if isinstance(reference, FrozenReference) else trainer.prepared
        return [row for _, row in measuring.displacing(module, trainer.feed.side(pairs), self.group)[:NAMED]]

    def _facts(self) -> Facts:
        """What is known before the first step."""
        trainer, optim = self.trainer, self.trainer.config.optim
        steps = trainer.schedule.steps
        warmup = optim.warmup_steps
        if warmup is None:
            warmup = math.ceil((optim.warmup_ratio or 0) * steps)
        some = list(trainer.examples.train[:SCORED])
        sides = [
            [r.length for e in some for r in e.responses if r.role == role] for role in (Role.CHOSEN, Role.REJECTED)
        ]
        every = [r.length for e in some for r in e.responses]
        lengths = [float(np.mean(side or every)) for side in sides]
        online = trainer.rounds is not None
        declared = (
            not online
            and any(term.objective.reference for term in trainer.terms)
            and trainer.config.reference.path is None
        )
        return Facts(
            objective="+".join(term.name for term in trainer.terms),
            reference=declared,
            steps=steps,
            warmup=warmup,
            reach=None if online else reach(trainer.terms, *lengths),
            online=online,
            length=float(np.mean(lengths)),
            **measuring.frozen(trainer.policy.lm),
        )


PAIR = {Role.CHOSEN, Role.REJECTED}


def _pair(example: Example) -> Example | None:
    """The two responses of a pair, without what serves as a baseline; None if it is none."""
    two = tuple(response for response in example.responses if response.role in PAIR)
    return replace(example, responses=two) if {response.role for response in two} == PAIR else None


def _best(example: Example) -> Any:
    """The response of an example that is meant to be good; None if none is."""
    good = [r for r in example.responses if r.role == Role.CHOSEN or (r.role == Role.LABELLED and r.score == 1)]
    ranked = [r for r in example.responses if r.role == Role.RANKED]
    return good[0] if good else max(ranked, key=lambda r: r.score) if ranked else None
