import gzip
import json
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from preftune.data.builders import Question, Task
from preftune.data.builders.sampled import (
    PairStatistics,
    Sampling,
    build_pairs,
    check_out,
    read_questions,
    write_pairs,
    write_rows,
)
from preftune.data.examples import Example
from preftune.data.records import Preference, records
from preftune.data.rendering import Renderer
from preftune.data.sources import rows
from preftune.errors import PreftuneError
from preftune.evaluation.sampling import sample
from preftune.policy.scratch import ScratchConfig, build

WORDS = ["apple", "river", "stone", "cloud", "lamp", "seven", "green", "door"]


class EvenLength(Task):
    """Answers of an even number of characters are right."""

    def questions(self, source: Any) -> Iterator[Question]:
        for where, row in rows(source):
            yield Question(str(where), row["word"], "even")

    def prompt(self, question: Question) -> str:
        return f"Word: {question.text}\n"

    def instruction(self, question: Question) -> str:
        return f"Say something about {question.text}."

    def check(self, question: Question, response: str) -> bool:
        return len(response) % 2 == 0


class NeverRight(EvenLength):
    def check(self, question: Question, response: str) -> bool:
        return False


class AlwaysRight(EvenLength):
    def check(self, question: Question, response: str) -> bool:
        return True


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    """A model that ends its answers after some 16 tokens."""
    config = ScratchConfig(vocab_size=270, hidden_size=32, layers=1, heads=2, context=128)
    model, tokenizer = build("llama", [" ".join(WORDS)], config, seed=0)
    with torch.no_grad():
        # A direction that the last layer always has makes the end tokens likelier than the 265 others.
        model.model.norm.register_forward_hook(
            lambda module, inputs, out: torch.cat([out[..., :-1], out[..., -1:] * 0 + 1], -1)
        )
        model.lm_head.weight[:, -1] = 0
        model.lm_head.weight[[0, 3], -1] = 2.3
    return model, tokenizer


QUESTIONS = read_questions(EvenLength(), [{"word": word} for word in WORDS])


def made(
    tiny: tuple[Any, Any], task: Task | None = None, **options: Any
) -> tuple[list[dict[str, Any]], PairStatistics]:
    statistics = PairStatistics()
    sampling = Sampling(**{"n": 6, "max_new_tokens": 32, **options})
    found = build_pairs(
        task or EvenLength(),
        QUESTIONS,
        sample=sample,
        model=tiny[0],
        tokenizer=tiny[1],
        sampling=sampling,
        statistics=statistics,
    )
    return list(found), statistics


def test_right_over_wrong_from_a_real_model(tiny: tuple[Any, Any]) -> None:
    found, statistics = made(tiny, max_pairs=3)

    assert found
    for row in found:
        assert len(row["chosen"]) % 2 == 0
        assert len(row["rejected"]) % 2 == 1
    per_prompt = Counter(row["prompt"] for row in found)
    assert set(per_prompt) <= {f"Word: {word}\n" for word in WORDS}
    assert max(per_prompt.values()) == 3
    assert statistics.questions == 8
    assert statistics.answers == 48
    assert statistics.pairs == len(found)
    assert statistics.without_pair.total() == 8 - len(per_prompt)
    assert 0 < statistics.cut < 48
    assert 0 < statistics.right < 48 - statistics.cut
    assert statistics.solved >= len(per_prompt)


def test_pairs_hold_what_was_sampled(tiny: tuple[Any, Any]) -> None:
    """Every text of a pair is the decoding of a finished answer, and all combinations are there without a cap."""
    answers: dict[str, list[tuple[str, bool]]] = defaultdict(list)

    def watched(model: Any, prompts: Any, **options: Any) -> Any:
        results = sample(model, prompts, **options)
        for i, result in enumerate(results):
            text = tiny[1].decode(result.ids, skip_special_tokens=True)
            answers[tiny[1].decode(prompts[i // options["samples_per_prompt"]])].append((text, result.ended))
        return results

    found = list(
        build_pairs(
            EvenLength(),
            QUESTIONS,
            sample=watched,
            model=tiny[0],
            tokenizer=tiny[1],
            sampling=Sampling(n=6, max_new_tokens=32, max_pairs=100),
            statistics=PairStatistics(),
        )
    )
    expected = set()
    for prompt, own in answers.items():
        ended = {text.strip(): text for text, end in reversed(own) if end}.values()
        right, wrong = [t for t in ended if len(t) % 2 == 0], [t for t in ended if len(t) % 2]
        expected |= {(prompt, r, w) for r in right for w in wrong if r.strip() and w.strip()}
    got = {(row["prompt"], row["chosen"], row["rejected"]) for row in found}
    # Raw bytes of an untrained model may decode to text that encodes to other tokens, but nothing may be added.
    assert got <= expected
    assert len(got) > 0.8 * len(expected)


def test_draws_depend_on_the_seed_and_not_on_the_batch_size(tiny: tuple[Any, Any]) -> None:
    one, _ = made(tiny, batch_size=64)
    assert made(tiny, batch_size=7)[0] == one
    assert made(tiny, seed=1)[0] != one


def test_file_trains_as_it_lies(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    seen: list[int] = []
    statistics = write_pairs(
        EvenLength(),
        QUESTIONS,
        tmp_path / "new" / "pairs.jsonl",
        sample=sample,
        model=tiny[0],
        tokenizer=tiny[1],
        sampling=Sampling(n=6, max_new_tokens=32),
        progress=lambda s: seen.append(s.questions),
    )
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["pairs.jsonl"]
    read = list(records(rows(tmp_path / "new" / "pairs.jsonl")))
    assert len(read) == statistics.pairs
    assert all(isinstance(record, Preference) for record in read)
    assert all(isinstance(one, Example) for one in Renderer(tiny[1]).outcomes(read))
    assert seen == [8]


def test_chat_rows_are_conversations(tiny: tuple[Any, Any]) -> None:
    found, _ = made(tiny, chat=True)

    assert found
    row = found[0]
    assert [turn["role"] for turn in row["prompt"]] == ["user"]
    assert row["prompt"][0]["content"].startswith("Say something about ")
    assert [turn["role"] for turn in (*row["chosen"], *row["rejected"])] == ["assistant", "assistant"]
    rendered = Renderer(tiny[1]).outcomes(list(records(rows(found))))
    assert [isinstance(one, Example) for one in rendered] == [True] * len(found)


@pytest.mark.parametrize(
    ("task", "options", "reason"),
    [
        (NeverRight(), {}, "no right answer"),
        (AlwaysRight(), {}, "no wrong answer"),
        (EvenLength(), {"max_new_tokens": 1, "n": 2}, "no answer that ended"),
        (EvenLength(), {"max_new_tokens": 127}, "prompt too long"),
    ],
)
def test_questions_without_a_pair_are_counted_by_reason(
    tiny: tuple[Any, Any], task: Task, options: dict[str, int], reason: str
) -> None:
    found, statistics = made(tiny, task, **options)
    assert statistics.without_pair[reason] >= 4
    assert f"{reason} {statistics.without_pair[reason]}" in statistics.summary()
    assert statistics.without_pair.total() + len({row["prompt"] for row in found}) == 8


def test_nothing_is_written_if_there_is_no_pair(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(PreftuneError, match=r"nothing was written.*no right answer 8"):
        write_pairs(
            NeverRight(),
            QUESTIONS,
            tmp_path / "pairs.jsonl",
            sample=sample,
            model=tiny[0],
            tokenizer=tiny[1],
            sampling=Sampling(n=4, max_new_tokens=64),
        )
    assert list(tmp_path.iterdir()) == []


def test_questions_come_from_a_file_and_can_be_limited(tmp_path: Path) -> None:
    source = tmp_path / "words.jsonl"
    source.write_text("".join(json.dumps({"word": word}) + "\n" for word in WORDS))

    assert [q.text for q in read_questions(EvenLength(), source, limit=3)] == WORDS[:3]
    with pytest.raises(PreftuneError, match="EvenLength has no source of its own"):
        read_questions(EvenLength())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n": 1}, "n must be at least 2"),
        ({"max_pairs": 0}, "max_pairs must be at least 1"),
        ({"temperature": 0}, "greedy answers to one question are all the same"),
        ({"top_p": 0}, "top_p must be above 0"),
    ],
)
def test_settings_that_give_no_pairs_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(PreftuneError, match=said):
        Sampling(**options)


def test_output_is_checked_before_anything_is_sampled(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(PreftuneError, match="the name must end in"):
        check_out(tmp_path / "pairs.csv")
    with pytest.raises(PreftuneError, match="is a folder"):
        check_out(tmp_path / "folder.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(PreftuneError, match="cannot be written"):
        write_rows(iter([{}]), tmp_path / "file" / "pairs.jsonl")


def test_gz_is_the_same_rows(tmp_path: Path) -> None:
    write_rows([{"prompt": "größer\n"}], tmp_path / "a.jsonl.gz")
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()).decode() == '{"prompt": "größer\\n"}\n'


def test_an_error_on_the_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("old\n")

    def broken() -> Iterator[dict[str, int]]:
        yield {"row": 0}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(broken(), path)
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import os, signal, sys
from pathlib import Path
from preftune.data.builders.sampled import write_rows

def rows():
    for i in range(10_000):
        if i == 9_000:
            os.kill(os.getpid(), signal.SIGKILL)
        yield {"row": i}

write_rows(rows(), Path(sys.argv[1]))
"""


def test_a_kill_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("old\n")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], capture_output=True, check=False)

    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old\n"
    write_rows([{"row": 0}], path)
    assert path.read_text() == '{"row": 0}\n'
