"""The command `preftune prompts diversify`: pairs of rewrites and files to write -> rows to train on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from preftune.data.records import Drops
from preftune.errors import PreftuneError
from preftune.files import write_whole
from preftune.prompting.case_files import split_by_source, write_cases
from preftune.prompting.case_statistics import CaseStatistics, describe
from preftune.prompting.cases import Words, diversify
from preftune.prompting.records import read_pairs
from preftune.prompting.template import Template

HELD_OUT, STATISTICS = ".held-out.jsonl", ".statistics.json"


@dataclass(frozen=True)
class Diversified:
    """What became of pairs.

    Attributes:
        train: what the rows are like; None if there are none.
        held_out: likewise of those that are held out.
        left_out: pairs without a preference.
        files: that were written.
    """

    train: CaseStatistics
    held_out: CaseStatistics | None
    left_out: Drops
    files: tuple[Path, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "train": self.train.as_json(),
            "held_out": None if self.held_out is None else self.held_out.as_json(),
            "left_out": dict(self.left_out.counts),
        }


def diversify_file(
    source: str,
    out: Path,
    *,
    template: Path | None = None,
    form: Literal["plain", "chat"] = "plain",
    seed: int = 0,
    each: int = 1,
    multiple_choice: float = 0.5,
    right_naive: float = 0.2,
    words: Words = "rounded",
    extra: bool = False,
    held_out: float = 0.0,
) -> Diversified:
    """Make rows of pairs, and write them with their statistics beside them.

    Args:
        source: pairs, as `read_pairs` takes them.
        out: file to write, .jsonl. Beside it lie NAME.statistics.json, and NAME.held-out.jsonl where some are held out.
        template: file of one; None: the built-in one.
        form: rows as plain text, or as turns for models with a chat template.
        seed: of all that is drawn, and of the split.
        each: see `diversify`, as the next four.
        multiple_choice: likewise.
        right_naive: likewise.
        words: likewise.
        extra: likewise.
        held_out: share of the naive prompts that are held out.

    Raises:
        PreftuneError: for anything a user can mend. All pairs are read before anything is written.
    """
    if out.suffix != ".jsonl":
        raise PreftuneError(f"--out is {out}, expected a name that ends in .jsonl")
    asked = Template() if template is None else Template.read(template)
    drops = Drops("drop")
    cases = list(
        diversify(
            read_pairs(source),
            seed=seed,
            each=each,
            multiple_choice=multiple_choice,
            right_naive=right_naive,
            words=words,
            extra=extra,
            drops=drops,
        )
    )
    if not cases:
        raise PreftuneError(f"no pair of {source} is of use ({drops.summary()})")
    train, held = split_by_source(cases, held_out, seed)
    for side, name in ((train, "to train on"), (held, "to hold out")):
        if not side and (held_out or name == "to train on"):
            raise PreftuneError(
                f"holding out {held_out:g} of {len({case.source for case in cases})} prompts leaves none {name}: give "
                "more prompts, another share, or another seed"
            )
    found = Diversified(describe(train), describe(held) if held else None, drops, ())
    files = [out]
    write_cases(out, train, asked, form == "chat")
    if held:
        files.append(out.with_suffix(HELD_OUT))
        write_cases(files[-1], held, asked, form == "chat")
    files.append(out.with_suffix(STATISTICS))
    try:
        write_whole(files[-1], (json.dumps(found.as_json(), indent=2) + "\n").encode())
    except OSError as error:
        raise PreftuneError(f"cannot write {files[-1]} ({error.strerror}): name another file") from None
    return Diversified(found.train, found.held_out, drops, tuple(files))
