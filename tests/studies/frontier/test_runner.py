"""Cells in processes of their own: lines that are neither lost nor doubled, whatever is killed."""

import json
import multiprocessing
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from preftune.errors import PreftuneError
from preftune.studies.frontier.cells import Cell, Outcome, Preferences
from preftune.studies.frontier.runner import RESULTS, Results, run

CELLS = [
    Cell("listed", "dpo", 0.1, rate, Preferences(pairs=20), 2, seed, "validation")
    for seed in (1, 2, 3)
    for rate in (1e-3, 3e-3)
]
SCRIPT = """
import sys
from pathlib import Path
from preftune.studies.frontier.cells import Cell
from preftune.studies.frontier.runner import Results, run
import json
if __name__ == "__main__":
    results = Results(Path(sys.argv[1]))
    run([Cell.read(each) for each in json.loads(sys.argv[2])], results, jobs=1)
"""


def lines(folder):
    path = folder / RESULTS
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


@pytest.mark.slow
def test_a_killed_study_goes_on_and_no_cell_is_lost_or_doubled(tmp_path):
    script, folder = tmp_path / "script.py", tmp_path / "study"
    script.write_text(SCRIPT, encoding="utf-8")
    given = json.dumps([cell.plain() for cell in CELLS])
    process = subprocess.Popen([sys.executable, script, folder, given])
    until = time.monotonic() + 120
    while len(lines(folder)) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = lines(folder)
    assert 2 <= len(before) < len(CELLS)
    with (folder / RESULTS).open("a", encoding="utf-8") as file:
        file.write('{"key": "listed/half a li')  # what a kill in the middle of a write leaves

    results = Results(folder)
    told = []
    run(CELLS, results, jobs=2, told=told.append)
    results.close()
    after = lines(folder)
    assert after[: len(before)] == before
    assert len(told) == len(CELLS) - len(before)
    assert Counter(json.loads(line)["key"] for line in after) == Counter(cell.key for cell in CELLS)
    assert all(json.loads(line)["failed"] is None for line in after)
    assert not (folder / ".work").exists()

    again = Results(folder)
    run(CELLS, again, jobs=2)  # nothing to do, so no process is started
    again.close()
    assert lines(folder) == after


@pytest.mark.slow
def test_a_cell_that_fails_has_a_line_with_the_reason_and_the_others_go_on(tmp_path):
    diverges = Cell("listed", "unlikelihood", 1.0, 1e30, Preferences(pairs=20), 20, 1, "validation")
    strange = Cell("nowhere", "dpo", 0.1, 1e-3, Preferences(pairs=20), 2, 1, "validation")
    results = Results(tmp_path)
    run([strange, diverges, CELLS[0]], results, jobs=1)
    results.close()
    assert "there is no world 'nowhere'" in results.outcomes[strange.key].failed
    assert "finite" in results.outcomes[diverges.key].failed
    assert results.outcomes[CELLS[0].key].failed is None
    assert results.outcomes[CELLS[0].key].figures["kl"] > 0


@pytest.mark.slow
def test_a_process_that_is_killed_takes_no_more_than_its_cell_with_it(tmp_path):
    results, seen = Results(tmp_path), []

    def told(outcome):
        seen.append(outcome)
        if len(seen) == 1:
            for child in multiprocessing.active_children():
                child.kill()
                child.join()

    run(CELLS[:3], results, jobs=1, told=told)
    results.close()
    assert [each.cell for each in seen] == CELLS[:3]
    assert seen[1].failed == "its process ended with signal 9: it was killed, or memory ran out"
    assert [each.failed for each in (seen[0], seen[2])] == [None, None]
    assert Results(tmp_path).missing(CELLS[:3]) == [CELLS[1]]  # it may have been the machine: it is tried again


def test_a_file_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / RESULTS).write_text('{"key": "other"}\n', encoding="utf-8")
    with pytest.raises(PreftuneError, match=r"results\.jsonl line 1 is no outcome"):
        Results(tmp_path)


def test_outcomes_are_there_when_the_file_is_opened_again(tmp_path):
    outcome = Outcome(CELLS[0], None, {"reward": 1.0})
    results = Results(tmp_path)
    results.add(outcome)
    with pytest.raises(PreftuneError, match="another process writes"):
        Results(tmp_path)
    results.close()
    again = Results(tmp_path)
    assert again.outcomes == {CELLS[0].key: outcome}
    assert again.missing([*CELLS, *CELLS]) == CELLS[1:]
    again.close()
