"""The command `preftune judge`: a judge and data -> what the judge is worth, or how often one model's answers win."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from preftune.api_keys import this_command
from preftune.errors import PreftuneError
from preftune.evaluation.answer_pairs import generated, labelled_pairs, matched
from preftune.evaluation.judge_check import JudgeCheck, check_judge
from preftune.evaluation.judges import EndpointUse, Judge, open_judge
from preftune.evaluation.win_rate import Progress, WinRate, win_rate
from preftune.files import write_whole

RESULT = "judge.json"
GENERATIONS = "generations.jsonl"


def judge_data(
    name: str,
    data: str,
    *,
    against: str | None = None,
    truth: str | None = None,
    rubric: Path | None = None,
    out: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    use: EndpointUse | None = None,
    progress: Progress | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> JudgeCheck | WinRate:
    """Score a judge on labelled pairs, or have it compare the answers of two models.

    Args:
        name: a judge, as `judges.open_judge` takes it.
        data: pairs with a known better answer; or answers (with `against`), or a run's generations.jsonl.
        against: answers of another model to the same prompts.
        truth: a judge that knows which answer is better; labels count if None.
        rubric: for a judge behind an endpoint.
        out: folder for verdicts, calls and the result; None: one under runs/ that is named after the data. What is
            there already is replayed.
        limit: use the first pairs or prompts only.
        seed: of the bootstrap.
        use: of an endpoint.
        progress: told how many of how many are judged.
        say: told where the verdicts are.

    Raises:
        PreftuneError: for anything a user can mend; what was judged until then is kept.
    """
    if against is not None and truth is not None:
        raise PreftuneError("--truth scores the judge on pairs, and --against compares two models: give one of them")
    pairs = matched(data, against, limit) if against is not None else generated(data, limit)
    compare = pairs is not None
    if compare and truth is not None:
        raise PreftuneError(f"{data} holds answers of two models and no pairs for --truth: leave it out")
    if pairs is None:
        pairs = labelled_pairs(data, limit)
    folder = out or Path("runs") / "-".join(["judge", _stem(data), *(["against", _stem(against)] if against else [])])
    result: JudgeCheck | WinRate
    with open_judge(name, folder, rubric=rubric, use=use) as judge:
        if compare:
            result = win_rate(pairs, judge, seed=seed, progress=progress)
        elif truth is None:
            result = check_judge(pairs, judge, seed=seed, progress=progress)
        else:
            with open_judge(truth) as known:
                result = check_judge(pairs, judge, known, seed=seed, progress=progress)
        say(_kept(judge, folder))
    about = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": this_command(),
        "data": data,
        **({"against": against} if against else {}),
    }
    try:
        write_whole(folder / RESULT, (json.dumps({**about, **result.as_json()}, indent=2) + "\n").encode())
    except OSError as error:
        raise PreftuneError(f"cannot write {folder / RESULT} ({error.strerror}): make room there") from None
    return result


def _stem(data: str) -> str:
    """A name for a folder, after a file or a hub id; after the run, for what a run generated."""
    path = Path(data)
    name = path.absolute().parent.name if path.name == GENERATIONS else path.name.removesuffix(".gz")
    return (Path(name).stem or name or "data").lstrip(".") or "data"


def _kept(judge: Judge, folder: Path) -> str:
    replayed = getattr(judge, "replayed", 0)
    return f"verdicts: {folder / 'verdicts.jsonl'}" + (f" ({replayed:,} were there already)" if replayed else "")
