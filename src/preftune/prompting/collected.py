"""What a collection came to: pairs, what was left out and why, and what it cost; in memory and on disk."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.errors import PreftuneError
from preftune.files import write_whole
from preftune.prompting.candidates import NAIVE, Candidate, LeftOut
from preftune.prompting.comparing import Answers, Compared
from preftune.prompting.generators import Reply
from preftune.prompting.naive import NaivePrompt
from preftune.prompting.records import PromptPair, as_row
from preftune.prompting.template import words_in

if TYPE_CHECKING:
    from preftune.prompting.collecting import CollectSettings

PAIRS, DROPPED, SUMMARY = "pairs.jsonl", "dropped.jsonl", "collect.json"
ALONE = "nothing to compare it with"


@dataclass(frozen=True)
class Spent:
    """What one rewriter or generator wrote, replayed answers included; 0 tokens where they are not known."""

    texts: int
    prompt_tokens: int
    tokens: int

    @classmethod
    def on(cls, replies: Iterable[Sequence[Reply]]) -> Spent:
        """On these replies."""
        flat = [reply for some in replies for reply in some]
        return cls(len(flat), sum(each.prompt_tokens for each in flat), sum(each.tokens for each in flat))


@dataclass(frozen=True)
class RewriterFigures:
    """How one rewriter did.

    Attributes:
        rewrites: that it wrote.
        compared: that came to a comparison.
        wins: comparisons that its rewrites won.
        losses: that they lost.
        undecided: the others.
        right: share of right answers to its rewrites, over prompts and generators; None without a checker.
    """

    rewrites: int
    compared: int
    wins: int
    losses: int
    undecided: int
    right: float | None


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What became of prompts.

    Attributes:
        prompts: naive prompts.
        candidates: rewrites that may be compared, by id of the prompt.
        left_out: rewrites that may not.
        compared: twos of them.
        answers: of the generators.
        shares: share of right answers of each generator to a rewrite (id of the prompt, text); empty with a judge.
        spent: what each rewriter and generator wrote.
        calls: requests to endpoints, in all sessions in this folder.
        tokens: that these took.
        seconds: of this session.
    """

    prompts: list[NaivePrompt]
    candidates: Mapping[str, Sequence[Candidate]]
    left_out: list[LeftOut]
    compared: list[Compared]
    answers: Answers
    shares: Mapping[tuple[str, str], Sequence[float]]
    spent: Mapping[str, Spent]
    calls: int
    tokens: int
    seconds: float

    def pairs(self) -> Iterator[tuple[PromptPair, Compared]]:
        """The pairs, and the comparisons that they are of."""
        for each in self.compared:
            better, worse = each.better, each.worse
            if better is None or worse is None:
                continue
            prompt = each.a.prompt
            names = list(self.answers)
            first, wanted = self.answers[names[0]], 1.0 if better is each.a else 0.0
            per = len(each.votes) // len(names)  # a judge votes on each answer of a generator
            place = next(i for i, vote in enumerate(each.votes) if vote == wanted)
            by, number = self.answers[names[place // per]], place % per
            yield (
                PromptPair(
                    id=prompt.id,
                    prompt=prompt.prompt,
                    chosen=better.text,
                    rejected=worse.text,
                    where=prompt.where,
                    naive_response=first[prompt.prompt][0].strip() or None,
                    ground_truth=prompt.ground_truth,
                    chosen_response=by[better.text][number].strip() or None,
                    rejected_response=by[worse.text][number].strip() or None,
                    task=prompt.task,
                ),
                each,
            )

    def reasons(self) -> dict[str, int]:
        """Rewrites that were not compared, by reason."""
        counts = Counter(each.reason for each in self.left_out)
        counts[ALONE] = sum(len(some) == 1 and some[0].rewriter != NAIVE for some in self.candidates.values())
        return {reason: count for reason, count in counts.most_common() if count}

    def undecided(self) -> dict[str, int]:
        """Comparisons that came to no pair, by reason."""
        return dict(Counter(each.undecided for each in self.compared if each.better is None).most_common())

    def figures(self, rewriter: str) -> RewriterFigures:
        """How one rewriter did."""
        some = [each for group in self.candidates.values() for each in group if each.rewriter == rewriter]
        mine = [each for each in self.compared if rewriter in (each.a.rewriter, each.b.rewriter)]
        wins = sum(each.better is not None and each.better.rewriter == rewriter for each in mine)
        losses = sum(each.worse is not None and each.worse.rewriter == rewriter for each in mine)
        shares = [share for one in some for share in self.shares.get((one.prompt.id, one.text), ())]
        return RewriterFigures(
            rewrites=len(some) + sum(each.candidate.rewriter == rewriter for each in self.left_out),
            compared=len({id(side) for each in mine for side in (each.a, each.b) if side.rewriter == rewriter}),
            wins=wins,
            losses=losses,
            undecided=sum(each.better is None for each in mine),
            right=statistics.fmean(shares) if shares else None,
        )

    def as_json(self, rewriters: Sequence[str]) -> dict[str, Any]:
        """Figures as plain values."""
        pairs = [pair for pair, _ in self.pairs()]
        longer = [words_in(pair.chosen) - words_in(pair.rejected) for pair in pairs]
        return {
            "prompts": len(self.prompts),
            "prompts_with_a_pair": len({pair.id for pair in pairs}),
            "pairs": len(pairs),
            "chosen_longer": sum(gap > 0 for gap in longer) / len(longer) if longer else None,
            "rewriters": {name: asdict(self.figures(name)) for name in rewriters},
            "rewrites_left_out": self.reasons(),
            "comparisons": len(self.compared),
            "comparisons_undecided": self.undecided(),
            "written": {name: asdict(spent) for name, spent in self.spent.items()},
            "endpoint_calls": self.calls,
            "endpoint_tokens": self.tokens,
            "seconds": round(self.seconds, 3),
        }


def write_collected(out: Path, found: Collected, settings: CollectSettings) -> None:
    """Write pairs.jsonl, dropped.jsonl and collect.json, each whole.

    Raises:
        PreftuneError: if they cannot be written; or if there is no pair, once they are written.
    """
    pairs = [
        as_row(pair) | {"chosen_by": _by(each.better), "rejected_by": _by(each.worse), "votes": _votes_for(each)}
        for pair, each in found.pairs()
    ]
    summary = {"settings": _plain(asdict(settings)), **found.as_json(settings.rewriters)}
    files = {
        PAIRS: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in pairs),
        DROPPED: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _dropped(found)),
        SUMMARY: json.dumps(summary, indent=2, ensure_ascii=False) + "\n",
    }
    try:
        for name, text in files.items():
            write_whole(out / name, text.encode(errors="replace"))
    except OSError as error:
        raise PreftuneError(f"cannot write to {out} ({error.strerror}): make room there, or name another") from None
    if not pairs:
        reasons = found.reasons() | found.undecided()
        why = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
        raise PreftuneError(
            f"no pair came of {len(found.prompts):,} prompts ({why}): see {out / DROPPED}, and try other rewriters, "
            "more samples, or harder prompts"
        )


def _dropped(found: Collected) -> Iterator[dict[str, Any]]:
    """Rewrites and comparisons that came to no pair, as rows."""
    for each in found.left_out:
        yield _row(each.candidate, each.reason) | ({"detail": each.detail} if each.detail else {})
    for some in found.candidates.values():
        if len(some) == 1 and some[0].rewriter != NAIVE:
            yield _row(some[0], ALONE)
    for pair in found.compared:
        if pair.better is None:
            yield _row(pair.a, pair.undecided) | {
                "other": pair.b.text,
                "other_by": pair.b.rewriter,
                "votes": list(pair.votes),
            }


def _row(candidate: Candidate, reason: str) -> dict[str, Any]:
    prompt = candidate.prompt
    return {
        "id": prompt.id,
        "prompt": prompt.prompt,
        "rewrite": candidate.text,
        "by": candidate.rewriter,
        "reason": reason,
    }


def _by(candidate: Candidate | None) -> str:
    return "" if candidate is None else candidate.rewriter


def _votes_for(pair: Compared) -> list[float | None]:
    """The votes as those for the better one."""
    return [None if vote is None else vote if pair.better is pair.a else 1 - vote for vote in pair.votes]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return str(value) if isinstance(value, Path) else value
