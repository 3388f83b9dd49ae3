"""The endpoint that rewrites prompts, asked by a real client."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from loopback import listening
from task_prompts import PLAN

from preftune.evaluation.judges import EndpointUse
from preftune.prompting.generators import open_generator
from preftune.prompting.optimize import OptimizeSettings
from preftune.prompting.serving import RewritingServer
from preftune.prompting.using import open_optimizer
from preftune.serving.server import Server

NAIVE = "Tom has 3 apples and 5 pears. How many?"


@pytest.fixture
def client() -> Iterator[openai.OpenAI]:
    with (
        open_optimizer("task_prompts:better", OptimizeSettings()) as run,
        Server(RewritingServer("better", run), port=0) as server,
        openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as made,
    ):
        yield made


def chat(client: openai.OpenAI, text: str, **options: Any) -> Any:
    return client.chat.completions.create(model="better", messages=[{"role": "user", "content": text}], **options)


def test_the_last_turn_comes_back_rewritten(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["better"]
    answer = chat(client, NAIVE, temperature=0)
    assert answer.choices[0].message.content == NAIVE + PLAN
    assert answer.choices[0].finish_reason == "stop"
    assert answer.preftune == {"changed": True, "reason": "", "prompt": NAIVE + PLAN}
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello 1"},
        {"role": "assistant", "content": "Hello 2"},
        {"role": "user", "content": NAIVE},
    ]
    answer = client.chat.completions.create(model="better", messages=turns)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == NAIVE + PLAN


def test_texts_come_back_rewritten(client: openai.OpenAI) -> None:
    answer: Any = client.completions.create(model="better", prompt=[NAIVE, "Why?"])
    assert [choice.text for choice in answer.choices] == [NAIVE + PLAN, "Why?" + PLAN]
    assert [each["changed"] for each in answer.preftune["prompts"]] == [True, True]


def test_a_stream_holds_the_same(client: openai.OpenAI) -> None:
    chunks = list(chat(client, "  " + NAIVE + "\n", stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "  " + NAIVE + PLAN + "\n"
    assert chunks[-1].preftune["changed"] is True


def test_the_original_comes_back_with_the_reason() -> None:
    with (
        open_optimizer("task_prompts:same", OptimizeSettings(candidates=1)) as run,
        Server(RewritingServer("same", run), port=0) as server,
        openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as made,
    ):
        answer: Any = made.completions.create(model="same", prompt=NAIVE)
    assert answer.choices[0].text == NAIVE
    assert answer.preftune["changed"] is False
    assert answer.preftune["reason"] == "the rewrite is not used: it is the same as the prompt"


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("completions", {"prompt": [1, 2]}, "there is no text of a user to rewrite"),
        ("completions", {"prompt": "  "}, "the prompt is empty, expected text"),
        ("completions", {"prompt": "a\x00b"}, "has the character U+0000, expected text"),
        ("completions", {"prompt": "a" * 100_000}, "prompt 0 has 100,000 characters, expected at most 32,768"),
        ("chat/completions", {"messages": [{"role": "user", "content": ""}]}, "content of messages turn 0 is empty"),
        ("chat/completions", {"messages": [{"role": "user", "content": "a"}], "n": 2}, "n is 2"),
    ],
)
def test_bad_requests_are_one_sentence(client: openai.OpenAI, path: str, body: dict[str, Any], told: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.post(f"/{path}", body=body, cast_to=object)
    assert told in str(error.value)


def test_many_clients_at_once(client: openai.OpenAI) -> None:
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        found[number] = chat(client, f"Count to {number}").choices[0].message.content

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: f"Count to {number}{PLAN}" for number in range(12)}


def test_a_generator_answers_the_rewritten_prompt() -> None:
    seen = []

    def answer(path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path.endswith("/models"):
            return {"object": "list", "data": [{"id": "g", "object": "model"}]}
        seen.append(body)
        said = [
            {"index": i, "finish_reason": "stop", "message": {"content": f"8, {i}"}} for i in range(body.get("n", 1))
        ]
        return {"choices": said, "usage": {"prompt_tokens": 9, "completion_tokens": 4}}

    with (
        listening(answer) as behind,
        open_optimizer("task_prompts:better", OptimizeSettings()) as run,
        open_generator(f"endpoint:{behind.url}", use=EndpointUse(max_calls=2, retries=0)) as generator,
        Server(RewritingServer("better", run, generator), port=0) as server,
        openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as made,
    ):
        turns: Any = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": NAIVE}]
        found: Any = made.chat.completions.create(model="better", messages=turns, max_tokens=7, temperature=0.5, seed=3)
        assert found.choices[0].message.content == "8, 0"
        assert found.preftune["prompt"] == NAIVE + PLAN
        assert seen[0]["messages"] == [turns[0], {"role": "user", "content": NAIVE + PLAN}]
        assert (seen[0]["max_tokens"], seen[0]["temperature"]) == (7, 0.5)
        made.chat.completions.create(model="better", messages=turns, temperature=0)
        with pytest.raises(openai.APIStatusError, match="the budget of 2 calls is used up"):
            made.chat.completions.create(model="better", messages=turns, temperature=0, max_tokens=5)


def test_an_untrained_model_is_served(tmp_path: Path) -> None:
    with (
        open_optimizer("sandbox", OptimizeSettings(candidates=2), folder=tmp_path) as run,
        Server(RewritingServer("sandbox", run), port=0) as server,
        openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as made,
    ):
        answer: Any = made.completions.create(model="sandbox", prompt=NAIVE)
    assert (answer.choices[0].text, answer.preftune["changed"]) == (NAIVE, False)
