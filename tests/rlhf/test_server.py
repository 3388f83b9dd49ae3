"""A server in the policy's place: tokens go there and come back, and it answers with the adapter that trains."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch

import preftune
from preftune.errors import PreftuneError
from preftune.evaluation.sampling import sample
from preftune.policy.loading import LoraConfig, ModelConfig, adapt
from preftune.rlhf.plan import Asked
from preftune.rlhf.server import Server as Sampler
from preftune.sandbox.preferences import base_model, base_tokenizer
from preftune.sandbox.world import prompts
from preftune.serving.command import open_model
from preftune.serving.server import Server

TEXTS = prompts()[0][:6]


@pytest.fixture(scope="module")
def server():
    with Server(open_model("sandbox", adapters=True), port=0) as running:
        yield running


@pytest.fixture(scope="module")
def asked():
    tokenizer = base_tokenizer()
    return [Asked(np.array(tokenizer.encode(text), np.int32), text, {}, row) for row, text in enumerate(TEXTS)]


def adapted(seed):
    """The base model under an adapter that changes what it says."""
    torch.manual_seed(seed)
    lm = adapt(base_model(), ModelConfig(path="sandbox", lora=LoraConfig(r=4)), seed)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return lm.eval()


def greedy(lm, asked):
    ends = [base_tokenizer().eos_token_id]
    found = sample(lm, [one.ids for one in asked], max_new_tokens=12, temperature=0, seed=0, end_ids=ends, pad_id=0)
    return [one.ids.tolist() for one in found]


def served(sampler, asked, each=1, temperature=0.0):
    ends = [base_tokenizer().eos_token_id]
    found = sampler.sample(asked, each, longest=12, temperature=temperature, seed=3, end_ids=ends)
    return [[one.ids.tolist() for one in group] for group in found]


def test_it_answers_with_the_adapter_of_the_round_token_by_token(server, asked, tmp_path):
    sampler = Sampler(server.url, tmp_path)
    base, models = greedy(base_model(), asked), [adapted(0), adapted(1)]
    for number, lm in enumerate(models):
        sampler.load(number, lm.save_pretrained)
        expected = greedy(lm, asked)
        assert expected != base
        assert served(sampler, asked) == [[one] for one in expected]
        assert [path.name for path in tmp_path.iterdir()] == [f"preftune-{number:06d}"]
    drawn = served(sampler, asked, 2, 1.0)
    assert all(first != second for first, second in drawn)
    sampler.close()
    assert server.model.adapters.names == []
    assert list(tmp_path.iterdir()) == []


def test_a_run_learns_from_answers_that_a_server_writes(server, tmp_path):
    rows = [{"prompt": text} for text in prompts()[0][:32]]
    config = {
        "model": {"lora": {}},
        "online": {
            "judge": "sandbox",
            "rounds": 3,
            "prompts": 8,
            "max_new_tokens": 12,
            "server": server.url,
            "keep": 0,
        },
        "batch": {"size": 8},
        "optim": {"learning_rate": 3e-2},
        "evaluate": {"samples": 0},
        "doctor": {"answers": 0},
        "data": {"held_out": 0},
    }
    run = preftune.train("sandbox", rows, "dpo", output=tmp_path / "run", quiet=True, config=config)
    found = [line for line in run.history if line["kind"] == "round"]
    assert len(found) == 3
    # log-probs are the policy's own, by its own forward: at the start, those of the reference
    assert abs(found[0]["kl"]) < 1e-5
    assert abs(found[2]["kl"]) > 1e-3
    assert 0.5 < found[0]["entropy"] < 2
    assert server.model.adapters.names == []


def test_a_server_that_takes_no_adapters_ends_the_run_with_its_words(tmp_path):
    rows = [{"prompt": text} for text in TEXTS]
    with Server(open_model("sandbox"), port=0) as plain:
        config = {"model": {"lora": {}}, "online": {"judge": "sandbox", "prompts": 4, "server": plain.url}}
        with pytest.raises(PreftuneError, match=r"refuses: status 403, .*start preftune serve with --adapters"):
            preftune.train("sandbox", rows, "dpo", output=tmp_path / "run", quiet=True, config=config)


def test_all_weights_cannot_be_sent(tmp_path):
    online = {"judge": "sandbox", "server": "http://127.0.0.1:9/v1"}
    with pytest.raises(PreftuneError, match=r"online\.server takes the adapter that trains, but all weights train"):
        preftune.train("sandbox", [{"prompt": TEXTS[0]}], "dpo", output=tmp_path / "run", quiet=True, online=online)


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("load_lora_adapter", {"lora_name": "a"}, 400, "lora_path is missing"),
        ("load_lora_adapter", {"lora_name": "a", "lora_path": "nowhere"}, 404, "holds no adapter"),
        ("unload_lora_adapter", {"lora_name": "a"}, 404, "there is no adapter a"),
        ("completions", {"prompt": [5, 99999]}, 400, "prompt has token 99999"),
        ("completions", {"prompt": [[5], "text"]}, 400, "expected text or tokens"),
        ("completions", {"prompt": [5, -1]}, 400, "expected text or tokens"),
        ("completions", {"prompt": "A", "model": "preftune-000009"}, 404, "there is no model"),
    ],
)
def test_what_the_server_refuses(server, path, body, status, said):
    request = urllib.request.Request(
        f"{server.url}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=20)
    assert error.value.code == status
    assert said in json.loads(error.value.read())["error"]["message"]
    error.value.close()
