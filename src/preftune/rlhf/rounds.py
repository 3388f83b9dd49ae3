"""An online run, round by round: ask, answer, score, make examples; and what of it a run goes on from."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from preftune.data.baselines import with_baselines
from preftune.data.examples import Example
from preftune.errors import PreftuneError
from preftune.evaluation.intervals import mean_interval
from preftune.evaluation.judges import EndpointUse, Judge, ScoringJudge, open_judge
from preftune.evaluation.sampling import Sampled, sample
from preftune.objectives import registry
from preftune.policy.compiling import uncompiled
from preftune.policy.reference import FrozenReference, LiveReference, Reference
from preftune.rlhf.labelling import check_judge, examples_of, judged
from preftune.rlhf.plan import LABELS, ROLLOUTS, Asked, Planned
from preftune.rlhf.references import MovingReference
from preftune.rlhf.rollouts import (
    OLD,
    REFERENCE,
    Rollout,
    as_example,
    carrying,
    figures,
    read_round,
    write_round,
)
from preftune.rlhf.server import Server
from preftune.training import checkpoint
from preftune.training.batches import lengths, random_stream, torch_seed
from preftune.training.engine import used
from preftune.training.held_out import ANSWERED_AT_ONCE
from preftune.training.optim import state_bytes
from preftune.training.saving import write_model
from preftune.training.step import Micro

if TYPE_CHECKING:
    from preftune.rlhf.critic import Critic
    from preftune.training.checkpoint import Tensors
    from preftune.training.trainer import Trainer

FOLDER = "rollouts"
ADVANTAGES = "advantages"
HELD_OUT = 2**31  # in place of a round's number, for draws of evaluations


class Rounds:
    """The rounds of one trainer.

    Args:
        trainer: with everything made but its held-out side, before its first step.
        planned: its prompts.
        reference: what log-probs are compared with; None: the policy at the start of each round.

    Attributes:
        critic: the value network, if the objective needs advantages.

    Raises:
        PreftuneError: if the judge or the value network cannot be opened, or do not fit the objective.
    """

    def __init__(self, trainer: Trainer, planned: Planned, reference: LiveReference | None) -> None:
        config = trainer.config.online
        assert config is not None  # or there would be no rounds
        self.trainer, self.planned, self.reference, self.config = trainer, planned, reference, config
        self.rota: Any = trainer.schedule
        self.kind = registry.data_kind(trainer.terms)
        self.carried = frozenset[str]().union(*(term.objective.carried for term in trainer.terms))
        if config.labels != "hard" and self.kind != "pairs":
            trainer.messages.append(f"online.labels={config.labels} has no effect: the objective learns from no pairs")
        self.folder = trainer.folder.path / FOLDER
        self.current, self.sampled = -1, 0
        self.moving, self.moved = None, 0  # the round that the moving reference was last moved for
        if config.reference == "moving":
            assert isinstance(reference, FrozenReference)  # made for this
            self.moving = MovingReference(reference, trainer.policy, config.mix)
        self.server: Server | None = None
        if config.server is not None and trainer.group.main:
            self.server = Server(config.server, self.folder)
        self.judge: Judge | None = self._judge() if trainer.group.main else None
        self.critic: Critic | None = self._critic() if ADVANTAGES in self.carried else None

    def batches(self, done: int) -> Generator[list[Micro], None, None]:
        """The forwards of each optimiser batch after the first `done`; each round is sampled when it is reached.

        Raises:
            PreftuneError: if a round cannot be made; a checkpoint is kept then.
        """
        feed, steps = self.trainer.feed, self.rota.steps
        while done < steps:
            number, skipped = divmod(done, self.rota.per_round)
            examples = self._enter(number)
            batches = list(self.rota.batches(number))[skipped : skipped + steps - done]
            yield from feed.batches(examples, lengths(examples), batches)
            done += len(batches)

    def learn(self, micros: Sequence[Micro], step: int) -> None:
        """Let the value network take its step on a batch that the policy has learned from."""
        if self.critic is not None:
            self.critic.learn(micros, step)

    def line(self) -> dict[str, float]:
        """What the value network adds to a line of training metrics."""
        return {} if self.critic is None else self.critic.line()

    @property
    def value_bytes(self) -> int:
        """What a value network holds beside the policy: weights, gradients and moments; 0 without one."""
        if self.critic is None:
            return 0
        trained = list(self.critic.prepared.parameters())
        size = sum(p.numel() * p.element_size() for p in trained)
        return 2 * size + state_bytes(self.trainer.config.optim, trained)

    def close(self) -> None:
        """Let go of judge and server."""
        if self.server is not None:
            self.server.close()
        if self.judge is not None:
            self.judge.close()

    # --- a round ------------------------------------------------------------------------------------------------------

    def _enter(self, number: int) -> list[Example]:
        """The examples of a round: sampled, or those that a run began to learn from before it was stopped."""
        path = self._path(number)
        if number == self.current:
            return read_round(path)
        keeper, group = self.trainer.keeper, self.trainer.group
        try:
            if self.moving is not None and number > self.moved:
                self.moving.move()
                self.moved = number
            examples, line, texts = self._made(number)
        except PreftuneError as error:
            if group.size > 1:  # the others do not know, and a checkpoint takes all
                raise
            keeper.stops.last()
            keeper.save()
            at = checkpoint.name_of(self.trainer.position.step)
            raise PreftuneError(
                f"round {number}: {error}; {at} is kept: mend it, then go on with preftune train --resume {keeper.run}"
            ) from error
        with keeper.stops.held():
            if group.main:
                self._forget(number)
                write_round(path, examples)
            self.current = number
            self.sampled = int(line["tokens_sampled"])
            if texts:
                self.trainer.folder.append_rollouts(texts)
            self.trainer._log(line)
        return examples

    def _made(self, number: int) -> tuple[list[Example], dict[str, Any], list[dict[str, Any]]]:
        """Examples of a round, its line of metrics, and some answers as text."""
        trainer, config, begun = self.trainer, self.config, time.perf_counter()
        asked = [self.planned.asked[i] for i in self.rota.asked(number)]
        rollouts = self._rollouts(asked, config.samples, number)
        tokens = sum(len(one.ids) for rollout in rollouts for one in rollout.answers)
        random = random_stream(trainer.config.seed, LABELS, number)
        examples = [self._fitting(one) for one in examples_of(rollouts, self.kind, config, random)]
        if any(term.objective.baselines for term in trainer.terms):
            examples = list(with_baselines(examples, examples, trainer.config.seed))
            examples = carrying(examples, self._models(), trainer.feed, trainer.group)
        line = {"kind": "round", "round": number, "step": trainer.position.step, **figures(rollouts)}
        if self.critic is not None:
            examples, more = self.critic.prepare(examples)
            line |= more
        line |= {"tokens": tokens, "tokens_sampled": self.sampled + tokens, "seconds": time.perf_counter() - begun}
        texts = [
            {
                "round": number,
                "row": one.asked.row,
                "prompt": one.asked.text,
                "responses": list(one.texts),
                "scores": list(one.scores),
            }
            for one in rollouts[: config.keep]
        ]
        return examples, line, texts

    def _fitting(self, example: Example) -> Example:
        """The example; one whose gap an objective cannot learn from (scores that are equal) counts for nothing."""
        for term in self.trainer.terms:
            if "gap" in term.objective.columns:
                try:
                    term.objective.check_column("gap", example.gap)
                except ValueError:
                    return replace(example, gap=1.0, weight=0.0)
        return example

    def _rollouts(self, asked: Sequence[Asked], each: int, number: int) -> list[Rollout]:
        """Answers with scores, and the log-probs that examples carry."""
        trainer = self.trainer
        answers = self._sampled(asked, each, number)
        flat = trainer.tokenizer.batch_decode([one.ids for group in answers for one in group], skip_special_tokens=True)
        texts = [[str(text) for text in flat[i : i + each]] for i in range(0, len(flat), each)]
        ended = [[one.ended for one in group] for group in answers]
        scores = trainer.group.on_main(lambda: judged(self._open(), asked, texts, ended, self.config.unfinished))
        examples = [as_example(*each) for each in zip(asked, answers, scores, strict=True)]
        models = self._models()
        if models:
            examples = carrying(examples, models, trainer.feed, trainer.group)
        return [Rollout(*each) for each in zip(asked, answers, texts, scores, examples, strict=True)]

    def _sampled(self, asked: Sequence[Asked], each: int, number: int) -> list[list[Sampled]]:
        """Answers to each prompt, every process writing its share: what is drawn does not depend on their number."""
        trainer, config, group = self.trainer, self.config, self.trainer.group
        if config.server is not None:
            return self._served(asked, each, number)
        own = range(group.index, len(asked), group.size)
        longest = len(self.planned.train[0].responses[0].ids)
        most = max(len(one.ids) for one in asked) + longest
        with uncompiled(trainer.policy), trainer.accelerator.autocast():
            drawn = (
                []
                if not own
                else used(
                    trainer.policy,
                    lambda lm: sample(
                        lm,
                        [asked[i].ids for i in own],
                        max_new_tokens=longest,
                        temperature=config.temperature,
                        samples_per_prompt=each,
                        seed=torch_seed(trainer.config.seed, ROLLOUTS, number),
                        numbers=list(own),
                        end_ids=trainer.examples.end_ids,
                        batch_size=max(1, ANSWERED_AT_ONCE // most),
                        pad_id=trainer.tokenizer.pad_token_id or 0,
                    ),
                )
            )
        parts = group.gathered([drawn[i : i + each] for i in range(0, len(drawn), each)])
        return [parts[i % group.size][i // group.size] for i in range(len(asked))]

    def _served(self, asked: Sequence[Asked], each: int, number: int) -> list[list[Sampled]]:
        """The same, by a server; its log-probs would be those of another forward, so the policy's own are computed."""
        trainer, whole = self.trainer, self.trainer.state()

        def ask() -> list[list[Sampled]]:
            assert self.server is not None  # the main process has it
            self.server.load(number, lambda place: write_model(place, trainer.policy.lm, None, whole))
            return self.server.sample(
                asked,
                each,
                longest=len(self.planned.train[0].responses[0].ids),
                temperature=self.config.temperature,
                seed=torch_seed(trainer.config.seed, ROLLOUTS, number),
                end_ids=trainer.examples.end_ids,
            )

        answers = trainer.group.on_main(ask)
        examples = [as_example(one, group, [0.0] * each) for one, group in zip(asked, answers, strict=True)]
        scored = carrying(examples, {OLD: trainer.prepared}, trainer.feed, trainer.group)
        return [
            [replace(one, logps=response.token[OLD]) for one, response in zip(group, example.responses, strict=True)]
            for group, example in zip(answers, scored, strict=True)
        ]

    def _models(self) -> dict[str, nn.Module | Reference]:
        """Who gives the log-probs that examples carry."""
        models: dict[str, nn.Module | Reference] = {}
        if OLD in self.carried or self.critic is not None:
            models[OLD] = self.trainer.prepared
        if self.reference is not None:
            models[REFERENCE] = self.reference
        elif REFERENCE in self.carried or self.critic is not None or registry.needs_reference(self.trainer.terms):
            models[REFERENCE] = self.trainer.prepared  # as it is now, it is the reference of this round
        return models

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, Any]:
        """What answers to held-out prompts are worth: the same prompts and random numbers every time."""
        asked = self.planned.apart[: self.config.held_out]
        rollouts = self._rollouts(asked, 1, HELD_OUT)
        found = figures(rollouts)
        scores = np.array([one.scores[0] for one in rollouts if one.judged], dtype=float)
        interval = mean_interval(scores, np.arange(len(scores))) if len(scores) > 1 else None
        kept: dict[str, Any] = {name: found[name] for name in ("reward", "kl") if name in found}
        return {**kept, **({} if interval is None else {"reward_ci95": list(interval)})}

    @property
    def evaluates(self) -> bool:
        """True if held-out prompts can be answered and scored."""
        scores = self.trainer.group.told(isinstance(self.judge, ScoringJudge))
        return bool(scores and self.config.held_out and self.planned.apart)

    # --- what a run goes on from --------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        found = {} if self.moving is None else self.moving.tensors()
        return found | ({} if self.critic is None else self.critic.tensors())

    def numbers(self) -> dict[str, Any]:
        """For a checkpoint."""
        critic = None if self.critic is None else self.critic.numbers()
        return {"current": self.current, "sampled": self.sampled, "moved": self.moved, "critic": critic}

    def restore(self, tensors: Tensors, numbers: Mapping[str, Any]) -> None:
        """Put back what a checkpoint holds.

        Raises:
            PreftuneError: if the checkpoint is of another model.
        """
        self.current, self.sampled, self.moved = (numbers[name] for name in ("current", "sampled", "moved"))
        if self.moving is not None:
            self.moving.restore(tensors)
        if self.critic is not None:
            self.critic.restore(tensors, numbers["critic"])

    def _path(self, number: int) -> Path:
        return self.folder / f"round-{number:06d}.jsonl"

    def _forget(self, number: int) -> None:
        """Remove the rounds that no checkpoint goes on from, and what a stopped run had sampled after its last one."""
        steps = checkpoint.saved(self.trainer.folder.path)
        first = min([number, *(step // self.rota.per_round for step in steps)])
        kept = {self._path(one) for one in range(first, number)}
        for path in self.folder.glob("round-*.jsonl"):
            if path not in kept:
                path.unlink()

    # --- judge and value network --------------------------------------------------------------------------------------

    def _judge(self) -> Judge:
        config = self.config
        kept = None
        if config.judge.startswith("endpoint:"):  # what was paid for is kept
            kept = self.folder
            kept.mkdir(exist_ok=True)
        rubric = None if config.rubric is None else Path(config.rubric)
        use = EndpointUse(max_calls=config.max_calls)
        try:
            judge = open_judge(config.judge, kept, rubric=rubric, use=use)
        except PreftuneError as error:
            raise PreftuneError(f"online.judge: {error}") from error
        try:
            check_judge(judge, self.kind, config)
        except BaseException:
            judge.close()
            raise
        return judge

    def _open(self) -> Judge:
        assert self.judge is not None  # the main process asks it
        return self.judge

    def _critic(self) -> Critic:
        from preftune.rlhf.critic import open_critic

        return open_critic(self.trainer, self.config)
