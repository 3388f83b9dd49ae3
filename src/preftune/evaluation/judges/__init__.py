"""Judges: who says which of two answers is better.

sandbox                     the built-in world's true reward
gsm8k                       a right final answer over a wrong one (any task with an exact checker)
package.module:function     a Python function that scores one answer, or compares two
reward:RUN                  a reward model: a run of bradley_terry, or a sequence classifier of one label
endpoint:URL#MODEL          a language model behind an OpenAI-compatible endpoint, asked in both orders
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.data import builders
from preftune.errors import PreftuneError
from preftune.evaluation.asking import KEY_VARIABLE
from preftune.evaluation.budget import Budget
from preftune.evaluation.judges.base import Comparison, Judge, ScoringJudge, Verdict

__all__ = ["Comparison", "EndpointUse", "Judge", "ScoringJudge", "Verdict", "open_judge"]

SANDBOX, REWARD, ENDPOINT = "sandbox", "reward:", "endpoint:"
CALLS = "calls.jsonl"  # beside verdicts.jsonl: what was sent to an endpoint, and answered


@dataclass(frozen=True, kw_only=True)
class EndpointUse:
    """How a judge behind an endpoint may be used; the fields are those of `asking.EndpointConfig`."""

    max_calls: int | None = 10_000
    max_tokens: int | None = None
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 6
    key_variable: str = KEY_VARIABLE
    budget: Budget | None = None


def open_judge(
    name: str, folder: Path | None = None, *, rubric: Path | None = None, use: EndpointUse | None = None
) -> Judge:
    """A judge by its name on the command line.

    Args:
        name: one of those above.
        folder: where its verdicts (and calls) are kept, and replayed from; None: they are not kept.
        rubric: text file for a judge behind an endpoint; None: the built-in rubric.
        use: of an endpoint.

    Raises:
        PreftuneError: if there is no such judge.
    """
    if not name.startswith(ENDPOINT) and rubric is not None:
        raise PreftuneError(f"--rubric is for a judge behind an endpoint, and {name} is none: leave it out")
    judge = _endpoint(name, folder, rubric, use or EndpointUse()) if name.startswith(ENDPOINT) else _local(name)
    if folder is None:
        return judge
    from preftune.evaluation.judges.verdicts import KeptJudge

    try:
        return KeptJudge(judge, folder)
    except BaseException:
        judge.close()
        raise


def _local(name: str) -> Judge:
    from preftune.evaluation.judges.base import digest
    from preftune.evaluation.judges.function import ScoringFunction, TaskJudge, by_function

    if name == SANDBOX:
        from preftune.evaluation.judges.function import code_of
        from preftune.sandbox import world

        return ScoringFunction(name, lambda response: world.true_reward(response), digest(name, code_of(world)))
    if name.startswith(REWARD):
        path = name.removeprefix(REWARD)
        if not path.strip():
            raise PreftuneError(f"{name} names no model, expected {REWARD}RUN")
        from preftune.evaluation.judges.reward_model import RewardModel

        return RewardModel(name, path)
    if name in builders.names():
        return TaskJudge(name, builders.get(name))
    if ":" not in name:
        known = [SANDBOX, *builders.names(), f"{REWARD}RUN", f"{ENDPOINT}URL#MODEL", "package.module:function"]
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise PreftuneError(f"there is no judge {name!r}, expected one of {', '.join(known)}{hint}")
    found = _imported(name)
    if isinstance(found, type) and issubclass(found, builders.Task):
        return TaskJudge(name, found())
    return by_function(name, found)


def _imported(name: str) -> Any:
    """What package.module:thing names."""
    from preftune.importing import imported

    module, _, thing = name.partition(":")
    try:
        found = imported(module)
    except (Exception, SystemExit) as error:  # whatever a user's module does while it is imported
        problem = " ".join(str(error).split())
        raise PreftuneError(f"judge {name}: cannot import {module} ({type(error).__name__}: {problem})") from error
    if not callable(getattr(found, thing, None)):
        near = difflib.get_close_matches(thing, [each for each in vars(found) if not each.startswith("_")], 1)
        hint = f"did you mean {near[0]}?" if near else f"define it in {module}"
        raise PreftuneError(f"judge {name}: {module} has no function {thing!r}; {hint}")
    return getattr(found, thing)


def _endpoint(name: str, folder: Path | None, rubric: Path | None, use: EndpointUse) -> Judge:
    from preftune.evaluation.endpoint import Endpoint, EndpointConfig
    from preftune.evaluation.judges.llm import LLMJudge
    from preftune.evaluation.judges.rubric import read_rubric

    text = read_rubric(rubric)
    url, _, model = name.removeprefix(ENDPOINT).partition("#")
    config = EndpointConfig(url=url, model=model, **vars(use))
    endpoint = Endpoint(config, None if folder is None else folder / CALLS)
    return LLMJudge(f"{ENDPOINT}{config.url}#{endpoint.model}", endpoint, text)
