"""What optimisers are compared with: naive prompts, a fixed prefix, the untrained optimiser, prompts of an oracle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preftune.evaluation.journal import Journal
from preftune.sandbox.tasks import SEEN, SHIPPED, UNSEEN, folder_of
from preftune.sandbox.tasks.asking import Asked, asked
from preftune.sandbox.tasks.families import FAMILIES
from preftune.sandbox.tasks.wordings import IDLE, PLANS
from preftune.studies.fipo.answers import Answers
from preftune.studies.fipo.chain import RESULTS, answering, flags, looks, measured
from preftune.studies.fipo.form import Form, Split
from preftune.studies.fipo.rewrites import PROBED, TEST

BASELINES = {
    "naive": "naive prompts",
    "prefix": "best fixed prefix",
    "untrained": "untrained optimiser",
    "oracle": "oracle prompts",
}


def prefixes() -> list[str]:
    """What could be put before every prompt alike: the beginnings of all plans, and idle words."""
    plans = [template.partition("{}")[0].strip() for templates in PLANS.values() for template in templates]
    return [*dict.fromkeys(plans), *(text.partition("{}")[0].strip() for text in IDLE if not text.startswith("{}"))]


def best_prefix(questions: Sequence[Asked], answers: Answers) -> str:
    """The prefix with which the generators that may be asked answer most questions right."""
    golds = [one.question.answer for one in questions]

    def worth(prefix: str) -> int:
        prompts = [f"{prefix} {one.prompt}" for one in questions]
        return int(sum(answers.right(name, prompts, golds).sum() for name in SEEN))

    return max(prefixes(), key=worth)


def best_plans(questions: Sequence[Asked], answers: Answers) -> dict[str, dict[str, str]]:
    """For each generator, the unseen one too, the plan of each family with which it does best: what an oracle knows."""
    found: dict[str, dict[str, str]] = {}
    for name in (*SEEN, UNSEEN):
        found[name] = {}
        for family in FAMILIES:
            some = [one.question for one in questions if one.question.family == family]
            right = {
                template: answers.right(name, [template.format(q.data) for q in some], [q.answer for q in some]).sum()
                for template in PLANS[family]
            }
            found[name][family] = max(right, key=lambda template: right[template])
    return found


def carry_out(folder: Path, form: Form) -> None:
    """Measure what is missing: lines like those of optimisers, without teacher and seed.

    Raises:
        PreftuneError: if the folder cannot be used.
    """
    journal = Journal(folder / RESULTS)
    done = {(line["strategy"], line["decoding"], line["split"]) for line in journal.lines}
    last = ("control", "greedy", "test")
    try:
        if last in done:
            return
        with Answers(folder / "answers") as answers:
            probed = asked(form.probed, PROBED, held_out=True)
            chosen = {"prefix": best_prefix(probed, answers), "oracle": best_plans(probed, answers)}
            for decoding, split, questions in looks(form):
                if ("untrained", decoding, split) not in done:
                    line = measured(folder_of("optimizer"), questions, decoding, split, 0, answers)
                    journal.add({"strategy": "untrained", **line})
                for key in ("naive", "prefix", "oracle") if decoding == "greedy" else ():
                    if (key, decoding, split) not in done:
                        right = _right(key, questions, split, chosen, answers)
                        line = {"right": right, "copied": 1.0, "kinds": {}, "chosen": chosen.get(key)}
                        journal.add({"strategy": key, "decoding": decoding, "split": split, **line})
            named = dict(zip(("strategy", "decoding", "split"), last, strict=True))
            journal.add({**named, **_grounds(form, answers)})
    finally:
        journal.close()


def _right(
    key: str, questions: Sequence[Asked], split: Split, chosen: dict[str, Any], answers: Answers
) -> dict[str, str]:
    """A baseline's flags, generator by generator, for an oracle knows whom it asks."""
    found: dict[str, str] = {}
    for name in answering(split):
        found |= flags([_text(key, one, name, chosen) for one in questions], questions, [name], answers)
    return found


def _text(key: str, one: Asked, generator: str, chosen: dict[str, Any]) -> str:
    """The prompt that a baseline puts to a generator."""
    if key == "naive":
        return one.prompt
    if key == "prefix":
        return f"{chosen['prefix']} {one.prompt}"
    return str(chosen["oracle"][generator][one.question.family]).format(one.question.data)


def _grounds(form: Form, answers: Answers) -> dict[str, Any]:
    """What each generator makes of each family, asked naively and under each plan: what the whole study stands on. The
    control, trained on answers without steps, shows that it is the steps which count."""
    questions = asked(form.test, TEST, held_out=True)
    golds = [one.question.answer for one in questions]
    wordings = {"naive": [one.prompt for one in questions]}
    for number in range(3):
        wordings[f"plan {number + 1}"] = [PLANS[q.question.family][number].format(q.question.data) for q in questions]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in SHIPPED:
        found[name] = {}
        for wording, prompts in wordings.items():
            right = answers.right(name, prompts, golds)
            by = {
                f: [bool(r) for r, one in zip(right, questions, strict=True) if one.question.family == f]
                for f in FAMILIES
            }
            found[name][wording] = {family: sum(each) / len(each) for family, each in by.items()}
    return {"grounds": found}
