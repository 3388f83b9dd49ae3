"""Preferences that cannot all be right: A over B beside B over A, A over B over C over A; and how much noise that is.

Two responses are the same if their texts are, less blanks at either end; so are prompts. Contradictions are decided by
majority where there is one, and what is left is searched for cycles, so that data without the rows to drop of both has
neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from preftune.data.doctor.findings import LISTED, Finding, Numbers, rows
from preftune.data.doctor.index import Index
from preftune.data.doctor.words import Hashes
from preftune.data.lines import Mask
from preftune.evaluation.intervals import wilson

if TYPE_CHECKING:
    import networkx

PEELINGS = 64  # rounds in which edges that lie on no cycle are removed from all graphs at once


class Votes:
    """What the rows say about each question: which of two responses is the better, or whether one is good.

    Attributes:
        record: number of the record that each vote is from, shape (votes,).
        question: number of the question that it answers.
        yes: its answer.
        ayes: votes for yes, shape (questions,).
        noes: votes for no.
    """

    def __init__(self, record: Numbers, question: Numbers, yes: Mask) -> None:
        self.record, self.question, self.yes = record, question, yes
        count = int(question.max(initial=-1)) + 1
        self.ayes = np.bincount(question[yes], minlength=count)
        self.noes = np.bincount(question[~yes], minlength=count)

    @property
    def disputed(self) -> Mask:
        """Questions with both answers."""
        return (self.ayes > 0) & (self.noes > 0)

    @property
    def outvoted(self) -> Mask:
        """Votes against a majority, and all votes where there is none."""
        margin = (self.ayes - self.noes)[self.question]
        return self.disputed[self.question] & np.where(self.yes, margin <= 0, margin >= 0)


def votes(index: Index) -> Votes:
    """Of all records, comparisons and verdicts alike."""
    compared, judged = index.comparisons, index.verdicts
    yes = compared.better < compared.worse
    pairs = np.stack([np.minimum(compared.better, compared.worse), np.maximum(compared.better, compared.worse)])
    question = _numbered(pairs)
    alone = np.unique(judged.node, return_inverse=True)[1] + question.max(initial=-1) + 1
    return Votes(
        np.concatenate([compared.record, judged.record]),
        np.concatenate([question, alone]),
        np.concatenate([yes, judged.good]),
    )


def contradictions(index: Index, found: Votes) -> Finding | None:
    """Rows that answer a question that other rows answer otherwise."""
    at_odds = np.flatnonzero(found.disputed[found.question])
    if not len(at_odds):
        return None
    opposite = _opposites(found)
    records, places = np.unique(found.record[at_odds], return_index=True)
    out = np.flatnonzero(found.outvoted)
    drop, first = np.unique(found.record[out], return_index=True)
    count = len(records)
    text = f"{rows(count, 'contradict each other', 'contradicts itself')} ({_questions(found)})"
    listed = index.places.listed(records[:LISTED], opposite[at_odds[places[:LISTED]]])
    against = opposite[out[first]]
    return Finding("contradictions", "warning", text, count, listed, drop, against, "contradicts")


def _questions(found: Votes) -> str:
    disputed = found.disputed
    count, tied = int(disputed.sum()), int((disputed & (found.ayes == found.noes)).sum())
    return f"{count:,} {'question' if count == 1 else 'questions'}, {tied:,} of them without a majority"


def _opposites(found: Votes) -> Numbers:
    """For each vote the first record that answers the same question otherwise, -1 if there is none."""
    first = np.full((2, len(found.ayes)), -1, dtype=np.int64)
    for answer in (False, True):
        votes = np.flatnonzero(found.yes == answer)[::-1]  # of several assignments the last one holds
        first[int(answer), found.question[votes]] = found.record[votes]
    opposite: Numbers = first[1 - found.yes.astype(np.int64), found.question]
    return opposite


def cycles(index: Index, found: Votes) -> Finding | None:
    """Rows of comparisons that run in a circle, the outvoted ones aside."""
    compared = index.comparisons
    kept = np.flatnonzero(~found.outvoted[: len(compared.record)])
    if not len(kept):
        return None
    nodes = _numbered_nodes(compared.better[kept], compared.worse[kept])
    kept, nodes = _peeled(kept, nodes)
    if not len(kept):
        return None
    drop, against, circles = [], [], []
    for inside, circle in _circles(nodes):
        members = np.unique(compared.record[kept[inside]])
        drop.append(members)
        against.append(np.roll(members, -1))
        circles.append([int(compared.record[kept[edge]]) for edge in circle])
    if not drop:
        return None
    records, which = np.unique(np.concatenate(drop), return_index=True)
    shown = np.array([(one, other) for circle in circles for one, other in pairwise([*circle, circle[0]])][:LISTED])
    count = len(records)
    many = "a circle" if len(circles) == 1 else f"{len(circles):,} circles"
    text = rows(count, f"prefer in {many}", f"prefers in {many}")
    details = {"cycles": [[str(index.places[record]) for record in circle] for circle in circles[:LISTED]]}
    return Finding(
        "cycles",
        "warning",
        text,
        count,
        index.places.listed(shown[:, 0], shown[:, 1]),
        records,
        np.concatenate(against)[which],
        "is in a circle with",
        details=details,
    )


def _peeled(edges: Numbers, nodes: Numbers) -> tuple[Numbers, Numbers]:
    """Without edges from a node that nothing leads to, or to one that leads nowhere: they lie on no cycle."""
    count = int(nodes.max(initial=-1)) + 1
    for _ in range(PEELINGS):
        reached, leads = np.zeros(count, dtype=np.bool_), np.zeros(count, dtype=np.bool_)
        leads[nodes[0]], reached[nodes[1]] = True, True
        within = reached[nodes[0]] & leads[nodes[1]]
        if within.all():
            break
        edges, nodes = edges[within], nodes[:, within]
    return edges, nodes


def _circles(nodes: Numbers) -> Iterator[tuple[list[int], list[int]]]:
    """Of each strongly connected part of the graph: all its edges, and those of one circle in it."""
    import networkx

    graph = networkx.DiGraph()
    for edge, (better, worse) in enumerate(nodes.T.tolist()):
        graph.add_edge(better, worse, number=edge)
    part: dict[int, int] = {}
    for number, members in enumerate(networkx.strongly_connected_components(graph)):
        part |= dict.fromkeys(members, number)
    inside: dict[int, list[int]] = {}
    for edge, (better, worse) in enumerate(nodes.T.tolist()):
        if part[better] == part[worse]:
            inside.setdefault(part[better], []).append(edge)
    for edges in inside.values():
        yield edges, _circle(graph.edge_subgraph([tuple(nodes[:, edge].tolist()) for edge in edges]))


def _circle(graph: networkx.DiGraph) -> list[int]:
    import networkx

    return [graph.edges[one, other]["number"] for one, other, *_ in networkx.find_cycle(graph)]


def noise(index: Index, found: Votes) -> dict[str, Any]:
    """How often labels are wrong, by two estimates that assume different things; None where the data cannot say.

    From repeats: if each vote on a question is wrong with the same probability e, independently of the others, two of
    them differ with probability d = 2 e (1 - e), so e = (1 - sqrt(1 - 2 d)) / 2; d is the share of pairs of votes that
    differ. Copies of a row count as votes that agree, so with those it is a lower bound. From confidences: if they are
    calibrated, the mean of 1 - confidence is the share of wrong labels.
    """
    ayes, noes = found.ayes.astype(float), found.noes.astype(float)
    pairs = (ayes + noes) * (ayes + noes - 1) / 2
    asked = pairs > 0
    estimate, interval = None, None
    if asked.any():
        differ = float((ayes * noes).sum() / pairs.sum())
        low, high = wilson(differ, int(asked.sum()))
        estimate, interval = _rate(differ), [_rate(low), _rate(high)]
    doubt, rated = index.confidence
    return {
        "from_repeats": estimate,
        "from_repeats_ci95": interval,
        "questions_answered_twice": int(asked.sum()),
        "from_confidences": doubt / rated if rated else None,
    }


def _rate(differ: float) -> float:
    return float((1 - np.sqrt(max(0.0, 1 - 2 * differ))) / 2)


def _numbered(pairs: Hashes) -> Numbers:
    """A number for each different column, shape (columns,)."""
    order = np.lexsort(pairs)
    fresh = np.ones(pairs.shape[1], dtype=np.bool_)
    fresh[1:] = (pairs[:, order[1:]] != pairs[:, order[:-1]]).any(axis=0)
    found = np.empty(pairs.shape[1], dtype=np.int64)
    found[order] = np.cumsum(fresh) - 1
    return found


def _numbered_nodes(better: Hashes, worse: Hashes) -> Numbers:
    """Numbers instead of hashes, shape (2, edges)."""
    return np.unique(np.concatenate([better, worse]), return_inverse=True)[1].reshape(2, -1)
