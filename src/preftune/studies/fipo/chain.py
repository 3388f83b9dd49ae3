"""One teacher and one seed: each strategy trained and measured once; what is done is on disk and never repeated."""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.evaluation.journal import Journal
from preftune.prompting.records import PromptPair, read_pairs, write_pairs
from preftune.sandbox.tasks import SEEN, UNSEEN, folder_of
from preftune.sandbox.tasks.asking import Asked, asked
from preftune.studies.fipo.answers import Answers
from preftune.studies.fipo.form import DECODINGS, STRATEGIES, TEACHERS, Decoding, Form, Split, Strategy
from preftune.studies.fipo.optimizers import pair_rows, rewrite_rows, rewrites, trained, trained_in_rounds
from preftune.studies.fipo.rewrites import (
    TEST,
    VALIDATION,
    demonstrations,
    judged_pairs,
    kind,
    shuffled,
)

RESULTS = "results.jsonl"
# Peak learning rates. That of pairs falls with the number of updates: 5e-5 at 90. At twice that, rewrites lose words.
RATE, RATE_OF_PAIRS = 3e-3, 4.5e-3


@dataclass(frozen=True)
class Place:
    """Where a chain is carried out.

    Attributes:
        folder: of the chain: models, pairs, answers, results.
        teacher: key of a teacher.
        seed: of all that is drawn.
        form: how large it is.
    """

    folder: Path
    teacher: str
    seed: int
    form: Form

    def draw(self, what: str) -> int:
        """A seed for one of the things that are drawn. SFT's questions are no pairs' questions."""
        return 10 * self.seed + ("rewrites", "pairs", "shuffled", "training", "test").index(what)


def carry_out(place: Place) -> None:
    """Train and measure what is missing.

    Raises:
        PreftuneError: if the folder cannot be used, or training fails.
    """
    journal = Journal(place.folder / RESULTS)
    done = {(line["strategy"], line["decoding"], line["split"]) for line in journal.lines}
    try:
        with Answers(place.folder / "answers") as answers:
            for key in place.form.strategies:
                strategy, model = STRATEGIES[key], place.folder / "models" / key
                seconds = None
                if not (model / "config.json").is_file():
                    began = time.process_time()
                    with redirect_stderr(io.StringIO()):  # what a run says of its data is known
                        _train(place, strategy, model, answers)
                    seconds = time.process_time() - began
                for decoding, split, questions in looks(place.form):
                    if (key, decoding, split) not in done:
                        line = measured(model, questions, decoding, split, place.draw("test"), answers)
                        named = {"teacher": place.teacher, "seed": place.seed, "strategy": key}
                        journal.add({**named, **line, "training_seconds": seconds})
    finally:
        journal.close()


LOOKS = 1 + len(DECODINGS)


def looks(form: Form) -> list[tuple[Decoding, Split, list[Asked]]]:
    """How, and on which questions, each optimiser is tried: the same for all."""
    test = asked(form.test, TEST, held_out=True)
    return [
        ("greedy", "validation", asked(form.validation, VALIDATION, held_out=True)),
        *((decoding, "test", test) for decoding in DECODINGS),
    ]


def measured(
    model: Path, questions: Sequence[Asked], decoding: Decoding, split: Split, seed: int, answers: Answers
) -> dict[str, Any]:
    """How an optimiser does: of each generator, a 1 or a 0 for each question. The unseen one answers the test alone.

    Args:
        model: folder of the optimiser.
        questions: that it rewrites.
        decoding: how.
        split: which questions they are.
        seed: of what is drawn.
        answers: who answers.
    """
    texts = rewrites(model, [one.prompt for one in questions], decoding, seed)
    kinds = Counter(kind(text, one) for text, one in zip(texts, questions, strict=True))
    copied = sum(one.question.data in text for text, one in zip(texts, questions, strict=True)) / len(texts)
    return {
        "decoding": decoding,
        "split": split,
        "right": flags(texts, questions, answering(split), answers),
        "kinds": dict(sorted(kinds.items())),
        "copied": copied,
        "example": {"naive": questions[0].prompt, "rewrite": texts[0]},
    }


def answering(split: Split) -> tuple[str, ...]:
    """Who answers: the unseen generator the test alone."""
    return SEEN if split == "validation" else (*SEEN, UNSEEN)


def flags(texts: Sequence[str], questions: Sequence[Asked], names: Sequence[str], answers: Answers) -> dict[str, str]:
    """By generator, a 1 for each prompt that it answers right, and a 0 for each other."""
    golds = [one.question.answer for one in questions]
    return {name: "".join(str(int(each)) for each in answers.right(name, texts, golds)) for name in names}


def _train(place: Place, strategy: Strategy, model: Path, answers: Answers) -> None:
    teacher, form, seed = TEACHERS[place.teacher], place.form, place.draw("training")
    model.parent.mkdir(parents=True, exist_ok=True)
    start = folder_of("optimizer") if strategy.start == "untrained" else model.with_name(strategy.start)
    if strategy.learns == "rewrites":
        rows = rewrite_rows(demonstrations(teacher, form.rewrites, place.draw("rewrites")))
        return trained(strategy, start, rows, form.first_updates, RATE, seed, model)
    pairs = _pairs(place, answers)
    if strategy.learns == "chosen":
        rows = rewrite_rows((pair.prompt, pair.chosen) for pair in pairs)
        return trained(strategy, start, rows, form.updates, RATE, seed, model)
    if strategy.learns == "shuffled":
        pairs = shuffled(pairs, place.draw("shuffled"))
    rate = RATE_OF_PAIRS / form.updates
    if strategy.iterative:
        accepted = trained_in_rounds(strategy, start, pairs, form.rounds, form.updates, rate, seed, model)
        (model.parent / f"{model.name}.accepted.json").write_text(json.dumps(accepted), encoding="utf-8")
        return None
    return trained(strategy, start, pair_rows(pairs), form.updates, rate, seed, model)


def _pairs(place: Place, answers: Answers) -> list[PromptPair]:
    path = place.folder / "pairs.jsonl"
    if not path.is_file():
        found = judged_pairs(TEACHERS[place.teacher], place.form.asked, place.draw("pairs"), answers)
        write_pairs(path, found)
    return list(read_pairs(str(path)))
