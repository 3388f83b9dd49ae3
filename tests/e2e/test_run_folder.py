"""What a run leaves behind: complete, readable without preftune, and enough to do it again."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune import Run, train
from preftune.data.records import Preference, Where, fingerprint
from preftune.data.split import held_out
from preftune.sandbox.preferences import base_model, base_tokenizer
from preftune.training.run_folder import to_json

TIMED = {"seconds", "pairs_per_second", "tokens_per_second"}
IDS = torch.tensor([[5, 17, 3, 40, 8, 22]])


def lines(path: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def untimed(values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in TIMED} for line in values]


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_a_run_folder_holds_everything_and_nothing_half_done(run_folder: Path) -> None:
    found = {file.name for file in run_folder.iterdir()}
    assert found == {
        "config.yaml",
        "credit.jsonl",
        "data_doctor.json",
        "manifest.json",
        "metrics.jsonl",
        "model",
        "report.html",
        "samples.jsonl",
        "summary.json",
    }
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= {
        file.name for file in (run_folder / "model").iterdir()
    }


def test_the_config_gives_the_same_bytes_again(run_folder: Path, preftune, tmp_path: Path) -> None:
    said = preftune("train", str(run_folder / "config.yaml"), "output.path=again", "-q")

    assert said.code == 0, said.err
    again = tmp_path / "again"
    first, second = digest(run_folder / "model"), digest(again / "model")
    assert first.pop("README.md") != second.pop("README.md"), "each names its own folder"
    assert first == second
    assert untimed(lines(run_folder / "metrics.jsonl")) == untimed(lines(again / "metrics.jsonl"))
    assert (run_folder / "samples.jsonl").read_bytes() == (again / "samples.jsonl").read_bytes()
    configs = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in (run_folder, again)]
    assert [config["output"].pop("path") for config in configs] == [str(run_folder), "again"]
    assert configs[0] == configs[1]


def test_the_config_is_resolved(run_folder: Path, pairs_file: Path) -> None:
    config = yaml.safe_load((run_folder / "config.yaml").read_text())
    assert config["objective"] == {"name": "dpo", "weight": 1.0, "beta": 0.1, "label_smoothing": 0.0}
    assert config["data"]["path"] == str(pairs_file)
    assert config["optim"]["learning_rate"] == 1e-3
    assert config["optim"]["schedule"] == "cosine"
    assert config["seed"] == 0


def test_the_manifest_says_how_it_came_about(run_folder: Path, rows: list[dict[str, str]]) -> None:
    manifest = json.loads((run_folder / "manifest.json").read_text())
    for package in ("preftune", "torch", "transformers", "peft", "accelerate", "tokenizers"):
        assert manifest["versions"][package] == version(package)
    assert manifest["seed"] == 0
    assert manifest["command"].startswith("preftune train --model sandbox --data ")
    assert manifest["command"].endswith(" data.held_out=0.25")
    assert datetime.fromisoformat(manifest["started"]).tzinfo is not None
    assert manifest["device"] in ("cpu", "cuda", "cuda:0", "mps")
    counts = manifest["records"]
    assert counts["train"] + counts["held_out"] == len(rows)
    assert counts["held_out"] == pytest.approx(len(rows) / 4, abs=2)
    # of both sides, in the order in which they were used; so order aside, it is that of the rows
    assert re.fullmatch(r"[0-9a-f]{64}", manifest["data_sha256"])


def test_the_data_hash_follows_the_data(run_folder: Path, preftune, rows: list[dict[str, str]], tmp_path: Path) -> None:
    """Without a held-out side it is the fingerprint of the rows; one changed letter changes it."""
    hashes = []
    for number, last in enumerate(("vivid.", "vivid!")):
        given = [*rows[:8], {**rows[8], "chosen": f" The music was {last}"}]
        (tmp_path / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
        words = ("-d", f"{number}.jsonl", "-o", f"run-{number}", "train.max_steps=1", "data.held_out=0.0")
        assert preftune("train", "-m", "sandbox", "-q", "evaluate.samples=0", *words).code == 0
        hashes.append(json.loads((tmp_path / f"run-{number}" / "manifest.json").read_text())["data_sha256"])
        where = Where("anywhere", 0)
        assert hashes[-1] == fingerprint([Preference(**row, where=where) for row in given])
    assert hashes[0] != hashes[1]


def test_metrics_are_lines_of_json_in_order(run_folder: Path) -> None:
    found = lines(run_folder / "metrics.jsonl")

    assert [(line["kind"], line["step"]) for line in found] == [
        ("eval", 0),
        ("train", 2),
        ("train", 4),
        ("eval", 4),
        ("train", 6),
        ("eval", 6),
    ]
    for line in found:
        assert all(line[key] is not None for key in line), "nothing of an ordinary run is missing"
        assert 0 <= line["preference_accuracy"] <= 1
        assert line["margin"] == pytest.approx(0.1 * line["delta"], abs=1e-6)
        assert line["delta_q10"] <= line["delta_q50"] <= line["delta_q90"]
    evals = [line for line in found if line["kind"] == "eval"]
    assert evals[0]["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert evals[0]["preference_accuracy"] == 0.5
    assert evals[0]["chosen_logp_per_token_change"] == 0.0
    for line in evals:
        counts = [sum(line[f"{name}_reward_histogram"]["counts"]) for name in ("chosen", "rejected")]
        assert counts[0] == counts[1] > 0
    trained = [line for line in found if line["kind"] == "train"]
    for line in trained:
        assert line["gradient_norm"] > 0
        assert line["learning_rate"] > 0
        assert line["tokens_per_second"] > line["pairs_per_second"] > 0
        assert 0 <= line["padding_share"] < 1
    assert trained[0]["learning_rate"] > trained[-1]["learning_rate"] > 0


def test_samples_answer_the_same_prompts_at_the_start_and_at_the_end(run_folder: Path) -> None:
    found = lines(run_folder / "samples.jsonl")

    assert [(sample["when"], sample["step"]) for sample in found] == [("start", 0)] * 2 + [("end", 6)] * 2
    assert [sample["prompt"] for sample in found[:2]] == [sample["prompt"] for sample in found[2:]]
    assert len({sample["prompt"] for sample in found}) == 2
    for sample in found:
        assert sample["response"].strip()
        assert 1 <= sample["tokens"] <= 12
        assert sample["ended"] or sample["tokens"] == 12


def test_the_samples_of_a_run_are_of_held_out_prompts(run_folder: Path, rows: list[dict[str, str]]) -> None:
    where = Where("anywhere", 0)
    train, apart = held_out([Preference(**row, where=where) for row in rows], 0.25, seed=0)
    asked = {sample["prompt"].strip() for sample in lines(run_folder / "samples.jsonl")}
    assert asked <= {str(record.prompt).strip() for record in apart}
    assert not asked & {str(record.prompt).strip() for record in train}


def test_the_summary_has_what_was_promised(run_folder: Path) -> None:
    summary = json.loads((run_folder / "summary.json").read_text())
    for key in ("objective", "steps", "seconds", "pairs_per_second", "before", "after"):
        assert summary[key] is not None
    assert (summary["objective"], summary["steps"], summary["layout"]) == ("dpo", 6, "tree")
    evals = [line for line in lines(run_folder / "metrics.jsonl") if line["kind"] == "eval"]
    for when, line in (("before", evals[0]), ("after", evals[-1])):
        for key in ("preference_accuracy", "margin", "loss"):
            assert summary[when][key] == line[key]


def test_the_model_loads_with_plain_transformers_in_three_lines(preftune, pairs_file: Path, tmp_path: Path) -> None:
    """The lines are those of its card, run as they stand there."""
    quick = ("train.max_steps=3", "evaluate.samples=0", "optim.learning_rate=1e-3")
    assert preftune("train", "-m", "sandbox", "-d", str(pairs_file), "-o", "r", "-q", *quick).code == 0
    card = (tmp_path / "r" / "model" / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    assert len(code.strip().splitlines()) == 3

    names: dict[str, Any] = {}
    exec(code, names)

    assert not torch.equal(logits(names["model"]), logits(base_model()))
    text = "A modern fantasy about two sisters."
    assert names["tokenizer"](text)["input_ids"] == base_tokenizer()(text)["input_ids"]
    assert names["model"].config._attn_implementation == "sdpa", "nothing of ours is needed to run it"
    assert names["model"].generate(IDS, max_new_tokens=3, do_sample=False).shape == (1, 9)
    assert "implicit preference accuracy | 0.5 (" in card
    yaml.safe_load(card.split("---")[1])


def test_adapters_load_with_plain_transformers_from_any_folder(
    lora_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(lora_run.path / "model")

    assert lora_run.model is not None
    torch.testing.assert_close(logits(model), logits(lora_run.model), rtol=1e-6, atol=1e-6)
    assert (logits(model) - logits(base_model())).abs().max() > 1e-3
    assert "library_name: peft" in (lora_run.path / "model" / "README.md").read_text()


def test_adapters_of_a_base_named_by_a_relative_path_are_found_from_elsewhere(
    preftune, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base_model().save_pretrained(tmp_path / "mine")
    base_tokenizer().save_pretrained(tmp_path / "mine")
    quick = ("train.max_steps=2", "evaluate.samples=0")
    assert preftune("train", "-m", "mine", "-d", str(pairs_file), "-o", "r", "--lora", "-q", *quick).code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    AutoModelForCausalLM.from_pretrained(tmp_path / "r" / "model")

    said = preftune("train", "-m", str(tmp_path / "r" / "model"), "-d", str(pairs_file), "-q", *quick)
    assert said.code == 2
    assert "holds an adapter, expected a whole model: merge it" in said.err


def test_a_second_run_goes_on_from_the_model_of_the_first(run_folder: Path, preftune, pairs_file: Path) -> None:
    words = ("-m", str(run_folder / "model"), "-d", str(pairs_file), "-o", "r", "-q", "train.max_steps=1")
    assert preftune("train", *words, "data.held_out=0.25", "evaluate.samples=0").code == 0
    first, second = (json.loads((path / "summary.json").read_text()) for path in (run_folder, Path("r")))
    assert second["before"]["policy_accuracy"] == first["after"]["policy_accuracy"]
    assert second["before"]["chosen_logp_per_token"] == pytest.approx(first["after"]["chosen_logp_per_token"], abs=1e-6)
    assert second["before"]["preference_accuracy"] == 0.5, "the reference is the new start"


def test_saved_models_are_whole_and_only_the_last_are_kept(preftune, pairs_file: Path, tmp_path: Path) -> None:
    words = ("train.max_steps=5", "output.save_every=1", "output.keep_last=2", "evaluate.samples=0")
    assert preftune("train", "-m", "sandbox", "-d", str(pairs_file), "-o", "r", "-q", *words).code == 0

    saved = sorted((tmp_path / "r" / "checkpoints").iterdir())
    assert [folder.name for folder in saved] == ["step-000004", "step-000005"]
    last, final = (AutoModelForCausalLM.from_pretrained(folder) for folder in (saved[1], tmp_path / "r" / "model"))
    assert torch.equal(logits(last), logits(final))
    AutoTokenizer.from_pretrained(saved[0])


def test_the_report_escapes_what_it_shows(preftune, tmp_path: Path, rows: list[dict[str, str]]) -> None:
    """A run whose name is a script."""
    name = "<script>alert(1)</script>".replace("/", "_")
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:12]))
    words = ("train.max_steps=1", "evaluate.samples=1", "evaluate.max_new_tokens=3", f"output.path={name}")
    assert preftune("train", "-m", "sandbox", "-d", "d.jsonl", "-q", *words).code == 0
    page = (tmp_path / name / "report.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


# --- where a run may be written ---------------------------------------------------------------------------------------


def test_a_folder_with_something_in_it_is_refused(preftune, run_folder: Path, pairs_file: Path, tmp_path: Path) -> None:
    before = digest(run_folder / "model")
    said = preftune("train", "-m", "sandbox", "-d", str(pairs_file), "-o", str(run_folder), "-q")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "output.overwrite=true" in said.err
    assert digest(run_folder / "model") == before

    (tmp_path / "empty").mkdir()
    quick = ("train.max_steps=1", "evaluate.samples=0")
    assert preftune("train", "-m", "sandbox", "-d", str(pairs_file), "-o", "empty", "-q", *quick).code == 0


def test_overwrite_replaces_a_run_and_nothing_else(preftune, pairs_file: Path, tmp_path: Path) -> None:
    words = ("-m", "sandbox", "-d", str(pairs_file), "-q", "train.max_steps=1", "output.overwrite=true")
    words = (*words, "evaluate.samples=0")
    assert preftune("train", *words, "-o", "r").code == 0
    (tmp_path / "r" / "checkpoints").mkdir()
    assert preftune("train", *words, "-o", "r").code == 0
    assert not (tmp_path / "r" / "checkpoints").exists()
    assert not list(tmp_path.glob(".*replaced*"))

    (tmp_path / "r" / "notes.txt").write_text("what I saw")
    said = preftune("train", *words, "-o", "r")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "it holds notes.txt, which no run wrote" in said.err
    assert (tmp_path / "r" / "notes.txt").read_text() == "what I saw"
    (tmp_path / "r" / "notes.txt").unlink()

    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("all of it")
    said = preftune("train", *words, "-o", "thesis")
    assert said.code == 2
    assert "is no run folder, so it is not overwritten" in said.err
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "all of it"

    (tmp_path / "r" / "mine").mkdir()
    (tmp_path / "r" / "mine" / "pairs.jsonl").write_text(pairs_file.read_text())
    (tmp_path / "r" / "mine" / "chat.jinja").write_text("{{ messages }}")
    for key, value in (
        ("model.path", "r/model"),
        ("model.tokenizer", "r/model"),
        ("reference.path", "r/model"),
        ("data.path", "r/mine/pairs.jsonl"),
        ("data.held_out_path", "r/mine/pairs.jsonl"),
        ("data.rendering.chat_template", "r/mine/chat.jinja"),
    ):
        said = preftune("train", *words, "-o", "r", f"{key}={value}")
        assert said.code == 2, key
        assert f"it holds {key}" in said.err
    assert (tmp_path / "r" / "model" / "model.safetensors").exists()


def test_a_run_that_never_began_leaves_no_folder_and_removes_none(
    preftune, run_folder: Path, pairs_file: Path, tmp_path: Path
) -> None:
    words = ("-m", "sandbox", "-d", str(pairs_file), "-q", "-o")
    assert preftune("train", *words, "r", "--lora", "model.lora.targets=[no_such_layer]").code == 2
    assert preftune("train", *words, "r", "data.rendering.max_length=3").code == 2
    assert not (tmp_path / "r").exists()

    before = digest(run_folder)
    for late in ("data.rendering.max_length=3", "reference.path=org/nope"):  # before the folder is made, and after
        assert preftune("train", *words, str(run_folder), "output.overwrite=true", late).code == 2
        assert digest(run_folder) == before


def test_a_run_that_did_not_finish_is_called_that(preftune, pairs_file: Path, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.yaml").write_text("seed: 0\n")
    said = preftune("train", "-m", "sandbox", "-d", str(pairs_file), "-o", "r", "-q")
    assert said.code == 2
    assert "output.path r holds a run that did not finish" in said.err


def test_the_demo_replaces_its_own_folder_and_no_other(preftune, run_folder: Path, tmp_path: Path) -> None:
    before = digest(run_folder)
    said = preftune("demo", "--pairs", "64", "-q", "-o", str(run_folder))
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "in the demo --overwrite" in said.err
    assert digest(run_folder) == before


def test_rows_given_as_objects_are_kept_so_that_the_config_gives_the_run_again(
    preftune, rows: list[dict[str, str]], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"train": {"max_steps": 2}, "evaluate": {"samples": 0}, "quiet": True}
    train("sandbox", rows, {"name": "dpo", "beta": 0.2}, output="first", config={"data": {"limit": 40}}, **settings)
    assert preftune("train", "first/config.yaml", "output.path=again", "-q").code == 0
    first, second = digest(tmp_path / "first" / "model"), digest(tmp_path / "again" / "model")
    assert first.pop("README.md") != second.pop("README.md")
    assert first == second
    assert untimed(lines(tmp_path / "first" / "metrics.jsonl")) == untimed(lines(tmp_path / "again" / "metrics.jsonl"))
    manifests = [json.loads((tmp_path / run / "manifest.json").read_text()) for run in ("first", "again")]
    assert manifests[0]["data_sha256"] == manifests[1]["data_sha256"]


@pytest.mark.parametrize("place", ["/proc/run", "file.txt/run"])
def test_a_place_that_cannot_be_written_is_refused(place: str, preftune, pairs_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("")
    said = preftune("train", "-m", "sandbox", "-d", str(pairs_file), "-o", place, "-q")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert f"cannot write to output.path {place}" in said.err


def test_json_has_no_nan() -> None:
    assert to_json({"loss": float("nan"), "deep": [float("inf"), 1.5]}) == '{"loss": null, "deep": [null, 1.5]}'


def test_the_weights_are_those_of_the_last_step(run_folder: Path) -> None:
    """Every matrix moved away from the base, and no weight is broken."""
    trained, base = load_file(run_folder / "model" / "model.safetensors"), base_model().state_dict()
    assert set(trained) == set(base) - {"lm_head.weight"}, "which is tied"
    for name, weight in trained.items():
        assert weight.isfinite().all()
        assert not torch.equal(weight, base[name])
