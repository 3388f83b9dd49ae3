"""How far one gets on the same held-out pairs without reading: `python shortcuts.py [--full DIR] [--runs DIR]`.

Two rules: a linear one on how often each word, number and sign occurs, fitted to the training pairs; and the name of
the model that wrote each solution, which no policy is told. With --runs, the implicit accuracy of trained policies is
split by that: a policy that has learned no more than to tell authors apart is wrong where the worse author is right.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from dataset import load, solutions_file
from transformers import AutoModelForCausalLM, AutoTokenizer

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


def gaps(folder: Path, pairs: Sequence[Preference]) -> torch.Tensor:
    """Log-prob of the right solution less that of the wrong one, nats, by plain transformers; shape (pairs,)."""
    tokenizer, lm = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()

    def logp(prompt: object, response: object) -> float:
        before, after = tokenizer(str(prompt)).input_ids, [*tokenizer(str(response)).input_ids, tokenizer.eos_token_id]
        with torch.no_grad():
            logps = lm(torch.tensor([before + after])).logits[0, len(before) - 1 : -1].log_softmax(-1)
        return float(logps.gather(1, torch.tensor(after)[:, None]).double().sum())

    return torch.tensor([logp(pair.prompt, pair.chosen) - logp(pair.prompt, pair.rejected) for pair in pairs])


def show(rule: str, difference: torch.Tensor, pairs: Sequence[Preference]) -> None:
    """Print how often a difference is positive, with its 95% interval over questions."""
    correct = wins(difference.numpy())
    low, high = accuracy_interval(correct, [pair.prompt for pair in pairs])
    print(f"{rule:<52} {correct.mean():.3f}  ({low:.3f} to {high:.3f})")


def main() -> None:
    """Print the accuracy of each rule, and of each policy where the better or the worse author is right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", type=Path, help="folder with the full files of GSM8K; default: the shipped subset")
    parser.add_argument("--runs", type=Path, help="folder that run.py left, made from the same files")
    args = parser.parse_args()
    data = load(args.full)
    known = {word for pair in data.train for text in (pair.chosen, pair.rejected) for word in words(text)}
    index = {word: i for i, word in enumerate(sorted(known))}
    train, held_out = differences(data.train, index), differences(data.held_out, index)
    for ridge in RIDGES:
        show(f"counts of words, logistic, ridge {ridge}", held_out @ fit(train, ridge), data.held_out)
    rank = authors(solutions_file(args.full))
    by_author = [
        rank[str(pair.prompt), str(pair.chosen)] - rank[str(pair.prompt), str(pair.rejected)] for pair in data.held_out
    ]
    show("the author that is right more often", torch.tensor(by_author, dtype=torch.float64), data.held_out)
    if args.runs is None:
        return
    start = gaps(args.runs / "sft" / "model", data.held_out)
    print(f"SD of the SFT model's log-prob differences: {start.std():.0f} nats")
    for name in ("dpo", "ipo"):
        delta = gaps(args.runs / name / "model", data.held_out) - start
        for which, sign in (("better", 1), ("worse", -1)):
            at = [i for i, by in enumerate(by_author) if by * sign > 0]
            rule = f"{name}, {len(at)} pairs in which the {which} author is right"
            show(rule, delta[at], [data.held_out[i] for i in at])


if __name__ == "__main__":
    main()
