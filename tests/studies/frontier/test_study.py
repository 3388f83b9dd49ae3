"""`preftune study frontier`, as a person runs it."""

import json
import subprocess
import sys

import pytest

from preftune import cli

WORDS = ("study", "frontier", "shift", "--quick", "--seeds", "2")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The smallest study there is."""
    out = tmp_path_factory.mktemp("study") / "frontier"
    words = [sys.executable, "-W", "error", "-m", "preftune", *WORDS, "--jobs", "1", "--out", str(out)]
    return out, subprocess.run(words, capture_output=True, text=True)


@pytest.fixture
def preftune(monkeypatch, capfd):
    """The command in this process: its exit code, and what it said."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["preftune", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, capfd.readouterr().err.replace("\n", " ")

    return run


@pytest.mark.slow
def test_a_quick_study_leaves_a_page_with_its_data(done):
    out, process = done
    assert process.returncode == 0, process.stderr
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({line["key"] for line in lines}) == len(lines) == 22  # 5 methods, 2 conditions, 2 seeds; the reference
    assert [line["failed"] for line in lines] == [None] * 22
    for line in lines:
        assert sum(line["parts"].values()) == pytest.approx(line["reward"])
        assert line["reward"] <= line["best"] + 1e-9  # nobody is above the exact optimum
    page = out / "listed-shift"
    assert {each.name for each in page.iterdir()} == {
        *("index.html", "points.csv", "comparisons.csv", "matched.csv", "frontier.csv"),
    }
    assert str(page / "index.html") in process.stdout.replace("\n", "")
    assert json.loads((out / "study.json").read_text(encoding="utf-8"))["quick"] is True
    assert not (out / ".work").exists()


@pytest.mark.slow
def test_the_same_command_has_nothing_left_to_do_and_pages_can_be_written_anew(done, preftune):
    out, _ = done
    results, page = ((out / name).read_bytes() for name in ("results.jsonl", "listed-shift/index.html"))
    (out / "listed-shift" / "index.html").unlink()
    assert preftune(*WORDS, "--out", out, "--jobs", 0) == (0, "")
    assert (out / "listed-shift" / "index.html").read_bytes() == page
    assert (out / "results.jsonl").read_bytes() == results


@pytest.mark.slow
def test_a_study_of_another_form_is_refused(done, preftune):
    code, said = preftune(*WORDS[:3], "--out", done[0])
    assert code == 2
    assert "holds a quick study, and this is a full one: name another folder with --out" in said


@pytest.mark.slow
def test_results_of_a_world_that_has_changed_are_not_mixed_with_new_ones(done, preftune, tmp_path):
    manifest = json.loads((done[0] / "study.json").read_text(encoding="utf-8"))
    assert set(manifest["worlds"]) == {"listed"}
    out = tmp_path / "frontier"
    out.mkdir()
    (out / "study.json").write_text(json.dumps({**manifest, "worlds": {"listed": "other"}}), encoding="utf-8")
    code, said = preftune(*WORDS, "--out", out)
    assert code == 2
    assert "holds results of the world listed as it was in another version of preftune" in said
    assert not (out / "results.jsonl").read_bytes()
