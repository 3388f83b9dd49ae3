from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import Proxy, listening, saying

from preftune.data.records import Message
from preftune.errors import PreftuneError
from preftune.evaluation.answers import Prompt, Sampling
from preftune.evaluation.endpoint import Endpoint, EndpointConfig, Request
from preftune.evaluation.endpoint_writer import endpoint_writer
from preftune.evaluation.sampling import sample
from preftune.sandbox import world
from preftune.sandbox.preferences import base_model, base_tokenizer
from preftune.serving.server import Server

PROMPTS = world.prompts()[1][:4]
KEY = "sk-test-0123456789abcdefghijklmnop"


def config(url: str, **changes: Any) -> EndpointConfig:
    return EndpointConfig(**{"url": url, "first_wait": 0.001, "retries": 2, **changes})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_comes_back_is_what_the_model_writes(server: Server) -> None:
    tokenizer = base_tokenizer()
    expected = sample(
        base_model(),
        [tokenizer.encode(prompt) for prompt in PROMPTS],
        max_new_tokens=40,
        temperature=0,
        seed=0,
        end_ids=[tokenizer.eos_token_id],
        pad_id=0,
    )
    with Endpoint(config(server.url)) as endpoint:
        found = endpoint.generate(PROMPTS, max_new_tokens=40, temperature=0)
        cut = endpoint.generate(PROMPTS[:1], max_new_tokens=2, temperature=0)[0]
    texts = [tokenizer.decode(one.ids, skip_special_tokens=True) for one in expected]
    assert [answer.text for answer in found] == texts
    assert [answer.tokens for answer in found] == [len(one.ids) for one in expected]
    assert [answer.ended for answer in found] == [one.ended for one in expected]
    assert (cut.tokens, cut.ended) == (2, False)
    assert texts[0].startswith(str(cut.text))


def test_samples_follow_from_the_seed_and_repeated_prompts_get_others(server: Server) -> None:
    with Endpoint(config(server.url)) as endpoint, Endpoint(config(server.url)) as another:
        first = endpoint.generate(PROMPTS[:2] + PROMPTS[:1], max_new_tokens=40, samples_per_prompt=3, seed=5)
        again = another.generate(PROMPTS[:2] + PROMPTS[:1], max_new_tokens=40, samples_per_prompt=3, seed=5)
        other = another.generate(PROMPTS[:1], max_new_tokens=40, samples_per_prompt=3, seed=6)
    assert first == again
    assert len({answer.text for answer in first[:3] + first[6:]}) > 3
    assert {answer.text for answer in other} != {answer.text for answer in first[:3]}


def test_conversations_are_answered(server: Server) -> None:
    with Endpoint(config(server.url)) as endpoint:
        assert endpoint.model == "sandbox"
        answer = endpoint.generate([(Message("user", PROMPTS[0]),)], max_new_tokens=12)[0]
    assert answer.text
    assert answer.prompt_tokens > len(PROMPTS[0].split())


@pytest.mark.parametrize("fault", [429, 500, 503, 408, "cut", "nonsense", "broken"])
def test_what_may_pass_is_tried_again(fault: Any, proxy: Proxy) -> None:
    proxy.faults = [fault, fault]
    with Endpoint(config(proxy.url, model="sandbox", concurrency=1)) as endpoint:
        assert endpoint.generate(PROMPTS[:1], max_new_tokens=4)[0].text
        assert endpoint.budget.calls == 3
    assert len(proxy.bodies) == 3


def test_a_call_that_takes_too_long_is_tried_again(proxy: Proxy) -> None:
    proxy.faults = ["hang"]
    with Endpoint(config(proxy.url, model="sandbox", timeout=0.5)) as endpoint:
        answer = endpoint.generate(PROMPTS[:1], max_new_tokens=4)[0]
        assert answer.text
        # the first one may have been paid: it counts as the most that it can have taken
        assert endpoint.budget.tokens > answer.prompt_tokens + answer.tokens
    proxy.always = "hang"
    with (
        Endpoint(config(proxy.url, model="sandbox", timeout=0.1, retries=1)) as endpoint,
        pytest.raises(PreftuneError, match=r"gave no answer, asked 2 times \(no answer within 0.1 s\)"),
    ):
        endpoint.generate(PROMPTS[1:2], max_new_tokens=4)


def test_the_endpoint_says_how_long_to_wait(proxy: Proxy) -> None:
    proxy.faults = [(429, {"Retry-After": "0.4"}, {"error": {"message": "slow down"}})]
    with Endpoint(config(proxy.url, model="sandbox")) as endpoint:
        began = time.monotonic()
        endpoint.generate(PROMPTS[:1], max_new_tokens=4)
    assert time.monotonic() - began > 0.4


def test_what_was_answered_is_kept_when_the_rest_fails(proxy: Proxy, tmp_path: Path) -> None:
    kept = tmp_path / "calls.jsonl"
    settings = config(proxy.url, model="sandbox", concurrency=1)
    proxy.faults, proxy.always = [None, None], 503
    with Endpoint(settings, kept) as endpoint, pytest.raises(PreftuneError, match="status 503, fault 503"):
        endpoint.generate(PROMPTS, max_new_tokens=4)
    proxy.always = None
    with Endpoint(settings, kept) as endpoint:
        assert len(endpoint.generate(PROMPTS, max_new_tokens=4)) == 4
    asked = [body["prompt"] for body in proxy.passed]
    assert sorted(asked) == sorted(PROMPTS)
    with Endpoint(settings, kept) as endpoint:
        proxy.always = 500  # nothing is asked any more
        texts = [answer.text for answer in endpoint.generate(PROMPTS, max_new_tokens=4)]
    answered = {line["request"]["prompt"]: line["text"] for line in lines(kept) if "text" in line}
    assert texts == [answered[prompt] for prompt in PROMPTS]


def test_like_requests_are_sent_once(proxy: Proxy) -> None:
    with Endpoint(config(proxy.url, model="sandbox")) as endpoint:
        one = Request(prompt=PROMPTS[0], max_tokens=4)
        found = endpoint.answers([one, one, Request(prompt=PROMPTS[0], max_tokens=5), one])
    assert len(proxy.bodies) == 2
    assert found[0] == found[1] == found[3] != found[2]


def test_another_model_or_endpoint_is_asked_anew(proxy: Proxy, server: Server, tmp_path: Path) -> None:
    kept = tmp_path / "calls.jsonl"
    for url, seed in ((server.url, 0), (proxy.url, 0), (proxy.url, 1)):
        with Endpoint(config(url, model="sandbox"), kept) as endpoint:
            endpoint.generate(PROMPTS[:1], max_new_tokens=4, seed=seed)
    assert len([line for line in lines(kept) if "text" in line]) == 3


def test_the_budget_of_calls_counts_repetitions_and_earlier_sessions(proxy: Proxy, tmp_path: Path) -> None:
    kept = tmp_path / "calls.jsonl"
    proxy.faults = [500]
    settings = {"model": "sandbox", "concurrency": 1}
    with (
        Endpoint(config(proxy.url, max_calls=3, **settings), kept) as endpoint,
        pytest.raises(PreftuneError, match="the budget of 3 calls is used up"),
    ):
        endpoint.generate(PROMPTS, max_new_tokens=4)
    assert (len(proxy.bodies), len(proxy.passed)) == (3, 2)
    with (
        Endpoint(config(proxy.url, max_calls=4, **settings), kept) as endpoint,
        pytest.raises(PreftuneError, match="the budget of 4 calls is used up"),
    ):
        endpoint.generate(PROMPTS, max_new_tokens=4)
    assert len(proxy.bodies) == 4
    with Endpoint(config(proxy.url, max_calls=5, **settings), kept) as endpoint:
        assert all(answer.text for answer in endpoint.generate(PROMPTS, max_new_tokens=4))
    assert len(proxy.bodies) == 5


def test_the_budget_of_tokens_is_never_exceeded(proxy: Proxy, tmp_path: Path) -> None:
    kept, prompts = tmp_path / "calls.jsonl", world.prompts()[1][:40]
    with (
        Endpoint(config(proxy.url, model="sandbox", max_tokens=600), kept) as endpoint,
        pytest.raises(PreftuneError, match="the budget of 600 tokens is used up"),
    ):
        endpoint.generate(prompts, max_new_tokens=20)
    spent = sum(line["prompt_tokens"] + line["tokens"] for line in lines(kept) if "text" in line)
    assert 600 - Request(prompt=prompts[0], max_tokens=20).most_tokens - 30 < spent <= 600
    assert endpoint.budget.tokens == spent


def test_a_token_is_at_least_a_byte(server: Server) -> None:
    for prompt in (PROMPTS[0], "film", (Message("user", PROMPTS[1]), Message("assistant", "I"), Message("user", "so"))):
        request = Request(prompt=prompt, max_tokens=8)
        with Endpoint(config(server.url)) as endpoint:
            answer = endpoint.answers([request])[0]
        assert answer.prompt_tokens + answer.tokens <= request.most_tokens


def test_it_answers_in_place_of_a_model_at_hand(proxy: Proxy) -> None:
    prompts = [Prompt(np.zeros(0, np.int32), text, text, row=i) for i, text in enumerate(PROMPTS)]
    turns = (Message("user", PROMPTS[0]),)
    prompts.append(Prompt(np.zeros(0, np.int32), "", turns, row=7))
    with Endpoint(config(proxy.url, model="sandbox", concurrency=1)) as endpoint:
        write = endpoint_writer(endpoint, Sampling(samples_per_prompt=2, max_new_tokens=8, seed=3))
        found = write(prompts)
        assert [len(group) for group in found] == [2] * 5
        assert all(answer.tokens <= 8 and answer.sampled is None for group in found for answer in group)
        plain = endpoint.generate(PROMPTS, max_new_tokens=8, samples_per_prompt=2, seed=3)
        assert [answer.text for group in found[:4] for answer in group] == [answer.text for answer in plain]
        assert {"messages" in body for body in proxy.bodies[8:10]} == {True}
        proxy.always = 400
        with pytest.raises(PreftuneError, match="does not answer the prompt of row 3: status 400, fault 400"):
            endpoint_writer(endpoint, Sampling(seed=4))(prompts[3:4])


SCRIPT = """
import sys
from pathlib import Path
from preftune.evaluation.endpoint import Endpoint, EndpointConfig
from preftune.sandbox import world
with Endpoint(EndpointConfig(url=sys.argv[1], model="sandbox", concurrency=4), Path(sys.argv[2])) as endpoint:
    endpoint.generate(world.prompts()[1], max_new_tokens=4)
"""


@pytest.mark.skipif(os.name == "nt", reason="kills by signal")
def test_a_kill_loses_no_answer_and_pays_none_twice(proxy: Proxy, tmp_path: Path) -> None:
    kept, prompts = tmp_path / "calls.jsonl", world.prompts()[1]
    proxy.delay = 0.05
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, proxy.url, str(kept)])
    while not kept.exists() or kept.read_text().count('"text"') < 10:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with kept.open("a") as file:
        file.write('{"key": "what a kill leaves of a li')
    answered = {line["request"]["prompt"] for line in lines_whole(kept) if "text" in line}
    assert 10 <= len(answered) < len(prompts)
    proxy.delay = 0
    time.sleep(0.2)
    paid = len(proxy.bodies)
    with Endpoint(config(proxy.url, model="sandbox", concurrency=4), kept) as endpoint:
        before = endpoint.budget.calls
        assert len(endpoint.generate(prompts, max_new_tokens=4)) == len(prompts)
    again = {body["prompt"] for body in proxy.bodies[paid:]}
    assert again == set(prompts) - answered
    assert before >= paid  # whatever reached the endpoint was on disk before
    assert paid - len(answered) <= 4  # those under way


def lines_whole(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()[:-1]]


def test_calls_go_out_together_but_no_more_than_allowed(proxy: Proxy) -> None:
    proxy.delay = 0.05
    with Endpoint(config(proxy.url, model="sandbox", concurrency=3)) as endpoint:
        told: list[int] = []
        endpoint.generate(PROMPTS * 3, max_new_tokens=2, progress=lambda done, _: told.append(done))
    assert proxy.most == 3
    assert told[-1] == 12
    assert told == sorted(told)


def test_one_prompt_that_is_refused_does_not_stop_the_others(proxy: Proxy, tmp_path: Path) -> None:
    proxy.faults = [(400, {}, {"error": {"message": "this prompt is too long"}})]
    with Endpoint(config(proxy.url, model="sandbox", concurrency=1), tmp_path / "calls.jsonl") as endpoint:
        first, *others = endpoint.generate(PROMPTS, max_new_tokens=4)
    assert first.text is None
    assert first.reason == "status 400, this prompt is too long"
    assert all(answer.text for answer in others)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (401, "refuses the API key in OPENAI_API_KEY: status 401"),
        (403, "refuses the API key in OPENAI_API_KEY"),
        (404, "does not know model 'sandbox', or is no OpenAI-compatible endpoint: status 404, fault 404"),
        (410, "refuses to answer: status 410"),
        ((429, {}, {"error": {"message": "no money", "code": "insufficient_quota"}}), "status 429, no money"),
    ],
)
def test_what_will_not_pass_is_said_at_once(
    fault: Any, says: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    proxy.always = fault
    with Endpoint(config(proxy.url, model="sandbox", concurrency=1)) as endpoint:
        with pytest.raises(PreftuneError) as error:
            endpoint.generate(PROMPTS, max_new_tokens=4)
        assert endpoint.budget.calls == 1
    assert says in str(error.value)


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "a-key-of-no-known-form"
    monkeypatch.setenv("MY_KEY", key)
    settings = config(proxy.url, model="sandbox", key_variable="MY_KEY", retries=0, concurrency=1)
    echo = {"error": {"message": f"bad key {key}"}}
    with Endpoint(settings, tmp_path / "calls.jsonl") as endpoint:
        endpoint.generate(PROMPTS[:1], max_new_tokens=4)
        for status in (500, 400, 401):
            proxy.always = (status, {}, echo)
            try:
                said = endpoint.generate(PROMPTS[1:2], max_new_tokens=4)[0].reason
            except PreftuneError as error:
                said = str(error)
            assert "bad key ***" in said
            assert key not in said
    assert proxy.keys == {f"Bearer {key}"}
    assert key not in (tmp_path / "calls.jsonl").read_text()
    assert key not in repr(settings)


def test_without_a_key_the_refusal_says_where_to_put_one(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    proxy.always = 401
    with (
        Endpoint(config(proxy.url, model="sandbox")) as endpoint,
        pytest.raises(PreftuneError, match=r"a call without an API key \(OPENAI_API_KEY is not set\).*set OPENAI_API"),
    ):
        endpoint.generate(PROMPTS[:1], max_new_tokens=4)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Endpoint(config(f"http://127.0.0.1:{port}", model="m", max_tokens=9999)) as endpoint:
        with pytest.raises(PreftuneError, match=r"gave no answer, asked 3 times \(.*refused"):
            endpoint.generate(PROMPTS[:1], max_new_tokens=4)
        assert endpoint.budget.tokens == 0  # nobody can have heard it
    with pytest.raises(PreftuneError, match=r"does not say which models it has \(.*refused"):
        Endpoint(config(f"http://127.0.0.1:{port}"))


def test_an_endpoint_of_several_models_wants_one_named() -> None:
    def answer(path: str, body: dict[str, Any]) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "one"}, {"id": "two"}]}

    with listening(answer) as proxy, pytest.raises(PreftuneError, match="these: one, two; name one as URL#MODEL"):
        Endpoint(config(proxy.url))


def test_an_answer_of_nothing_is_an_answer() -> None:
    with listening(saying(lambda turns: "")) as proxy, Endpoint(config(proxy.url)) as endpoint:
        assert endpoint.generate([(Message("user", "hello"),)], max_new_tokens=4)[0].text == ""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"url": "localhost:8000"}, "is no URL of an endpoint, expected http://HOST:PORT/v1"),
        ({"url": "http://"}, "is no URL"),
        ({"url": "http://h:99999999/v1"}, "is no URL"),
        ({"url": f"https://me:{KEY}@example.org/v1"}, "an API key is taken from the environment alone"),
        ({"url": "https://me:secret@example.org/v1"}, "https://example.org/v1"),
        ({"key_variable": KEY}, "from the environment alone"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"retries": -1}, "retries is -1"),
        ({"concurrency": 0}, "concurrency is 0"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(PreftuneError, match=says) as error:
        EndpointConfig(**{"url": "http://127.0.0.1:1", **changes})
    assert KEY not in str(error.value)
    assert ":secret" not in str(error.value)


def test_a_budget_of_nothing_and_a_path_that_is_added() -> None:
    assert EndpointConfig(url="http://127.0.0.1:8000").url == "http://127.0.0.1:8000/v1"
    assert EndpointConfig(url="https://example.org/api/v2/").url == "https://example.org/api/v2"
    with pytest.raises(PreftuneError, match="the budget of calls is 0"):
        Endpoint(EndpointConfig(url="http://127.0.0.1:8000", model="m", max_calls=0))


def test_a_file_is_for_one_process_at_a_time_and_must_be_whole(server: Server, tmp_path: Path) -> None:
    kept = tmp_path / "deep" / "calls.jsonl"
    with (
        Endpoint(config(server.url), kept),
        pytest.raises(PreftuneError, match="another process writes to"),
    ):
        Endpoint(config(server.url), kept)
    kept.write_text("no JSON\n")
    with pytest.raises(PreftuneError, match=r"calls.jsonl line 1 is no JSON object"):
        Endpoint(config(server.url), kept)
    for line in ('{"mine": 1}', '{"key": "k", "sent": "many"}', '{"key": "k", "text": "t"}'):
        kept.write_text(line + "\n")
        with pytest.raises(PreftuneError, match=r"calls.jsonl line 1 is no call that preftune kept"):
            Endpoint(config(server.url), kept)
    (tmp_path / "file").touch()
    with pytest.raises(PreftuneError, match="cannot write"):
        Endpoint(config(server.url), tmp_path / "file" / "calls.jsonl")
