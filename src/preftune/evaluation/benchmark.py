"""Standard benchmarks, through lm-evaluation-harness (the extra `eval`)."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from preftune.api_keys import this_command
from preftune.errors import PreftuneError
from preftune.evaluation.models import find, load_policy
from preftune.files import write_whole
from preftune.policy.reasons import reason
from preftune.training.run_folder import to_json

FILE = "benchmark.json"
HARNESS = "lm_eval"


def benchmark(
    path: str | Path,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    limit: int | None = None,
    few_shot: int | None = None,
    chat: bool = False,
    batch_size: int = 8,
    seed: int = 0,
    out: Path | None = None,
) -> tuple[dict[str, Any], Path]:
    """Measure a run's model, or any, on tasks of lm-evaluation-harness.

    Args:
        path: run folder, or model: folder, hub id or "sandbox".
        tasks: their names.
        include: folder with tasks of one's own (YAML), whose data may lie in local files.
        limit: use the first questions of each task only.
        few_shot: examples before each question; none: as the task says.
        chat: ask in the model's chat template.
        batch_size: questions read at a time.
        seed: of few-shot examples and samples.
        out: file to write; none: benchmark.json in the run folder, for a model in the current one.

    Returns:
        What the file holds ("tasks": metric by metric, with standard errors), and the file.

    Raises:
        PreftuneError: if the harness is not installed, there is no such model or task, or a task cannot be loaded.
    """
    if importlib.util.find_spec(HARNESS) is None:
        raise PreftuneError("benchmarks need lm-evaluation-harness: pip install 'preftune[eval]'")
    if include is not None and not include.is_dir():
        raise PreftuneError(f"--include {include} is no folder, expected one with tasks (YAML)")
    named = find(path)
    if named.is_reward_model:
        raise PreftuneError(f"{path} is a reward model, which gives no log-probs of answers: name a policy")
    target = out or (named.run or Path()) / FILE
    if not target.absolute().parent.is_dir():
        raise PreftuneError(f"cannot write {target}: name a file in a folder that exists")
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if include is None else str(include))
    if unknown := [name for name in tasks if not manager.match_tasks([name])]:
        raise PreftuneError(
            f"there is no task {unknown[0]}: name one of lm-evaluation-harness (lm-eval ls tasks), or the folder with "
            "your own (--include)"
        )
    loaded = load_policy(named)
    results = _measured(_plain(loaded.lm), loaded.tokenizer, manager, tasks, limit, few_shot, chat, batch_size, seed)
    found = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": this_command(),
        "model": str(path),
        "harness": version("lm-eval"),
        "limit": limit,
        "tasks": {name: _metrics(values) for name, values in results.items()},
    }
    _write(target, found)
    return found, target


def _write(target: Path, found: Mapping[str, Any]) -> None:
    try:
        write_whole(target, (to_json(found, indent=2) + "\n").encode())
    except OSError as error:
        raise PreftuneError(f"cannot write {target} ({error.strerror}): make room, or name another file") from error


def _plain(lm: nn.Module) -> nn.Module:
    """A model as the harness takes it: adapters are merged where their base can hold the sum, and stay where not."""
    merge: Any = getattr(lm, "merge_and_unload", None)
    if merge is None or getattr(lm, "is_quantized", False):
        return lm
    merged: nn.Module = merge(safe_merge=True)
    return merged


def _measured(
    lm: Any,
    tokenizer: Any,
    manager: Any,
    tasks: Sequence[str],
    limit: int | None,
    few_shot: int | None,
    chat: bool,
    batch_size: int,
    seed: int,
) -> Mapping[str, Mapping[str, Any]]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    logging.getLogger(HARNESS).setLevel(logging.ERROR)  # it warns of what is meant: a model that is loaded already
    cuda = torch.cuda.is_available()
    lm = lm.eval().to("cuda" if cuda else "mps" if torch.backends.mps.is_available() else "cpu")
    seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), seed)
    try:
        with redirect_stdout(sys.stderr):  # what it prints is no result
            model = HFLM(pretrained=lm, tokenizer=tokenizer, batch_size=batch_size)
            found = simple_evaluate(
                model=model,
                tasks=list(tasks),
                task_manager=manager,
                num_fewshot=few_shot,
                limit=limit,
                apply_chat_template=chat,
                log_samples=False,
                **seeds,
            )
    except Exception as error:  # tasks load data and run code of many libraries, whose errors have no common class
        raise PreftuneError(
            f"the tasks {', '.join(tasks)} cannot be run ({reason(error)}): check their data and the network, or name "
            "tasks from local files (--include)"
        ) from error
    results: Mapping[str, Mapping[str, Any]] = found["results"]
    return results


def _metrics(values: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """The harness's "acc,none" and "acc_stderr,none" as one entry: value and standard error."""
    found: dict[str, dict[str, float | None]] = {}
    for key, value in values.items():
        name, comma, kind = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = values.get(f"{name}_stderr,{kind}")
        label = name if kind == "none" else f"{name} ({kind})"
        found[label] = {"value": float(value), "se": float(error) if isinstance(error, int | float) else None}
    return found
