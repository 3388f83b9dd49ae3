"""Pairs from a model's own answers: sample several per question, check each exactly, put right over wrong."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np

from preftune.data.builders.base import Question, Task, right_over_wrong
from preftune.data.examples import Example, Ids
from preftune.data.records import Demonstration, Message, Preference, Text, Where
from preftune.data.rendering import Renderer, RenderingConfig
from preftune.data.sources import Source
from preftune.errors import PreftuneError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

CHUNK = 64  # questions sampled at a time; a constant, because what is drawn depends on it
SUFFIXES = (".jsonl", ".jsonl.gz")


class Sampled(Protocol):
    """What a sampler gives: token ids, and whether the last of them is an end token."""

    @property
    def ids(self) -> Sequence[int] | Ids:
        """Tokens of the response, end token included."""

    @property
    def ended(self) -> bool:
        """False if the response was cut."""


class Sampler(Protocol):
    """A function with the arguments of `preftune.evaluation.sampling.sample`, which is the one to give."""

    def __call__(
        self,
        model: nn.Module,
        prompts: Sequence[Ids],
        *,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        samples_per_prompt: int,
        seed: int,
        end_ids: Sequence[int],
        batch_size: int,
        pad_id: int,
    ) -> Sequence[Sampled]:
        """Responses to prompts, those to one prompt side by side."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn and paired.

    Attributes:
        n: answers per question.
        max_pairs: most pairs of one question.
        max_new_tokens: tokens at which an answer is cut; cut answers make no pairs.
        temperature: divides the logits; above 0.
        top_p: mass of the most probable tokens to draw from.
        seed: of sampling and pairing.
        batch_size: answers written at a time.
        chat: ask in the chat template, and write rows as conversations.
    """

    n: int = 8
    max_pairs: int = 4
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 64
    chat: bool = False

    def __post_init__(self) -> None:
        for name, least in (("n", 2), ("max_pairs", 1), ("max_new_tokens", 1), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise PreftuneError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.temperature <= 0:
            raise PreftuneError(
                f"temperature must be above 0, got {self.temperature}: greedy answers to one question are all the same"
            )
        if not 0 < self.top_p <= 1:
            raise PreftuneError(f"top_p must be above 0 and at most 1, got {self.top_p}")


@dataclass
class PairStatistics:
    """What became of questions and answers.

    Attributes:
        questions: asked so far.
        answers: sampled.
        cut: answers that reached `max_new_tokens` without an end.
        right: answers that ended and are right.
        solved: questions with a right answer.
        pairs: rows made.
        without_pair: questions that gave none, by reason.
    """

    questions: int = 0
    answers: int = 0
    cut: int = 0
    right: int = 0
    solved: int = 0
    pairs: int = 0
    without_pair: Counter[str] = field(default_factory=Counter)

    def summary(self) -> str:
        """One line for people."""

        def share(part: int, whole: int) -> str:
            return f"{part:,} of {whole:,} ({part / max(whole, 1):.1%})"

        line = (
            f"{self.pairs:,} pairs from {self.questions - self.without_pair.total():,} questions; "
            f"answers right {share(self.right, self.answers)}, cut {share(self.cut, self.answers)}; "
            f"questions solved at least once {share(self.solved, self.questions)}"
        )
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.without_pair.most_common())
        return f"{line}; without a pair: {reasons}" if reasons else line


def read_questions(task: Task, source: Source | None = None, limit: int | None = None) -> list[Question]:
    """The questions to ask, read before any model is.

    Raises:
        PreftuneError: if the source cannot be read, or none is given and the task has none of its own.
    """
    if source is None and not task.source:
        raise PreftuneError(f"{type(task).__name__} has no source of its own: say where its questions are")
    return list(islice(task.questions(task.source if source is None else source), limit))


def write_pairs(
    task: Task,
    questions: Sequence[Question],
    out: str | Path,
    *,
    sample: Sampler,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
    progress: Callable[[PairStatistics], None] | None = None,
) -> PairStatistics:
    """Sample, check, pair, and write the rows to a .jsonl or .jsonl.gz file, which appears when it is complete.

    Raises:
        PreftuneError: if the file cannot be written, the tokenizer does not work with the prompts, or there is no pair.
    """
    path = check_out(out)
    statistics = PairStatistics()
    rows = build_pairs(
        task,
        questions,
        sample=sample,
        model=model,
        tokenizer=tokenizer,
        sampling=sampling,
        statistics=statistics,
        progress=progress,
    )
    write_rows(_at_least_one(rows, statistics), path)
    return statistics


def build_pairs(
    task: Task,
    questions: Sequence[Question],
    *,
    sample: Sampler,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
    statistics: PairStatistics,
    progress: Callable[[PairStatistics], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows `prompt`, `chosen`, `rejected` as text, or as turns if `sampling.chat`; `statistics` is filled meanwhile.

    Answers that were cut make no pairs: in training each response gets an end token, and theirs would be a fake one.
    Pairs that training could not read back token by token are left out too.

    Raises:
        PreftuneError: if the tokenizer does not work with the prompts, or the model cannot sample.
    """
    asker = _Asker(task, sample, model, tokenizer, sampling)
    remaining = iter(questions)
    while chunk := list(islice(remaining, CHUNK)):
        for question, answers in asker.ask(chunk):
            pairs, reason = asker.pairs(question, answers, statistics)
            if reason:
                statistics.without_pair[reason] += 1
            statistics.pairs += len(pairs)
            yield from (_row(pair) for pair in pairs)
        if progress is not None:
            progress(statistics)


@dataclass(frozen=True)
class _Answer:
    text: str
    ended: bool


class _Asker:
    """Questions -> answers -> pairs, with one model and tokenizer."""

    def __init__(
        self, task: Task, sample: Sampler, model: nn.Module, tokenizer: PreTrainedTokenizerBase, sampling: Sampling
    ) -> None:
        self.task, self.sample, self.model, self.tokenizer, self.sampling = task, sample, model, tokenizer, sampling
        # The renderer of training, so that the model is asked exactly as it will be trained.
        self.renderer = Renderer(tokenizer, RenderingConfig(max_length=None))
        self.context: int | None = getattr(getattr(model, "config", None), "max_position_embeddings", None)

    def prompt(self, question: Question) -> Text:
        if self.sampling.chat:
            return (Message("user", self.task.instruction(question)),)
        return self.task.prompt(question)

    def ask(self, chunk: Sequence[Question]) -> Iterator[tuple[Question, list[_Answer] | None]]:
        """Answers to each question; None where prompt and answer would not fit into the model's context."""
        rendered = [self._rendered(question) for question in chunk]
        longest = math.inf if self.context is None else self.context - self.sampling.max_new_tokens
        prompts = [example.prompt for example in rendered if len(example.prompt) <= longest]
        end_ids = {int(rendered[0].responses[0].ids[-1]), self.tokenizer.eos_token_id} - {None}
        digest = hashlib.sha256(f"{self.sampling.seed} {chunk[0].id}".encode()).digest()
        found = self.sample(
            self.model,
            prompts,
            max_new_tokens=self.sampling.max_new_tokens,
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            samples_per_prompt=self.sampling.n,
            seed=int.from_bytes(digest[:6]),
            end_ids=sorted(end_ids),
            batch_size=self.sampling.batch_size,
            pad_id=min(end_ids),
        )
        answers = iter(found)
        for question, example in zip(chunk, rendered, strict=True):
            if len(example.prompt) > longest:
                yield question, None
            else:
                own = islice(answers, self.sampling.n)
                yield question, [_Answer(self._text(example.prompt, one.ids), one.ended) for one in own]

    def _rendered(self, question: Question) -> Example:
        """The prompt's ids, with a stand-in for the answer that shows the end token."""
        stand_in = Demonstration(self.prompt(question), " .", Where(f"question {question.id}", 0))
        example = self.renderer.example(stand_in)
        if not isinstance(example, Example):
            raise PreftuneError(f"question {question.id} cannot be asked: {example.reason}")
        return example

    def _text(self, prompt: Ids, ids: Sequence[int] | Ids) -> str:
        """The answer's text, with the space that some tokenizers drop at the start of a text."""
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        before = str(self.tokenizer.decode(prompt, **options))
        whole = str(self.tokenizer.decode(np.concatenate([prompt, np.asarray(ids, np.int32)]), **options))
        return whole[len(before) :] if whole.startswith(before) else str(self.tokenizer.decode(ids, **options))

    def pairs(
        self, question: Question, answers: list[_Answer] | None, statistics: PairStatistics
    ) -> tuple[list[Preference], str]:
        """The pairs of one question, or why there are none."""
        statistics.questions += 1
        if answers is None:
            return [], "prompt too long"
        right: list[str] = []
        wrong: list[str] = []
        for answer in answers:
            if answer.ended:
                (right if self.task.check(question, answer.text) else wrong).append(answer.text)
        statistics.answers += len(answers)
        statistics.cut += sum(not answer.ended for answer in answers)
        statistics.right += len(right)
        statistics.solved += bool(right)
        if not right or not wrong:
            missing = "right answer" if wrong else "wrong answer" if right else "answer that ended"
            return [], f"no {missing}"
        where = Where(f"question {question.id}", 0)
        made = [
            Preference(self.prompt(question), chosen, rejected, where)
            for chosen, rejected in right_over_wrong(
                right, wrong, self.sampling.max_pairs, self.sampling.seed, question.id
            )
        ]
        readable = [isinstance(outcome, Example) for outcome in self.renderer.outcomes(made)]
        kept = [pair for pair, fits in zip(made, readable, strict=True) if fits]
        return kept, "" if kept else "empty or not separable from the prompt"


def _row(pair: Preference) -> dict[str, Any]:
    if isinstance(pair.prompt, str):
        return {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    return {
        "prompt": [{"role": turn.role, "content": turn.content} for turn in pair.prompt],
        "chosen": [{"role": "assistant", "content": pair.chosen}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
    }


def _at_least_one(rows: Iterator[dict[str, Any]], statistics: PairStatistics) -> Iterator[dict[str, Any]]:
    yield from rows
    if not statistics.pairs:
        raise PreftuneError(
            f"no question gave a pair, so nothing was written ({statistics.summary()}): take a model that solves some "
            "of the questions, train it on demonstrations first, or allow more answers or more tokens"
        )


def check_out(out: str | Path) -> Path:
    """The output path, if rows can be written there; to call before a model is loaded.

    Raises:
        PreftuneError: if it has no suffix of jsonl, or is a folder.
    """
    path = Path(out).expanduser()
    if not path.name.endswith(SUFFIXES):
        raise PreftuneError(f"{path}: pairs are written as jsonl, so the name must end in {' or '.join(SUFFIXES)}")
    if path.is_dir():
        raise PreftuneError(f"{path} is a folder, expected the name of a file to write")
    return path


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write rows as jsonl under a temporary name, then rename: the file is complete or it is not there.

    A file that is already there stays as it is until then.

    Raises:
        PreftuneError: if the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as raw:
            try:
                if path.suffix == ".gz":
                    with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
                        _write_lines(rows, packed)
                else:
                    _write_lines(rows, raw)
                raw.flush()
                os.fsync(raw.fileno())
            except BaseException:
                partial.unlink()
                raise
        os.replace(partial, path)
    except OSError as error:
        raise PreftuneError(f"{path} cannot be written ({error.strerror}): choose another --out") from error


def _write_lines(rows: Iterable[Mapping[str, Any]], file: IO[bytes] | gzip.GzipFile) -> None:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
