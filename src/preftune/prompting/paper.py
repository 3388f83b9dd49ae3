"""The tables of FIPO (Lu et al. 2024, arXiv 2402.11811v4) as data: what its authors measured, not we.

Scores are percent of right answers. The paper does not define its weighted average; weights by the numbers of questions
below give all its values to 0.02 (the number for BBH, with 23 tasks, is the one that fits best).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from preftune.prompting.paired import weighted_average

BENCHMARKS = ("GSM8K", "BBH", "PiQA", "CosmosQA", "MMLU")
SIZES: Mapping[str, int] = dict(zip(BENCHMARKS, (1319, 6441, 1838, 2985, 14042), strict=True))
NAIVE = "naive"


@dataclass(frozen=True)
class Scores:
    """A row of a table.

    Attributes:
        name: naive, or the optimiser.
        values: percent of right answers, in the order of BENCHMARKS.
        average: the weighted average that the paper prints.
    """

    name: str
    values: tuple[float, float, float, float, float]
    average: float

    @property
    def recomputed(self) -> float:
        """The weighted average of the values."""
        return weighted_average(dict(zip(BENCHMARKS, self.values, strict=True)), SIZES)

    def over(self, naive: Scores) -> tuple[float, ...]:
        """Points gained over the naive prompts: on each benchmark, and on average."""
        pairs = zip((*self.values, self.average), (*naive.values, naive.average), strict=True)
        return tuple(round(mine - theirs, 2) for mine, theirs in pairs)


# Tables 3 and 6: the generator is Tulu2-7B; optimisers are Tulu2 of 13B and 70B. Table 3 has the last epoch (e3) of
# the iterative ones, and calls the two ablations IPO-70B-gen and IPO-70B-partial.
TABLE3 = (
    Scores(NAIVE, (24.77, 36.21, 73.35, 51.17, 51.22), 47.79),
    Scores("SFT-13B", (19.91, 31.04, 71.61, 47.68, 49.57), 44.93),
    Scores("DPO-13B", (17.17, 30.90, 68.50, 44.87, 46.64), 42.69),
    Scores("IPO-13B", (18.42, 33.55, 72.03, 49.14, 48.20), 44.93),
    Scores("SFT-70B", (21.43, 32.92, 74.39, 49.97, 51.55), 46.96),
    Scores("DPO-70B", (27.74, 35.56, 74.17, 54.93, 52.73), 49.07),
    Scores("IPO-70B", (25.00, 39.21, 76.84, 56.01, 54.29), 50.94),
    Scores("IPL-DPO-70B", (25.13, 35.25, 74.95, 50.46, 52.12), 48.10),
    Scores("IPL-IPO-70B", (26.67, 39.60, 77.11, 56.71, 56.02), 52.13),
    Scores("IPL-IPO-70B-gen", (22.72, 41.91, 74.53, 53.60, 52.74), 50.23),
    Scores("IPL-IPO-70B-partial", (23.08, 40.03, 76.22, 54.29, 51.99), 49.59),
)

# Table 6: what the iterative optimisers came to after each epoch.
TABLE6 = (
    Scores("IPL-DPO-70B, epoch 1", (25.38, 33.86, 74.39, 52.42, 52.44), 48.12),
    Scores("IPL-DPO-70B, epoch 2", (24.28, 36.10, 73.84, 51.22, 52.04), 48.23),
    Scores("IPL-DPO-70B, epoch 3", (25.13, 35.25, 74.95, 50.46, 52.12), 48.10),
    Scores("IPL-IPO-70B, epoch 1", (25.99, 34.09, 74.66, 53.62, 52.33), 48.30),
    Scores("IPL-IPO-70B, epoch 2", (26.70, 38.07, 76.28, 54.38, 54.81), 50.81),
    Scores("IPL-IPO-70B, epoch 3", (26.67, 39.60, 77.11, 56.71, 56.02), 52.13),
)

# Table 2: three other generators, naive prompts and those of the best optimiser (IPL-IPO-70B).
TABLE2: Mapping[str, tuple[Scores, Scores]] = {
    "Llama2-7B": (
        Scores(NAIVE, (8.89, 31.21, 62.78, 43.09, 46.58), 41.73),
        Scores("FIPO", (11.70, 33.50, 69.37, 52.11, 54.56), 48.10),
    ),
    "Tulu2-13B": (
        Scores(NAIVE, (39.06, 36.49, 76.62, 55.13, 57.43), 52.53),
        Scores("FIPO", (40.17, 40.26, 78.58, 57.68, 59.10), 54.79),
    ),
    "Baichuan2-13B": (
        Scores(NAIVE, (46.81, 37.95, 68.56, 51.88, 57.46), 52.36),
        Scores("FIPO", (48.12, 39.95, 74.77, 56.88, 58.32), 54.35),
    ),
}


def rows() -> list[tuple[str, Scores]]:
    """All rows of the three tables, each with the name of its table and, in Table 2, of its generator."""
    return [
        *(("Table 3", row) for row in TABLE3),
        *(("Table 6", row) for row in TABLE6),
        *((f"Table 2, {generator}", row) for generator, pair in TABLE2.items() for row in pair),
    ]
