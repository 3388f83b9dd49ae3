"""docs/prompts/paper.md and its drawings: the tables of FIPO, as its authors measured them.

python -m preftune.report.prompting_paper docs
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from preftune.prompting.paper import BENCHMARKS, NAIVE, SIZES, TABLE2, TABLE3, TABLE6, Scores, rows
from preftune.report.gains import bars, heat_map

COMMAND = "make docs-prompts"
PAGE, IMAGES = "prompts/paper.md", "images/prompts"
COLUMNS = (*BENCHMARKS, "average")
OPENING = """# What the paper measured

<!-- Written by a program; run: {command} -->

These are figures of the authors of FIPO (Lu et al. 2024, [arXiv 2402.11811](https://arxiv.org/abs/2402.11811), version
4), not ours. Scores are percent of right answers; GSM8K, BBH and PiQA with 3 examples before each question, CosmosQA
and MMLU with 5. What preftune measures itself is written by `preftune prompts evaluate` ([evaluate.md](evaluate.md)),
and its built-in experiment lies beside this page ([miniature.md](miniature.md)).

The last column is a weighted average, which the paper does not define. Weighted by numbers of questions ({sizes}), the
scores give every average that the paper prints to {off:.2f}. Its text speaks of 1.3k, 6.4k, 1.8k, about 3k and 14k
questions; the exact number for BBH (23 tasks) is the one that fits best."""


def files() -> dict[str, str]:
    """The page and its drawings: text by path, relative to docs/."""
    naive = TABLE3[0]
    gained = [(row.name, row.over(naive)) for row in TABLE3[1:]]
    by_generator = [(generator, other.over(before)) for generator, (before, other) in TABLE2.items()]
    whose = "the paper's figures"
    drawings = {
        "table3-bars.svg": bars(
            f"Gain over naive prompts on average, Tulu2-7B answers ({whose})",
            [(name, values[-1]) for name, values in gained],
            "points of the weighted average",
        ),
        "table3-heat.svg": heat_map(f"Gain over naive prompts, Tulu2-7B answers ({whose})", COLUMNS, gained),
        "table2-heat.svg": heat_map(f"Gain over naive prompts by who answers ({whose})", COLUMNS, by_generator),
    }
    return {PAGE: _page(), **{f"{IMAGES}/{name}": text for name, text in drawings.items()}}


def write(docs: Path) -> list[Path]:
    """Write the page and its drawings.

    Args:
        docs: the folder of the documentation.

    Returns:
        The files that are there now.
    """
    texts = files()
    for name, text in texts.items():
        path = docs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    return [docs / name for name in texts]


def _page() -> str:
    sizes = ", ".join(f"{name} {size:,}" for name, size in SIZES.items())
    off = max(abs(row.recomputed - row.average) for _, row in rows())
    two = [
        Scores(f"{generator}, {row.name}", row.values, row.average)
        for generator, pair in TABLE2.items()
        for row in pair
    ]
    parts = [
        OPENING.format(command=COMMAND, sizes=sizes, off=off),
        "## Table 3: optimisers, Tulu2-7B answers",
        "SFT, DPO and IPO train once on the preferences; IPL-DPO and IPL-IPO go on for three epochs, in which the "
        "optimiser rewrites its own prompts (the last epoch is shown). `-gen` and `-partial` leave parts of what is "
        "shown to the optimiser away.",
        _image("table3-bars", "Bars: gain of each optimiser over the naive prompts, on average"),
        _image("table3-heat", "Heat map: gain of each optimiser over the naive prompts, on each benchmark"),
        _table(TABLE3),
        "Only the optimisers of 70B with a preference objective beat the naive prompts on average; supervised "
        "fine-tuning on the better rewrites did not, and none of 13B did.",
        "## Table 6: epochs of the iterative optimisers",
        _table([TABLE3[0], *TABLE6]),
        "## Table 2: other models answer",
        "The best optimiser (IPL-IPO-70B) writes for models that it was not made for.",
        _image("table2-heat", "Heat map: gain of the optimised prompts over the naive ones, for three generators"),
        _table(two),
    ]
    return "\n\n".join(parts) + "\n"


def _image(name: str, label: str) -> str:
    return f"![{label}](../{IMAGES}/{name}.svg)"


def _table(scores: Sequence[Scores]) -> str:
    header = "| prompts | " + " | ".join((*BENCHMARKS, "average (printed)", "average (recomputed)")) + " |"
    lines = [
        f"| {'**naive**' if row.name == NAIVE else row.name} | "
        + " | ".join(f"{value:.2f}" for value in (*row.values, row.average, row.recomputed))
        + " |"
        for row in scores
    ]
    return "\n".join([header, "|---" * (len(BENCHMARKS) + 3) + "|", *lines])


if __name__ == "__main__":
    print(f"wrote {len(write(Path(sys.argv[1])))} files into {sys.argv[1]}")
