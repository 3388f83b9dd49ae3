"""Generators: local, behind an endpoint, a function; and what is kept of their replies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from preftune.errors import PreftuneError
from preftune.evaluation.judges import EndpointUse
from preftune.prompting.generators import Generator, GeneratorSampling, Reply, open_generator
from preftune.prompting.rewriter import Asked, cleaned, default_limit, open_rewriter
from preftune.prompting.template import FILE, Template
from preftune.serving.command import open_model
from preftune.serving.server import Server

PROMPTS = ["a funny comedy about a robot .", "a boring drama about a king .", "a funny comedy about a robot ."]
GREEDY = GeneratorSampling(max_new_tokens=12)
DRAWN = GeneratorSampling(max_new_tokens=12, temperature=1.0, samples=2, seed=3)


def shout(prompts: list[str]) -> list[str]:
    return [prompt.upper() for prompt in prompts]


def too_few(prompts: list[str]) -> list[str]:
    return prompts[1:]


def fails(prompts: list[str]) -> list[str]:
    raise ValueError("no\nmore")


@pytest.fixture(scope="module")
def local() -> Iterator[Generator]:
    with open_generator("sandbox") as found:
        yield found


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    with Server(open_model("sandbox"), port=0) as server:
        yield f"endpoint:{server.url}"


def texts(replies: list[list[Reply]]) -> list[list[str]]:
    return [[one.text for one in some] for some in replies]


def test_a_local_one_does_not_depend_on_what_else_is_asked(local: Generator) -> None:
    together = texts(local.write(PROMPTS, DRAWN))
    assert together[1] == texts(local.write(PROMPTS[1:2], DRAWN))[0]
    assert together[0] == texts(local.write(PROMPTS[:1], DRAWN))[0]
    assert together[0] != together[2], "the same prompt, asked twice, is drawn twice"
    greedy = texts(local.write(PROMPTS, GREEDY))
    assert greedy[0] == greedy[2]


def test_stops_where_it_is_told(local: Generator) -> None:
    (whole,) = local.write(PROMPTS[:1], GREEDY)
    stop = whole[0].text.split()[3]
    (cut,) = local.write(PROMPTS[:1], GeneratorSampling(max_new_tokens=12, stop=(stop,)))
    assert cut[0].text == whole[0].text[: whole[0].text.index(stop)]
    assert cut[0].ended


def test_a_prompt_that_does_not_fit_is_refused_alone(local: Generator) -> None:
    long, short = local.write(["a funny film . " * 60, PROMPTS[0]], GREEDY)
    assert "the prompt has 240 tokens, and sandbox reads 128 in all" in long[0].refused
    assert short[0].text


def test_an_endpoint_says_what_a_local_one_does(local: Generator, served: str, tmp_path: Path) -> None:
    with open_generator(served, tmp_path, chat=False) as found:
        assert texts(found.write(PROMPTS, GREEDY)) == texts(local.write(PROMPTS, GREEDY))
        assert found.budget is not None
        assert found.budget.calls == 2, "the same request is sent once"
    with open_generator(served, tmp_path, use=EndpointUse(max_calls=2), chat=False) as again:
        again.write(PROMPTS, GREEDY)
        with pytest.raises(PreftuneError, match="the budget of 2 calls is used up"):
            again.write(["a sad film about a dog ."], GREEDY)


def test_replies_are_kept_and_replayed(tmp_path: Path) -> None:
    with open_generator("sandbox", tmp_path) as first:
        before = first.write(PROMPTS[:2], DRAWN)
    with open_generator("sandbox", tmp_path) as second:
        assert second.write(PROMPTS, DRAWN)[:2] == before
        assert second.replayed == 2  # type: ignore[attr-defined]
        assert second.write(PROMPTS, GREEDY) != before
    lines = (tmp_path / "replies.jsonl").read_text().splitlines()
    assert len(lines) == 6, "three with each sampling, the repeated one by itself"
    (tmp_path / "replies.jsonl").write_text(json.dumps({"id": 3}) + "\n")
    with pytest.raises(PreftuneError, match=r"replies.jsonl line 1 is no reply"):
        open_generator("sandbox", tmp_path)


def test_a_function_may_answer() -> None:
    with open_generator(f"{__name__}:shout") as found:
        assert texts(found.write(["a", "b"], GeneratorSampling(samples=2))) == [["A", "A"], ["B", "B"]]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (f"{__name__}:too_few", "gave 1 answers to 2 prompts, expected a text for each"),
        (f"{__name__}:fails", r"failed \(ValueError: no more\)"),
    ],
)
def test_says_what_a_function_did_wrong(name: str, said: str) -> None:
    with open_generator(name) as found, pytest.raises(PreftuneError, match=said):
        found.write(["a", "b"], GREEDY)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module:f", "cannot import no_such_module"),
        (f"{__name__}:nothing", "has no function 'nothing'"),
        ("no/such/model", "no/such/model"),
        ("endpoint:nowhere", "no URL of an endpoint"),
    ],
)
def test_says_who_there_is_not(name: str, said: str) -> None:
    with pytest.raises(PreftuneError, match=said):
        open_generator(name)


def test_an_empty_prompt_is_refused(local: Generator) -> None:
    with pytest.raises(PreftuneError, match="prompt 1 for sandbox is empty"):
        local.write(["a", " \n"], GREEDY)
    assert local.write([], GREEDY) == []


def test_a_rewriter_asks_with_its_own_template(tmp_path: Path) -> None:
    Template(optimizer="rewrite {prompt} in {words} words{known}", plain_end="=>").write(tmp_path / FILE)
    template = tmp_path / FILE
    with open_rewriter(f"{__name__}:shout", template=template) as rewriter:
        found = rewriter.rewrite([Asked("add 2", words=5), Asked("b", response="r")], GREEDY)
    assert found[0] == ["REWRITE ADD 2 IN 5 WORDS=>"]
    assert f"IN {default_limit('b')} WORDS" in found[1][0]
    assert "[WHAT A MODEL ANSWERED TO IT, WHICH MAY BE WRONG]\nR\n" in found[1][0]


@pytest.mark.parametrize(
    ("said", "rewrite"),
    [
        ("New prompt:\nAdd.", "Add."),
        ("## Optimized Prompt: Add.", "Add."),
        ("```text\nAdd.\n```", "Add."),
        ("```\na\n```\nor\n```\nb\n```", "```\na\n```\nor\n```\nb\n```"),
        ("\u201cAdd.\u201d", "Add."),
        ('"a" and "b"', '"a" and "b"'),
        ("Prompting: what is it?", "Prompting: what is it?"),
        ("", ""),
    ],
)
def test_what_stands_around_a_rewrite_is_taken_away(said: str, rewrite: str) -> None:
    assert cleaned(said) == rewrite
