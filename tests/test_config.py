"""The tree of the config: read, written, and no key of it without an effect."""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from preftune import api, yaml_tree
from preftune.config import RunConfig
from preftune.errors import PreftuneError
from preftune.policy.loading import built_in_folder
from preftune.policy.scratch import ScratchConfig, build
from preftune.sandbox.preferences import base_model, base_tokenizer, rows
from preftune.yaml_text import models_in

TIMED = {"seconds", "pairs_per_second", "tokens_per_second"}


def load(*overrides: str, file: Path | None = None) -> RunConfig:
    return yaml_tree.load(RunConfig, file, overrides, tagged=("objective",))


def leaves(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """Every key that takes a value."""
    for name, info in model.model_fields.items():
        inner = list(models_in(info.annotation))
        if inner:
            yield from leaves(inner[0], f"{above}{name}.")
        else:
            yield above + name


# --- Promise 6: every accepted key changes a result, or is refused ----------------------------------------------------

BASE = (
    "model.path=sandbox",
    "data.path={world}/pairs.jsonl",
    "data.held_out=0.0",
    "train.max_steps=4",
    "train.device=cpu",
    "evaluate.samples=0",
)
LORA = ("model.lora={{}}",)
SCRATCH = (
    "model.path=scratch:qwen3",
    "model.scratch.hidden_size=16",
    "model.scratch.layers=1",
    "model.scratch.heads=2",
    "model.scratch.vocab_size=300",
    "model.scratch.context=256",
)
CHAT = (*SCRATCH, "data.path={world}/chat.jsonl")
LOOKS = ("data.held_out=0.25", "evaluate.samples=2", "evaluate.max_new_tokens=8")
GROWS = ("data.path={world}/longer.jsonl", "optim.learning_rate=1e-2", "evaluate.max_new_tokens=40")
SAVES = ("output.save_every=1",)
ROUNDS = (
    *("online.judge=sandbox", "online.rounds=2", "online.prompts=8", "online.max_new_tokens=12", "online.held_out=2"),
    *("batch.size=4", "data.path={world}/more.jsonl"),
)


@dataclass(frozen=True)
class Case:
    """A change of one key, what is set besides, and what must differ then ("refused": one run stops, the other not)."""

    change: str
    shows: str = "weights"
    besides: tuple[str, ...] = ()


KEYS = {
    "model.path": Case("{world}/other"),
    "model.tokenizer": Case("{world}/swapped"),
    "model.revision": Case("abc", "refused"),  # of the hub alone: see test_a_revision_chooses_among_versions_on_the_hub
    "model.dtype": Case("bf16"),
    "model.quantize": Case("4bit", "refused"),  # frozen without adapters; with them: tests/examples/test_recipes.py
    "model.lora.r": Case("4", besides=LORA),
    "model.lora.alpha": Case("64", besides=LORA),
    "model.lora.dropout": Case("0.5", besides=LORA),
    "model.lora.bias": Case("all", besides=("model.path={world}/neox", *LORA)),
    "model.lora.targets": Case("[q_proj]", besides=LORA),
    "model.gradient_checkpointing": Case("true", "forwards"),
    "model.rope_scaling": Case("{{rope_type: linear, factor: 2.0}}"),
    "model.layout": Case("padded", "layout"),
    "model.trust_remote_code": Case("true", "refused", ("model.path={world}/custom",)),
    "model.scratch.vocab_size": Case("280", besides=SCRATCH),
    "model.scratch.hidden_size": Case("32", besides=SCRATCH),
    "model.scratch.layers": Case("2", besides=SCRATCH),
    "model.scratch.heads": Case("4", besides=SCRATCH),
    "model.scratch.context": Case("128", "model", SCRATCH),
    "model.scratch.overrides": Case("{{tie_word_embeddings: true}}", besides=SCRATCH),
    "data.path": Case("{world}/more.jsonl"),
    "data.layout": Case("pairs", besides=("data.path={world}/alike.jsonl",)),
    "data.split": Case("test", "records", ("data.path={world}/splits",)),
    "data.limit": Case("10", "records"),
    "data.held_out": Case("0.25", "records"),
    "data.held_out_path": Case("{world}/more.jsonl", "records"),
    "data.bad_rows": Case("drop", "refused", ("data.path={world}/bad.jsonl",)),
    "data.workers": Case("2", "processes", ("data.path={world}/many.jsonl",)),
    "data.rendering.max_length": Case("24", "records"),
    "data.rendering.truncate": Case("response_end", "records", ("data.rendering.max_length=24",)),
    "data.rendering.chat_template": Case("{world}/turns.jinja", besides=CHAT),
    "data.rendering.template_options": Case(
        "{{loud: true}}", besides=(*CHAT, "data.rendering.chat_template={world}/turns.jinja")
    ),
    "data.rendering.text_as_chat": Case("true", besides=SCRATCH),
    "data.rendering.boundary": Case("shift", "refused", (*SCRATCH, "data.path={world}/joined.jsonl")),
    **{
        f"data.doctor.{name}": Case("error", "refused", ("data.path={world}/sick.jsonl",))
        for name in (
            "identical",
            "duplicates",
            "near_duplicates",
            "contradictions",
            "cycles",
            "confidence",
            "templated",
        )
    },
    "data.doctor.tokens": Case("error", "refused", ("data.rendering.max_length=24",)),
    "data.doctor.contamination": Case(
        "error", "refused", ("data.path={world}/sick.jsonl", "data.held_out_path={world}/held.jsonl")
    ),
    **{
        f"data.doctor.{name}": Case("error", "refused", ("data.path={world}/skewed.jsonl",))
        for name in ("length_bias", "markers", "formats", "language")
    },
    "objective": Case("ipo"),
    "online.judge": Case("nobody", "refused", ROUNDS),
    "online.rounds": Case("1", besides=ROUNDS),
    "online.prompts": Case("16", "metrics", ROUNDS),
    "online.samples": Case("3", besides=ROUNDS),
    "online.epochs": Case("2", besides=ROUNDS),
    "online.temperature": Case("0.5", besides=ROUNDS),
    "online.max_new_tokens": Case("20", besides=ROUNDS),
    "online.server": Case("http://127.0.0.1:9/v1", "refused", ROUNDS),
    "online.unfinished": Case("1.0", "metrics", ROUNDS),
    "online.labels": Case("soft", besides=ROUNDS),
    "online.label_scale": Case("3.0", besides=(*ROUNDS, "online.labels=soft")),
    "online.reference": Case("last_round", besides=ROUNDS),
    "online.mix": Case("0.1", besides=(*ROUNDS, "online.reference=moving")),
    "online.value": Case("sandbox", "refused", (*ROUNDS, "objective=ppo")),
    "online.rubric": Case("none.txt", "refused", ROUNDS),
    "online.max_calls": Case("0", "refused", ROUNDS),
    "online.held_out": Case("4", "metrics", (*ROUNDS, "data.held_out=0.5")),
    "online.keep": Case("0", "files", ROUNDS),
    "reference.path": Case("{world}/other", "metrics"),
    "reference.kind": Case("stored", "forwards"),
    "reference.folder": Case("{here}/run/reference", "files", ("reference.kind=stored",)),
    "batch.size": Case("4"),
    "batch.tokens": Case("200"),
    "batch.micro_size": Case("2", "forwards"),
    "batch.micro_tokens": Case("100", "forwards"),
    "optim.name": Case("paged_adamw", "refused"),  # on a CPU; others: tests/training/test_optim.py
    "optim.learning_rate": Case("1e-4"),
    "optim.schedule": Case("linear"),
    "optim.warmup_ratio": Case("0.5"),
    "optim.warmup_steps": Case("2"),
    "optim.weight_decay": Case("0.1"),
    "optim.betas": Case("[0.5, 0.9]"),
    "optim.eps": Case("1e-3"),
    "optim.max_grad_norm": Case("0.1"),
    "train.epochs": Case("2", "metrics", ("train.max_steps=null",)),
    "train.max_steps": Case("2"),
    "train.precision": Case("bf16"),
    "train.device": Case("cuda", "device"),
    "train.strategy": Case("fsdp2", "refused"),  # what it does with several processes: tests/distributed
    "train.log_every": Case("1", "metrics"),
    "train.compile": Case("true"),  # which rounds otherwise
    "train.check_start": Case("false", "forwards"),
    "train.check_memory": Case("false", "forwards"),  # the rehearsal's
    "train.grace_seconds": Case("-1", "refused"),  # what it does when a signal comes: tests/training/test_stopping.py
    "evaluate.every": Case("2", "metrics", LOOKS),
    "evaluate.samples": Case("1", "samples", LOOKS),
    "evaluate.max_new_tokens": Case("4", "samples", LOOKS),
    "evaluate.temperature": Case("0.0", "samples", LOOKS),
    "evaluate.credit": Case("1", "credit", LOOKS),
    "output.path": Case("{here}/elsewhere", "folder"),
    "output.overwrite": Case("true", "refused", ("output.path={world}/run",)),
    "output.save_every": Case("2", "files"),
    "output.save_minutes": Case("1e-9", "files"),
    "output.keep_last": Case("1", "files", SAVES),
    "output.keep_best": Case("loss", "files", (*LOOKS, "evaluate.every=1")),
    "output.trackers": Case("[no-such-tracker]", "refused"),  # with one that is installed: tests/test_api.py
    "doctor.off": Case("[kl_blow_up]", "metrics", (*LOOKS, "doctor.kl_per_token=0")),
    "doctor.stop": Case("any", "refused", (*LOOKS, "doctor.kl_per_token=0", "train.max_steps=40", "evaluate.every=1")),
    "doctor.answers": Case("8", "metrics", LOOKS),
    "doctor.kl_per_token": Case("0", "metrics", LOOKS),
    "doctor.chosen_fall": Case("0", "metrics", (*LOOKS, "optim.learning_rate=3e-3")),
    "doctor.length_growth": Case("50", "metrics", (*LOOKS, *GROWS)),
    "seed": Case("1"),
}


def jsonl(path: Path, values: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and models that the changed keys point at."""
    path = tmp_path_factory.mktemp("world")
    given = rows(48)
    jsonl(path / "pairs.jsonl", given[:24])
    jsonl(path / "more.jsonl", given[24:])
    jsonl(path / "many.jsonl", given[:24] * 50)  # more than one process is handed at once
    jsonl(path / "bad.jsonl", [*given[:24], {"prompt": "A", "chosen": None, "rejected": "B"}])
    (path / "splits").mkdir()
    jsonl(path / "splits" / "train.jsonl", given[:24])
    jsonl(path / "splits" / "test.jsonl", given[24:40])
    endings = {"chosen": " The music was vivid.", "rejected": " The music was weak."}
    jsonl(path / "alike.jsonl", [{"prompt": row["prompt"], **endings} for row in given[:8]])
    jsonl(
        path / "joined.jsonl",
        [{"prompt": f"{i} bananas or bandits: ban", "chosen": "anas", "rejected": "dits"} for i in range(8)],
    )
    turns = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    chats = [{key: [{"role": role, "content": row[key].strip()}] for key, role in turns.items()} for row in given[:16]]
    jsonl(path / "chat.jsonl", chats)
    (path / "turns.jinja").write_text(
        "{% for message in messages %}{{ message['role'] }}{{ '!' if loud else ':' }}\n{{ message['content'] }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}assistant{{ '!' if loud else ':' }}\n{% endif %}"
    )
    jsonl(path / "longer.jsonl", [{**row, "rejected": " I loved the plot."} for row in given[:24]])
    jsonl(path / "sick.jsonl", [*given[:24], *sick_rows(given[24])])
    jsonl(path / "held.jsonl", [{**given[25], "prompt": f"{LONG} And then?"}])
    jsonl(path / "skewed.jsonl", [skewed_row(row) for row in given * 2])
    _write_models(path, [value for row in given for value in row.values()])
    jsonl(path / "run.jsonl", given[:24])
    (path / "run").mkdir()
    (path / "run" / "config.yaml").write_text("seed: 0\n")
    return path


LONG = "The music was vivid and the plot was weak and the cast was strong."


def sick_rows(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows with all that the doctor finds in single rows."""
    cycle = [{**row, "chosen": f" {a}.", "rejected": f" {b}."} for a, b in ("AB", "BC", "CA")]
    long = {"prompt": LONG, "chosen": f" {LONG}", "rejected": f" No, {LONG}"}
    return [
        {**row, "rejected": row["chosen"]},
        row,
        row,
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]},
        *cycle,
        long,
        {**long, "chosen": f" {LONG} Really."},
        {**row, "chosen": " The plot was weak.", "confidence": 0.1},
        {**row, "chosen": " The plot was vivid.<|im_end|>"},
    ]


def skewed_row(row: dict[str, str]) -> dict[str, str]:
    return {
        **row,
        "chosen": f"{row['chosen']}\n- vivid\n- strong. Река и мост зимой, река и мост зимой, река и мост зимой.",
        "rejected": " The plot was weak.",
    }


def _write_models(path: Path, texts: list[str]) -> None:
    tokenizer = base_tokenizer()
    other = base_model()
    with torch.no_grad():
        other.model.norm.weight.mul_(1.5)
    other.save_pretrained(path / "other")
    tokenizer.save_pretrained(path / "other")

    shutil.copytree(built_in_folder(), path / "swapped")
    words = json.loads((path / "swapped" / "tokenizer.json").read_text())
    ids = words["model"]["vocab"]
    ids["music"], ids["ending"] = ids["ending"], ids["music"]
    (path / "swapped" / "tokenizer.json").write_text(json.dumps(words))

    sizes = ScratchConfig(vocab_size=300, hidden_size=16, layers=1, heads=2, context=256)
    neox, neox_tokenizer = build("gpt_neox", texts, sizes, seed=0)
    neox.save_pretrained(path / "neox")
    neox_tokenizer.save_pretrained(path / "neox")

    shutil.copytree(built_in_folder(), path / "custom")
    (path / "custom" / "own_code.py").write_text(
        "from transformers import Qwen3Config, Qwen3ForCausalLM\n\n"
        "class OwnConfig(Qwen3Config):\n    model_type = 'own'\n\n"
        "class Own(Qwen3ForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((path / "custom" / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.Own"},
    }
    (path / "custom" / "config.json").write_text(json.dumps(config))


def seen(overrides: tuple[str, ...], world: Path, here: Path) -> dict[str, Any]:
    """What a run leaves behind that a key can change, as it would be done from the command line."""
    forwards = 0

    def count(module: nn.Module, _: Any) -> None:
        nonlocal forwards
        forwards += type(module).__name__.endswith("MLP")  # one in each layer, recomputed with it

    words = [f"output.path={here}/run", *(word.format(world=world, here=here) for word in overrides)]
    hook = register_module_forward_pre_hook(count)
    others = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    try:
        run = api.run(load(*words), show=False)
    except PreftuneError as error:
        return {"refused": str(error)}
    finally:
        hook.remove()
    manifest = json.loads((run.path / "manifest.json").read_text())
    samples, credit = run.path / "samples.jsonl", run.path / "credit.jsonl"
    weights = sorted((run.path / "model").glob("*.safetensors"))
    return {
        "refused": None,
        "weights": [hashlib.sha256(file.read_bytes()).hexdigest() for file in weights],
        "model": [file.read_text() for file in sorted((run.path / "model").glob("*.json"))],
        "metrics": [{k: v for k, v in line.items() if k not in TIMED} for line in run.history],
        "samples": samples.read_text() if samples.exists() else None,
        "credit": credit.read_text() if credit.exists() else None,
        "files": sorted(str(file.relative_to(run.path)) for file in run.path.rglob("*")),
        "records": manifest["records"],
        "layout": run.summary["layout"],
        "device": run.summary["device"],
        "folder": str(run.path),
        "forwards": forwards,
        "processes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime > others + 0.5,
    }


@pytest.fixture(scope="module")
def plain_runs() -> dict[tuple[str, ...], dict[str, Any]]:
    """What runs without the change left behind, by their overrides."""
    return {}


def test_promise_06_the_table_of_keys_is_complete() -> None:
    assert sorted(KEYS) == sorted(leaves(RunConfig))


@pytest.mark.parametrize("key", KEYS)
def test_promise_06_every_config_key_changes_a_result_or_is_refused(
    key: str,
    world: Path,
    tmp_path: Path,
    plain_runs: dict[tuple[str, ...], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    case = KEYS[key]
    besides = BASE + case.besides
    if besides not in plain_runs:
        plain_runs[besides] = seen(besides, world, tmp_path / "plain")
    plain = plain_runs[besides]

    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))  # nothing is there already
    changed = seen((*besides, f"{key}={case.change}"), world, tmp_path / "changed")

    if case.shows == "refused":
        assert (plain["refused"] is None) != (changed["refused"] is None), (plain, changed)
        assert changed["refused"] is None or key in changed["refused"], "the sentence names the key"
        return
    if key == "train.device" and not torch.cuda.is_available():
        assert changed["refused"] == "train.device=cuda is not available on this machine: set it to auto or cpu"
        return
    assert plain["refused"] is None
    assert changed["refused"] is None
    assert changed[case.shows] != plain[case.shows]
    if key in ("model.gradient_checkpointing", "data.workers"):
        assert changed["weights"] == plain["weights"], "less memory or time, the same result"


def test_a_revision_chooses_among_versions_on_the_hub(tmp_path: Path, world: Path, monkeypatch) -> None:
    """The hub as it lies in the cache after two downloads: no network is needed for it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    store = tmp_path / "models--org--tiny"
    for name, commit, source in (("main", "a" * 40, built_in_folder()), ("v2", "b" * 40, world / "other")):
        shutil.copytree(source, store / "snapshots" / commit)
        (store / "refs").mkdir(exist_ok=True)
        (store / "refs" / name).write_text(commit)
    hub = (*BASE, "model.path=org/tiny")

    first = seen(hub, world, tmp_path / "first")
    second = seen((*hub, "model.revision=v2"), world, tmp_path / "second")

    assert first["refused"] is second["refused"] is None
    assert first["weights"] != second["weights"]
    assert seen((*BASE, "model.path={world}/other"), world, tmp_path / "third")["weights"] == second["weights"]


# --- keys that would be ignored ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("model.path=scratch:qwen3", "model.tokenizer=x"), "model.tokenizer"),
        (("model.path=scratch:qwen3", "model.revision=x"), "model.revision"),
        (("model.path=scratch:qwen3", "model.rope_scaling={{rope_type: linear, factor: 2.0}}"), "model.rope_scaling"),
        (("model.path=scratch:qwen3", "model.lora={{}}"), "model.lora"),
        (("model.scratch.layers=2",), "model.scratch"),
        (("model.path={world}/other", "model.revision=x"), "model.revision"),
        (("objective=sft", "reference.kind=stored"), "reference"),
        (("objective=sft", "reference.path={world}/other"), "reference"),
        (
            ("model.path={world}/neox", "model.rope_scaling={{rope_type: linear, factr: 2.0}}"),
            "model.rope_scaling.factr",
        ),
        (("model.rope_scaling={{type: linear, factor: 2.0}}",), "model.rope_scaling.rope_type"),
        (("model.rope_scaling={{rope_type: yarns, factor: 2.0}}",), "model.rope_scaling.rope_type"),
        (("model.rope_scaling={{rope_type: linear}}",), "factor"),
        (("model.rope_scaling={{rope_type: linear, factor: -1}}",), "model.rope_scaling.factor"),
        (("model.lora.targets=[no_such_layer]",), "model.lora.targets"),
    ],
)
def test_a_key_that_would_be_ignored_is_refused_by_name(
    words: tuple[str, ...], named: str, world: Path, tmp_path: Path
) -> None:
    left = seen((*BASE, *words), world, tmp_path)

    assert left["refused"] is not None
    assert named in left["refused"]
    assert not (tmp_path / "run").exists()


def test_rope_scaling_is_refused_for_a_model_without_rope(tmp_path: Path, world: Path) -> None:
    sizes = ScratchConfig(vocab_size=300, hidden_size=16, layers=1, heads=2, context=256)
    model, tokenizer = build("gpt2", ["a text"], sizes, seed=0)
    model.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    words = ("model.path={here}/gpt2", "model.rope_scaling={{rope_type: linear, factor: 2.0}}")

    assert "gpt2 has none" in str(seen((*BASE, *words), world, tmp_path)["refused"])


# --- reading and writing ----------------------------------------------------------------------------------------------


def test_the_config_survives_writing_and_reading(tmp_path: Path) -> None:
    config = load("model.lora.r=4", "objective={name: ipo, tau: 0.5}", "optim.betas=[0.5, 0.9]", "seed=3")
    (tmp_path / "config.yaml").write_text(yaml_tree.dump(config))

    assert load(file=tmp_path / "config.yaml") == config


def test_the_template_of_init_holds_every_key_and_gives_the_defaults(tmp_path: Path) -> None:
    text = yaml_tree.commented(RunConfig)
    (tmp_path / "config.yaml").write_text(text)

    assert load(file=tmp_path / "config.yaml") == RunConfig()
    for key in leaves(RunConfig):
        if not key.startswith(("model.lora.", "online.")):  # none by default
            assert f"{key.rpartition('.')[2]}:" in text


def test_every_key_has_a_description() -> None:
    def undescribed(model: type[BaseModel], above: str = "") -> Iterator[str]:
        for name, info in model.model_fields.items():
            inner = list(models_in(info.annotation))
            if not inner and not info.description:
                yield above + name
            for part in inner:
                yield from undescribed(part, f"{above}{name}.")

    assert not list(undescribed(RunConfig))


@pytest.mark.parametrize("word", ["batch.tokens=200", "optim.warmup_steps=2"])
def test_what_is_written_can_be_read_again(word: str, tmp_path: Path) -> None:
    config = load(word)
    (tmp_path / "config.yaml").write_text(yaml_tree.dump(config))

    assert load(file=tmp_path / "config.yaml") == config


def test_held_out_takes_a_number_of_records(world: Path, tmp_path: Path) -> None:
    assert seen((*BASE, "data.held_out=5"), world, tmp_path)["records"] == {"train": 19, "held_out": 5}
