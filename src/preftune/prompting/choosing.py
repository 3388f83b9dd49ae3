"""Which rewrite is better than the prompt as it is: by a judge, or by the right answers to a few examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

from preftune.errors import PreftuneError
from preftune.evaluation.intervals import paired_interval
from preftune.evaluation.judges import Comparison, Judge
from preftune.prompting.benchmarks import Benchmark
from preftune.prompting.generators import Generator, GeneratorSampling, Progress
from preftune.prompting.optimize import Choice, Chooser

INPUT = "{input}"  # where an example's question stands in a prompt; without it, below the prompt
RUBRIC = Path(__file__).with_name("prompt_rubric.txt")
CONFIDENCE = 0.95


@dataclass(frozen=True)
class JudgeChooser(Chooser):
    """A rewrite must beat the naive prompt, and then those before it that did.

    Attributes:
        judge: compares what a generator answered to the one and the other, as answers to the naive prompt; without a
            generator, the prompts themselves.
        generator: who answers.
        sampling: how.
    """

    judge: Judge
    generator: Generator | None = None
    sampling: GeneratorSampling = GeneratorSampling()  # noqa: RUF009 (frozen)

    def choose(  # noqa: D102
        self, originals: Sequence[str], rewrites: Sequence[Sequence[str]], progress: Progress | None = None
    ) -> list[Choice]:
        shown = _answers(
            self.generator, self.sampling, [*originals, *(one for some in rewrites for one in some)], progress
        )
        best: list[int | None] = [None] * len(originals)
        silent = [""] * len(originals)
        for turn in range(max(map(len, rewrites))):
            some = [i for i, own in enumerate(rewrites) if turn < len(own)]
            asked = []
            for i in some:
                champion = originals[i] if (number := best[i]) is None else rewrites[i][number]
                key = f"prompt {i}, rewrite {turn}"
                asked.append(Comparison(key, originals[i], shown[rewrites[i][turn]], shown[champion]))
            for i, verdict in zip(some, self.judge.verdicts(asked), strict=True):
                if verdict.preference == 1.0:
                    best[i] = turn
                silent[i] = silent[i] or ("" if verdict.preference is not None else verdict.reason)
        notes = [
            f"{self.judge.name} gave no verdict: {why}" if why else f"chosen by {self.judge.name}" for why in silent
        ]
        return [
            Choice(one, (None,) * len(own), None, note) for one, own, note in zip(best, rewrites, notes, strict=True)
        ]


@dataclass(frozen=True)
class ExamplesChooser(Chooser):
    """The rewrite with which a generator answers most of some questions rightly; the naive prompt unless the gain
    clears its paired interval, which is widened for the number of rewrites that it was picked from (Bonferroni).

    Attributes:
        examples: questions and their right answers. Each is put where {input} stands in a prompt, or below it.
        generator: who answers.
        sampling: how.
    """

    examples: Benchmark
    generator: Generator
    sampling: GeneratorSampling = GeneratorSampling()  # noqa: RUF009 (frozen)

    def choose(  # noqa: D102
        self, originals: Sequence[str], rewrites: Sequence[Sequence[str]], progress: Progress | None = None
    ) -> list[Choice]:
        questions = self.examples.questions
        if not questions:
            raise PreftuneError(f"{self.examples.title} has no examples, expected at least one")
        prompts = dict.fromkeys([*originals, *(one for some in rewrites for one in some)])
        asked = [with_input(prompt, question.prompt) for prompt in prompts for question in questions]
        said = _answers(self.generator, self.sampling, asked, progress)
        right = {
            prompt: [
                self.examples.score(question, said[with_input(prompt, question.prompt)]).right for question in questions
            ]
            for prompt in prompts
        }
        return [
            _by_accuracy(right[one], [right[text] for text in some])
            for one, some in zip(originals, rewrites, strict=True)
        ]


def with_input(prompt: str, question: str) -> str:
    """A prompt with a question.

    Example:
        >>> with_input("Answer {input} shortly.", "2+2?"), with_input("Be short.", "2+2?")
        ('Answer 2+2? shortly.', 'Be short.\\n\\n2+2?')
    """
    return prompt.replace(INPUT, question) if INPUT in prompt else f"{prompt.rstrip()}\n\n{question}"


def _by_accuracy(naive: Sequence[bool], others: Sequence[Sequence[bool]]) -> Choice:
    count = len(naive)
    scores = tuple(sum(right) / count for right in others)
    best = max(range(len(others)), key=lambda i: scores[i])
    wins = sum(now and not before for before, now in zip(naive, others[best], strict=True))
    losses = sum(before and not now for before, now in zip(naive, others[best], strict=True))
    z = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / len(others))
    low, high = (2 * bound - 1 for bound in paired_interval(wins, losses, count, z))  # of a win rate -> of the gain
    note = (
        f"the best of {len(others)} gains {scores[best] - sum(naive) / count:+.1%} on {count} examples "
        f"({CONFIDENCE:.0%} interval {low:+.1%} to {high:+.1%})"
    )
    return Choice(best if low > 0 else None, scores, sum(naive) / count, note)


def _answers(
    generator: Generator | None, sampling: GeneratorSampling, prompts: Sequence[str], progress: Progress | None
) -> dict[str, str]:
    """What is answered to each prompt; without a generator, the prompts."""
    different = list(dict.fromkeys(prompts))
    if generator is None:
        return {prompt: prompt for prompt in different}
    replies = generator.write(different, sampling, progress)
    if refused := next((some[0].refused for some in replies if some[0].refused), ""):
        raise PreftuneError(f"{generator.name} does not take a prompt ({refused}): name another generator")
    return {prompt: some[0].text for prompt, some in zip(different, replies, strict=True)}
