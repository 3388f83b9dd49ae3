"""The server, as OpenAI's own client and as plain HTTP see it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import openai
import pytest

from preftune import cli
from preftune.errors import PreftuneError
from preftune.sandbox import world
from preftune.serving.command import open_model
from preftune.serving.server import LARGEST, Server
from preftune.serving.writer import Model

PROMPTS = world.prompts()[1][:6]


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model("sandbox")


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Server]:
    with Server(model, port=0) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


def text(client: openai.OpenAI, **options: Any) -> str:
    given = {"model": "sandbox", "prompt": PROMPTS[0], "max_tokens": 40, "temperature": 0}
    return client.completions.create(**{**given, **options}).choices[0].text


def post(
    server: Server, body: bytes | str, path: str = "/v1/completions", **headers: str
) -> tuple[int, dict[str, Any]]:
    host, port = server.url.split("/")[2].split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_it_says_which_model_it_has(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list().data] == ["sandbox"]
    assert client.models.retrieve("sandbox").owned_by == "preftune"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_completions(client: openai.OpenAI) -> None:
    found = client.completions.create(model="sandbox", prompt=PROMPTS[:2], n=3, max_tokens=40, seed=1)
    assert [choice.index for choice in found.choices] == list(range(6))
    assert all(world.grammatical(choice.text) for choice in found.choices if choice.finish_reason == "stop")
    assert len({choice.text for choice in found.choices}) > 3
    assert found.usage is not None
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    again = client.completions.create(model="sandbox", prompt=PROMPTS[:2], n=3, max_tokens=40, seed=1)
    assert [choice.text for choice in again.choices] == [choice.text for choice in found.choices]
    other = client.completions.create(model="sandbox", prompt=PROMPTS[:2], n=3, max_tokens=40, seed=2)
    assert [choice.text for choice in other.choices] != [choice.text for choice in found.choices]


def test_greedy_answers_do_not_depend_on_who_else_asks(client: openai.OpenAI) -> None:
    alone = [text(client, prompt=prompt, max_tokens=10 + i) for i, prompt in enumerate(PROMPTS)]
    with ThreadPoolExecutor(12) as pool:
        asked = [(prompt, 10 + i) for i, prompt in enumerate(PROMPTS)] * 4
        together = list(pool.map(lambda each: text(client, prompt=each[0], max_tokens=each[1]), asked))
    assert together == alone * 4
    copies = client.completions.create(model="sandbox", prompt=PROMPTS[0], n=2, temperature=0, max_tokens=10)
    assert [choice.text for choice in copies.choices] == [alone[0]] * 2


def test_chat_with_a_system_prompt_and_content_in_parts(client: openai.OpenAI) -> None:
    asked: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": PROMPTS[0]}]},
    ]
    found = client.chat.completions.create(model="sandbox", messages=asked, max_completion_tokens=5, temperature=0)
    assert found.choices[0].message.role == "assistant"
    assert found.choices[0].finish_reason in ("stop", "length")
    whole = client.chat.completions.create(model="sandbox", messages=asked, temperature=0)
    assert str(whole.choices[0].message.content).startswith(str(found.choices[0].message.content))


@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_holds_the_same_text(client: openai.OpenAI, n: int) -> None:
    asked: Any = {"model": "sandbox", "messages": [{"role": "user", "content": PROMPTS[0]}], "seed": 3, "n": n}
    whole = client.chat.completions.create(**asked)
    texts, ends, usage = [""] * n, [""] * n, None
    for chunk in client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **asked):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] = choice.finish_reason or ends[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage
    plain = {"model": "sandbox", "prompt": PROMPTS[0], "temperature": 0, "max_tokens": 40}
    pieces = [chunk.choices[0].text for chunk in client.completions.create(stream=True, **plain)]
    assert "".join(pieces) == text(client)
    assert len(pieces) > 3


def test_stop_texts_end_an_answer(client: openai.OpenAI) -> None:
    whole = text(client)
    assert text(client, stop=".") == whole[: whole.index(".")]
    assert text(client, stop=["nowhere", ".", " the"]) == whole[: min(whole.index("."), (whole + " the").index(" the"))]
    found = client.completions.create(model="sandbox", prompt=PROMPTS[0], max_tokens=40, temperature=0, stop=".")
    assert found.choices[0].finish_reason == "stop"


def test_top_p_close_to_zero_is_greedy(client: openai.OpenAI) -> None:
    assert text(client, temperature=1, top_p=1e-6, seed=8) == text(client)


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({"model": "gpt-9"}, 404, "there is no model 'gpt-9' here, this is sandbox"),
        ({"prompt": ""}, 400, "prompt is empty"),
        ({"prompt": [1, "a"]}, 400, "prompt is a list, expected text or tokens"),
        ({"temperature": -1}, 400, "temperature is the number -1"),
        ({"temperature": float("inf")}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p is the number 0, expected a number above 0 to 1"),
        ({"n": 0}, 400, "n is the number 0"),
        ({"n": True}, 400, "n is true"),
        ({"max_tokens": "many"}, 400, "max_tokens is 'many'"),
        ({"stop": [""]}, 400, "stop is a list"),
        ({"logprobs": 3}, 400, "logprobs is not supported here"),
        ({"prompt": "A film <|end|> about"}, 400, "the text of the prompt holds the"),
    ],
)
def test_requests_that_cannot_be_answered(server: Server, changes: dict[str, Any], status: int, says: str) -> None:
    body = {"model": "sandbox", "prompt": PROMPTS[0], "max_tokens": 4, **changes}
    found, answer = post(server, json.dumps(body))
    assert found == status
    assert says in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        (None, "messages is null, expected a list of turns"),
        ([], "messages is an empty list"),
        ([{"role": "user"}], "content of messages turn 0 is null"),
        ([{"role": "user", "content": ""}], "content of messages turn 0 is empty"),
        ([{"role": "robot", "content": "a"}], "role of messages turn 0 is 'robot'"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "ends with role assistant"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "content that is no text"),
        ("hello", "messages is 'hello'"),
    ],
)
def test_conversations_that_cannot_be_answered(server: Server, messages: Any, says: str) -> None:
    status, answer = post(server, json.dumps({"messages": messages}), "/v1/chat/completions")
    assert status == 400
    assert says in answer["error"]["message"]


def test_bodies_that_are_no_requests(server: Server) -> None:
    assert post(server, "{")[1]["error"]["message"] == "the request is no JSON"
    assert post(server, "[]")[1]["error"]["message"] == "the request is no JSON object"
    assert post(server, b"\xff\xfe")[0] == 400
    assert post(server, "[" * 100_000)[0] == 400
    assert post(server, "{}", "/v1/embeddings")[0] == 404
    assert post(server, "{}", **{"Content-Length": "-5"})[0] == 411
    assert post(server, "{}", **{"Content-Length": "9" * 5000})[0] == 413
    status, answer = post(server, "", **{"Content-Length": str(LARGEST + 1)})
    assert status == 413
    assert "expected at most 8,388,608" in answer["error"]["message"]


def test_a_client_that_goes_away_disturbs_nobody(server: Server, client: openai.OpenAI) -> None:
    host, port = server.url.split("/")[2].split(":")
    for _ in range(5):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
    assert text(client)


def test_prompts_that_do_not_fit_are_refused_and_answers_end_where_the_context_does(model: Model) -> None:
    with (
        Server(replace(model, context=20, name="short"), port=0) as server,
        openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(openai.BadRequestError, match="the model reads 20 in all") as refused:
            client.completions.create(model="short", prompt=PROMPTS[0] * 2, max_tokens=15)
        assert refused.value.code == "context_length_exceeded"
        chat: Any = [{"role": "user", "content": "film"}]
        found = client.chat.completions.create(model="short", messages=chat, temperature=0)
        assert found.usage is not None
        assert found.usage.total_tokens <= 20
        assert client.completions.create(model="short", prompt=PROMPTS[0], max_tokens=2).choices[0].text


def test_what_breaks_while_it_writes_is_said_and_the_next_one_is_answered(model: Model) -> None:
    def broken() -> Any:
        if asked.pop():
            raise RuntimeError("out of memory")
        return model.generating()

    asked = [False, True]
    with Server(replace(model, generating=broken), port=0) as server:
        status, answer = post(server, json.dumps({"prompt": PROMPTS[0]}))
        assert status == 500
        assert answer["error"] == {
            "message": "RuntimeError: out of memory",
            "type": "server_error",
            "param": None,
            "code": None,
        }
        assert post(server, json.dumps({"prompt": PROMPTS[0]}))[0] == 200


def test_a_port_that_is_taken(model: Model, server: Server) -> None:
    port = int(server.url.split("/")[2].split(":")[1])
    with pytest.raises(PreftuneError, match=rf"cannot listen on 127.0.0.1:{port} \(.*in use\): name another --port"):
        Server(model, port=port)
    with pytest.raises(PreftuneError, match="cannot listen on nowhere"):
        Server(model, host="nowhere.invalid", port=0)


@pytest.mark.skipif(os.name == "nt", reason="ends by signal")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_ended(how: signal.Signals) -> None:
    words = [sys.executable, "-W", "error", "-m", "preftune", "serve", "sandbox", "--port", "0", "--name", "mine"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        url = said.split()[0]
        with openai.OpenAI(base_url=url, api_key="none") as client:
            assert client.completions.create(model="mine", prompt=PROMPTS[0]).choices[0].text
        process.send_signal(how)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (0, "stopped\n", "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("./nowhere",), "model folder ./nowhere does not exist"),
        (("scratch:llama",), "scratch:llama is a model that is yet to be made"),
    ],
)
def test_models_that_cannot_be_served(
    words: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["preftune", "serve", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    said = capsys.readouterr()
    assert says in said.err
    assert len(said.err.splitlines()) == 1
