"""lm-evaluation-harness on a task in a local folder, with the model of a run: held against plain forwards."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from evaluation.runs import PAIRS, Made
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.errors import PreftuneError
from preftune.evaluation.benchmark import _metrics, benchmark
from preftune.evaluation.export import export

TASK = """
task: films
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{[chosen, rejected]}}}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
COUNT = 24
installed = importlib.util.find_spec("lm_eval") is not None


@pytest.mark.skipif(not installed, reason="lm-evaluation-harness is not installed (350 MB): pip install '.[eval]'")
def test_a_local_task_gives_what_plain_forwards_give(made: Made, tmp_path: Path) -> None:
    (tmp_path / "films.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS[:COUNT]))
    (tmp_path / "films.yaml").write_text(TASK.format(file=tmp_path / "films.jsonl"))
    words = ["benchmark", str(made("lora")), "--tasks", "films", "--include", str(tmp_path), "-o", "found.json"]
    done = subprocess.run(
        [sys.executable, "-m", "preftune", *words],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())["tasks"]["films"]["acc"]

    export(made("lora"), tmp_path / "merged", merge=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")

    def logp(prompt: str, response: str) -> float:
        ids = torch.tensor([tokenizer.encode(prompt + response)])
        start = len(tokenizer.encode(prompt))
        with torch.no_grad():
            logp_TV = model(ids).logits[0].log_softmax(-1)
        return float(logp_TV[start - 1 : -1].gather(1, ids[0, start:, None]).sum())

    right = [logp(row["prompt"], row["chosen"]) > logp(row["prompt"], row["rejected"]) for row in PAIRS[:COUNT]]
    assert found["value"] == pytest.approx(sum(right) / COUNT)
    assert found["se"] > 0
    assert "films" in done.stdout


def test_the_harness_words_become_metrics() -> None:
    told = {"alias": "films", "acc,none": 0.5, "acc_stderr,none": 0.1, "em,strict": 1, "em_stderr,strict": "N/A"}
    assert _metrics(told) == {"acc": {"value": 0.5, "se": 0.1}, "em (strict)": {"value": 1.0, "se": None}}


def test_without_the_harness_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preftune.evaluation.benchmark.HARNESS", "no_such_harness")
    with pytest.raises(PreftuneError, match=r"pip install 'preftune\[eval\]'"):
        benchmark("sandbox", ["films"])
