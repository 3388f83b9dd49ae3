"""Which of two rewrites is better: what generators answered to each of them, and a judge or a checker -> votes."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from preftune.evaluation.judges import Comparison, Judge, Verdict
from preftune.prompting.candidates import Candidate
from preftune.prompting.checkers import Checker
from preftune.prompting.generators import Progress
from preftune.prompting.naive import NaivePrompt

# What each generator answered to a text, its name first.
Answers = Mapping[str, Mapping[str, Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Compared:
    """Two rewrites of one prompt, and what was said of them.

    Attributes:
        a: one of them.
        b: the other.
        votes: for each generator (and, with a judge, each of its answers): 1 for a, 0 for b, 0.5 for neither, None
            without a verdict.
        note: why it is undecided, if there is more to say than that.
    """

    a: Candidate
    b: Candidate
    votes: tuple[float | None, ...]
    note: str = ""

    @property
    def better(self) -> Candidate | None:
        """The one with more votes; None if neither has."""
        more = sum((vote > 0.5) - (vote < 0.5) for vote in self.votes if vote is not None)
        return self.a if more > 0 else self.b if more < 0 else None

    @property
    def worse(self) -> Candidate | None:
        """The other one."""
        return {id(self.a): self.b, id(self.b): self.a}.get(id(self.better))

    @property
    def undecided(self) -> str:
        """Why neither is better."""
        said = {vote for vote in self.votes if vote is not None}
        if not said:
            return "no verdict"
        return self.note or ("tie" if said == {0.5} else "generators disagree")


class Comparer(ABC):
    """Compares rewrites by what was answered to them.

    Attributes:
        name: of the judge or checker.
    """

    name: str

    def ready(self, prompts: Sequence[NaivePrompt]) -> None:
        """Refuse prompts that cannot be compared, before anything is paid for."""
        return

    @abstractmethod
    def compare(
        self, candidates: Mapping[str, Sequence[Candidate]], answers: Answers, progress: Progress | None = None
    ) -> list[Compared]:
        """Compare the rewrites of each prompt.

        Args:
            candidates: by id of the prompt, two or more of each.
            answers: what generators answered to each rewrite.
            progress: told how much of how much is done.

        Raises:
            PreftuneError: if the judge or checker cannot do it.
        """

    def close(self) -> None:
        """Let go of files and connections."""
        return


class ByChecker(Comparer):
    """The rewrite whose answers are right more often.

    Args:
        checker: says what is right.
        most: most decided comparisons of a prompt; which ones is drawn with the seed.
        seed: another seed, other comparisons.
    """

    def __init__(self, checker: Checker, most: int, seed: int) -> None:
        self.name, self._checker, self._most, self._seed = checker.name, checker, most, seed
        self.shares: dict[tuple[str, str], list[float]] = {}

    def ready(self, prompts: Sequence[NaivePrompt]) -> None:  # noqa: D102
        for prompt in prompts:
            self._checker.ready(prompt)

    def compare(  # noqa: D102
        self, candidates: Mapping[str, Sequence[Candidate]], answers: Answers, progress: Progress | None = None
    ) -> list[Compared]:
        found: list[Compared] = []
        for done, (source, some) in enumerate(candidates.items(), 1):
            decided: list[Compared] = []
            rest: list[Compared] = []
            for a, b in in_turn(some, source, self._seed):
                pair = self._compared(a, b, answers)
                (rest if pair.better is None else decided).append(pair)
            found += decided[: self._most] + rest
            if progress is not None:
                progress(done, len(candidates))
        return found

    def share(self, candidate: Candidate, answers: Answers) -> list[float]:
        """The share of right answers of each generator."""
        key = (candidate.prompt.id, candidate.text)
        if key not in self.shares:
            self.shares[key] = [
                sum(self._checker.right(candidate.prompt, text) for text in by[candidate.text])
                / len(by[candidate.text])
                for by in answers.values()
            ]
        return self.shares[key]

    def _compared(self, a: Candidate, b: Candidate, answers: Answers) -> Compared:
        shares = list(zip(self.share(a, answers), self.share(b, answers), strict=True))
        votes = tuple(1.0 if x > y else 0.0 if x < y else 0.5 for x, y in shares)
        flat = {share for pair in shares for share in pair}
        note = "both right" if flat == {1.0} else "both wrong" if flat == {0.0} else ""
        return Compared(a, b, votes, note)


class ByJudge(Comparer):
    """The rewrite whose answers a judge finds better, in both orders.

    Args:
        judge: compares answers to the naive prompt; closed with this one.
        most: most comparisons of a prompt; which ones is drawn with the seed.
        seed: another seed, other comparisons.
    """

    def __init__(self, judge: Judge, most: int, seed: int) -> None:
        self.name, self._judge, self._most, self._seed = judge.name, judge, most, seed

    def close(self) -> None:  # noqa: D102
        self._judge.close()

    def compare(  # noqa: D102
        self, candidates: Mapping[str, Sequence[Candidate]], answers: Answers, progress: Progress | None = None
    ) -> list[Compared]:
        pairs = [
            pair for source, some in candidates.items() for pair in in_turn(some, source, self._seed)[: self._most]
        ]
        asked: list[Comparison] = []
        said: list[list[int | None]] = []  # of each pair, which comparison each vote is; None: equal answers
        for a, b in pairs:
            places: list[int | None] = []
            for by in answers.values():
                for first, second in zip(by[a.text], by[b.text], strict=True):
                    equal = first.split() == second.split()
                    places.append(None if equal else len(asked))
                    if not equal:
                        asked.append(_comparison(a.prompt, first, second))
            said.append(places)
        verdicts = [each.preference for each in self._verdicts(asked, progress)]
        return [
            Compared(a, b, tuple(0.5 if place is None else verdicts[place] for place in places))
            for (a, b), places in zip(pairs, said, strict=True)
        ]

    def _verdicts(self, asked: list[Comparison], progress: Progress | None) -> list[Verdict]:
        done = 0

        def tell(more: int) -> None:
            nonlocal done
            done += more
            if progress is not None:
                progress(done, len(asked))

        return self._judge.verdicts(asked, tell) if asked else []


def in_turn(candidates: Sequence[Candidate], source: str, seed: int) -> list[tuple[Candidate, Candidate]]:
    """All twos of a prompt's candidates in an order, and with one of the two first, that the seed draws."""
    draw = random.Random(f"{seed} {source}")
    pairs = [pair if draw.random() < 0.5 else pair[::-1] for pair in combinations(candidates, 2)]
    draw.shuffle(pairs)
    return pairs


def _comparison(prompt: NaivePrompt, a: str, b: str) -> Comparison:
    row = {"prompt": prompt.prompt, "id": prompt.id}
    row |= {} if prompt.ground_truth is None else {"ground_truth": prompt.ground_truth}
    row |= {} if prompt.task is None else {"task": prompt.task}
    return Comparison(str(prompt.where), prompt.prompt, a, b, row)
