"""Settings that make no sense, alone or together."""

from __future__ import annotations

from bad_input.case import BadInput, both, file, nothing, pairs

TRAIN = "preftune train -m sandbox -d d.jsonl"
RUN = f"{TRAIN} -o r -q evaluate.samples=0"
BEGUN = ("r", "r/config.yaml", "r/manifest.json", "r/data_doctor.json", "r/metrics.jsonl", "r/failure.json")

SETTINGS = (
    BadInput(
        "beta = -1",
        pairs,
        f"{TRAIN} objective.beta=-1",
        ("beta must be finite and > 0",),
        trl="trains away from the preference",
    ),
    BadInput(
        "IPO with tau = 0 (TRL: beta = 0)",
        pairs,
        f"{TRAIN} --objective ipo objective.tau=0",
        ("tau must be finite and > 0",),
        trl="ZeroDivisionError",
    ),
    BadInput(
        "learning rate 1e6",
        pairs,
        f"{RUN} optim.learning_rate=1e6",
        ("optim.learning_rate=1e+06 is far above", "lower optim.learning_rate"),
        trl="trains",
        leaves=BEGUN,
    ),
    BadInput(
        "learning rate 1e30",
        pairs,
        f"{RUN} optim.learning_rate=1e30",
        ("optim.learning_rate=1e+30 is far above", "lower optim.learning_rate"),
        leaves=BEGUN,
    ),
    BadInput(
        "beta = 1e300",
        pairs,
        f"{RUN} objective.beta=1e300",
        ("the gradient of step 1 is not finite", "nothing was trained yet"),
        leaves=BEGUN,
    ),
    BadInput("beta is NaN", pairs, f"{TRAIN} objective.beta=.nan", ("beta must be finite and > 0",)),
    BadInput("a learning rate below 0", pairs, f"{TRAIN} optim.learning_rate=-1", ("greater than 0",)),
    BadInput("a key misspelt", pairs, f"{TRAIN} optim.learning_rat=1", ("did you mean optim.learning_rate?",)),
    BadInput("text for a number", pairs, f"{TRAIN} batch.size=many", ("expected an integer",)),
    BadInput("a number of 5,000 digits", pairs, f"{TRAIN} seed={'9' * 5000}", ("seed", "too many digits")),
    BadInput("a key of 5,000 parts", pairs, f"{TRAIN} {'a.' * 5000}a=1", ("too many parts",)),
    BadInput("brackets 5,000 deep", pairs, f"{TRAIN} seed={'[' * 5000}", ("seed", "not valid YAML")),
    BadInput("a character that does not print", pairs, f"{TRAIN} 'data.layout=\x1b[31m'", ("\\x1b[31m",)),
    BadInput("the same in quotes", pairs, f"""{TRAIN} 'data.layout="\x08"'""", ("special characters are not allowed",)),
    BadInput("a key that is a line", pairs, f"{TRAIN} 'a\nb=1'", ("unknown key a\\nb",)),
    BadInput("an unknown objective", pairs, f"{TRAIN} --objective ipoo", ("did you mean ipo?",)),
    BadInput("two batch sizes", pairs, f"{TRAIN} batch.size=4 batch.tokens=99", ("size and tokens both say",)),
    BadInput("a device that is not there", pairs, f"{TRAIN} train.device=tpu", ("train.device", "'cuda'")),
    BadInput("1e12 heads", pairs, f"{TRAIN} model.scratch.heads=1000000000000", ("less than or equal to 65536",)),
    BadInput("nothing at all", nothing, "preftune train", ("nothing to train",)),
    BadInput(
        "a value from the environment",
        pairs,
        f"{TRAIN} 'output.path=${{oc.env:HOME}}'",
        ("nothing is interpolated",),
    ),
    BadInput(
        "an API key as a setting",
        pairs,
        f"{TRAIN} model.revision=hf_abcdefghijklmnopqrstuvwxyz012345",
        ("model.revision", "looks like an API key", "environment"),
    ),
    BadInput(
        "a chat template that reaches for Python",
        both(
            file("t.jinja", "{{ ().__class__.__base__.__subclasses__() }}"),
            file("d.jsonl", '{"prompt": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": "c"}\n'),
        ),
        f"{TRAIN} data.held_out=0.0 data.rendering.chat_template=t.jinja",
        ("chat_template",),
    ),
)
