"""Nothing that is loaded runs code unless asked for, and no secret is kept or printed."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest
from bad_input.case import pairs, run
from bad_input.models import TRAP, model, own_code

import preftune
from preftune import train
from preftune.api_keys import HIDDEN, command_line, hidden, is_secret
from preftune.errors import PreftuneError
from preftune.sandbox.preferences import rows

SOURCE = Path(preftune.__file__).parent
# Between a process and its own children alone.
PIPES = {"data/workers.py"}
# Calls that run what a file says, and what makes them safe.
CALLS = {
    **dict.fromkeys(("pickle.load", "pickle.loads", "pickle.Unpickler", "eval", "exec", "marshal.loads"), ""),
    **dict.fromkeys(("torch.load", "load_state_dict_from_url", "torch.hub.load"), "weights_only=True"),
    **dict.fromkeys(("yaml.load", "yaml.load_all"), "_Loader"),
    **dict.fromkeys(("yaml.unsafe_load", "yaml.full_load", "joblib.load", "dill.loads", "os.system"), ""),
}


def unsafe_calls(path: Path) -> list[str]:
    """Calls of a file that would run what is loaded."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name, words = ast.unparse(node.func), ast.unparse(node)
            safe = CALLS.get(name)
            if (safe is not None and not (safe and safe in words)) or "allow_pickle=True" in words:
                found.append(f"{path.name} line {node.lineno}: {words}")
    return found


def test_nothing_is_unpickled_or_evaluated() -> None:
    files = [path for path in SOURCE.rglob("*.py") if path.relative_to(SOURCE).as_posix() not in PIPES]
    assert len(files) > 100
    assert [call for path in files for call in unsafe_calls(path)] == []


def test_what_would_be_unsafe_is_found(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("torch.load(f)\ntorch.load(f, weights_only=True)\nnp.load(f, allow_pickle=True)\nyaml.load(f, L)\n")
    assert [line.split(":")[0] for line in unsafe_calls(bad)] == ["bad.py line 1", "bad.py line 3", "bad.py line 4"]


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers copies a model's code before it imports it: not into the user's cache."""
    import transformers.dynamic_module_utils as dynamic

    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


def test_code_that_comes_with_a_model_runs_only_if_asked_for(tmp_path: Path, modules: None) -> None:
    folder = tmp_path / "user"
    folder.mkdir()
    model(own_code)(folder)
    words = "preftune train -m m -d d.jsonl -o r -q train.max_steps=1 evaluate.samples=0 data.held_out=0.0"

    refused = run(words, folder)
    assert refused.code == 2
    assert "m comes with code of its own" in refused.err
    assert not (folder / TRAP).exists()
    assert not (folder / "r").exists()

    asked = run(f"{words} model.trust_remote_code=true", folder)
    assert asked.code == 0, asked.err
    assert (folder / TRAP).exists()
    assert "trust_remote_code: true" in (folder / "r" / "config.yaml").read_text()


# --- secrets: put together here, so that no scanner takes them for real ones ------------------------------------------

SECRETS = {
    "Hugging Face": "hf_" + "aB3" * 11,
    "OpenAI": "sk-" + "proj-aB3" * 5,
    "Anthropic": "sk-ant-" + "api03-aB3" * 5,
    "Groq": "gsk_" + "aB3" * 10,
    "GitHub": "ghp_" + "aB3" * 12,
    "AWS": "AKIA" + "ABCDEFGH12345678",
    "Google": "AIza" + "aB3-_" * 7,
    "a password in a URL": "https://me:s3cret@example.org/x",
}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_a_secret_is_refused_in_a_config_and_never_shown(secret: str, tmp_path: Path) -> None:
    pairs(tmp_path)
    for words in (f"model.tokenizer={secret}", f"data.rendering.template_options.note={secret}", f"={secret}"):
        said = run(f"preftune train -m sandbox -d d.jsonl '{words}'", tmp_path)
        assert said.code == 2
        assert secret not in said.err
        assert said.out == ""
    assert "looks like an API key or a password" in run(f"preftune train -m {secret} -d d.jsonl", tmp_path).err
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]


def test_a_key_that_is_called_one_is_refused_whatever_it_holds(tmp_path: Path) -> None:
    pairs(tmp_path)
    said = run("preftune train -m sandbox -d d.jsonl data.rendering.template_options.api_key=abc", tmp_path)
    assert (said.code, "abc" in said.err) == (2, False)
    assert "api_key on the command line looks like an API key" in said.err


@pytest.mark.parametrize(
    "text",
    [
        "sk-learn-models/my-pretty-long-model-name",
        "hf_model",
        "./runs/token",
        "token",
        "org/AIzawa",
        "https://a.b/c@d:e",
    ],
)
def test_ordinary_texts_are_no_secrets(text: str) -> None:
    assert not is_secret(text, "model.path")
    assert hidden(text) == text


@pytest.mark.parametrize(
    "name", ["batch.tokens", "evaluate.max_new_tokens", "model.tokenizer", "eos_token", "pad-token", "bypass"]
)
def test_ordinary_keys_are_no_secrets(name: str) -> None:
    assert not is_secret("abc", name)
    assert command_line([f"{name}=abc", f"--{name}", "abc"]) == f"{name}=abc --{name} abc"


def test_a_run_from_a_script_with_secrets_in_its_arguments_keeps_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = SECRETS["Hugging Face"]
    argv = ["mine.py", "--token", "hush", f"--hub={secret}", "--judge-api-key=quiet", "--epochs", "3"]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setenv("HF_TOKEN", secret)
    train("sandbox", rows(16), output=tmp_path / "r", quiet=True, train={"max_steps": 1}, evaluate={"samples": 0})
    command = json.loads((tmp_path / "r" / "manifest.json").read_text())["command"]
    assert command == f"mine.py --token {HIDDEN} --hub={HIDDEN} --judge-api-key={HIDDEN} --epochs 3"
    for path in (tmp_path / "r").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(each.encode() in content for each in (secret, "hush", "=quiet"))


def test_an_error_shows_what_does_not_print_as_escapes() -> None:
    said = str(PreftuneError("a\nb\x1b[31m\u2028\ud83d é"))
    assert said == "a\\nb\\x1b[31m\\u2028\\ud83d é"
    assert str(PreftuneError(said)) == said
