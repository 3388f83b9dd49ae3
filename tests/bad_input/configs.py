"""Config files that say nothing, too much, or something else."""

from __future__ import annotations

from bad_input.case import BadInput, file, nothing

TRAIN = "preftune train c.yaml"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [*{old}, *{old}, *{old}]}}\n"
    for old, new in zip("abcdefghijklm", "bcdefghijklmn", strict=True)
)

CONFIGS = (
    BadInput("no such file", nothing, TRAIN, ("there is no config file c.yaml",)),
    BadInput("a folder", lambda d: (d / "c.yaml").mkdir(), TRAIN, ("cannot read the config file c.yaml",)),
    BadInput("data instead of a config", file("d.jsonl", '{"a": 1}\n'), "preftune train d.jsonl", ("--data",)),
    BadInput("no YAML", file("c.yaml", "model: {path: ["), TRAIN, ("c.yaml is not valid YAML", "line 1")),
    BadInput("a list", file("c.yaml", "- a\n- b\n"), TRAIN, ("c.yaml holds a list, expected a mapping",)),
    BadInput("Latin-1 text", file("c.yaml", "# \xe9".encode("latin-1")), TRAIN, ("c.yaml is not UTF-8",)),
    BadInput("NUL bytes", file("c.yaml", bytes(64)), TRAIN, ("c.yaml is not valid YAML", "special characters")),
    BadInput("a key given twice", file("c.yaml", "seed: 1\nseed: 2\n"), TRAIN, ("the key seed is given twice",)),
    BadInput("an unknown key", file("c.yaml", "modell: {}\n"), TRAIN, ("unknown key modell", "did you mean model?")),
    BadInput(
        "text for a mapping", file("c.yaml", "model: sandbox\n"), TRAIN, ("model in c.yaml is the text 'sandbox'",)
    ),
    BadInput("yes for a number", file("c.yaml", "seed: yes\n"), TRAIN, ("seed in c.yaml is the text 'yes'",)),
    BadInput("a list for a key", file("c.yaml", "[a, b]: 1\n"), TRAIN, ("a key must be plain text",)),
    BadInput(
        "a Python object", file("c.yaml", "seed: !!python/object/apply:os.getcwd []\n"), TRAIN, ("python/object",)
    ),
    BadInput(
        "a node that holds itself", file("c.yaml", "model: &m {path: *m}\n"), TRAIN, ("c.yaml is not valid YAML",)
    ),
    BadInput("a bomb of aliases", file("c.yaml", BOMB), TRAIN, ("c.yaml", "aliases")),
    BadInput("a bomb of merged mappings", file("c.yaml", MERGES), TRAIN, ("c.yaml", "aliases")),
    BadInput("brackets 5,000 deep", file("c.yaml", "seed: " + "[" * 5000), TRAIN, ("nested too deeply",)),
    BadInput("a number of 5,000 digits", file("c.yaml", f"seed: {'9' * 5000}\n"), TRAIN, ("too many digits",)),
    BadInput("a seed of 30 digits", file("c.yaml", f"seed: {'9' * 30}\n"), TRAIN, ("seed in c.yaml",)),
    BadInput("two megabytes", file("c.yaml", "# a\n" * 500_000), TRAIN, ("c.yaml", "expected a config of at most")),
    BadInput(
        "a value from the environment", file("c.yaml", "data: {path: '${oc.env:HOME}'}"), TRAIN, ("interpolated",)
    ),
    BadInput(
        "an API key",
        file("c.yaml", "data: {path: sandbox}\nreference: {path: 'https://me:s3cret@example.org/model'}\n"),
        TRAIN,
        ("reference.path in c.yaml", "looks like", "environment"),
    ),
    BadInput("no data", file("c.yaml", "model: {path: sandbox}\n"), TRAIN, ("data.path is missing",)),
    BadInput(
        "a byte order mark and Windows line ends: fine",
        file("c.yaml", b"\xef\xbb\xbfmodel: {path: sandbox}\r\ndata: {path: none.jsonl}\r\n"),
        TRAIN,
        ("none.jsonl does not exist",),
    ),
)
