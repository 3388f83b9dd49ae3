"""Between two rounds: the optimiser proposes rewrites, a discriminator accepts some, and the data moves on.

As in FIPO (arXiv 2402.11811, equations 13 and 14, and the authors' script): naive prompts, and the responses that are
shown with them, are replaced where a rewrite is accepted; what is chosen and rejected stays. Unlike there, a rewrite
must win in both orders, and one that was cut or lost a fact is not asked about.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from preftune.evaluation.judges import Judge, Verdict
from preftune.prompting.cases import LETTERS, Case, case_input, word_limit
from preftune.prompting.config import PromptsConfig
from preftune.prompting.discriminators import ANSWER, Duel, letter
from preftune.prompting.facts import problem
from preftune.prompting.generators import Generator, GeneratorSampling, Reply
from preftune.prompting.rewriter import cleaned, default_limit
from preftune.prompting.template import Template, words_in

Told = Callable[[str, int, int], object]  # what is being done, how many are done, of how many


@dataclass(frozen=True)
class Asking:
    """Who is asked, and how.

    Attributes:
        generator: the optimiser as it is now.
        template: how it is asked.
        judge: the discriminator.
        config: of the rounds.
        seed: of what is sampled.
        tell: told how far it is.
    """

    generator: Generator
    template: Template
    judge: Judge
    config: PromptsConfig
    seed: int
    tell: Told = lambda what, done, count: None

    def replies(self, cases: Sequence[Case], what: str, *, short: bool = False) -> list[Reply]:
        """What the optimiser writes to rows; `short`: one letter, greedily."""
        sampling = GeneratorSampling(
            max_new_tokens=ANSWER if short else self.config.max_new_tokens,
            temperature=0.0 if short else self.config.temperature,
            top_p=1.0 if short else self.config.top_p,
            seed=self.seed,
        )
        asked = [case_input(case, self.template, self.generator.chat) for case in cases]
        written = self.generator.write(asked, sampling, lambda done, count: self.tell(what, done, count))
        return [some[0] for some in written]

    def verdicts(self, duels: Sequence[Duel], what: str) -> list[Verdict]:
        """What the discriminator says, of `new` against `old`."""
        done = 0

        def tell(more: int) -> None:
            nonlocal done
            done += more
            self.tell(what, done, len(duels))

        return self.judge.verdicts([duel.comparison(self.template) for duel in duels], tell) if duels else []


@dataclass(frozen=True)
class Proposals:
    """What came of the rewrites of a round.

    Attributes:
        proposed: rewrites, one for each row that asks for one.
        left_out: those that nobody was asked about, by reason.
        flips: verdicts that differed between the two orders.
        ties: two prompts that were found to be equally good in each order.
        silent: rewrites on which the discriminator said nothing.
        accepted: rewrites that won in both orders.
        answered: responses that were written anew.
    """

    proposed: int
    left_out: dict[str, int]
    flips: int
    ties: int
    silent: int
    accepted: int
    answered: int = 0

    def as_json(self) -> dict[str, Any]:
        """For a line of rounds.jsonl."""
        share = self.accepted / self.proposed if self.proposed else None
        return {**vars(self), "acceptance": share}


@dataclass
class _Counts:
    left_out: Counter[str] = field(default_factory=Counter)
    flips: int = 0
    ties: int = 0
    silent: int = 0


def propose(asking: Asking, cases: Sequence[Case], round_: int) -> tuple[list[Case], Proposals]:
    """The rows of the next round.

    Args:
        asking: who is asked.
        cases: rows that this round has trained on.
        round_: its number; draws follow from it.

    Returns:
        The rows, in their order, and what came of the rewrites.
    """
    rows = [i for i, case in enumerate(cases) if case.kind == "rewrite"]
    replies = asking.replies([cases[i] for i in rows], f"round {round_}: rewrites")
    counts, duels = _Counts(), dict[int, Duel]()
    for i, reply in zip(rows, replies, strict=True):
        rewrite, problem = _rewrite(cases[i], reply, asking.config.facts)
        if problem:
            counts.left_out[problem] += 1
        else:
            duels[i] = _duel(cases[i], rewrite, cases[i].prompt)
    verdicts = asking.verdicts(list(duels.values()), f"round {round_}: verdicts")
    accepted: dict[int, str] = {}
    for (i, duel), verdict in zip(duels.items(), verdicts, strict=True):
        if verdict.preference == 1.0:
            accepted[i] = duel.new
        counts.flips += verdict.flips
        counts.ties += verdict.preference == 0.5 and not verdict.flips
        counts.silent += verdict.preference is None
    moved = [_moved(case, accepted[i]) if i in accepted else case for i, case in enumerate(cases)]
    answered = 0
    if asking.config.new_responses:
        moved, answered = _answered(asking, moved, accepted, round_)
    found = Proposals(
        len(rows), dict(counts.left_out), counts.flips, counts.ties, counts.silent, len(accepted), answered
    )
    return [case for case in moved if _stays(case, asking, round_)], found


def measure(asking: Asking, cases: Sequence[Case], what: str) -> dict[str, Any]:
    """How well the discriminator tells the better rewrite of pairs from the worse one.

    Args:
        asking: who is asked.
        cases: rows that hold such pairs.
        what: what they are, for the progress bar.

    Returns:
        `rows`; `accuracy`: share of them in which the better one won in both orders; `single`: share of right verdicts
        among all single ones (of a judge that has no orders, the same); `flips` and `silent`: shares.
    """
    duels = [_duel(case, case.chosen, case.rejected) for case in cases]
    verdicts, count = asking.verdicts(duels, what), len(duels)
    if not count:
        return {"rows": 0}
    said = [one for verdict in verdicts for one in (verdict.orders or (verdict.preference,))]
    return {
        "rows": count,
        "accuracy": sum(verdict.preference == 1.0 for verdict in verdicts) / count,
        "single": sum(one == 1.0 for one in said) / len(said),
        "flips": sum(verdict.flips for verdict in verdicts) / count,
        "silent": sum(verdict.preference is None for verdict in verdicts) / count,
    }


def to_measure(cases: Sequence[Case], most: int, seed: int) -> list[Case]:
    """Rows to measure a discriminator on: one for each pair that rewrites were asked of, some of them if there are
    many."""
    pairs = {(case.source, case.chosen, case.rejected): case for case in cases if case.kind == "rewrite"}
    one_each = list(pairs.values())
    if len(one_each) <= most:
        return one_each
    taken = sorted(random.Random(f"{seed} measured").sample(range(len(one_each)), most))
    return [one_each[i] for i in taken]


def _rewrite(case: Case, reply: Reply, keeps_facts: bool) -> tuple[str, str]:
    """A rewrite, options included, and what is wrong with it."""
    written = cleaned(reply.text)
    if reply.refused:
        return "", "refused"
    if not written:
        return "", "empty"
    rewrite = case.completed(written)
    if not reply.ended:
        return rewrite, "cut"
    if rewrite.split() == case.prompt.split():
        return rewrite, "the same"
    if words_in(rewrite) > max(case.words, default_limit(case.original)):
        return rewrite, "too long"
    if keeps_facts and problem(case.original, rewrite) is not None:
        return rewrite, "lost a fact"
    return rewrite, ""


def _duel(case: Case, new: str, old: str) -> Duel:
    return Duel(str(case.where), case.original, new, old, case.words, case.ground_truth, bool(case.options))


def _moved(case: Case, rewrite: str) -> Case:
    """A row whose naive prompt is replaced. An answer to the old one that is not shown says nothing of the new one."""
    return replace(case, prompt=rewrite, response=case.response if case.shows_response else None)


def _answered(asking: Asking, cases: Sequence[Case], accepted: dict[int, str], round_: int) -> tuple[list[Case], int]:
    """The rows with responses written anew: those shown with prompts that were replaced, and the worse answers of
    instruction rows."""
    shown = [i for i in accepted if cases[i].shows_response]
    wanted = [*shown, *(i for i, case in enumerate(cases) if case.kind == "instruction")]
    found, count = list(cases), 0
    for options in (False, True):
        rows = [i for i in wanted if _is_letter(cases[i]) == options]
        asked = [_question(cases[i]) for i in rows]
        for i, reply in zip(rows, asking.replies(asked, f"round {round_}: answers", short=options), strict=True):
            answer = letter(reply.text) if options else reply.text.strip()
            if answer is None or not answer or not (reply.ended or options):
                continue  # no answer: what is there stays
            if cases[i].kind == "instruction":
                found[i] = replace(cases[i], rejected=answer)
            else:
                found[i] = replace(cases[i], response=answer)
            count += 1
    return found, count


def _is_letter(case: Case) -> bool:
    """True if the answer to a row's prompt is the letter of an option."""
    return case.form == "multiple_choice" and case.ground_truth in LETTERS


def _question(case: Case) -> Case:
    """The row that asks for an answer to a row's prompt."""
    if case.kind == "instruction":
        return case
    known = [text for text in (case.ground_truth, case.response) if text]
    limit = word_limit(case.prompt, known[0], known[-1], "rounded")
    return replace(case, kind="instruction", words=limit)


def _stays(case: Case, asking: Asking, round_: int) -> bool:
    """True for rows that the next round keeps: all but some of the discrimination rows, which are the easiest."""
    if case.kind != "discrimination":
        return True
    drawn = random.Random(f"{asking.seed} {round_} {case.source} {case.chosen} {case.rejected}").random()
    return drawn < asking.config.keep_discrimination
