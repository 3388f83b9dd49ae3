"""Model folders that are not what they should be."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_input.case import BadInput, Make, pairs

TRAIN = "preftune train -m m -d d.jsonl"
GOES = f"{TRAIN} -o r -q train.max_steps=1 evaluate.samples=0"
RUN = ("r", "r/*")
TRAP = "sprung"
OWN_CODE = f"""
from pathlib import Path
from transformers import Qwen3Config, Qwen3ForCausalLM

Path("{TRAP}").touch()

class OwnConfig(Qwen3Config):
    model_type = "own_code"

class OwnModel(Qwen3ForCausalLM):
    config_class = OwnConfig
"""


class Trap:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (TRAP, "w")


def model(*changes: Callable[[Path], Any]) -> Make:
    """Good data, and a copy of the built-in model that is then changed."""

    def make(folder: Path) -> None:
        from preftune.policy.loading import built_in_folder

        pairs(folder)
        shutil.copytree(built_in_folder(), folder / "m")
        for change in changes:
            change(folder / "m")

    return make


def remove(*names: str) -> Callable[[Path], Any]:
    return lambda m: [(m / name).unlink() for name in names]


def write(name: str, content: bytes | str) -> Callable[[Path], Any]:
    return lambda m: (m / name).write_bytes(content.encode() if isinstance(content, str) else content)


def settings(name: str, **values: Any) -> Callable[[Path], Any]:
    """Keys of a JSON file set; None removes them."""

    def change(m: Path) -> None:
        given = json.loads((m / name).read_text())
        (m / name).write_text(json.dumps({k: v for k, v in {**given, **values}.items() if v is not None}))

    return change


def weights(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def make(m: Path) -> None:
        from safetensors.torch import load_file, save_file

        given = load_file(m / "model.safetensors")
        change(given)
        save_file(given, m / "model.safetensors", metadata={"format": "pt"})

    return make


def other_tokenizer(m: Path) -> None:
    from preftune.policy.scratch import train_tokenizer

    train_tokenizer(["A film about two brothers who never met ."] * 4, "qwen3", 400, 64).save_pretrained(m)


def own_code(m: Path) -> None:
    (m / "own.py").write_text(OWN_CODE)
    settings(
        "config.json",
        model_type="own_code",
        auto_map={
            "AutoConfig": "own.OwnConfig",
            "AutoModelForCausalLM": "own.OwnModel",
        },
    )(m)


MODELS = (
    BadInput("no such folder", pairs, "preftune train -m ./m -d d.jsonl", ("model folder ./m does not exist",)),
    BadInput("no config.json", model(remove("config.json")), TRAIN, ("m has no config.json",)),
    BadInput("a broken config.json", model(write("config.json", "{")), TRAIN, ("cannot be read as JSON",)),
    BadInput("a config.json that is a list", model(write("config.json", "[]")), TRAIN, ("names no model_type",)),
    BadInput("a model_type that is a list", model(settings("config.json", model_type=[])), TRAIN, ("no model_type",)),
    BadInput("a config.json 100,000 deep", model(write("config.json", "[" * 100_000)), TRAIN, ("cannot be read as",)),
    BadInput("an unknown architecture", model(settings("config.json", model_type="qwen99")), TRAIN, ("'qwen99'",)),
    BadInput("an encoder", model(settings("config.json", model_type="t5", architectures=["T5Model"])), TRAIN, ("m",)),
    BadInput(
        "a config.json that contradicts itself",
        model(settings("config.json", num_hidden_layers=3)),
        TRAIN,
        ("`num_hidden_layers` (3) must be equal to the number of `layer_types` (2)",),
    ),
    BadInput(
        "text for a number in config.json",
        model(settings("config.json", num_attention_heads="four")),
        TRAIN,
        ("cannot load model m: ", "'num_attention_heads'", "got str (value: 'four')"),
    ),
    BadInput("no weights", model(remove("model.safetensors")), TRAIN, ("m has no weights",)),
    BadInput(
        "pickled weights (which could run code)",
        model(remove("model.safetensors"), write("pytorch_model.bin", pickle.dumps(Trap()))),
        TRAIN,
        ("m has no weights: expected model.safetensors", "convert them"),
    ),
    BadInput("cut weights", model(lambda m: cut(m / "model.safetensors")), TRAIN, ("cannot load model m",)),
    BadInput("weights that are zero bytes", model(write("model.safetensors", b"")), TRAIN, ("cannot load model m",)),
    BadInput(
        "weights whose header claims to be huge",
        model(write("model.safetensors", b"\xff" * 8 + b"{}")),
        TRAIN,
        ("cannot load model m",),
    ),
    BadInput(
        "NaN in the weights", model(weights(lambda w: w["model.norm.weight"].fill_(float("nan")))), TRAIN, ("nan",)
    ),
    BadInput(
        "one infinite weight",
        model(weights(lambda w: w["model.layers.1.mlp.up_proj.weight"][3].fill_(float("inf")))),
        TRAIN,
        ("holds nan or infinity in model.layers.1.mlp.up_proj.weight",),
    ),
    BadInput(
        "a weight missing", model(weights(lambda w: w.pop("model.norm.weight"))), TRAIN, ("has no model.norm.weight",)
    ),
    BadInput(
        "a weight of another size",
        model(weights(lambda w: w.update({"model.norm.weight": w["model.norm.weight"][:7]}))),
        TRAIN,
        ("has another size of model.norm.weight",),
    ),
    BadInput("no tokenizer", model(remove("tokenizer.json", "tokenizer_config.json")), TRAIN, ("model.tokenizer",)),
    BadInput("a broken tokenizer", model(write("tokenizer.json", "{}")), TRAIN, ("is no tokenizer",)),
    BadInput("a tokenizer that knows more tokens", model(other_tokenizer), TRAIN, ("the model knows tokens 0 to 95",)),
    BadInput(
        "an adapter",
        model(remove("config.json"), write("adapter_config.json", '{"base_model_name_or_path": "other"}')),
        TRAIN,
        ("m holds an adapter, expected a whole model",),
    ),
    BadInput(
        "code of its own",
        model(own_code),
        TRAIN,
        ("m comes with code of its own", "model.trust_remote_code=true"),
    ),
    BadInput(
        "no pad token: fine",
        model(
            settings("tokenizer_config.json", pad_token=None),
            settings("config.json", pad_token_id=None),
            settings("generation_config.json", pad_token_id=None),
        ),
        GOES,
        (),
        code=0,
        leaves=RUN,
    ),
    BadInput(
        "pickled files beside good weights: never read",
        model(
            *(write(name, pickle.dumps(Trap())) for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"))
        ),
        GOES,
        (),
        code=0,
        leaves=RUN,
    ),
)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:9999])
