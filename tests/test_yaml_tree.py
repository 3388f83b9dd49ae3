import math
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_validator

from preftune.errors import PreftuneError
from preftune.yaml_tree import commented, dump, load

TEXT = "text (numbers, true, false and null need quotes to be text)"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Lora(Section):
    r: int = Field(16, gt=0, description="Rank of the update.")
    targets: tuple[str, ...] = ("q_proj", "k_proj")


class Train(Section):
    learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate of AdamW.")
    epochs: int = 1
    schedule: Literal["linear", "cosine"] = "cosine"
    batch: int | Literal["auto"] = "auto"
    lora: Lora | None = None
    resume: bool = False

    @field_validator("epochs")
    @classmethod
    def _positive(cls, epochs: int) -> int:
        if epochs < 1:
            raise ValueError("an epoch is one pass over the data, so at least 1 is needed")
        return epochs


class Data(Section):
    files: list[Path] = Field([], description="Files or folders of preference pairs; see the guide's page on layouts.")
    template: str = "{question}"
    renamed: dict[str, str] = {}


class Run(Section):
    model: str = Field("scratch", description="Folder or hub id.")
    seed: int | None = None
    train: Train = Train()
    data: Data = Data()
    objective: str | dict[str, Any] | list[str | dict[str, Any]] = {"name": "dpo", "beta": 0.1}


class Strict(Section):
    model: str = Field(description="Folder or hub id of the model.")
    data: Data


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def to_file(text: str) -> Path:
        Path("run.yaml").write_text(text)
        return Path("run.yaml")

    return to_file


def run(path: Path | None = None, *overrides: str, base: dict[str, Any] | None = None) -> Run:
    return load(Run, path, overrides, base, tagged=("objective",))


def refusal(path: Path | None = None, *overrides: str, model: type[BaseModel] = Run) -> str:
    with pytest.raises(PreftuneError) as raised:
        load(model, path, overrides, tagged=("objective",))
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_layers_override_each_other_in_order(write):
    path = write("train: {learning_rate: 2e-4, epochs: 2}\nmodel: file")
    config = run(path, "train.epochs=3", base={"train": {"epochs": 9, "schedule": "linear"}, "seed": 7})
    assert config.train == Train(learning_rate=2e-4, epochs=3, schedule="linear")
    assert (config.model, config.seed) == ("file", 7)


def test_without_file_and_with_an_empty_file_the_defaults_hold(write):
    assert run() == run(write("")) == run(write("# nothing yet\n")) == Run()


def test_base_settings_are_not_changed():
    base = {"objective": {"name": "dpo", "beta": 0.3}, "data": {"files": ["a"]}}
    run(None, "objective.name=ipo", "data.files.0=b", base=base)
    assert base == {"objective": {"name": "dpo", "beta": 0.3}, "data": {"files": ["a"]}}


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("010", "010"),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("1.2.3", "1.2.3"),
        ("=", "="),
        ('"5"', "5"),
        ("'true'", "true"),
        ("${x}", "${x}"),
        ("cost ${a.b} each", "cost ${a.b} each"),
    ],
)
def test_what_looks_like_text_is_text_in_files_and_on_the_command_line(write, written, value):
    assert run(write(f"model: {written}")).model == value
    assert run(None, f"model={written}").model == value


@pytest.mark.parametrize(
    ("written", "value"),
    [("5e-5", 5e-5), ("5E-5", 5e-5), ("1", 1.0), ("1.", 1.0), (".5", 0.5), ("+2.5e+1", 25.0), (".inf", math.inf)],
)
def test_numbers_are_numbers(write, written, value):
    for config in (run(write(f"train: {{learning_rate: {written}}}")), run(None, f"train.learning_rate={written}")):
        assert config.train.learning_rate == value
        assert isinstance(config.train.learning_rate, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epochs: 010}", "train.epochs in run.yaml is the text '010', expected an integer"),
        ("train: {epochs: 12:30}", "train.epochs in run.yaml is the text '12:30', expected an integer"),
        ("train: {epochs: 1.0}", "train.epochs in run.yaml is the number 1.0, expected an integer"),
        ("train: {epochs: true}", "train.epochs in run.yaml is true, expected an integer"),
        ("train: {learning_rate: fast}", "train.learning_rate in run.yaml is the text 'fast', expected a number"),
        ("train: {learning_rate: '1'}", "train.learning_rate in run.yaml is the text '1', expected a number"),
        ("train: {resume: no}", "train.resume in run.yaml is the text 'no', expected true or false"),
        ("train: {resume: 1}", "train.resume in run.yaml is the number 1, expected true or false"),
        ("train: {schedule: step}", "train.schedule in run.yaml is the text 'step', expected 'linear' or 'cosine'"),
        ("train: {batch: [1]}", "train.batch in run.yaml is a list, expected an integer or 'auto'"),
        ("train: {lora: {r: 0}}", "train.lora.r in run.yaml is the number 0, expected a number greater than 0"),
        ("data: {files: a.jsonl}", "data.files in run.yaml is the text 'a.jsonl', expected a list"),
        (
            "data: {files: [a, 3]}",
            f"data.files.1 in run.yaml is the number 3, expected {TEXT}",
        ),
        ("train:", "train in run.yaml is empty, expected a mapping of its keys"),
        (
            "model: 7",
            f"model in run.yaml is the number 7, expected {TEXT}",
        ),
        (
            "train: {epochs: 0}",
            "train.epochs in run.yaml is refused: an epoch is one pass over the data, so at least 1 is needed",
        ),
        ("trian: {epochs: 1}", "unknown key trian in run.yaml; did you mean train?"),
        ("train: {learning_rat: 1}", "unknown key train.learning_rat in run.yaml; did you mean train.learning_rate?"),
        ("learning_rate: 1", "unknown key learning_rate in run.yaml; did you mean train.learning_rate?"),
        ("train: {lora: {rank: 1}}", "unknown key train.lora.rank in run.yaml; known keys there: r, targets"),
        ("- a", "run.yaml holds a list, expected a mapping of keys to values"),
        ("seed: 1\nseed: 2", "run.yaml is not valid YAML: the key seed is given twice (line 2, column 1)"),
        ("? [a]\n: 1", "run.yaml is not valid YAML: a key must be plain text (line 1, column 3)"),
        ("model: !!python/name:os.system", None),
        ("model: [1", None),
        ("a: &a [*a]", None),
        ("[" * 1500, None),
    ],
)
def test_mistakes_in_a_file_are_one_sentence(write, text, message):
    said = refusal(write(text))
    assert said == message if message else said.startswith("run.yaml is not valid YAML: ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=two", "train.epochs on the command line is the text 'two', expected an integer"),
        ("train.epoch=2", "unknown key train.epoch on the command line; did you mean train.epochs?"),
        ("train.epochs", "the override 'train.epochs' is not of the form key.sub=value"),
        ("=3", "the override '=3' is not of the form key.sub=value"),
        ("train..epochs=3", "the override 'train..epochs=3' is not of the form key.sub=value"),
        (
            "model.name=x",
            "cannot apply 'model.name=x': model in run.yaml is the text 'm', which has no keys",
        ),
        (
            "data.files.2=x",
            "cannot apply 'data.files.2=x': data.files in run.yaml is a list of 2, so 2 must be an index below 2",
        ),
        (
            "data.files.last=x",
            "cannot apply 'data.files.last=x': data.files in run.yaml is a list of 2, so last must be an index below 2",
        ),
        (
            "objective.0.beta=1",
            "cannot apply 'objective.0.beta=1': objective in run.yaml is one block, not a list of them",
        ),
    ],
)
def test_mistakes_on_the_command_line_are_one_sentence(write, override, message):
    assert refusal(write("model: m\ndata: {files: [a, b]}"), override) == message


def test_broken_yaml_on_the_command_line_is_one_sentence():
    assert refusal(None, "data.files=[a").startswith("the value of the override 'data.files=[a' is not valid YAML: ")


def test_files_that_cannot_be_read_are_one_sentence(tmp_path):
    assert refusal(tmp_path / "none.yaml").startswith(f"there is no config file {tmp_path / 'none.yaml'}")
    assert refusal(tmp_path).startswith(f"cannot read the config file {tmp_path}")
    (tmp_path / "latin.yaml").write_bytes(b"model: caf\xe9")
    assert refusal(tmp_path / "latin.yaml").endswith("is not UTF-8 text, so it cannot be read as YAML")


def test_missing_keys_are_named_with_their_description(write):
    assert refusal(write("data: {}"), model=Strict) == (
        "the key model is missing in run.yaml: folder or hub id of the model"
    )
    assert refusal(None, "data={}", model=Strict).startswith("the key model is missing on the command line")


def test_unknown_key_is_named_before_the_missing_one_it_explains(write):
    assert refusal(write("modle: m\ndata: {}"), model=Strict) == "unknown key modle in run.yaml; did you mean model?"


def test_a_component_s_own_error_gets_its_source(write):
    class Picky(Section):
        model: str = "x"

        @field_validator("model")
        @classmethod
        def _refuse(cls, model: str) -> str:
            raise PreftuneError(f"there is no model {model}")

    assert refusal(write("model: m"), model=Picky) == "there is no model m (in run.yaml)"
    assert refusal(write("model: m"), "model=n", model=Picky) == (
        "there is no model n (in run.yaml or on the command line)"
    )


def test_base_settings_from_python_are_plain_values():
    config = run(base={"data": {"files": (Path("a"), "b")}}, path=None)
    assert config.data.files == [Path("a"), Path("b")]
    with pytest.raises(PreftuneError, match=r"^train\.epochs is of type object, expected a plain value$"):
        run(base={"train": {"epochs": object()}})


def test_every_model_of_the_tree_must_forbid_extra_keys():
    class Loose(BaseModel):
        x: int = 0

    class Root(Section):
        inner: dict[str, Loose] = {}

    with pytest.raises(TypeError, match="Loose needs"):
        load(Root, None)


@pytest.mark.parametrize("value", ["${oc.env:KEY}", "${train.epochs}", " ${env:KEY} "])
def test_interpolation_is_refused_wherever_it_stands(write, value, monkeypatch):
    monkeypatch.setenv("KEY", "hush-hush")
    for place in (f"model: '{value}'", f"data: {{files: [a, '{value}']}}", f"objective: [{{name: '{value}'}}]"):
        message = refusal(write(place))
        assert f"is {value.strip()}, but nothing is interpolated" in message
        assert "hush" not in message
    assert "data.template on the command line is" in refusal(None, f"data.template={value}")


@pytest.mark.parametrize("text", ["Q: what is #1?", "*bold*", "- item", "{question}: {answer}", "a=b", "%d | > & !x"])
def test_override_values_are_text_as_they_stand(text):
    override = f"'{text}'" if text.startswith("{") else text
    assert run(None, f"data.template={override}").data.template == text


def test_overrides_take_lists_and_mappings_and_reach_into_lists():
    config = run(None, "data.files=[a, b, c]", "data.files.1=d", "data.renamed={x: y}", "train.lora.targets=[q]")
    assert config.data.files == [Path("a"), Path("d"), Path("c")]
    assert config.data.renamed == {"x": "y"}
    assert config.train.lora == Lora(targets=("q",))
    assert run(None, "seed=null", base={"seed": 3}).seed is None


def test_one_field_of_a_tagged_block_changes_and_the_name_stays(write):
    assert run(None, "objective.beta=0.5").objective == {"name": "dpo", "beta": 0.5}
    assert run(write("objective: {beta: 0.2}")).objective == {"name": "dpo", "beta": 0.2}
    assert run(write("objective: ipo"), "objective.tau=0.2").objective == {"name": "ipo", "tau": 0.2}


def test_another_name_drops_the_fields_of_the_old_one(write):
    path = write("objective: {name: dpo, beta: 0.5, label_smoothing: 0.1}")
    assert run(path, "objective.name=ipo").objective == {"name": "ipo"}
    assert run(path, "objective.name=dpo").objective == {"name": "dpo", "beta": 0.5, "label_smoothing": 0.1}
    assert run(path, "objective=ipo").objective == "ipo"
    for overrides in (["objective.name=ipo", "objective.tau=1"], ["objective.tau=1", "objective.name=ipo"]):
        assert run(path, *overrides).objective == {"name": "ipo", "tau": 1}
    assert run(write("objective: {name: ipo}")).objective == {"name": "ipo"}  # the default has a beta


def test_tagged_lists_work_by_element(write):
    path = write("objective: [{name: dpo, beta: 0.5, weight: 2}, sft]")
    assert run(path, "objective.0.beta=0.2").objective == [{"name": "dpo", "beta": 0.2, "weight": 2}, "sft"]
    assert run(path, "objective.0.name=ipo").objective == [{"name": "ipo"}, "sft"]
    assert run(path, "objective.1.weight=0.1").objective[1] == {"name": "sft", "weight": 0.1}
    assert "is a list of 2, so name must be an index below 2" in refusal(path, "objective.name=ipo")


def test_anchors_serve_without_tying_values_together(write):
    path = write("objective: [&term {name: dpo, beta: 0.5}, *term, {<<: *term, beta: 1}]")
    expected = [{"name": "dpo", "beta": beta} for beta in (0.2, 0.5, 1)]
    assert run(path, "objective.0.beta=0.2").objective == expected


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
tricky = st.sampled_from(
    ["no", "010", "12:30", "5e-5", "1_0", "~", "", "=", "<<", " a ", "a: b", "#", "${x}", "\x85", "- a"]
)
values = st.recursive(
    scalars | tricky, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(tricky, inner), max_leaves=6
)


class Anything(Section):
    text: str = ""
    number: float = 0.0
    path: Path = Path()
    free: dict[str, Any] = {}


@settings(max_examples=150, deadline=None)
@given(
    text=texts | tricky,
    number=st.floats(allow_nan=False),
    free=st.dictionaries(texts | tricky, values, max_size=3),
)
def test_what_is_dumped_loads_as_an_equal_model(tmp_path_factory, text, number, free):
    model = Anything(text=text, number=number, path=Path("a/b"), free=free)
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump(model), encoding="utf-8", newline="")
    assert load(Anything, path) == model


def test_dumped_text_means_the_same_to_other_yaml_readers():
    words = {
        str(index): word for index, word in enumerate(["no", "on", "010", "12:30", "2024-01-01", "5e-5", "=", "~"])
    }
    model = Anything(free=words)
    assert yaml.safe_load(dump(model))["free"] == words


def test_commented_template_has_every_key_with_its_description_and_loads_as_the_defaults(write):
    text = commented(Run)
    assert "# Folder or hub id.\nmodel: scratch\n" in text
    assert "  # Peak learning rate of AdamW.\n  learning_rate: 0.0001\n" in text
    assert "  # (one of: linear, cosine)\n  schedule: cosine\n" in text
    assert "seed: null\n" in text
    assert 'template: "{question}"' in text.replace("'", '"')
    assert "objective: {name: dpo, beta: 0.1}\n" in text
    assert run(write(text)) == Run()


def test_commented_instance_loads_as_itself(write):
    config = Run(model="no", train=Train(lora=Lora(r=4)), data=Data(template="a\nb: #1", files=[Path("x")]))
    assert run(write(commented(config))) == config


def test_commented_names_what_is_required(write):
    text = commented(Strict)
    assert "# Folder or hub id of the model. (required)\nmodel:\n" in text
    assert "\ndata:\n  # Files or folders" in text
    assert refusal(write(text), model=Strict).startswith("model in run.yaml is empty, expected text")


def test_long_descriptions_are_wrapped():
    class Wordy(Section):
        x: int = Field(1, description="word " * 60)

    assert max(map(len, commented(Wordy).splitlines())) <= 112


def test_import_is_light():
    code = "import sys, preftune.yaml_tree; assert not {'torch', 'transformers', 'omegaconf'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
