"""From a source to two sides: what is held out, what it may share with training, and weights."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from preftune.data import dataset
from preftune.data.dataset import DataConfig
from preftune.data.doctor.findings import DoctorConfig
from preftune.data.records import Preference, Where
from preftune.data.rendering import RenderingConfig
from preftune.errors import PreftuneError


def rows(*numbers: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"q{i}", "chosen": " yes", "rejected": " no", **fields} for i in numbers]


def write(path: Path, given: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return str(path)


def prompts(side: Iterable[Any]) -> list[Any]:
    return [record.prompt for record in side]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A token for each character."""
    vocabulary = {character: i for i, character in enumerate(["</s>", "?", *" abcdefghijklmnopqrstuvwxyz0123456789"])}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    characters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=characters, eos_token="</s>")


# What is held out


@pytest.mark.parametrize("bad_rows", ["error", "drop"])
@pytest.mark.parametrize("by_path", [False, True])
def test_promise_no_prompt_is_on_both_sides_of_held_out_data_of_its_own(
    tmp_path: Path, bad_rows: Any, by_path: bool
) -> None:
    apart = [*rows(7), *rows(2), *rows(8), {**rows(1)[0], "prompt": [{"role": "user", "content": "q1 "}]}]
    path = write(tmp_path / "apart.jsonl", apart)
    config = DataConfig(bad_rows=bad_rows, held_out_path=path if by_path else None)
    found = dataset.read(config, rows(0, 1, 2), 0, None if by_path else apart)
    assert (prompts(found.train), prompts(found.held_out)) == (["q0", "q1", "q2"], ["q7", "q8"])
    source = path if by_path else "given data"
    assert found.messages == [
        f"held-out data: 2 left out: 2 because the prompt is in the training data too ({source} row 1, {source} row 3)"
    ]


def test_held_out_data_of_training_prompts_alone_is_refused() -> None:
    with pytest.raises(
        PreftuneError, match=r"no record is left of the held-out data: 2 left out: .* prompts of its own"
    ):
        dataset.read(DataConfig(), rows(0, 1, 2), 0, rows(1, 2))
    with pytest.raises(
        PreftuneError, match=r"no usable row in the held-out data: 1 left out: 1 because chosen and rej"
    ):
        dataset.read(DataConfig(), rows(0, 1, 2), 0, rows(7, rejected=" yes"))


def test_only_what_is_not_given_means_the_default_share(tmp_path: Path) -> None:
    train = rows(*range(20))
    assert len(dataset.read(DataConfig(), train, 0).held_out) == 2
    for nothing in ([], (), {}):
        found = dataset.read(DataConfig(), train, 0, nothing)
        assert (len(found.train), len(found.held_out)) == (20, 0)
        assert not any("held-out" in message for message in found.messages)
    with pytest.raises(PreftuneError, match="the path of the data is empty"):
        dataset.read(DataConfig(held_out_path=""), train, 0)
    with pytest.raises(PreftuneError, match="0 rows in given data"):
        dataset.read(DataConfig(), train, 0, iter([]))


def test_two_answers_to_what_is_held_out_are_refused(tmp_path: Path) -> None:
    path, train = write(tmp_path / "apart.jsonl", rows(30)), rows(*range(20))
    for config, apart, names in (
        (DataConfig(held_out_path=path), rows(8), r"held_out= and data\.held_out_path each"),
        (DataConfig(held_out_path=path), [], r"held_out= and data\.held_out_path each"),
        (DataConfig(held_out_path=path, held_out=0.2), None, r"data\.held_out_path and data\.held_out=0\.2 each"),
        (DataConfig(held_out=5), rows(8), r"held_out= and data\.held_out=5 each"),
    ):
        with pytest.raises(PreftuneError, match=names + " say what is held out: give one of them"):
            dataset.read(config, train, 0, apart)
    for share in (0.1, 0.0):  # the default, as a resolved config writes it, and none
        config = DataConfig(held_out_path=path, held_out=share)
        assert prompts(dataset.read(config, train, 0).held_out) == ["q30"]


def test_data_frames_are_read_on_either_side() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([*rows(0), *rows(1, weight=2.0)])  # the first weight is NaN
    found = dataset.read(DataConfig(), frame, 0, pandas.DataFrame(rows(7)))
    assert [record.weight for record in found.train] == [1.0, 2.0]
    assert prompts(found.held_out) == ["q7"]
    assert not dataset.read(DataConfig(), frame, 0, frame[:0]).held_out


def test_if_all_held_out_records_are_too_long_the_error_says_so(tokenizer: PreTrainedTokenizerFast) -> None:
    config = DataConfig(rendering=RenderingConfig(max_length=20))
    found = dataset.read(config, rows(0, 1, 2), 0, rows(7, prompt="q" * 40))
    with pytest.raises(PreftuneError) as error:
        dataset.render(found, tokenizer, config)
    message = str(error.value)
    assert message.startswith(
        "no record is left of the held-out data: 1 left out: 1 because prompt and response are lo"
    )
    assert message.endswith("hold out other or more records (data.held_out), or change data.rendering (max_length)")
    found = dataset.read(config, rows(0, prompt="q" * 40), 0, rows(7))
    with pytest.raises(PreftuneError, match="no record is left to learn from: 1 left out"):
        dataset.render(found, tokenizer, config)


# Weights


def test_weights_of_which_none_is_above_0_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(PreftuneError, match="every training record has weight 0, so that nothing would be learned"):
        dataset.read(DataConfig(), rows(0, 1, weight=0), 0, rows(7))
    config = DataConfig(rendering=RenderingConfig(max_length=20))
    long = rows(2, prompt="q" * 40)
    found = dataset.read(config, [*rows(0, 1, weight=0), *long], 0, rows(7))
    with pytest.raises(PreftuneError, match="every training record has weight 0"):
        dataset.render(found, tokenizer, config)
    found = dataset.read(config, [*rows(0, weight=0), *rows(1, weight=1e-20)], 0, [])
    assert [example.weight for example in dataset.render(found, tokenizer, config).train] == [0, 1e-20]


@pytest.mark.parametrize("weight", [1e300, 1e-300, 1e39, 1e-46, 1e-40])
def test_weights_that_float32_does_not_hold_are_named_by_row(weight: float, tmp_path: Path) -> None:
    given = [*rows(0, 1), *rows(2, weight=weight)]
    sentence = r"row 2: weight is the number 1e.*, expected 0 or a number from 1e-30 to 1e\+30"
    with pytest.raises(PreftuneError, match=r"pairs\.jsonl " + sentence):
        dataset.read(DataConfig(), write(tmp_path / "pairs.jsonl", given), 0, [])
    found = dataset.read(DataConfig(bad_rows="drop"), given, 0, [])
    assert (len(found.train), len(found.messages)) == (2, 1)
    records = [Preference("q", " a", " b", Where("records", i), weight=w) for i, w in enumerate((1.0, 1.0, weight))]
    with pytest.raises(PreftuneError, match="records " + sentence):
        dataset.read(DataConfig(), records, 0, [])


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), 10**400, None, "2"])
def test_weights_of_records_are_checked_as_those_of_rows(weight: Any) -> None:
    record = Preference("q", " a", " b", Where("records", 0), weight=weight)
    with pytest.raises(PreftuneError, match=r"records row 0: weight is .*, expected 0 or a number"):
        dataset.read(DataConfig(), [record], 0, [])


def test_accepted_weights_are_normal_numbers_of_float32() -> None:
    for weight in (1e-30, 1e30):
        assert np.finfo(np.float32).tiny < np.float32(weight) < np.finfo(np.float32).max / 1e6
        (record,) = dataset.read(DataConfig(), rows(0, weight=weight), 0, []).train
        assert record.weight == weight


def test_records_that_are_no_examples_are_an_error_on_request(tokenizer: PreTrainedTokenizerFast) -> None:
    config = DataConfig(rendering=RenderingConfig(max_length=20), doctor=DoctorConfig(tokens="error"))
    found = dataset.read(config, [*rows(0, 1), *rows(2, prompt="q" * 40)], 0, [])
    with pytest.raises(
        PreftuneError, match=r"training data: 1 left out: .* \(given data row 2\); .* data\.doctor\.tokens=drop"
    ):
        dataset.render(found, tokenizer, config)
    assert len(dataset.render(found, tokenizer, config.model_copy(update={"doctor": DoctorConfig()})).train) == 2


# What the doctor found


@pytest.mark.parametrize("policy", ["warn", "drop"])
def test_what_the_doctor_found_is_kept_also_by_the_cache(policy: Any, tmp_path: Path) -> None:
    given = [*rows(*range(20)), *rows(3), {**rows(30)[0], "rejected": " yes"}]
    config = DataConfig(held_out=0.2, doctor=DoctorConfig(duplicates=policy))
    path = write(tmp_path / "pairs.jsonl", given)
    first, second = (dataset.read(config, path, 0).doctor for _ in range(2))
    assert first == second
    assert first["rows"] == 22
    assert [(each["name"], each["severity"], each["count"], each["policy"]) for each in first["findings"]] == [
        ("identical", "error", 1, "drop"),
        ("duplicates", "warning", 1, policy),
        ("length_bias", "warning", 0, "warn"),
    ]
    assert first["findings"][0]["text"].endswith(f"chosen and rejected are identical ({path} row 21)")
    assert f"{path} row 20" in first["findings"][1]["text"]
    assert first["figures"]["longer_wins"] == 1.0
    assert json.loads(json.dumps(first)) == first


def test_a_doctor_that_is_not_asked_tells_no_figures() -> None:
    found = dataset.read(DataConfig(doctor=DoctorConfig().passed()), rows(*range(20)), 0).doctor
    assert found == {"rows": 20, "findings": [], "figures": {}}
