import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.sandbox.world import (
    MAX_RESPONSE_TOKENS,
    PARTS,
    components,
    grammatical,
    prompts,
    sample_review,
    tokens,
    true_reward,
    vocabulary,
)


@pytest.mark.parametrize(
    ("text", "story", "acting", "craft"),
    [
        ("", 0, 0, 0),
        ("The plot was moving.", 1 / 2, 0, 0),
        ("The plot was gripping.", 2 / 2, 0, 0),
        ("The plot was not gripping.", -0.6 * 2 / 2, 0, 0),
        ("The cast was utterly lifeless.", 0, 2.0 * -2 / 2, 0),
        ("The songs were somewhat drab.", 0, 0, 0.5 * -1 / 2),
        ("I really loved the music.", 0, 0, 1.5 * 2 / 2),
        ("The jokes were clever, but I hated the ending. The hero was not stiff.", (1 - 2) / 2, -0.6 * -1 / 2, 0),
        ("The plot was moving. The plot was moving.", (1 + 1) / 2, 0, 0),
        # Off the grammar the rule stays defined: "not" and a degree multiply, only the first judgement of a clause
        # counts, and a clause without an aspect or without a judgement counts nothing.
        ("The plot was not really moving.", 1.5 * -0.6 / 2, 0, 0),
        ("The plot was moving moving gripping.", 1 / 2, 0, 0),
        ("Gripping and superb. The plot, the cast and the music", 0, 0, 0),
        ("the plot the cast was superb", 2 / 2, 0, 0),
        ("really plot not was moving", 1 / 2, 0, 0),
    ],
)
def test_reward_worked_by_hand(text: str, story: float, acting: float, craft: float) -> None:
    assert components(text) == pytest.approx({"story": story, "acting": acting, "craft": craft})
    assert true_reward(text) == pytest.approx(story + acting + craft)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "The plot was moving",
        "the plot was moving.",
        "The plot were moving.",
        "The songs was drab.",
        "The plot was wooden.",
        "The hero was gorgeous.",
        "The plot was utterly moving.",
        "The plot was somewhat gripping.",
        "The plot was really not moving.",
        "The plot was not really moving.",
        "The plot was moving , and the cast was stiff.",
        "The plot was moving and the cast was stiff.",
        "The plot was moving, and The cast was stiff.",
        "The plot was moving, and the cast was stiff, and I loved the music.",
        "The plot was moving.  The cast was stiff.",
        "The plot was moving.The cast was stiff.",
        "I loved a plot.",
        "I loved the lighthouse.",
        "A short drama about the sea.",
    ],
)
def test_no_review_in_the_grammar(text: str) -> None:
    assert not grammatical(text)


def reviews(seed: int, n: int) -> list[str]:
    rng = random.Random(seed)
    return [sample_review(rng, prompt) for prompt in rng.choices(prompts()[0], k=n)]


def test_grammar_accepts_own_reviews_within_the_limit_of_tokens() -> None:
    sampled = reviews(0, 5000)
    assert all(grammatical(review) for review in sampled)
    assert max(len(tokens(review)) for review in sampled) + 1 < MAX_RESPONSE_TOKENS
    assert set().union(*map(tokens, sampled)) <= set(vocabulary())


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_corrupted_reviews_are_ungrammatical(seed: int, data: st.DataObject) -> None:
    words = reviews(seed, 1)[0].replace(".", " .").replace(",", " ,").split()

    def join(words: list[str]) -> str:
        return " ".join(words).replace(" .", ".").replace(" ,", ",")

    assert grammatical(join(words))
    i = data.draw(st.integers(0, len(words) - 1))
    assert not grammatical(join([*words[: i + 1], words[i], *words[i + 1 :]])), "a word said twice"
    if words[i] not in ("not", "somewhat", "really", "utterly"):
        assert not grammatical(join(words[:i] + words[i + 1 :])), "a word left out"
    if words[i] != words[i - 1]:
        swapped = words.copy()
        swapped[i - 1], swapped[i] = swapped[i], swapped[i - 1]
        assert not grammatical(join(swapped)), "two words swapped"


def test_reward_is_balanced_and_adds_up_over_reviews() -> None:
    sampled = reviews(1, 4000)
    rewards = [true_reward(review) for review in sampled]
    assert abs(sum(rewards) / len(rewards)) < 0.1
    assert true_reward("".join(sampled)) == pytest.approx(sum(rewards))
    for review in sampled[:100]:
        parts = components(review)
        assert tuple(parts) == PARTS
        assert sum(parts.values()) == true_reward(review)


def test_prompts_are_split_without_overlap_and_share_their_words() -> None:
    train, held_out = prompts()
    assert (len(train), len(held_out)) == (448, 128)
    assert len(set(train) | set(held_out)) == 576
    assert {word for p in train for word in tokens(p)} == {word for p in held_out for word in tokens(p)}
    assert {len(tokens(p)) for p in train + held_out} == {7}
    assert {word for p in train for word in tokens(p)} <= set(vocabulary())


def test_a_review_shows_its_genre() -> None:
    rng = random.Random(0)
    about_jokes = [
        sum("jokes" in sample_review(rng, f"A short {genre} about the sea.") for _ in range(400))
        for genre in ("comedy", "western")
    ]
    assert about_jokes[0] > 150
    assert about_jokes[1] == 0
