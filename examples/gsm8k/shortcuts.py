"""How far one gets on the same held-out pairs without reading the solutions: `python shortcuts.py [--full DIR]`.

Two rules: a linear one on how often each word, number and sign occurs, fitted to the training pairs; and the name of
the model that wrote each solution, which no policy is told.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from dataset import load, solutions_file

from preftune.data.builders import gsm8k
from preftune.data.records import Preference
from preftune.data.sources import rows
from preftune.evaluation.intervals import accuracy_interval
from preftune.training.metrics import wins

WORD = re.compile(r"\w+|[^\w\s]|\n")
RIDGES = (0.001, 0.01, 0.1)
# Right on .22, .35, .39 and .56 of all test questions.
AUTHORS = ("6b_finetuning", "175b_finetuning", "6b_verification", "175b_verification")


def words(text: object) -> list[str]:
    """Words, numbers, signs and line breaks of a solution."""
    return WORD.findall(str(text))


def differences(pairs: Sequence[Preference], index: dict[str, int]) -> torch.Tensor:
    """Counts of each known word in the right solution, less those in the wrong one; shape (pairs, words)."""
    counts = torch.zeros(len(pairs), len(index))
    for row, pair in zip(counts, pairs, strict=True):
        for sign, text in ((1, pair.chosen), (-1, pair.rejected)):
            for word in words(text):
                if word in index:
                    row[index[word]] += sign
    return counts


def fit(x: torch.Tensor, ridge: float) -> torch.Tensor:
    """Weights of a logistic regression without intercept on pairs of which all are won."""
    weights = torch.zeros(x.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.softplus(-x @ weights).mean() + ridge * weights @ weights
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach()


def authors(file: Path) -> dict[tuple[str, str], int]:
    """(prompt, solution) -> rank of the model that wrote it, from the keys of the file's rows."""
    return {
        (gsm8k.prompt(row["question"]), gsm8k.response(row[author]["solution"])): rank
        for _, row in rows(file)
        for rank, author in enumerate(AUTHORS)
    }


def main() -> None:
    """Print the accuracy of each rule, with its 95% interval over questions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", type=Path, help="folder with the full files of GSM8K; default: the shipped subset")
    args = parser.parse_args()
    data = load(args.full)

    def show(rule: str, difference: torch.Tensor) -> None:
        correct = wins(difference.numpy())
        low, high = accuracy_interval(correct, [pair.prompt for pair in data.held_out])
        print(f"{rule:<42} {correct.mean():.3f}  ({low:.3f} to {high:.3f})")

    known = {word for pair in data.train for text in (pair.chosen, pair.rejected) for word in words(text)}
    index = {word: i for i, word in enumerate(sorted(known))}
    train, held_out = differences(data.train, index), differences(data.held_out, index)
    for ridge in RIDGES:
        show(f"counts of words, logistic, ridge {ridge}", held_out @ fit(train, ridge))
    rank = authors(solutions_file(args.full))
    by_author = [
        rank[str(pair.prompt), str(pair.chosen)] - rank[str(pair.prompt), str(pair.rejected)] for pair in data.held_out
    ]
    show("the author that is right more often", torch.tensor(by_author, dtype=torch.float64))


if __name__ == "__main__":
    main()
