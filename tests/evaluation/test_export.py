"""An exported model is the trained one, in a folder that plain transformers loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from evaluation.runs import Made
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from preftune.errors import PreftuneError
from preftune.evaluation.export import export
from preftune.evaluation.models import find, load_policy, load_start

PROMPT = "A modern fantasy about two sisters."


@pytest.mark.parametrize("kind", ["lora", "biases", "reward-lora"])
def test_a_merged_adapter_gives_the_same_logits(kind: str, made: Made, tmp_path: Path) -> None:
    said = export(made(kind), tmp_path / "out", merge=True)
    assert said.startswith(f"wrote {tmp_path / 'out'}: the adapter merged into")
    auto = AutoModelForSequenceClassification if kind == "reward-lora" else AutoModelForCausalLM
    model = auto.from_pretrained(tmp_path / "out", use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    adapted = load_policy(find(made(kind))).lm.eval()
    assert isinstance(adapted, PeftModel)
    ids = torch.tensor([tokenizer.encode(PROMPT)])
    with torch.no_grad():
        merged, apart = model.eval()(ids).logits, adapted(ids).logits
        base = load_start(find(made(kind)), list).lm.eval()(ids).logits
    assert (merged - apart).abs().max() < 1e-5
    assert (merged - base).abs().max() > 1e-3, "the adapter does nothing"
    assert not [path.name for path in tmp_path.iterdir() if path.name != "out"]
    assert not list((tmp_path / "out").glob("adapter*"))
    assert "PeftModel" not in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [type(model).__name__]


def test_what_vllm_reads_is_there(made: Made, tmp_path: Path) -> None:
    export(made("lora"), tmp_path / "out", merge=True)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names


@pytest.mark.parametrize("kind", ["dpo", "lora"])
def test_without_merging_it_is_a_copy(kind: str, made: Made, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export(made(kind), tmp_path / "out")
    source = made(kind) / "model"
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        path.name: path.read_bytes() for path in source.iterdir()
    }


def test_what_cannot_be_exported(made: Made, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(PreftuneError, match="exists already"):
        export(made("lora"), tmp_path / "taken", merge=True)
    with pytest.raises(PreftuneError, match="is no run"):
        export("sandbox", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_an_adapter_over_rounded_weights_is_not_merged(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = find(made("lora"))
    named.config.model.quantize = "4bit"
    monkeypatch.setattr("preftune.evaluation.export.find", lambda path: named)
    with pytest.raises(PreftuneError, match="over a base in 4bit"):
        export(made("lora"), tmp_path / "out", merge=True)
    assert not list(tmp_path.iterdir())
