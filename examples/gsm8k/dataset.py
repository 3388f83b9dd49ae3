"""The data of this example: worked answers to learn from first, then right-over-wrong pairs, split by question."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from preftune.data.builders import gsm8k
from preftune.data.records import Demonstration, Preference
from preftune.data.split import held_out

SHIPPED = Path(__file__).parent / "data"
HELD_OUT = 0.25


@dataclass(frozen=True)
class GSM8KData:
    """What the example trains and evaluates on; prompts and answers have one form throughout.

    Attributes:
        demonstrations: worked answers to the training questions.
        train: pairs, right over wrong, of solutions to the test questions.
        held_out: pairs of other test questions.
    """

    demonstrations: list[Demonstration]
    train: list[Preference]
    held_out: list[Preference]

    def texts(self) -> Iterator[str]:
        """What a tokenizer may learn from: nothing of the held-out questions."""
        for demonstration in self.demonstrations:
            yield f"{demonstration.prompt}{demonstration.response}"
        for pair in self.train:
            yield f"{pair.prompt}{pair.chosen}"
            yield str(pair.rejected)


def load(full: Path | None = None, seed: int = 0) -> GSM8KData:
    """Read the shipped subset, or the full files.

    Args:
        full: folder with train.jsonl and example_model_solutions.jsonl; the shipped subset if None.
        seed: of the split.

    Raises:
        PreftuneError: if a file is missing or is not what it should be.
    """
    train, apart = held_out(list(gsm8k.preferences(solutions_file(full))), HELD_OUT, seed)
    worked = SHIPPED / "train.jsonl.gz" if full is None else full / "train.jsonl"
    return GSM8KData(list(gsm8k.demonstrations(worked)), train, apart)


def solutions_file(full: Path | None = None) -> Path:
    """Where the solutions are, right and wrong, of the shipped subset or of the full files."""
    name = "example_model_solutions.jsonl"
    return SHIPPED / f"{name}.gz" if full is None else full / name
