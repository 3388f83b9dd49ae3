"""The README: every command and snippet is run, every path in its tree exists."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S) for line in block.splitlines() if line]
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder in which all of the README is carried out, in order."""
    return tmp_path_factory.mktemp("readme")


def carry_out(command: list[str], folder: Path, expected: int = 0) -> str:
    # what runs the tests may be make itself, whose own options must not reach the commands
    outer = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    env = {**outer, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stdout


def test_the_readme_has_commands_and_snippets() -> None:
    assert len(COMMANDS) >= 9
    assert len(SNIPPETS) == 3
    assert COMMANDS[:2] == ["make demo", "make test"]
    assert len(SNIPPETS[0].splitlines()) == 4


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_of_the_readme_works(command: str, folder: Path) -> None:
    if command == "make test":
        assert "make test" in (ROOT / ".ci/run").read_text(encoding="utf-8")
        pytest.skip("this is what runs now")
    if command == "make demo":
        recipe = carry_out(["make", "--no-print-directory", "--dry-run", "demo"], ROOT).splitlines()[-1]
        assert recipe.split()[0].endswith("/preftune")
        shown = carry_out(["preftune", *recipe.split()[1:]], folder)
        assert "true reward per prompt rose" in shown
        assert (folder / "runs/demo/report.html").is_file()
        return
    words = shlex.split(command)
    if words[0] == "python":
        tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "examples").glob("*.py"))
        if all(word in tests for word in words[1].split("/")[-2:] + words[2:]):
            pytest.skip("the tests of examples run this")
        words = [sys.executable, str(ROOT / words[1]), *words[2:]]
    if words[1] == "study":
        tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "studies").rglob("*.py"))
        if all(f'"{word}"' in tests for word in words[1:]):
            pytest.skip("the tests of studies run this")
    carry_out(words, folder)


@pytest.mark.slow
@pytest.mark.parametrize("snippet", SNIPPETS)
def test_each_snippet_of_the_readme_works(snippet: str, folder: Path) -> None:
    carry_out([sys.executable, "-W", "error::UserWarning", "-c", snippet], folder)


def test_every_path_in_the_tree_exists() -> None:
    tree = TEXT.split("## The tree")[1].split("[CONTRIBUTING")[0]
    stack: list[tuple[int, Path]] = []
    found = 0
    for line in filter(str.strip, tree.splitlines()):
        indent = len(line) - len(line.lstrip())
        names = re.split(r" {2,}", line.strip())[0].split()
        while stack and stack[-1][0] >= indent:
            stack.pop()
        base = stack[-1][1] if stack else ROOT
        for name in names:
            if not re.fullmatch(r"[\w./-]+", name) or ("." not in name and "/" not in name and name != "Makefile"):
                continue
            assert (base / name).exists(), f"{line.strip()!r}: no {base / name}"
            found += 1
        if names[0].endswith("/"):
            stack.append((indent, base / names[0]))
    assert found > 60


def test_every_module_stands_in_the_tree() -> None:
    tree = TEXT.split("## The tree")[1]
    for room in (ROOT / "src/preftune").iterdir():
        if room.suffix == ".py" and not room.name.startswith("__"):
            assert re.search(rf"\b{re.escape(room.name)}\b", tree), f"{room.name} is missing from the README's tree"
    for room in ("data", "policy", "training"):
        for module in (ROOT / "src/preftune" / room).glob("[!_]*.py"):
            assert re.search(rf"\b{re.escape(module.name)}\b", tree), f"{room}/{module.name} is missing"


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target
