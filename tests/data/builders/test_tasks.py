import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.data import builders
from preftune.data.builders import Question, Task, get, names, right_over_wrong
from preftune.errors import PreftuneError

OWN = '''
from preftune.data.builders import Question, Task

class Parity(Task):
    """Even or odd."""

    def questions(self, source):
        yield Question("0", "Is 4 even?", "yes")

    def prompt(self, question):
        return question.text

    def instruction(self, question):
        return question.text

    def check(self, question, response):
        return response.strip() == question.reference

class Other:
    pass
'''


def test_tasks_are_the_files_that_hold_one() -> None:
    assert "gsm8k" in names()
    for name, summary in names().items():
        task = get(name)
        assert isinstance(task, Task)
        assert (type(task).__doc__ or "").splitlines()[0] == summary
        assert type(task).__module__ == f"preftune.data.builders.{name}"


def test_a_task_is_registered_nowhere_else() -> None:
    files = [path for path in Path(builders.__file__).parent.glob("*.py") if path.stem not in names()]
    for name in names():
        for path in files:
            imported = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
            assert not any(name in (node.module or "") for node in imported)


def test_a_users_own_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_parity_task.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)

    task = get("own_parity_task:Parity")
    question = next(iter(task.questions("anywhere")))
    assert task.check(question, " yes")
    assert not task.check(question, " no")
    with pytest.raises(PreftuneError, match="own_parity_task has no class Other"):
        get("own_parity_task:Other")
    with pytest.raises(PreftuneError, match="no class Nothing"):
        get("own_parity_task:Nothing")


@pytest.mark.parametrize(
    ("name", "said"), [("gsm8", "did you mean gsm8k"), ("no_such_module:Task", "cannot import no_such_module")]
)
def test_unknown_tasks_are_refused(name: str, said: str) -> None:
    with pytest.raises(PreftuneError, match=said):
        get(name)


ANSWERS = st.lists(st.sampled_from("abcdefgh"), max_size=8)


@given(ANSWERS, ANSWERS, st.integers(1, 70), st.integers(0, 5))
def test_right_over_wrong_draws_distinct_combinations(right: list[str], wrong: list[str], cap: int, seed: int) -> None:
    wrong = [text.upper() for text in wrong]
    pairs = right_over_wrong([*right, *(f"  {text}" for text in right)], wrong, cap, seed, "question")

    assert len(pairs) == min(cap, len(set(right)) * len(set(wrong)))
    assert len({(chosen.strip(), rejected) for chosen, rejected in pairs}) == len(pairs)
    assert all(chosen.strip() in right and rejected in wrong for chosen, rejected in pairs)
    assert pairs == right_over_wrong([*right, *(f"  {text}" for text in right)], wrong, cap, seed, "question")


def test_question_is_a_plain_value() -> None:
    assert Question("1", "a", "b") == Question("1", "a", "b")
