"""The live report: a server on loopback, and a page that renews itself while a real run trains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from http.client import HTTPConnection

import evidence
import pytest
from visits import until

from preftune.errors import PreftuneError
from preftune.report import watching
from preftune.report.watching import Watched, serve

TRAIN = [
    *("train", "--model", "sandbox", "--data", "sandbox", "--out", "run", "-q", "train.max_steps=4000"),
    *("train.log_every=1", "evaluate.every=20", "evaluate.samples=2", "batch.size=8", "output.save_minutes=null"),
]


@pytest.fixture
def server(write_run):
    """A served run folder, and its port."""
    folder = write_run(summary=None)
    served = watching._Server(0, Watched(folder))
    threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield folder, served.server_address[1]
    served.shutdown()
    served.server_close()


def get(port, path="/", host=None):
    with closing(HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("GET", path, headers={"Host": host} if host else {})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


def test_the_stamp_changes_with_the_files_and_only_then(server):
    folder, port = server
    first = json.loads(get(port, "/stamp")[2])
    assert first == json.loads(get(port, "/stamp")[2])
    assert (first["said"], first["state"]) == ("Live: step 30", "running")
    (folder / "note.txt").write_text("not of the report")
    assert first == json.loads(get(port, "/stamp")[2])
    with (folder / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"kind": "train", "step": 40, "loss": 0.5}\n{"kind": "train", "st')  # half a line is no error
    second = json.loads(get(port, "/stamp")[2])
    assert (second["stamp"] != first["stamp"], second["said"]) == (True, "Live: step 40")
    evidence.add(folder, summary={"steps": 40})
    assert json.loads(get(port, "/stamp")[2])["state"] == "done"


def test_a_run_that_goes_on_is_not_called_unfinished(server):
    folder, port = server
    page = get(port)[2].decode()
    assert "This run goes on; so far:" in page
    assert "--resume" not in page
    evidence.add(folder, summary={"steps": 40})
    page = get(port)[2].decode()
    assert "This run goes on" not in page
    assert "What to try next" in page


def test_it_answers_to_this_machine_by_its_own_name_alone(server):
    _, port = server
    assert get(port)[0] == get(port, host=f"localhost:{port}")[0] == 200
    assert get(port, host="example.org")[0] == get(port, host=f"example.org:{port}")[0] == 403
    assert get(port, "/metrics.jsonl")[0] == get(port, "/../config.yaml")[0] == 404


def test_a_file_that_breaks_is_told_and_does_not_end_it(server):
    folder, port = server
    whole = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(b"{not json\n" + whole)
    assert "line 1 is no JSON" in json.loads(get(port, "/stamp")[2])["error"]
    assert get(port)[0] == 503
    (folder / "metrics.jsonl").write_bytes(whole)
    assert get(port)[0] == 200


def test_what_cannot_be_served_is_refused(write_run, tmp_path, server):
    with pytest.raises(PreftuneError, match="is no folder"):
        serve(tmp_path / "none")
    with pytest.raises(PreftuneError, match=r"cannot serve on port \d+ .*--port"):
        serve(write_run("other"), server[1])


def test_the_page_follows_a_real_run_and_ends_with_ctrl_c(tmp_path, visit):
    command = [sys.executable, "-m", "preftune"]
    training = subprocess.Popen([*command, *TRAIN], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    watcher = None
    try:
        deadline = time.monotonic() + 90
        while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
            assert training.poll() is None, training.stderr.read().decode()
            time.sleep(0.1)
        watcher = subprocess.Popen(
            [*command, "report", "--watch", "run"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        address = watcher.stdout.readline().split()[0]
        assert address.startswith("http://127.0.0.1:")
        seen = visit(address)
        page = seen.page
        until(page, "document.getElementById('live').textContent.startsWith('Live: step')")
        steps = "Number(document.getElementById('live').textContent.replace(/\\D/g, ''))"
        points = "(JSON.parse(document.getElementById('figures').textContent).loss?.data[0].x.length ?? 0)"
        before, drawn = page.evaluate(steps), page.evaluate(points)
        page.locator("#figure-loss").scroll_into_view_if_needed()
        page.locator("#figure-loss .main-svg").first.wait_for()
        page.locator("#mark-differences").uncheck()
        page.evaluate("document.getElementById('config').scrollTop = 120; scrollTo(0, 700)")
        until(page, f"{steps} > {before} && {points} > {drawn}")
        assert page.evaluate("scrollY") == 700
        assert page.evaluate("document.getElementById('config').scrollTop") == 120
        assert not page.locator("#mark-differences").is_checked()
        assert page.evaluate("document.getElementById('figure-loss').data[0].x.length") > drawn
        assert seen.troubles == []
        training.send_signal(signal.SIGTERM)
        training.wait(60)
        watcher.send_signal(signal.SIGINT)
        _, said = watcher.communicate(timeout=20)
        assert (watcher.returncode, said) == (0, "")
        until(page, "document.getElementById('live').dataset.state === 'gone'")
    finally:
        for process in (training, watcher):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
            if process is not None:
                for pipe in (process.stdout, process.stderr):
                    if pipe is not None:
                        pipe.close()


def test_the_server_loads_no_script_of_others(server):
    _, port = server
    page = get(port)[2].decode()
    assert "default-src 'none'; script-src 'self'; connect-src 'self'; " in page
    assert [line for line in page.splitlines() if "<script>" in line] == []
    for name in ("plotly.js", "page.js", "live.js"):
        assert f'<script src="/{name}"></script>' in page
        assert get(port, f"/{name}")[1]["Content-Type"].startswith("text/javascript")
