"""BIG-Bench Hard: tasks that language models found hard (Suzgun et al. 2022, arXiv 2210.09261)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from preftune.data.records import Where
from preftune.data.sources import HUB_ID, Source, rows
from preftune.errors import PreftuneError
from preftune.prompting.benchmarks.base import Benchmark, BenchmarkQuestion, checked
from preftune.prompting.naming import prompt_id

# How each task is answered, besides those whose prompts list options.
FREE = {
    "boolean_expressions": ("choice", ("True", "False")),
    "dyck_languages": ("brackets", ()),
    "multistep_arithmetic_two": ("number", ()),
    "object_counting": ("number", ()),
    "sports_understanding": ("choice", ("yes", "no")),
    "web_of_lies": ("choice", ("Yes", "No")),
    "word_sorting": ("words", ()),
}
LISTED = (
    "causal_judgement date_understanding disambiguation_qa formal_fallacies geometric_shapes hyperbaton "
    "logical_deduction_five_objects logical_deduction_seven_objects logical_deduction_three_objects "
    "movie_recommendation navigate penguins_in_a_table reasoning_about_colored_objects ruin_names "
    "salient_translation_error_detection snarks temporal_sequences tracking_shuffled_objects_five_objects "
    "tracking_shuffled_objects_seven_objects tracking_shuffled_objects_three_objects"
).split()
TASKS = sorted([*FREE, *LISTED])  # 27 files
SIZES = re.compile(r"_(?:three|five|seven)_objects$")
OPTION = re.compile(r"^(?:\([A-Z]\)|-) ?(.*)$", re.MULTILINE)


class BBH(Benchmark):
    """27 files with 6,511 questions, which the paper counts as 23 tasks: logical deduction and tracking shuffled
    objects, with three, five and seven objects, count as one each. There is no training split: examples are other
    questions of the same file."""

    name: ClassVar[str] = "bbh"
    shots: ClassVar[int] = 3
    hub: ClassVar[str] = "lukaemon/bbh"

    def counted_as(self, task: str) -> str:
        """The paper's task that a file belongs to.

        Example:
            >>> BBH().counted_as("logical_deduction_five_objects"), BBH().counted_as("navigate")
            ('logical_deduction', 'navigate')
        """
        return SIZES.sub("", task)

    def _tests(self) -> list[BenchmarkQuestion]:
        source: Source = self.source or self.hub
        if isinstance(source, str) and not Path(source).expanduser().exists():
            hub = HUB_ID.fullmatch(source)
            if hub and not hub["config"]:
                return [one for task in TASKS for one in self._read(f"{source}:{task}", task, "test")]
            return self._read(source, hub["config"] if hub else None, "test" if hub else None)
        return self._read(source, None, None)

    def _examples(self) -> list[BenchmarkQuestion]:
        return self._tests()

    def _read(self, source: Source, task: str | None, split: str | None) -> list[BenchmarkQuestion]:
        return [_question(where, row, task) for where, row in rows(source, split=split)]


def _question(where: Where, row: dict[str, object], task: str | None) -> BenchmarkQuestion:
    asked, target = row.get("input"), row.get("target")
    if not isinstance(asked, str) or not isinstance(target, str) or not asked.strip() or not target.strip():
        raise PreftuneError(f"{where}: expected the texts input and target, as the files of BIG-Bench Hard have them")
    found = task or row.get("task") or Path(where.source).name.split(".")[0]
    if found not in TASKS:
        raise PreftuneError(
            f"{where}: {found} is no task of BIG-Bench Hard, expected files such as {TASKS[0]}.json (or a key task)"
        )
    prompt, gold = asked.strip(), target.strip()
    head, _, tail = prompt.partition("\nOptions:\n")
    scorer, options = FREE.get(str(found), ("choice", ()))
    if tail:
        options = tuple(option.strip() for option in OPTION.findall(tail))
    if lettered := re.fullmatch(r"\(([A-Z])\)", gold):
        gold = lettered[1]
    elif gold not in options and scorer == "choice":
        scorer = "contains"  # three answers are texts that no option has: it has a comma, and was cut there
    return checked(
        BenchmarkQuestion(
            id=prompt_id(f"{found}\n{prompt}"),
            task=str(found),
            prompt=prompt,
            gold=gold,
            scorer=scorer,
            options=options,
            listed=prompt[len(head) + 1 :] if tail else "",
            shown=target.strip(),
            where=where,
        )
    )
