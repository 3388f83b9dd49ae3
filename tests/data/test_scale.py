"""Data of any size: what was read and tokenised before is found again, and memory does not grow with the data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preftune.data import dataset, sources
from preftune.data.dataset import DataConfig, Examples, Records
from preftune.data.records import Preference, Where, fingerprint
from preftune.data.rendering import Renderer, RenderingConfig
from preftune.errors import PreftuneError
from preftune.sandbox.preferences import base_tokenizer, rows

MILLION = Path(__file__).parents[2] / "benchmarks" / "million.py"
TEMPLATE = "{% for turn in messages %}{{ turn.content }}{{ eos_token if turn.role == 'assistant' }}{% endfor %}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A file of forty pairs, some of which are left out."""
    given: list[dict[str, Any]] = rows(40)
    given[3] = {**given[3], "rejected": given[3]["chosen"]}
    given[5] = {**given[5], "chosen": given[5]["chosen"] + " very" * 60}
    given[8] = {**given[8], "weight": -1}
    return write(tmp_path / "pairs.jsonl", given)


def write(path: Path, given: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


CONFIG = DataConfig(bad_rows="drop", rendering=RenderingConfig(max_length=60))


def prepared(
    source: Any, config: DataConfig = CONFIG, seed: int = 0, apart: Any = None, tokenizer: Any = None
) -> tuple[Records, Examples]:
    found = dataset.read(config, source, seed, apart)
    return found, dataset.render(found, tokenizer or base_tokenizer(), config)


def content(found: tuple[Records, Examples]) -> dict[str, Any]:
    """All that a run gets to see."""
    records, examples = found
    return {
        "records": [[*side] for side in (records.train, records.held_out)],
        "kind": (records.kind, records.plain, records.fingerprint),
        "examples": [repr([*side]) for side in (examples.train, examples.held_out)],
        "messages": examples.messages,
        "rest": (examples.end_ids, examples.chat_template, examples.largest),
    }


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """From the call on, reading or rendering is an error."""

    def forbid(*names: str) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise AssertionError("this was to be found in the cache")

        if "read" in names:
            monkeypatch.setattr(sources, "rows", refuse)
        if "render" in names:
            monkeypatch.setattr(Renderer, "outcomes", refuse)

    return forbid


# --- a warm cache -----------------------------------------------------------------------------------------------------


def test_a_warm_cache_gives_the_same_and_neither_reads_nor_renders(pairs: Path, idle: Any) -> None:
    first = content(prepared(str(pairs)))
    assert [line.partition(":")[0] for line in first["messages"]] == ["1 left out", "1 left out", "training data"]
    assert first["kind"][2] == fingerprint([*first["records"][0], *first["records"][1]])
    idle("read", "render")
    assert content(prepared(str(pairs))) == first


@pytest.mark.parametrize("form", ["rows", "records", "generator"])
def test_objects_are_read_each_time_and_tokenised_once(form: str, idle: Any, cache: Path) -> None:
    def given() -> Any:
        records = [Preference(**row, where=Where("mine", i)) for i, row in enumerate(rows(20))]
        return {"rows": rows(20), "records": records, "generator": (row for row in rows(20))}[form]

    first = content(prepared(given()))
    idle("render")
    assert content(prepared(given())) == first
    assert not list((cache / "data").rglob("records.txt")), "what came as objects is not kept in the cache"


def test_conversations_without_a_template_say_so_from_a_warm_cache_too(tmp_path: Path, idle: Any) -> None:
    turns = [{key: [{"role": role, "content": row[key].strip()}] for key, role in ROLES.items()} for row in rows(20)]
    path = write(tmp_path / "chat.jsonl", turns)
    config = DataConfig(rendering=RenderingConfig(boundary="shift"))
    first = content(prepared(str(path), config))
    assert any("the tokenizer has no chat template" in line for line in first["messages"])
    assert first["rest"][1] is not None
    idle("read", "render")
    assert content(prepared(str(path), config)) == first


ROLES = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}


def test_another_seed_and_another_split_share_the_tokens(pairs: Path, idle: Any) -> None:
    first = content(prepared(str(pairs)))
    idle("read", "render")
    for other in (prepared(str(pairs), seed=1), prepared(str(pairs), CONFIG.model_copy(update={"held_out": 0.5}))):
        found = content(other)
        assert found["examples"] != first["examples"]
        assert sorted(repr(e) for side in other[1:] for e in (*side.train, *side.held_out)) == sorted(
            repr(e) for side in prepared(str(pairs))[1:] for e in (*side.train, *side.held_out)
        )


@pytest.mark.parametrize(
    "change",
    [
        {"rendering": RenderingConfig(max_length=30)},
        {"rendering": RenderingConfig(max_length=60, truncate="response_end")},
        {"limit": 10},
        {"layout": "pairs"},
        {"bad_rows": "error"},
    ],
)
def test_what_decides_the_examples_is_not_confused(change: dict[str, Any], pairs: Path) -> None:
    first = content(prepared(str(pairs)))
    config = CONFIG.model_copy(update=change)
    if "bad_rows" in change:
        with pytest.raises(PreftuneError, match="row 8: weight is the number -1"):
            prepared(str(pairs), config)
        return
    assert content(prepared(str(pairs), config))["examples"] != first["examples"]


def test_a_file_is_known_by_its_content(pairs: Path) -> None:
    first = prepared(str(pairs))
    before, text = pairs.stat(), pairs.read_text()
    pairs.write_text(text.replace(" very", " much", 1))
    os.utime(pairs, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert pairs.stat().st_size == before.st_size
    assert prepared(str(pairs))[0].fingerprint != first[0].fingerprint
    pairs.write_text(text)
    assert content(prepared(str(pairs))) == content(first)


def test_another_tokenizer_is_not_confused(pairs: Path) -> None:
    first = content(prepared(str(pairs)))
    other = base_tokenizer()
    words = json.loads(other.backend_tokenizer.to_str())
    ids = words["model"]["vocab"]
    ids["music"], ids["ending"] = ids["ending"], ids["music"]
    swapped = type(other)(tokenizer_object=type(other.backend_tokenizer).from_str(json.dumps(words)))
    swapped.add_special_tokens({"eos_token": other.eos_token, "pad_token": other.pad_token})
    assert content(prepared(str(pairs), tokenizer=swapped))["examples"] != first["examples"]
    other(["The music", "The"], padding=True)  # leaves a trace in the tokenizer, which changes nothing
    assert content(prepared(str(pairs), tokenizer=other)) == first


def test_a_template_that_writes_the_date_is_rendered_each_day(
    tmp_path: Path, idle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datetime import date

    class Tomorrow(date):
        @classmethod
        def today(cls) -> date:
            return date(2099, 1, 1)

    turns = [{key: [{"role": role, "content": row[key].strip()}] for key, role in ROLES.items()} for row in rows(12)]
    path, config = write(tmp_path / "chat.jsonl", turns), DataConfig(rendering=RenderingConfig(boundary="shift"))
    for template, again in ((TEMPLATE, False), (TEMPLATE + "{# strftime_now #}", True)):
        config.rendering = RenderingConfig(boundary="shift", chat_template=template)
        prepared(str(path), config)
        with monkeypatch.context() as patch:
            patch.setattr("preftune.data.tokenising.date", Tomorrow)
            called = []
            real = Renderer.outcomes
            patch.setattr(Renderer, "outcomes", lambda self, found: called.append(1) or real(self, found))  # noqa: B023
            prepared(str(path), config)
        assert bool(called) is again


def test_a_tokenizer_of_ones_own_code_is_not_cached(pairs: Path, cache: Path) -> None:
    class Shouting(type(base_tokenizer())):  # type: ignore[misc]
        pass

    tokenizer = base_tokenizer()
    tokenizer.__class__ = Shouting
    first = content(prepared(str(pairs), tokenizer=tokenizer))
    assert first["examples"] == content(prepared(str(pairs)))["examples"]
    assert len(list((cache / "data" / "tokens").rglob("examples.arrow"))) == 1


@pytest.mark.parametrize("file", ["examples.arrow", "train.npy", "records.txt"])
def test_damaged_files_are_made_anew_with_a_note(file: str, pairs: Path, cache: Path) -> None:
    first = content(prepared(str(pairs)))
    (found,) = (cache / "data").rglob(file)
    data = bytearray(found.read_bytes())
    data[len(data) // 2] ^= 1
    found.write_bytes(data)
    again = content(prepared(str(pairs), seed=1 if file == "records.txt" else 0))  # only a new split needs the records
    assert sum("was damaged: it is made anew" in line for line in again.pop("messages")) == 1
    if file != "records.txt":
        messages = first.pop("messages")
        assert again == first
        assert prepared(str(pairs))[1].messages == messages


def test_held_out_data_of_its_own_is_cached_and_tokenised_without_what_is_shared(tmp_path: Path, idle: Any) -> None:
    given = rows(40)
    prompts = {row["prompt"] for row in given[:30]}
    train, apart = write(tmp_path / "train.jsonl", given[:30]), write(tmp_path / "apart.jsonl", given[30:])
    first = prepared(str(train), CONFIG, 0, str(apart))
    assert len(first[1].held_out) == sum(row["prompt"] not in prompts for row in given[30:])
    assert any(line.startswith("held-out data: ") for line in first[1].messages)
    found = content(first)
    idle("read", "render")
    assert content(prepared(str(train), CONFIG, 0, str(apart))) == found


# --- memory and time --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data() -> None:
    """A quick form of benchmarks/million.py: its bound, 300 MB for 990,000 pairs more, in proportion, and a little for
    what differs from run to run. Records and examples in lists took 26 MB."""
    small, large = 4_000, 14_000
    command = [sys.executable, str(MILLION), "--pairs", str(small), str(large), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = {(value["pairs"], value["cache"]): value for value in map(json.loads, done.stdout.splitlines())}
    for state in ("cold", "warm"):
        more = found[large, state]["peak_mb"] - found[small, state]["peak_mb"]
        assert more < 300 * (large - small) / 990_000 + 8, found
    assert found[large, "warm"]["fingerprint"] == found[large, "cold"]["fingerprint"]
    assert found[large, "warm"]["tokens"] == found[large, "cold"]["tokens"]
    assert found[large, "warm"]["start"] < found[large, "cold"]["start"] / 2


def test_help_and_import_load_no_heavy_library() -> None:
    """What keeps `import preftune` under 0.2 s and `preftune --help` under 0.3 s, told without a clock."""
    heavy = ("torch", "transformers", "datasets", "pyarrow", "numpy", "pandas", "pydantic", "peft", "accelerate")
    script = (
        "import sys, contextlib\n"
        "import preftune\n"
        "light = set(sys.modules)\n"
        "from preftune import cli\n"
        "with contextlib.suppress(SystemExit):\n"
        "    sys.argv = ['preftune', '--help']\n"
        "    cli.main()\n"
        f"loaded = [sorted(found & {set(heavy)!r}) for found in (light, set(sys.modules))]\n"
        "print(loaded)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[[], []]"


def test_help_and_import_take_little_longer_than_python_itself() -> None:
    """User time, which other processes do not add to, and the best of several: about 0.02 s and 0.2 s more."""

    def seconds(*words: str) -> float:
        script = (
            "import resource, subprocess, sys\n"
            "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
            "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
            "print(used.ru_utime + used.ru_stime)\n"
        )
        command = [sys.executable, "-c", script, sys.executable, *words]
        return min(float(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(5))

    bare = seconds("-c", "pass")
    assert seconds("-c", "import preftune") < 3 * bare + 0.1
    assert seconds("-m", "preftune", "--help") < 10 * bare + 0.3
