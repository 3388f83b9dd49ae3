"""Who accepts a rewrite: the optimiser itself, what a generator answers, or a judge."""

from __future__ import annotations

import json
import shutil

import pytest
from loopback import listening, saying

from preftune.data.records import Text
from preftune.errors import PreftuneError
from preftune.prompting.config import PromptsConfig
from preftune.prompting.discriminators import Duel, SelfJudge, choice, letter, open_discriminator
from preftune.prompting.generators import Generator, GeneratorSampling, Reply
from preftune.prompting.template import Template
from preftune.prompting.training import resume_prompts, train_prompts

TEMPLATE = Template()
DUELS = [
    Duel("first", "Say what 2+2 is.", "Say what 2+2 is. Think.", "Say it.", 20, "it is good"),
    Duel("second", "Say what 3+3 is.", "Say it.", "Say what 3+3 is. Think.", 20, "it is good"),
]


class Scripted(Generator):
    """Says what a function makes of a prompt."""

    name, fingerprint, chat = "scripted", "1", False

    def __init__(self, says) -> None:
        self.says, self.asked = says, []

    def answers(self, questions, sampling: GeneratorSampling, progress=None) -> list[list[Reply]]:
        prompts: list[Text] = [question.prompt for question in questions]
        self.asked += prompts
        return [[Reply(self.says(prompt))] for prompt in prompts]


def thinks_first(prompt: str) -> str:
    """The letter of the prompt that says Think."""
    return "A." if "Think" in prompt.partition("[Prompt A]")[2].partition("[End of prompt A]")[0] else " B"


@pytest.mark.parametrize(
    ("says", "preferences", "flips"),
    [
        (thinks_first, [1.0, 0.0], [False, False]),
        (lambda _: "A", [0.5, 0.5], [True, True]),
        (lambda _: "(b)", [0.5, 0.5], [True, True]),
        (lambda _: "Both are good", [None, None], [False, False]),
        (lambda _: "", [None, None], [False, False]),
    ],
)
def test_the_optimiser_is_asked_in_both_orders(says, preferences, flips) -> None:
    optimiser = Scripted(says)
    verdicts = SelfJudge(optimiser, TEMPLATE).verdicts([duel.comparison(TEMPLATE) for duel in DUELS])
    assert [verdict.preference for verdict in verdicts] == preferences
    assert [verdict.flips for verdict in verdicts] == flips
    there, back = optimiser.asked[:2]
    assert there.index("Think.") < there.index("\nSay it.") < there.index("Answer with one letter")
    assert back.index("\nSay it.") < back.index("Think.")
    assert all("it is good" in one for one in optimiser.asked), "the right answer is shown, where it is known"


def test_letters_are_read_with_what_stands_around_them() -> None:
    assert [letter(text) for text in ("A", " b.", "(B) because", "**A**", "Apple", "")] == [
        *("A", "B", "B", "A"),
        None,
        None,
    ]
    assert choice("second one", ("first", "second")) == 0.0


def test_what_a_generator_answers_is_scored_by_a_checker(world, monkeypatch, tmp_path) -> None:
    monkeypatch.syspath_prepend(str(world))
    config = PromptsConfig(rounds=2, discriminator="task", generator="own:answers", checker="own:right")
    with open_discriminator(config, tmp_path, TEMPLATE) as judge:
        verdicts = judge.verdicts([duel.comparison(TEMPLATE) for duel in DUELS])
        assert [verdict.preference for verdict in verdicts] == [1.0, 0.0]
        unknown = Duel("third", "Sing.", "Sing. Think.", "Sing now.", 20)
        assert judge.verdicts([unknown.comparison(TEMPLATE)])[0].preference == 0.5, "neither is right"
        letters = Duel("fourth", "A: 3\nB: 4", "Think. A: 3\nB: 4", "A: 3\nB: 4", 20, "A", options=True)
        assert judge.verdicts([letters.comparison(TEMPLATE)])[0].preference == 0.5, "no letter was named"
    lines = (tmp_path / "answers" / "replies.jsonl").read_text().splitlines()
    assert len(lines) == 3 + 2 + 2, "each prompt is answered once"


def test_a_checker_of_a_task_passes_over_what_has_no_right_answer(world, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(world))
    config = PromptsConfig(rounds=2, discriminator="task", generator="own:answers", checker="gsm8k")
    with open_discriminator(config, None, TEMPLATE) as judge:
        found = judge.verdicts([Duel("one", "Sing.", "Sing. Think.", "Sing now.", 20).comparison(TEMPLATE)])
        assert found[0].preference is None


def test_a_budget_that_is_used_up_ends_a_round_and_no_call_is_paid_twice(settings, tmp_path) -> None:
    with listening(saying(lambda turns: "Verdict: 1")) as server:
        how = {"rounds": 2, "discriminator": f"endpoint:{server.url}", "facts": False, "max_new_tokens": 24}
        given = settings("rounds", prompts={**how, "max_calls": 20, "measured": 8})
        with pytest.raises(PreftuneError, match=r"budget of 20 calls is used up .*in round 1.*prompts\.max_calls"):
            train_prompts(given, quiet=True)
        before = len(server.passed)
        assert before == 20
        path = given["output"]["path"]
        with pytest.raises(PreftuneError, match="budget of 20 calls"):
            resume_prompts(path, quiet=True)
        assert len(server.passed) == before, "not one more"
        shutil.copytree(path, tmp_path / "stopped")
        found = resume_prompts(path, changes=["prompts.max_calls=500"], quiet=True)
    with pytest.raises(PreftuneError, match=server.url.removesuffix("/v1")):  # it has gone
        resume_prompts(tmp_path / "stopped", quiet=True)
    asked = [json.dumps(body, sort_keys=True) for body in server.passed]
    assert len(set(asked)) == len(asked), "nothing is asked twice"
    assert found.rounds[0]["accepted"] == 0
    assert found.rounds[0]["flips"] > 0, "it takes the first, whatever stands there"
