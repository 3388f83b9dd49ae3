"""Discriminators: who says which of two new prompts is better in place of a naive one. They are judges of prompts.

self                     the optimiser itself, asked in both orders, greedily (FIPO)
task                     what a generator answers to each, by whoever scores answers: a right one over a wrong one
any judge by its name    package.module:function, reward:RUN, endpoint:URL#MODEL: a rewrite is an answer to the question
                         that the optimiser is asked
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from preftune.errors import PreftuneError
from preftune.evaluation.budget import Budget
from preftune.evaluation.judges import EndpointUse, Judge, ScoringJudge, Verdict, open_judge
from preftune.evaluation.judges.base import Comparison, Tell, by_orders, digest
from preftune.evaluation.judges.function import TaskJudge
from preftune.prompting.cases import LETTERS
from preftune.prompting.config import SELF, TASK, PromptsConfig
from preftune.prompting.generators import Generator, GeneratorSampling, open_generator
from preftune.prompting.template import Template

ANSWER = 16  # most tokens of a letter
ANSWERS = "answers"  # folder of the first generator's replies; answers-2 is the second's


@dataclass(frozen=True)
class Duel:
    """Two prompts in place of a naive one.

    Attributes:
        key: names it, for people.
        original: the naive prompt as people wrote it.
        new: one of the two.
        old: the other one.
        words: most words that a rewrite was allowed.
        ground_truth: the right answer; None if it is not known.
        options: True if the right answer is the letter of an option.
    """

    key: str
    original: str
    new: str
    old: str
    words: int
    ground_truth: str | None = None
    options: bool = False

    def comparison(self, template: Template) -> Comparison:
        """As a judge sees it: two answers to what the optimiser is asked."""
        row = {"prompt": self.original, "options": self.options}
        if self.ground_truth is not None:
            row["answer"] = self.ground_truth
        return Comparison(self.key, template.optimizer_input(self.original, self.words), self.new, self.old, row)


class SelfJudge(Judge):
    """An optimiser that says which of two prompts is better, greedily and in both orders.

    Args:
        generator: the optimiser.
        template: how it is asked.
    """

    def __init__(self, generator: Generator, template: Template) -> None:
        self.name, self.generator, self.template = SELF, generator, template
        self.fingerprint = digest(SELF, generator.fingerprint, template)

    def verdicts(self, comparisons: Sequence[Comparison], tell: Tell = lambda _: None) -> list[Verdict]:  # noqa: D102
        asked = []
        for each in comparisons:
            original, truth = each.row["prompt"], each.row.get("answer")
            for first, second in ((each.a, each.b), (each.b, each.a)):
                text = self.template.discriminator_input(original, first, second, ground_truth=truth)
                asked.append(self.template.asked(text, self.generator.chat))
        replies = [some[0].text for some in self.generator.write(asked, GeneratorSampling(max_new_tokens=ANSWER))]
        found = []
        for there, back in zip(replies[::2], replies[1::2], strict=True):
            of_a, of_b = self._said(there), self._said(back)
            reason = "" if of_a is not None and of_b is not None else "it named neither of the two"
            found.append(by_orders(of_a, None if of_b is None else 1 - of_b, (there, back), reason))
        tell(len(found))
        return found

    def _said(self, text: str) -> float | None:
        return choice(text, (self.template.first, self.template.second))


class TaskAccuracy(ScoringJudge):
    """A prompt is as good as what generators answer to it: the mean of their scores.

    Args:
        generators: who answer, greedily.
        checker: scores answers; of multiple choices made of two answers, the letter counts.
        max_new_tokens: of an answer.
    """

    def __init__(self, generators: Sequence[Generator], checker: ScoringJudge, max_new_tokens: int) -> None:
        self.name, self.generators, self.checker = TASK, generators, checker
        self.sampling = GeneratorSampling(max_new_tokens=max_new_tokens)
        names = [generator.fingerprint for generator in generators]
        self.fingerprint = digest(TASK, *names, checker.fingerprint, max_new_tokens)

    def scores(self, answers: Sequence[tuple[Comparison, str]]) -> Sequence[float | None]:  # noqa: D102
        found = [self._scores(generator, answers) for generator in self.generators]
        return [None if None in some else sum(map(float, some)) / len(some) for some in zip(*found, strict=True)]

    def _scores(self, generator: Generator, answers: Sequence[tuple[Comparison, str]]) -> list[float | None]:
        prompts = list(dict.fromkeys(text for _, text in answers))  # each is answered once
        replies = dict(zip(prompts, (some[0] for some in generator.write(prompts, self.sampling)), strict=True))
        found: list[float | None] = [None] * len(answers)
        left = []
        for i, (comparison, text) in enumerate(answers):
            reply, truth = replies[text], comparison.row.get("answer")
            if reply.refused or (truth is None and isinstance(self.checker, TaskJudge)):
                continue
            if comparison.row["options"] and truth is not None:
                found[i] = float(letter(reply.text) == truth)
            else:
                left.append((i, replace(comparison, prompt=comparison.row["prompt"]), reply.text))
        for (i, *_), score in zip(left, self.checker.scores([(each, text) for _, each, text in left]), strict=True):
            found[i] = score
        return found

    def close(self) -> None:  # noqa: D102
        for generator in self.generators:
            generator.close()
        self.checker.close()


def open_discriminator(config: PromptsConfig, folder: Path | None, template: Template) -> Judge | None:
    """Whoever is named as `prompts.discriminator`; None for the optimiser itself, which changes from round to round.

    Args:
        config: of the optimiser's training.
        folder: keeps what is said and paid for, and replays it; None: nothing is kept.
        template: how an optimiser is asked.

    Raises:
        PreftuneError: if there is no such judge, generator or checker.
    """
    use = EndpointUse(max_calls=config.max_calls, max_tokens=config.max_tokens)
    if config.discriminator == SELF:
        return None
    if config.discriminator != TASK:
        rubric = None if config.rubric is None else Path(config.rubric)
        try:
            return open_judge(config.discriminator, folder, rubric=rubric, use=use)
        except PreftuneError as error:
            raise PreftuneError(f"prompts.discriminator: {error}, or {SELF} or {TASK}") from None
    with ExitStack() as opened:
        use = replace(use, budget=Budget(config.max_calls, config.max_tokens))  # one for all of them
        generators = []
        for number, name in enumerate(config.generators, 1):
            kept = None if folder is None else folder / (ANSWERS if number == 1 else f"{ANSWERS}-{number}")
            generators.append(opened.enter_context(open_generator(name, kept, use=use)))
        checker = opened.enter_context(open_judge(str(config.checker)))
        if not isinstance(checker, ScoringJudge):
            raise PreftuneError(
                f"prompts.checker={config.checker} compares answers, expected one that scores each: gsm8k, "
                "package.module:function of prompt, response and row, or reward:RUN"
            )
        opened.pop_all()
    return TaskAccuracy(generators, checker, config.max_new_tokens)


def choice(text: str, names: tuple[str, str]) -> float | None:
    """Which of two names an answer begins with: 1 for the first, 0 for the second, None for neither.

    Example:
        >>> choice(" A.", ("A", "B")), choice("b", ("A", "B")), choice("Both", ("A", "B"))
        (1.0, 0.0, None)
    """
    said = text.strip().lstrip("([*\"'").lower()
    for name, value in zip(names, (1.0, 0.0), strict=True):
        rest = said.removeprefix(name.strip().lower())
        if rest != said and not rest[:1].isalnum():
            return value
    return None


def letter(text: str) -> str | None:
    """The option that an answer names: A, B, or None for neither."""
    said = choice(text, LETTERS)
    return None if said is None else LETTERS[int(1 - said)]
