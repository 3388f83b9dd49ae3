"""Learning from the policy's own answers: judges, rewards and answers that cannot be learned from."""

from __future__ import annotations

from bad_input.case import BadInput, both, file, pairs

TRAIN = "preftune train -m sandbox -d d.jsonl -o r -q evaluate.samples=0"
ROUND = f"{TRAIN} batch.size=4 online.rounds=2 online.prompts=4 online.max_new_tokens=6 online.held_out=0"
# a run whose first round fails has begun, and keeps what it goes on from
BEGUN = (
    "r",
    "r/config.yaml",
    "r/manifest.json",
    "r/data_doctor.json",
    "r/metrics.jsonl",
    "r/checkpoints*",
    "__pycache__*",
)
NAN = file("gives_nan.py", "def judge(response):\n    return float('nan')\n")
NONE = file("gives_none.py", "def judge(response):\n    return None\n")
FAILS = file("takes_long.py", "def judge(response):\n    raise TimeoutError('the service took too long')\n")
COMPARES = file("only_compares.py", "def judge(a, b):\n    return 'tie'\n")

ONLINE = (
    BadInput("PPO without answers to learn from", pairs, f"{TRAIN} --objective ppo", ("add the block online",)),
    BadInput("online without a judge", pairs, f"{TRAIN} online.rounds=2", ("online.judge",)),
    BadInput("a judge that is not there", pairs, f"{ROUND} online.judge=nobody", ("online.judge", "'nobody'")),
    BadInput("a policy as a reward model", pairs, f"{ROUND} online.judge=reward:sandbox", ("is no reward model",)),
    BadInput(
        "rewards that are NaN",
        both(pairs, NAN),
        f"{ROUND} --objective ppo online.judge=gives_nan:judge",
        ("round 0: judge gives_nan:judge gave nan on answer 0 to row", "preftune train --resume r"),
        leaves=BEGUN,
    ),
    BadInput(
        "no rewards at all",
        both(pairs, NONE),
        f"{ROUND} online.judge=gives_none:judge",
        ("gave no score on any of 8 answers",),
        leaves=BEGUN,
    ),
    BadInput(
        "a judge that times out",
        both(pairs, FAILS),
        f"{ROUND} online.judge=takes_long:judge",
        ("TimeoutError: the service took too long", "is kept"),
        leaves=BEGUN,
    ),
    BadInput(
        "PPO from a judge that only compares",
        both(pairs, COMPARES),
        f"{ROUND} --objective ppo online.judge=only_compares:judge",
        ("compares answers and gives no scores",),
        leaves=("__pycache__*",),
    ),
    BadInput(
        "one answer to compare",
        pairs,
        f"{ROUND} online.judge=sandbox online.samples=1",
        ("online.samples=1", "set it to 2 or more"),
    ),
    BadInput(
        "stored log-probs of what is yet to be sampled",
        pairs,
        f"{ROUND} online.judge=sandbox reference.kind=stored",
        ("reference.kind=stored is for data that is there before training",),
    ),
    BadInput(
        "a server for weights that no adapter holds",
        pairs,
        f"{ROUND} online.judge=sandbox online.server=http://127.0.0.1:9/v1",
        ("online.server takes the adapter that trains",),
    ),
    BadInput(
        "a server that is not there",
        pairs,
        f"{ROUND} --lora online.judge=sandbox online.server=http://127.0.0.1:9/v1",
        ("http://127.0.0.1:9/v1/load_lora_adapter does not answer",),
        leaves=(*BEGUN, "r/rollouts"),
    ),
)
