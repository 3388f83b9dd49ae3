"""Verdicts on disk: each is kept once it is there, and never asked for again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from preftune.errors import PreftuneError
from preftune.evaluation.journal import Journal
from preftune.evaluation.judges.base import Comparison, Judge, Tell, Verdict, check_some, digest

FILE = "verdicts.jsonl"


class KeptJudge(Judge):
    """A judge whose verdicts are kept in a folder's verdicts.jsonl. Those that stand there already, of the same judge
    on the same answers, are replayed; one that gave no verdict is asked again.

    Args:
        judge: what judges; it is closed with this one.
        folder: where to keep them.

    Attributes:
        replayed: how many were there already.

    Raises:
        PreftuneError: if the file cannot be used; while judging, if the judge says nothing at all at first.
    """

    def __init__(self, judge: Judge, folder: Path) -> None:
        self.judge, self.name, self.fingerprint, self.at_once = judge, judge.name, judge.fingerprint, judge.at_once
        self._journal = Journal(folder / FILE)
        self._known: dict[str, Verdict] = {}
        self.replayed = 0
        for number, line in enumerate(self._journal.lines, 1):
            try:
                preference, orders, scores = line["preference"], tuple(line["orders"]), tuple(line["scores"])
                self._known[line["id"]] = Verdict(preference, orders, scores, line["reason"], tuple(line["said"]))
            except (KeyError, TypeError):
                self._journal.close()
                raise PreftuneError(
                    f"{folder / FILE} line {number} is no verdict that preftune kept: name another folder"
                ) from None

    def close(self) -> None:  # noqa: D102
        self._journal.close()
        self.judge.close()

    def verdicts(self, comparisons: Sequence[Comparison], tell: Tell = lambda _: None) -> list[Verdict]:  # noqa: D102
        names = [digest(self.fingerprint, each.prompt, each.a, each.b, each.row) for each in comparisons]
        missing = {name: each for name, each in zip(names, comparisons, strict=True) if not self._has(name)}
        self.replayed += len(comparisons) - len(missing)
        tell(len(comparisons) - len(missing))
        waiting = list(missing.items())
        for start in range(0, len(waiting), self.at_once):
            batch = waiting[start : start + self.at_once]
            verdicts = self.judge.verdicts([comparison for _, comparison in batch], tell)
            lines = []
            for (name, comparison), verdict in zip(batch, verdicts, strict=True):
                self._known[name] = verdict
                lines.append({"id": name, "judge": self.name, "key": comparison.key, **vars(verdict)})
            self._journal.add(*lines)
            if not start:  # a judge that cannot judge is found out before the rest is paid for
                check_some(verdicts, [comparison for _, comparison in batch], self.name)
        return [self._known[name] for name in names]

    def _has(self, name: str) -> bool:
        return name in self._known and self._known[name].preference is not None
