"""The command `preftune pairs`: a task, a model and a file to write -> right-over-wrong pairs."""

from __future__ import annotations

from pathlib import Path

from preftune.data import builders
from preftune.data.builders.sampled import PairStatistics, Sampling, check_out, read_questions
from preftune.data.builders.sampled import write_pairs as write_sampled


def write_pairs(
    task: str,
    model: str,
    data: str | None,
    out: Path,
    *,
    n: int = 8,
    limit: int | None = None,
    temperature: float = 1.0,
    max_new_tokens: int = 256,
    chat: bool = False,
    seed: int = 0,
    quiet: bool = False,
) -> str:
    """Sample answers to a task's questions, check each, and write the pairs. Questions are read before the model is.

    Args:
        task: name of a task, or "package.module:Class".
        model: folder, hub id, "sandbox" or "scratch:<type>".
        data: where the questions are; None for the task's own source.
        out: file to write, .jsonl or .jsonl.gz.
        n: answers per question, at least 2.
        limit: use the first questions only.
        temperature: of the samples, above 0.
        max_new_tokens: tokens at which an answer is cut; cut answers make no pairs.
        chat: ask in the model's chat template, and write conversations.
        seed: of sampling and pairing, and of a scratch model's weights.
        quiet: no progress bar.

    Returns:
        One line that says what came of it.

    Raises:
        PreftuneError: for anything a user can mend: task, questions, options, file, model.
    """
    sampling = Sampling(n=n, temperature=temperature, max_new_tokens=max_new_tokens, chat=chat, seed=seed)
    found = builders.get(task)
    questions = read_questions(found, data, limit)
    check_out(out)

    import torch
    from rich.console import Console
    from rich.progress import Progress

    from preftune.evaluation.sampling import sample
    from preftune.policy.loading import ModelConfig, check_path, load

    # As in training: what a device computes best in, and nothing but fp32 elsewhere.
    cuda = torch.cuda.is_available()
    config = ModelConfig(path=model, dtype="bf16" if cuda and torch.cuda.is_bf16_supported() else "auto")
    check_path(config)
    loaded = load(config, seed, lambda: (found.prompt(question) for question in questions))
    loaded.lm.to("cuda" if cuda else "mps" if torch.backends.mps.is_available() else "cpu")
    with Progress(console=Console(stderr=True), transient=True, disable=quiet) as bar:
        asking = bar.add_task("sampling", total=len(questions))

        def show(statistics: PairStatistics) -> None:
            bar.update(asking, completed=statistics.questions, description=f"{statistics.pairs:,} pairs")

        statistics = write_sampled(
            found,
            questions,
            out,
            sample=sample,
            model=loaded.lm,
            tokenizer=loaded.tokenizer,
            sampling=sampling,
            progress=show,
        )
    return f"{statistics.summary()}\nwrote {out}"
