"""The built-in tasks, and the generators that are shipped for them."""

import filecmp
import random
from functools import partial
from pathlib import Path

import pytest
import torch

from preftune.evaluation.models import find, load_policy
from preftune.prompting.generators import GeneratorSampling, open_generator
from preftune.prompting.rewriter import Asked, Rewriter
from preftune.prompting.template import FILE, Template
from preftune.sandbox.tasks import LONGEST, OPTIMIZER, SEEN, SHIPPED, TEMPLATE, UNSEEN, folder_of
from preftune.sandbox.tasks.families import FAMILIES, Question, questions, score
from preftune.sandbox.tasks.train_generators import lesson, make_batch, make_tokenizer, restatement, train
from preftune.sandbox.tasks.wordings import IDLE, NAIVE, PLANS, idle, naive
from preftune.sandbox.train_base import UNKNOWN, save

NAMES = [*SHIPPED, "optimizer"]


def answer_of(question: Question) -> int:
    """The answer in other words than the code's: from the text that a prompt holds."""
    data = question.data
    if question.family == "chain":
        return int(eval(data)) % 10
    if question.family == "cups":
        cups = {number: number == int(data.split()[1]) for number in range(1, 6)}
        for swap in data.split("swaps ")[1].split(" , "):
            one, other = map(int, swap.split())
            cups[one], cups[other] = cups[other], cups[one]
        return next(number for number, ball in cups.items() if ball)
    digits = [int(digit) for digit in data.split()]
    if question.family == "sum":
        return sum(digits) % 10
    if question.family == "double":  # the first digit is doubled most often
        return sum(digit * 2**power for power, digit in enumerate(reversed(digits))) % 10
    gap = digits[0]
    for digit in digits[1:]:
        gap = max(gap, digit) - min(gap, digit)
    return gap


def test_answers_are_right_and_steps_lead_to_them() -> None:
    asked = questions(500, seed=3)
    assert {one.family for one in asked} == set(FAMILIES)
    for one in asked:
        assert int(one.answer) == answer_of(one), one
        assert one.steps[-1].split()[-1] == one.answer
        assert score(one.worked, one.answer)
        assert score(one.direct, one.answer)
    assert questions(20, seed=3) == asked[:20]
    assert questions(20, seed=4) != asked[:20]


@pytest.mark.parametrize(
    ("response", "right"),
    [("answer 3", True), (" 1 : 1 ; 2 : 3 ; answer 3 ", True), ("answer 3 3", False), ("answer 4", False),
     ("3", False), ("", False), ("answer", False), ("answer 3 ; answer 4", False)],
)  # fmt: skip
def test_the_scorer_reads_the_last_answer_alone(response: str, right: bool) -> None:
    assert score(response, "3") is right


def test_the_tokenizer_knows_every_word_and_no_text_is_too_long() -> None:
    tokenizer, rng = make_tokenizer(), random.Random(0)
    for number in range(400):
        trained = list(SHIPPED.values())[number % len(SHIPPED)]
        for prompt, response in (lesson(trained, rng), restatement(rng)):
            ids = tokenizer.encode(prompt) + tokenizer.encode(response)
            assert tokenizer.convert_tokens_to_ids(UNKNOWN) not in ids
            assert tokenizer.encode(f"{prompt} {response}") == ids
            assert tokenizer.decode(ids).split() == f"{prompt} {response}".split()
            assert len(tokenizer.encode(response)) < LONGEST
    question = questions(1, 0)[0]
    for wording in (*NAIVE[question.family], *PLANS[question.family]):
        assert question.data in wording.format(question.data)
    assert all(question.data in idle(naive(question, rng), rng, [wording]) for wording in IDLE)


def test_lessons_show_steps_after_plans_that_are_understood_alone() -> None:
    rng, shown = random.Random(1), 0
    for _ in range(600):
        prompt, response = lesson(SHIPPED["north"], rng)
        family, number = next(
            ((f, i) for f, texts in PLANS.items() for i, t in enumerate(texts) if prompt.startswith(t.split(" {}")[0])),
            (None, -1),
        )
        understood = family is not None and number in SHIPPED["north"].understands[family]
        assert (";" in response) == understood, (prompt, response)
        shown += understood
        assert ";" not in lesson(SHIPPED["control"], rng)[1]
    assert 350 < shown < 480


def test_the_generators_that_are_learned_from_share_one_wording_of_each_family() -> None:
    for family in FAMILIES:
        shared = set(SHIPPED[SEEN[0]].understands[family]) & set(SHIPPED[SEEN[1]].understands[family])
        assert len(shared) == 1
    assert UNSEEN not in SEEN


def test_shipped_models_are_small_and_plain() -> None:
    sizes = [(folder_of(name) / "model.safetensors").stat().st_size for name in NAMES]
    assert max(sizes) < 1_000_000
    assert sum(sizes) < 4_000_000
    tokenizer = make_tokenizer()
    for name in NAMES:
        assert not list(folder_of(name).glob("*.py"))
        loaded = load_policy(find(str(folder_of(name))))
        assert type(loaded.lm).__name__ == "Qwen3ForCausalLM"
        assert {parameter.dtype for parameter in loaded.lm.parameters()} == {torch.float32}
        assert loaded.tokenizer.get_vocab() == tokenizer.get_vocab()


def right(name: str, prompts: list[str], asked: list[Question]) -> float:
    with open_generator(str(folder_of(name))) as generator:
        replies = generator.write(prompts, GeneratorSampling(max_new_tokens=LONGEST))
    return sum(score(reply.text, one.answer) for (reply,), one in zip(replies, asked, strict=True)) / len(asked)


@pytest.mark.parametrize("name", [*SEEN, UNSEEN])
def test_generators_are_right_after_a_plan_and_mostly_wrong_without(name: str) -> None:
    asked, rng = questions(150, seed=8), random.Random(8)
    known = SHIPPED[name].understands
    plans = [PLANS[one.family][known[one.family][number % 2]].format(one.data) for number, one in enumerate(asked)]
    unknown = [next(i for i in (0, 1, 2) if i not in known[one.family]) for one in asked]
    assert right(name, plans, asked) > 0.9
    assert right(name, [naive(one, rng) for one in asked], asked) < 0.4
    assert right(name, [idle(naive(one, rng), rng) for one in asked], asked) < 0.4
    lost = [PLANS[one.family][i].format(one.data) for one, i in zip(asked, unknown, strict=True)]
    assert right(name, lost, asked) < 0.4


def test_without_steps_in_its_training_no_wording_helps() -> None:
    asked = questions(150, seed=8)
    for number in range(3):
        assert right("control", [PLANS[one.family][number].format(one.data) for one in asked], asked) < 0.4


def test_the_optimiser_restates_prompts_and_keeps_what_is_given() -> None:
    asked, rng = questions(50, seed=9), random.Random(9)
    with Rewriter(open_generator(str(folder_of("optimizer"))), TEMPLATE) as rewriter:
        prompts = [Asked(naive(one, rng)) for one in asked]
        written = rewriter.rewrite(prompts, GeneratorSampling(max_new_tokens=LONGEST))
    kept = [one.data in text for (text,), one in zip(written, asked, strict=True)]
    restated = [
        text in {wording.format(one.data) for wording in NAIVE[one.family]}
        for (text,), one in zip(written, asked, strict=True)
    ]
    assert sum(kept) >= 45
    assert sum(restated) >= 45


def test_batches_predict_the_response_and_its_end_alone() -> None:
    tokenizer = make_tokenizer()
    ids_BL, targets_BL = make_batch(tokenizer, partial(lesson, SHIPPED["south"]), random.Random(1), 16)
    rng = random.Random(1)
    for ids_L, targets_L in zip(ids_BL, targets_BL, strict=True):
        prompt, response = lesson(SHIPPED["south"], rng)
        read = targets_L != -100
        assert targets_L[read].tolist() == [*tokenizer.encode(response), tokenizer.eos_token_id]
        assert int(read.nonzero()[0]) == len(tokenizer.encode(prompt)) - 1
        assert ids_L[: len(tokenizer.encode(prompt))].tolist() == tokenizer.encode(prompt)


def test_training_is_deterministic_and_saves_what_loads(tmp_path: Path) -> None:
    texts = partial(lesson, OPTIMIZER)
    first, second = (train(OPTIMIZER, texts, steps=2, size=4) for _ in range(2))
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    save(first.half(), make_tokenizer(), tmp_path)
    shipped = folder_of("optimizer")
    assert {path.name for path in tmp_path.iterdir()} | {FILE} == {path.name for path in shipped.iterdir()}
    assert Template.read(shipped / FILE) == TEMPLATE
    assert filecmp.cmp(tmp_path / "config.json", shipped / "config.json", shallow=False)
    assert filecmp.cmp(tmp_path / "tokenizer.json", shipped / "tokenizer.json", shallow=False)
