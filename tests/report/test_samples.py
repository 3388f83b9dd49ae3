from __future__ import annotations

from preftune.report import samples
from preftune.report.reading import read
from preftune.report.samples import groups, sample_pairs


def test_samples_stand_side_by_side(write_run):
    film, play = sample_pairs(read(write_run()).samples)
    assert (film.prompt, film.start.response, film.end.response) == ("a film", "it was dull", " it was lovely")
    assert film.start.notes == ("true reward \u22120.500", "log-probability \u221212.25 nats")
    assert film.end.notes == ("true reward 1.50", "cut off at the length limit")
    assert (play.prompt, play.end.response, play.end.notes) == ("a play", "", ())


def test_samples_without_partner_and_several_of_one_prompt():
    rows = [
        {"when": "start", "prompt": "p", "response": "one"},
        {"when": "start", "prompt": "p", "response": "two"},
        {"when": "end", "prompt": "p", "response": "three"},
        {"when": "end", "prompt": "q", "response": None},
        {"when": "middle", "prompt": "r", "response": "x"},
        {},
    ]
    found = [(p.prompt, p.start and p.start.response, p.end and p.end.response) for p in sample_pairs(rows)]
    assert found == [("p", "one", "three"), ("p", "two", None), ("q", None, "")]


def test_a_conversation_is_shown_as_json():
    (pair,) = sample_pairs([{"when": "end", "prompt": [{"role": "user", "content": "hé"}], "response": "x"}])
    assert '"content": "hé"' in pair.prompt


def test_generations_stand_beside_those_of_the_other_model():
    row = {
        "prompt": "p",
        "policy": "a b",
        "against": "a",
        "policy_tokens": 1,
        "against_tokens": 2,
        "policy_ended": False,
    }
    (group,) = groups([], [row], 10)
    (pair,) = group.pairs
    assert (pair.start.response, pair.end.response) == ("a", "a b")
    assert pair.start.notes == ("2 tokens",)
    assert pair.end.notes == ("1 token", "cut off at the length limit")
    assert [piece.text for piece in pair.pieces[1] if piece.differs] == [" b"]


def test_a_page_has_no_room_for_all_samples(monkeypatch):
    monkeypatch.setattr(samples, "ROOM", 1000)
    rows = [{"when": "end", "prompt": f"{i}", "response": "é" * 200} for i in range(9)]
    (group,) = groups(rows, [], 10)
    assert (len(group.pairs), group.left_out) == (2, 7)
    (group,) = groups(rows[:1], [], 10)
    assert (len(group.pairs), group.left_out) == (1, 0)
    monkeypatch.undo()
    (group,) = groups(rows, [], 4)
    assert (len(group.pairs), group.left_out) == (4, 5)
