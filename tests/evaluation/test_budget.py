from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from preftune.errors import PreftuneError
from preftune.evaluation.budget import Budget, BudgetError


def test_threads_together_never_exceed_it() -> None:
    budget, spent, lock = Budget(max_calls=200, max_tokens=1000), [0], threading.Lock()

    def call(seed: int) -> bool:
        most = random.Random(seed).randint(10, 40)
        took = random.Random(seed + 1).randint(0, most)
        try:
            budget.put_aside(most)
        except BudgetError:
            return False
        with lock:
            spent[0] += took
        budget.count(most, took)
        return True

    with ThreadPoolExecutor(16) as pool:
        done = list(pool.map(call, range(400)))
    assert 0 < sum(done) < 400
    assert budget.calls <= 200
    assert budget.tokens == spent[0] <= 1000
    assert spent[0] > 1000 - 40 or budget.calls == 200


def test_a_call_waits_for_what_others_leave() -> None:
    budget = Budget(max_tokens=100)
    budget.put_aside(90)
    got = threading.Event()
    waiting = threading.Thread(target=lambda: (budget.put_aside(50), got.set()))
    waiting.start()
    time.sleep(0.05)
    assert not got.is_set()
    budget.count(90, 20)  # it took less than it might have
    waiting.join(5)
    assert got.is_set()
    budget.count(50, 50)
    with pytest.raises(
        PreftuneError, match=r"the budget of 100 tokens is used up \(70 spent, and the next call may take"
    ):
        budget.put_aside(31)
    budget.put_aside(30)
    assert budget.calls == 3


def test_no_limit_and_none_at_all() -> None:
    budget = Budget()
    for _ in range(1000):
        budget.put_aside(10**9)
    assert budget.calls == 1000
    for limits in ({"max_calls": 0}, {"max_tokens": -1}):
        with pytest.raises(PreftuneError, match="expected at least 1"):
            Budget(**limits)
