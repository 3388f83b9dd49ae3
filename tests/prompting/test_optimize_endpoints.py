"""Optimisers and judges behind endpoints: nothing is paid for twice, and budgets hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from loopback import Body, listening
from task_prompts import PLAN, better

from preftune.errors import PreftuneError
from preftune.evaluation.judges import EndpointUse
from preftune.prompting.optimize import OptimizeSettings
from preftune.prompting.optimizing import optimize_given
from preftune.prompting.using import Rerank

SETTINGS = OptimizeSettings(candidates=1)


def rewrites(path: str, body: Body) -> Body:
    """Rewrites prompts; as a judge, it finds the longer of two prompts better."""
    asked = body["messages"][-1]["content"]
    if "[Prompt 1]" in asked:
        first, second = (asked.split(f"[Prompt {n}]\n")[1].split(f"\n[End of prompt {n}]")[0] for n in (1, 2))
        said = f"I see.\nVerdict: {1 if len(first) > len(second) else 2}"
    else:
        (said,) = better([asked])
    choice = {"index": 0, "finish_reason": "stop", "message": {"content": said}}
    return {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 4}}


def write_prompts(path: Path, count: int) -> Path:
    path.write_text("".join(f"Count to {i}.\n" for i in range(count)), encoding="utf-8")
    return path


def test_a_stopped_run_goes_on_and_pays_for_nothing_twice(tmp_path: Path) -> None:
    prompts, out = write_prompts(tmp_path / "prompts.txt", 20), tmp_path / "out"
    use = EndpointUse(retries=0, concurrency=1)
    with listening(rewrites) as proxy:
        model = f"endpoint:{proxy.url}#m"
        proxy.faults = [None] * 7 + [503]
        with pytest.raises(PreftuneError, match="what was answered is kept, and the same command goes on"):
            optimize_given(None, prompts, model, SETTINGS, out=out, use=use)
        assert not (out / "optimized.jsonl").exists()
        found = optimize_given(None, prompts, model, SETTINGS, out=out, use=use)
        assert len(proxy.passed) == 20, "each prompt was paid for once"
        assert [each.text for each in found] == [f"Count to {i}.{PLAN}" for i in range(20)]
        assert optimize_given(None, prompts, model, SETTINGS, out=out, use=use) == found
        assert len(proxy.passed) == 20


def test_one_budget_is_for_all_endpoints(tmp_path: Path) -> None:
    with listening(rewrites) as proxy:
        model = f"endpoint:{proxy.url}#m"
        rerank = Rerank(judge=model)
        (found,) = optimize_given("Count to 3.", None, model, SETTINGS, rerank=rerank, use=EndpointUse(max_calls=3))
        assert (found.text, len(proxy.passed)) == (f"Count to 3.{PLAN}", 3), "one rewrite, judged in both orders"
        with pytest.raises(PreftuneError, match="the budget of 2 calls is used up"):
            optimize_given("Count to 4.", None, model, SETTINGS, rerank=rerank, use=EndpointUse(max_calls=2))
        assert len(proxy.passed) == 5
