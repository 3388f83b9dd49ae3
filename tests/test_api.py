"""The Python door: objects instead of paths, and the run that comes back."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
import yaml
from plotly.graph_objects import Figure
from safetensors.torch import load_file
from torch import Tensor, nn

import preftune
from preftune import PreftuneError, Run
from preftune.data.records import Preference
from preftune.objectives.dpo import DPO
from preftune.policy.loading import built_in_folder
from preftune.sandbox.preferences import base_model, base_tokenizer, pairs

QUICK: dict[str, Any] = {"train": {"max_steps": 3}, "evaluate": {"samples": 0}, "quiet": True}


@pytest.fixture(scope="module")
def records() -> list[Preference]:
    return pairs(40)


@pytest.fixture(scope="module")
def rows(records: list[Preference]) -> list[dict[str, Any]]:
    return [{"prompt": r.prompt, "chosen": r.chosen, "rejected": r.rejected} for r in records]


@pytest.fixture(scope="module")
def first(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run of rows, to compare others with."""
    return preftune.train("sandbox", rows, "dpo", output=tmp_path_factory.mktemp("first"), **QUICK)


def weights(run: Run) -> bytes:
    return (run.path / "model" / "model.safetensors").read_bytes()


# --- what comes back --------------------------------------------------------------------------------------------------


def test_a_run_has_history_summary_plot_and_model(first: Run) -> None:
    assert [(line["kind"], line["step"]) for line in first.history] == [("eval", 0), ("train", 3), ("eval", 3)]
    assert first.summary["steps"] == 3
    assert first.report.is_file()
    figure = first.plot()
    assert isinstance(figure, Figure)
    assert len(figure.data) > 4
    assert repr(first) == f"Run({str(first.path)!r})"
    assert isinstance(first.model, nn.Module)
    saved = load_file(first.path / "model" / "model.safetensors")
    for name, value in first.model.state_dict().items():
        assert name == "lm_head.weight" or torch.equal(value, saved[name])


def test_a_run_is_reopened_from_its_folder(first: Run) -> None:
    again = Run(first.path)
    assert again.history == first.history
    assert again.summary == first.summary
    assert len(again.plot().data) == len(first.plot().data)
    assert again.model is None


def test_figures_of_ones_own_join_summary_and_report(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    def norm(lm: nn.Module) -> dict[str, float]:
        assert not lm.training
        return {"weight_norm": sum(float(p.norm()) for p in lm.parameters())}

    run = preftune.train("sandbox", rows, output=tmp_path, probe=norm, **QUICK)
    assert run.summary["before"]["weight_norm"] != run.summary["after"]["weight_norm"]
    run.add_to_summary(judged="twice")
    assert run.summary["judged"] == "twice"
    assert run.summary["steps"] == 3


# --- data -------------------------------------------------------------------------------------------------------------


def as_file(rows: list[dict[str, Any]], folder: Path) -> Path:
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "pairs.jsonl"


FORMS: dict[str, Callable[[list[dict[str, Any]], Path], Any]] = {
    "generator": lambda rows, _: (row for row in rows),
    "tuple": lambda rows, _: tuple(rows),
    "dataset": lambda rows, _: datasets.Dataset.from_list(rows),
    "splits": lambda rows, _: {"train": rows, "test": rows[:3]},
    "path": as_file,
    "text": lambda rows, folder: str(as_file(rows, folder)),
}


@pytest.mark.parametrize("form", FORMS)
def test_any_form_of_the_same_rows_gives_the_same_run(
    form: str, rows: list[dict[str, Any]], first: Run, tmp_path: Path
) -> None:
    run = preftune.train("sandbox", FORMS[form](rows, tmp_path), "dpo", output=tmp_path / "run", **QUICK)
    assert weights(run) == weights(first)
    if form in ("path", "text"):
        config = yaml.safe_load((run.path / "config.yaml").read_text())
        assert config["data"]["path"] == str(tmp_path / "pairs.jsonl"), "so that the run can be done again"


def test_records_are_data_too(records: list[Preference], first: Run, tmp_path: Path) -> None:
    assert weights(preftune.train("sandbox", records, output=tmp_path, **QUICK)) == weights(first)


@pytest.mark.parametrize("form", [tuple, iter])
def test_records_in_any_iterable(form: Any, records: list[Preference], first: Run, tmp_path: Path) -> None:
    assert weights(preftune.train("sandbox", form(records), output=tmp_path, **QUICK)) == weights(first)


def test_held_out_data_of_its_own(records: list[Preference], tmp_path: Path) -> None:
    run = preftune.train("sandbox", records[:30], held_out=records[30:], output=tmp_path, **QUICK)
    counts = json.loads((run.path / "manifest.json").read_text())["records"]
    trained = {record.prompt for record in records[:30]}
    assert counts == {"train": 30, "held_out": sum(record.prompt not in trained for record in records[30:])}
    run = preftune.train("sandbox", records, held_out=[], output=tmp_path / "none", **QUICK)
    assert json.loads((run.path / "manifest.json").read_text())["records"] == {"train": 40, "held_out": 0}


# --- models -----------------------------------------------------------------------------------------------------------


class LSTM(nn.Module):
    """A language model that no library knows, with dropout and tied weights."""

    def __init__(self, vocabulary: int, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(width, vocabulary)
        self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.dropout(self.lstm(self.embed(input_ids))[0])))


def test_a_loaded_model_is_trained_in_place_and_given_back_as_it_came(
    rows: list[dict[str, Any]], first: Run, tmp_path: Path
) -> None:
    model = base_model()
    before = model.config._attn_implementation

    run = preftune.train(model, rows, tokenizer=base_tokenizer(), output=tmp_path, **QUICK)

    assert run.model is model
    assert weights(run) == weights(first)
    assert model.config._attn_implementation == before
    assert not model.training
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=2).shape[0] == 1


def test_a_loaded_model_is_given_back_when_training_cannot_begin(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    base_model().save_pretrained(tmp_path / "other")
    base_tokenizer().save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").write_bytes(b"broken")
    model = base_model()
    before = model.config._attn_implementation
    reference = {"path": str(tmp_path / "other")}
    with pytest.raises(PreftuneError, match="cannot load model"):
        preftune.train(model, rows, tokenizer=base_tokenizer(), output=tmp_path / "r", reference=reference, **QUICK)
    assert model.config._attn_implementation == before
    assert not (tmp_path / "r").exists()


def test_any_module_trains_through_padded_rows(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    model = LSTM(len(base_tokenizer()))
    start = model.embed.weight.clone()

    run = preftune.train(model, rows, tokenizer=base_tokenizer(), output=tmp_path, **QUICK)

    assert run.summary["layout"] == "padded"
    assert "padded rows instead of prompt trees: LSTM is no transformers model" in run.summary["messages"]
    assert run.summary["before"]["preference_accuracy"] == 0.5
    assert not torch.equal(model.embed.weight, start)
    assert not model.training, "ready to be used"
    card = (tmp_path / "model" / "README.md").read_text()
    assert "AutoModelForCausalLM" not in card
    names: dict[str, Any] = {"model": LSTM(len(base_tokenizer()))}
    exec(card.partition("```python\n")[2].partition("```")[0], names)
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(names["model"].eval()(ids).logits, model(ids).logits, rtol=0, atol=0)


def test_checkpointing_recomputes_in_a_loaded_model_too(rows: list[dict[str, Any]], first: Run, tmp_path: Path) -> None:
    model = base_model()
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    model.model.layers[0].mlp.register_forward_pre_hook(count)
    config = {"model": {"gradient_checkpointing": True}}
    run = preftune.train(model, rows, tokenizer=base_tokenizer(), output=tmp_path, config=config, **QUICK)
    plain = base_model()
    once, calls = calls, 0
    plain.model.layers[0].mlp.register_forward_pre_hook(count)
    preftune.train(plain, rows, tokenizer=base_tokenizer(), output=tmp_path / "plain", **QUICK)
    assert once == calls + 4, "once more in each of three steps, and in their rehearsal"
    assert weights(run) == weights(first)


class Silent(LSTM):
    def forward(self, input_ids: Tensor) -> Any:
        return super().forward(input_ids).logits


class LastOnly(LSTM):
    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=super().forward(input_ids).logits[:, -1])


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (lambda: None, {}, "model is of type NoneType, expected a folder, a hub id or a module"),
        (base_model, {}, "a loaded model comes without its tokenizer: give tokenizer="),
        (base_model, {"tokenizer": 3}, "tokenizer is of type int, expected a tokenizer"),
        (lambda: "sandbox", {"tokenizer": 3}, "tokenizer is of type int, expected a tokenizer"),
        (base_model, {"tokenizer": "./none"}, "cannot load a tokenizer from ./none"),
        (lambda: base_model().requires_grad_(False), {"tokenizer": True}, "has no parameter that trains"),
        (lambda: Silent(96), {"tokenizer": True}, r"Silent.forward\(input_ids\) must return an object with .logits"),
        (lambda: LastOnly(96), {"tokenizer": True}, r"got shape \(1, 96\) for 1 row of 2 tokens"),
        (lambda: LSTM(10), {"tokenizer": True}, "gives token .* but the model knows tokens 0 to 9"),
        (lambda: LSTM(96), {"tokenizer": True, "config": {"model": {"lora": {}}}}, "model.lora needs a transformers"),
        (
            lambda: LSTM(96),
            {"tokenizer": True, "config": {"model": {"gradient_checkpointing": True}}},
            "model.gradient_checkpointing needs a transformers",
        ),
        (lambda: LSTM(96), {"tokenizer": True, "config": {"model": {"layout": "tree"}}}, "model.layout=tree is not"),
        (base_model, {"tokenizer": True, "config": {"model": {"dtype": "bf16"}}}, "model.dtype says how to load"),
        (base_model, {"tokenizer": True, "config": {"model": {"revision": "x"}}}, "model.revision says how to load"),
        (base_model, {"tokenizer": True, "config": {"model": {"scratch": {"layers": 2}}}}, "model.scratch says how"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused(
    model: Callable[[], Any], given: dict[str, Any], message: str, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    if given.get("tokenizer") is True:
        given = {**given, "tokenizer": base_tokenizer()}
    with pytest.raises(PreftuneError, match=message):
        preftune.train(model(), rows, output=tmp_path / "r", **given, **QUICK)
    assert not (tmp_path / "r").exists()


def test_a_folder_as_a_path(rows: list[dict[str, Any]], first: Run, tmp_path: Path) -> None:
    assert weights(preftune.train(Path(built_in_folder()), rows, output=tmp_path, **QUICK)) == weights(first)


# --- objective and config ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "objective",
    ["dpo", {"name": "dpo", "beta": 0.1}, DPO(beta=0.1), [DPO()], None],
    ids=["name", "dict", "it", "list", "none"],
)
def test_an_objective_in_any_form(objective: Any, rows: list[dict[str, Any]], first: Run, tmp_path: Path) -> None:
    assert weights(preftune.train("sandbox", rows, objective, output=tmp_path, **QUICK)) == weights(first)


def test_the_objective_of_a_config_is_used_unless_one_is_given(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("objective: {name: ipo, tau: 0.5}\nseed: 3\n")
    run = preftune.train("sandbox", rows, config=tmp_path / "c.yaml", output=tmp_path / "a", **QUICK)
    assert run.summary["objective"] == "ipo"
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    assert (config["objective"]["tau"], config["seed"]) == (0.5, 3)
    run = preftune.train("sandbox", rows, "dpo", config=tmp_path / "c.yaml", output=tmp_path / "b", seed=4, **QUICK)
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    assert (config["objective"]["name"], config["seed"]) == ("dpo", 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimm": {}}, "unknown key optimm; did you mean optim?"),
        ({"optim": {"learning_rat": 1}}, "unknown key optim.learning_rat; did you mean optim.learning_rate?"),
        ({"optim": 3}, "optim is the number 3, expected a mapping of its keys"),
        ({"config": "none.yaml"}, "there is no config file none.yaml"),
        ({"objective": 7}, "objective is 7, expected a name"),
        ({"objective": {"beta": 1}}, "objective has no name; known: "),
        ({"objective": ["dpo", {"name": "sft", "weigth": 2}]}, "objective sft has no field weigth"),
    ],
)
def test_a_bad_setting_is_refused(
    given: dict[str, Any], message: str, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(PreftuneError) as error:
        preftune.train("sandbox", rows, output=tmp_path / "r", quiet=True, **given)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "0 rows in given data"),
        (None, "data.path is missing"),
        (7, "given data is of type int"),
        ([3], "row 0 is int"),
    ],
)
def test_bad_data_is_refused(data: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(PreftuneError, match=message):
        preftune.train("sandbox", data, output=tmp_path / "r", **QUICK)


def test_two_runs_in_one_process_keep_their_own_precision(
    rows: list[dict[str, Any]], first: Run, tmp_path: Path
) -> None:
    settings = {**QUICK, "train": {"max_steps": 3, "precision": "bf16"}}
    half = preftune.train("sandbox", rows, output=tmp_path / "bf16", **settings)
    full = preftune.train("sandbox", rows, output=tmp_path / "fp32", **QUICK)
    assert (half.summary["precision"], full.summary["precision"]) == ("bf16", "fp32")
    assert weights(half) != weights(first)
    assert weights(full) == weights(first)


def test_training_does_not_depend_on_what_was_drawn_before(
    rows: list[dict[str, Any]], first: Run, tmp_path: Path
) -> None:
    torch.manual_seed(12345)
    torch.rand(7)
    assert weights(preftune.train("sandbox", rows, output=tmp_path, **QUICK)) == weights(first)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_metrics_go_to_a_tracker_too(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    run = preftune.train("sandbox", rows, output={"path": str(tmp_path), "trackers": ["tensorboard"]}, **QUICK)
    events = [file for file in run.path.rglob("events.out.tfevents.*") if file.stat().st_size]
    assert events


def test_nothing_held_out(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """Without a held-out side there is nothing to evaluate, and the run is none the worse for it."""
    run = preftune.train("sandbox", rows, output=tmp_path, config={"data": {"held_out": 0.0}}, **QUICK)
    assert run.summary["before"] == run.summary["after"] == {}
    assert [line["kind"] for line in run.history] == ["train"]
    assert run.report.is_file()
    assert "nothing was held out" in (tmp_path / "model" / "README.md").read_text()


def test_an_endless_generator_with_a_limit(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    def endless() -> Iterator[dict[str, Any]]:
        while True:
            yield from rows

    run = preftune.train("sandbox", endless(), output=tmp_path, config={"data": {"limit": 20}}, **QUICK)
    assert sum(json.loads((run.path / "manifest.json").read_text())["records"].values()) == 20
