"""`preftune validate` and `preftune preview` as their users meet them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

Row = dict[str, Any]
MAIN = ("-c", "from preftune.cli import main; main()")
SHARED = Path(__file__).parents[3] / "shared" / "data"


@dataclass(frozen=True)
class Checked:
    """What `preftune validate --json` said."""

    code: int
    said: dict[str, Any]

    def rows(self, name: str) -> list[int]:
        """Rows of a finding."""
        return [place["row"] for one in self.said["findings"] if one["name"] == name for place in one["rows"]]

    def finding(self, name: str) -> dict[str, Any]:
        (found,) = [one for one in self.said["findings"] if one["name"] == name]
        return found

    @property
    def names(self) -> list[str]:
        return [one["name"] for one in self.said["findings"]]


@pytest.fixture
def check(preftune: Any) -> Callable[..., Checked]:
    """Runs `preftune validate --json` in this process."""

    def run(*words: str) -> Checked:
        said = preftune("validate", *words, "--json")
        assert not said.err, said.err
        return Checked(said.code, json.loads(said.out))

    return run


def write(path: Path, rows: list[Row]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def sick(rows: list[Row]) -> list[Row]:
    """A row for each thing that can be wrong, after eighty good ones."""
    one, prompt = rows[80], rows[81]["prompt"]
    circle = [{"prompt": prompt, "chosen": f" The {a}.", "rejected": f" The {b}."} for a, b in ("AB", "BC", "CA")]
    return [
        *rows[:80],
        {**one, "chosen": None},  # 80
        {"prompt": "Only one", "chosen": " side."},
        {**one, "rejected": "  "},
        {**one, "confidence": 1.5},
        {**one, "chosen": 7},
        {**one, "rejected": one["chosen"]},  # 85
        one,
        one,
        {**one, "chosen": one["rejected"], "rejected": one["chosen"]},
        *circle,  # 89, 90, 91
        {**rows[82], "confidence": 0.25},
        {**rows[83], "chosen": rows[83]["chosen"] + "<|im_end|>"},
    ]


def test_every_sick_row_is_named_and_the_good_ones_are_kept(
    check: Callable[..., Checked], rows: list[Row], tmp_path: Path
) -> None:
    given = sick(rows)
    found = check(write(tmp_path / "pairs.jsonl", given), "--write", "clean.jsonl")
    assert found.code == found.said["exit_code"] == 2
    assert (found.said["rows"], found.said["records"]) == (94, {"Preference": 88})
    assert found.rows("unreadable") == [80, 81, 82, 83, 84]
    reasons = [place["reason"] for place in found.finding("unreadable")["rows"]]
    assert reasons[0] == "chosen is null, expected text or turns"
    assert reasons[1] == "rejected is missing, expected it in every row"
    assert reasons[2] == "rejected is empty, expected text"
    assert reasons[3] == "confidence is the number 1.5, expected a finite number from 0 to 1"
    assert reasons[4] == "chosen is the number 7, expected text or turns"
    assert found.rows("identical") == [85]
    assert found.rows("duplicates") == [87]
    assert found.rows("contradictions") == [86, 87, 88]
    assert found.rows("cycles") == [89, 90, 91]
    assert found.rows("confidence") == [92]
    assert found.rows("templated") == [93]
    assert {one["level"] for one in found.said["findings"] if one["name"] not in ("unreadable", "identical")} == {
        "warning"
    }
    left_out = [80, 81, 82, 83, 84, 85, 87, 88, 89, 90, 91]
    assert (found.said["kept"], found.said["dropped"]) == (94 - len(left_out), len(left_out))
    kept = [json.loads(line) for line in Path("clean.jsonl").read_text().splitlines()]
    assert kept == [row for i, row in enumerate(given) if i not in left_out]
    dropped = [json.loads(line) for line in Path("clean.dropped.jsonl").read_text().splitlines()]
    assert [(one["row"], one["content"]) for one in dropped] == [(i, given[i]) for i in left_out]
    assert dropped[6]["reason"] == f"is the same as {tmp_path}/pairs.jsonl row 86"
    assert sorted(path.name for path in Path().iterdir()) == ["clean.dropped.jsonl", "clean.jsonl", "pairs.jsonl"]

    again = check("clean.jsonl")
    assert again.code == 1
    assert again.names == ["confidence", "templated"]
    clean = kept[:81]
    write(Path("cleaner.jsonl"), clean)
    assert check("cleaner.jsonl").said["exit_code"] == 0


def test_with_a_model_its_tokens_are_checked_too(
    check: Callable[..., Checked], rows: list[Row], tmp_path: Path
) -> None:
    long = {**rows[1], "chosen": rows[1]["chosen"] + " very" * 200}
    late = {**rows[4], "chosen": f"{rows[4]['chosen']} The", "rejected": f"{rows[4]['chosen']} A"}
    path = write(tmp_path / "pairs.jsonl", [rows[0], long, rows[2], {**rows[3], "rejected": " Bad.<|end|> No."}, late])
    found = check(path, "--model", "sandbox", "data.rendering.max_length=100")
    assert found.code == 2
    assert found.rows("too_long") == [1]
    assert found.rows("end_twice") == [3]
    assert found.finding("end_twice")["rows"][0]["reason"] == "the text of rejected holds the end token <|end|>"
    words = ("data.rendering.max_length=14", "data.rendering.truncate=response_end")
    assert 4 in check(path, "--model", "sandbox", *words).rows("identical_tokens")
    assert check(path).names == ["templated"]


def test_contamination_is_held_against_other_data(
    check: Callable[..., Checked], rows: list[Row], tmp_path: Path
) -> None:
    training, apart = write(tmp_path / "train.jsonl", rows[:20]), rows[20:24]
    known = {row["prompt"] for row in rows[:20]}
    evaluation = [row for row in apart if row["prompt"] not in known] + [rows[7]]
    held_out, against = write(tmp_path / "held.jsonl", evaluation), write(tmp_path / "eval.jsonl", [rows[9]])
    found = check(training, "--held-out", held_out, "--against", against)
    assert found.code == 1
    shared = [one for one in found.said["findings"] if one["name"] == "contamination"]
    assert [{place["row"] for place in one["rows"]} >= {row} for one, row in zip(shared, (7, 9), strict=True)] == [
        True
    ] * 2
    assert shared[0]["rows"][0]["other"] == {"file": held_out, "row": len(evaluation) - 1}
    assert "contamination" not in check(training, "--against", against, "data.doctor.contamination=ignore").names


def test_policies_decide_what_is_looked_for_and_left_out(
    check: Callable[..., Checked], rows: list[Row], tmp_path: Path
) -> None:
    path = write(tmp_path / "pairs.jsonl", [*rows[:20], rows[3], {**rows[5], "confidence": 0.1}])
    Path("mine.yaml").write_text("data: {doctor: {duplicates: error}}\n")
    assert check(path, "mine.yaml").code == 2
    words = ("data.doctor.duplicates=warn", "data.doctor.confidence=drop", "--write", "clean.jsonl")
    found = check(path, "mine.yaml", *words)
    assert (found.code, found.said["kept"], found.said["dropped"]) == (1, 21, 1)
    assert json.loads(Path("clean.dropped.jsonl").read_text())["row"] == 21
    assert "duplicates" not in check(path, "data.doctor.duplicates=ignore").names
    assert check(path, "data.limit=20").said["rows"] == 20


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("none.jsonl",), "none.jsonl does not exist"),
        (("pairs.jsonl", "--write", "pairs.jsonl"), "--write would replace pairs.jsonl"),
        (("pairs.jsonl", "--write", "clean.csv"), "the name must end in .jsonl"),
        (("pairs.jsonl", "--write", "none/clean.jsonl"), "there is no folder none"),
        (("pairs.jsonl", "--write", "taken.jsonl"), "--write would replace taken.dropped.jsonl"),
        (("pairs.jsonl", "--against", "none.jsonl"), "none.jsonl does not exist"),
        (("pairs.jsonl", "--model", "scratch:llama"), "has no tokenizer before it is trained"),
        (("pairs.jsonl", "--model", "./none"), "cannot load a tokenizer from ./none"),
        (("pairs.jsonl", "optim.learning_rate=1"), "optim.learning_rate=1 has no effect on validate"),
        (("pairs.jsonl", "data.doctor.duplicate=drop"), "did you mean"),
        (("pairs.jsonl", "data.layout=none"), "there is no layout 'none'"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(
    words: tuple[str, ...], sentence: str, preftune: Any, rows: list[Row]
) -> None:
    write(Path("pairs.jsonl"), rows[:10])
    write(Path("taken.dropped.jsonl"), rows[:1])
    before = sorted(path.name for path in Path().iterdir())
    said = preftune("validate", *words)
    assert said.code == 2
    assert said.err.startswith("error: ")
    assert sentence in said.err
    assert len(said.err.splitlines()) == 1
    assert sorted(path.name for path in Path().iterdir()) == before


def test_broken_lines_are_named_and_passed_over(check: Callable[..., Checked], rows: list[Row], tmp_path: Path) -> None:
    lines = [json.dumps(row).encode() for row in [*rows[:10], rows[4]]]
    broken = [b'{"prompt": broken}', b'"text"', b"null", b'{"prompt": "\xff"}']
    (tmp_path / "pairs.jsonl").write_bytes(b"\n".join([*lines[:6], *broken, *lines[6:]]))
    found = check("pairs.jsonl", "--write", "clean.jsonl")
    assert (found.code, found.rows("unreadable"), found.rows("duplicates")) == (2, [6, 7, 8, 9], [14])
    reasons = [place["reason"] for place in found.finding("unreadable")["rows"]]
    assert "line 7 is broken JSON" in reasons[0]
    assert reasons[1:3] == [f"is {what}, expected an object with named fields" for what in ("text", "null")]
    assert "line 10 is not UTF-8 (byte 0xff)" in reasons[3]
    assert (found.said["rows"], found.said["kept"], found.said["dropped"]) == (15, 10, 5)
    dropped = [json.loads(line) for line in Path("clean.dropped.jsonl").read_text().splitlines()]
    assert [(one["row"], "content" in one) for one in dropped] == [
        (6, False),
        (7, False),
        (8, False),
        (9, False),
        (14, True),
    ]
    Path("all.jsonl").write_text("{\n" * 3)
    assert check("all.jsonl").rows("unreadable") == [0, 1, 2]


def test_a_file_that_breaks_off_is_told_with_all_before_it(
    check: Callable[..., Checked], rows: list[Row], tmp_path: Path
) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows[:10])
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress((text * 50).encode())[:-30])
    found = check("cut.jsonl.gz")
    (place,) = found.finding("unreadable")["rows"]
    assert "is cut off or is not gzip" in place["reason"]
    assert place["reason"].endswith("it was not read any further")
    assert found.said["records"]["Preference"] == place["row"]
    assert len(found.rows("duplicates")) == place["row"] - 10


def test_rows_of_which_none_can_be_read_are_all_named(check: Callable[..., Checked], tmp_path: Path) -> None:
    found = check(write(tmp_path / "bad.jsonl", [{"prompt": "q", "chosen": None, "rejected": "b"}] * 3))
    assert (found.code, found.rows("unreadable"), found.said["records"]) == (2, [0, 1, 2], {})


def test_mixed_kinds_are_an_error(check: Callable[..., Checked], rows: list[Row], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "a.jsonl", rows[:5])
    write(tmp_path / "data" / "b.jsonl", [{"prompt": "q", "completion": " a", "label": True}])
    found = check("data")
    assert found.code == 2
    assert "5 Preference and 1 Judged" in found.finding("mixed")["text"]


def test_other_formats_are_written_as_jsonl_with_the_same_columns(
    check: Callable[..., Checked], tmp_path: Path
) -> None:
    (tmp_path / "pairs.csv").write_text("id,prompt,chosen,rejected\n1,q, a, b\n2,q, a, b\n3,é, ü, ö\n", "utf-8")
    check("pairs.csv", "--write", "clean.jsonl")
    assert [json.loads(line) for line in Path("clean.jsonl").read_text("utf-8").splitlines()] == [
        {"id": "1", "prompt": "q", "chosen": " a", "rejected": " b"},
        {"id": "3", "prompt": "é", "chosen": " ü", "rejected": " ö"},
    ]


def test_the_table_is_readable_and_no_heavy_library_is_loaded(shell: Any, rows: list[Row], tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", sick(rows))
    script = (
        "import sys\nfrom preftune import cli\n"
        "sys.argv = ['preftune', 'validate', 'pairs.jsonl']\n"
        "try:\n    cli.main()\n"
        "finally:\n    print({'torch', 'transformers', 'datasets'} & {*sys.modules}, file=sys.stderr)\n"
    )
    said = shell("-c", script)
    assert (said.code, said.err) == (2, "set()\n")
    lines = said.out.splitlines()
    assert lines[0] == "pairs.jsonl: 94 rows, 88 pairs"
    assert lines[-1] == "errors (exit code 2)"
    for part in (
        "row 80: chosen is null, expected text or turns",
        "row 87 is the same as row 86",
        "row 86 contradicts row 88",
        "3 rows prefer in a circle",
        "row 89 is in a circle with row 90",
        "row 93: <|im_end|>",
    ):
        assert part in said.out, part


def test_clean_data_ends_with_exit_code_0(shell: Any, rows: list[Row], tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", rows)
    said = shell(*MAIN, "validate", "pairs.jsonl")
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines()[-1] == "clean (exit code 0)"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder of real data beside the repository is absent")
def test_real_pairs_and_verdicts(check: Callable[..., Checked]) -> None:
    found = check(str(SHARED / "dpo_en_demo.json"))
    assert found.code == 1
    assert (found.said["records"], found.rows("duplicates")) == ({"Preference": 300}, [157, 186, 230, 248, 275])
    low, high = found.said["figures"]["longer_wins_ci95"]
    assert low < found.said["figures"]["longer_wins"] < high
    found = check(str(SHARED / "kto_en_demo.json"))
    assert (found.names, found.rows("templated")) == (["templated"], [257])


def test_preview_shows_prompt_responses_masks_and_ends(preftune: Any, rows: list[Row]) -> None:
    write(Path("pairs.jsonl"), [rows[0], {**rows[1], "rejected": " Bad.<|end|> No."}])
    said = preftune("preview", "pairs.jsonl", "--model", "sandbox")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    prompt = lines[lines.index("pairs.jsonl row 0") + 2]
    assert prompt.replace("|", "") == rows[0]["prompt"]
    for side in ("chosen", "rejected"):
        place = next(i for i, line in enumerate(lines) if line.startswith(f"{side}, "))
        assert lines[place + 1].replace("|[<|end|>]", "").replace("|", "") == rows[0][side]
        assert lines[place + 1].endswith("|[<|end|>]")
        tokens = lines[place + 1].count("|") - 1  # the end token has two bars of its own
        assert lines[place] == f"{side}, {tokens} tokens, {tokens} trained on"
    assert lines[-1] == "is left out: the text of rejected holds the end token <|end|>"


def test_preview_marks_what_is_masked(preftune: Any) -> None:
    turns = [
        {"role": "user", "content": "Hello there"},
        {"role": "assistant", "content": "The plot"},
        {"role": "user", "content": "Really"},
        {"role": "assistant", "content": "The cast"},
    ]
    write(Path("chat.jsonl"), [{"messages": turns}])
    said = preftune("preview", "chat.jsonl", "--model", "sandbox", "data.rendering.boundary=shift", "-n", "1")
    assert said.code == 0, said.err
    assert "|(" in said.out
    assert said.out.count("[<|end|>]") == 2


def test_preview_refuses_in_one_sentence(preftune: Any, rows: list[Row]) -> None:
    write(Path("pairs.jsonl"), [{**rows[0], "chosen": None}])
    for words, sentence in (
        (("pairs.jsonl", "--model", "sandbox"), "pairs.jsonl row 0: chosen is null"),
        (("pairs.jsonl", "--model", "./none"), "cannot load a tokenizer"),
        (("pairs.jsonl", "--model", "sandbox", "seed=1"), "seed=1 has no effect on preview"),
    ):
        said = preftune("preview", *words)
        assert (said.code, len(said.err.splitlines())) == (2, 1)
        assert sentence in said.err
