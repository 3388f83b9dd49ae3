"""The built-in tasks as data, as a benchmark, and as models by name."""

from __future__ import annotations

import pytest

from preftune.errors import PreftuneError
from preftune.prompting.benchmarks import open_benchmark
from preftune.prompting.rewriter import template_of
from preftune.prompting.template import Template
from preftune.sandbox.tasks import TEMPLATE
from preftune.sandbox.tasks.teacher import rewrite
from preftune.sandbox.tasks.wordings import PLANS


def test_no_question_of_the_test_is_trained_on() -> None:
    test, training = (open_benchmark(name).questions for name in ("tasks", "tasks=train"))
    assert (len(test), len(training)) == (500, 2000)
    assert not {one.prompt for one in test} & {one.prompt for one in training}
    assert {one.task for one in test} == set(PLANS)


def test_answers_are_scored_exactly() -> None:
    benchmark = open_benchmark("tasks", limit=5)
    for question in benchmark.questions:
        assert benchmark.score(question, question.shown).right
        assert not benchmark.score(question, question.shown.rpartition(" ")[0]).right
        assert not benchmark.score(question, f"{question.shown} {question.gold}").right


def test_a_part_that_is_not_there() -> None:
    with pytest.raises(PreftuneError, match="no part 'dev', expected tasks=test or tasks=train"):
        _ = open_benchmark("tasks=dev").questions


def test_the_teacher_keeps_what_is_given() -> None:
    prompts = [one.prompt for one in open_benchmark("tasks=train", limit=100).questions]
    rewrites = rewrite([Template().optimizer_input(prompt, 20) for prompt in prompts])
    for prompt, text in zip(prompts, rewrites, strict=True):
        digits = [word for word in prompt.split() if word.isdigit()]
        assert [word for word in text.split() if word.isdigit()] == digits
    planned = sum(not any(prompt in text for prompt in prompts) for text in rewrites)
    assert 30 <= planned <= 70
    with pytest.raises(PreftuneError, match="rewrites prompts of the built-in tasks alone"):
        rewrite(["Name three rivers."])


def test_a_model_brings_its_template() -> None:
    assert template_of("sandbox:optimizer") == TEMPLATE
    assert template_of("sandbox") == Template()
    with pytest.raises(PreftuneError, match="no built-in model sandbox:nort, expected one of north"):
        template_of("sandbox:nort")
