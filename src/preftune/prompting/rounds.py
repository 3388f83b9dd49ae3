"""Iterative preference learning: train, propose, judge, and train again on what was accepted, round by round.

    FOLDER/
      prompts.yaml       the config as resolved; written last, so that a folder that has it holds rounds
      template.yaml      how the optimiser is asked
      prompts.json       what it is: strategy, chat, rows
      data/round-K.jsonl the rows that round K trains on; data/held_out.jsonl
      round-K/           an ordinary run
      merged/round-K/    its model with the adapter put into the weights; of runs with LoRA
      kept/              everything the optimiser wrote and a judge said, to be replayed
      rounds.jsonl       a line for each round that is over
      summary.json       once all are; report.html

Each round begins with the last one's model. Everything that is not there is made from what is, so that rounds that were
killed at any moment go on as if nothing had been: a run from its checkpoint, proposals and verdicts from what was kept.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from preftune import api, yaml_tree
from preftune.checks import check
from preftune.config import RunConfig
from preftune.errors import PreftuneError
from preftune.evaluation.budget import BudgetError
from preftune.evaluation.export import export
from preftune.evaluation.journal import Journal
from preftune.evaluation.models import ROUNDS_CONFIG, find
from preftune.files import write_whole
from preftune.objectives import registry
from preftune.policy.loading import is_built_in
from preftune.prompting import template as templates
from preftune.prompting.case_files import read_cases, write_cases
from preftune.prompting.cases import Case, render
from preftune.prompting.config import FREE as OWN
from preftune.prompting.config import PromptsRunConfig
from preftune.prompting.discriminators import SelfJudge, open_discriminator
from preftune.prompting.generators import open_generator
from preftune.prompting.proposing import Asking, measure, propose, to_measure
from preftune.prompting.template import Template
from preftune.report.prompt_rounds import write as write_page
from preftune.resuming import FREE, has_ended
from preftune.run import Run
from preftune.training.progress import Bar
from preftune.training.run_folder import RunFolder, to_json

TEXTS = (templates.FILE, templates.ABOUT)
HELD_OUT = "held_out"  # of data, and of what is measured
LINES, SUMMARY, KEPT = "rounds.jsonl", "summary.json", "kept"
SEEDS = 2**63
Say = Callable[[str], object]
T = TypeVar("T", bound=BaseModel)


@dataclass(frozen=True)
class Rounds:
    """A folder of rounds.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """What is to be done."""
        return self.path / ROUNDS_CONFIG

    def write_config(self, config: PromptsRunConfig) -> None:
        """Keep what is to be done.

        Raises:
            OSError: if it cannot be written.
        """
        write_whole(self.config, yaml_tree.dump(config).encode())

    def run(self, number: int) -> Path:
        """The run of a round; they count from 1."""
        return self.path / f"round-{number}"

    def data(self, name: int | str) -> Path:
        """Rows of a round, or by a name."""
        return self.path / "data" / (f"round-{name}.jsonl" if isinstance(name, int) else f"{name}.jsonl")

    def cases(self, name: int | str) -> list[Case]:
        """Those rows."""
        path = self.data(name)
        return [] if name == HELD_OUT and not path.exists() else list(read_cases(str(path)))

    def model(self, number: int) -> Path:
        """The whole model that a round came to."""
        merged = self.path / "merged" / f"round-{number}"
        return merged if merged.is_dir() else self.run(number) / "model"

    def lines(self) -> list[dict[str, Any]]:
        """What has come of each round that is over."""
        path = self.path / LINES
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def begin(
    config: PromptsRunConfig,
    rounds: Rounds,
    sides: tuple[Sequence[Case], Sequence[Case]],
    template: Template,
    about: Mapping[str, Any],
    file: Path | None = None,
) -> RunFolder:
    """Make the folder, and put everything into it that rounds begin with.

    Args:
        config: the whole.
        rounds: the folder, which is not there yet.
        sides: rows to train on, and held-out ones.
        template: how the optimiser is asked.
        about: what `prompts.json` says.
        file: the config file, if there is one.

    Returns:
        The folder, locked.

    Raises:
        PreftuneError: if it cannot be made, or the first round would be refused; nothing is left of it then.
    """
    _check_free(rounds.path)
    check(_config_of(config, rounds, 1), config.terms, rounds.run(1), loaded=False, file=file)
    judge = open_discriminator(config.prompts, None, template)  # one that is not there is found out before training
    if judge is not None:
        judge.close()
    folder = RunFolder.create(rounds.path)
    try:
        folder.write_manifest(seed=config.seed)  # first: a folder that was not begun in earnest may be replaced
        (rounds.path / "data").mkdir()
        named: list[tuple[int | str, Sequence[Case]]] = [(1, sides[0]), (HELD_OUT, sides[1])]
        for name, cases in named if sides[1] else named[:1]:
            write_cases(rounds.data(name), cases, template, about["chat"])
        template.write(rounds.path / templates.FILE)
        write_whole(rounds.path / templates.ABOUT, (to_json(about, indent=2) + "\n").encode())
        rounds.write_config(_resolved(config, rounds))
    except OSError as error:
        folder.discard()
        raise PreftuneError(f"cannot write to output.path {rounds.path} ({error.strerror}): make room there") from None
    except BaseException:
        folder.discard()
        raise
    return folder


def reopen(rounds: Rounds, changes: Sequence[str]) -> PromptsRunConfig:
    """The config with which rounds go on.

    Args:
        rounds: the folder.
        changes: overrides, of keys that may change.

    Raises:
        PreftuneError: if a key cannot change any more, or a file cannot be read.
    """
    for change in changes:
        key = change.partition("=")[0]
        if key not in (*OWN, *FREE):
            raise PreftuneError(
                f"{key} cannot change when rounds go on, for it decides what they are: start anew in another folder; "
                f"what may change: {', '.join((*OWN, *FREE))}"
            )
    config = yaml_tree.load(PromptsRunConfig, rounds.config, changes, tagged=("objective",))
    config = config.model_copy(update={"output": config.output.model_copy(update={"path": str(rounds.path)})})
    if changes:
        rounds.write_config(config)
    return config


def carry_out(
    config: PromptsRunConfig,
    rounds: Rounds,
    *,
    changes: Sequence[str] = (),
    show: bool = True,
    say: Say = lambda _: None,
) -> Run:
    """Do all that is not done yet.

    Args:
        config: of the rounds.
        rounds: the folder.
        changes: overrides for a round that goes on.
        show: progress bars.
        say: told what came of each round, in a line.

    Returns:
        The run of the last round.

    Raises:
        PreftuneError: whatever a user can mend; the rounds go on from there.
    """
    template, count = Template.read(rounds.path / templates.FILE), config.prompts.rounds
    with closing(Journal(rounds.path / LINES)) as journal:
        done = len(journal.lines)
        changes = [change for change in changes if change.partition("=")[0] in FREE]
        for number in range(done + 1, count + 1):
            run = _train(config, rounds, number, changes, show)
            began = time.monotonic()
            try:
                line = _after(config, rounds, number, template, show)
            except BudgetError as error:
                said = str(error).partition(": what was answered")[0]
                raise PreftuneError(
                    f"{said}, in round {number}: what was answered is kept; go on with preftune prompts train --resume "
                    f"{rounds.path} and a larger prompts.max_calls or prompts.max_tokens"
                ) from None
            line = {"round": number, **_figures(run), **line, "asked_seconds": round(time.monotonic() - began, 3)}
            journal.add(line)
            say(sentence(line, count))
    lines = rounds.lines()
    summary = {"strategy": config.strategy, "rounds": count, "last": f"round-{count}", "lines": lines}
    write_whole(rounds.path / SUMMARY, (to_json(summary, indent=2) + "\n").encode())
    write_page(rounds.path)
    return Run(rounds.run(count))


def sentence(line: Mapping[str, Any], count: int) -> str:
    """What came of a round, in a line for people."""
    said = f"round {line['round']} of {count}"
    if "proposed" in line:
        said += f": {line['accepted']:,} of {line['proposed']:,} rewrites accepted"
    for side in (HELD_OUT, "training"):
        found = line["discriminator"].get(side, {})
        if found.get("rows"):
            which = side.replace("_", " ")
            said += f"; discriminator right on {found['accuracy']:.0%} of {found['rows']:,} pairs ({which})"
    return said


def _check_free(path: Path) -> None:
    if (path / ROUNDS_CONFIG).is_file():
        ended = (path / SUMMARY).is_file()
        go_on = "" if ended else f"go on with them (preftune prompts train --resume {path}), "
        raise PreftuneError(
            f"output.path {path} holds rounds{'' if ended else ' that did not finish'}: {go_on}name another folder, or "
            "move it away"
        )


def _resolved(config: PromptsRunConfig, rounds: Rounds) -> PromptsRunConfig:
    """The config that goes on from any current folder: whatever is on disk is named by its whole path."""

    def whole(given: Any) -> Any:
        if isinstance(given, list):
            return [whole(each) for each in given]
        there = isinstance(given, str) and not is_built_in(given) and Path(given).exists()
        return str(Path(given).absolute()) if there else given

    def found(block: T, *names: str) -> T:
        return block.model_copy(update={name: whole(getattr(block, name)) for name in names})

    output = config.output.model_copy(update={"path": str(rounds.path), "overwrite": False})
    blocks = {
        "model": found(config.model, "path", "tokenizer"),
        "reference": found(config.reference, "path", "folder"),
        "prompts": found(config.prompts, "template", "generator", "rubric"),
    }
    return config.model_copy(update={"objective": registry.spec_of(config.terms), "output": output, **blocks})


def _train(config: PromptsRunConfig, rounds: Rounds, number: int, changes: Sequence[str], show: bool) -> Run:
    """The run of a round: made, gone on with, or as it is."""
    path = rounds.run(number)
    if (path / "config.yaml").is_file():
        run = api.resume(path, changes=() if has_ended(path) else changes, quiet=not show)
    else:
        template, chat = Template.read(rounds.path / templates.FILE), about(rounds.path)["chat"]
        sides = [
            [render(case, template, chat) for case in rounds.cases(name) if case.chosen != case.rejected]
            for name in (number, HELD_OUT)
        ]
        run = api.run(
            _config_of(config, rounds, number),
            rows=sides[0],
            held_out=sides[1],
            files={name: (rounds.path / name).read_text(encoding="utf-8") for name in TEXTS},
            show=show,
        )
    named = find(path)
    merged = rounds.path / "merged" / f"round-{number}"
    if named.has_adapter and not merged.is_dir():
        export(path, merged, merge=True)
    return Run(run.path)  # the model is let go of, and read again by whoever needs it


def _config_of(config: PromptsRunConfig, rounds: Rounds, number: int) -> RunConfig:
    """Of the run of a round: it begins with the last one's model, and the reference stays or moves."""
    plain = config.plain()
    data = plain.data.model_copy(update={HELD_OUT: type(plain.data)().held_out, "held_out_path": None, "limit": None})
    output = plain.output.model_copy(update={"path": str(rounds.run(number)), "overwrite": False})
    changes: dict[str, Any] = {"data": data, "output": output, "seed": (plain.seed + number - 1) % SEEDS}
    if number > 1:
        fresh = dict.fromkeys(("tokenizer", "revision", "rope_scaling"))
        changes["model"] = plain.model.model_copy(update={"path": str(rounds.model(number - 1)), **fresh})
        fixed = config.prompts.reference == "fixed" and registry.needs_reference(config.terms)
        if fixed and plain.reference.path is None:
            changes["reference"] = plain.reference.model_copy(update={"path": plain.model.path})
    return plain.model_copy(update=changes)


def _after(config: PromptsRunConfig, rounds: Rounds, number: int, template: Template, show: bool) -> dict[str, Any]:
    """What the optimiser of a round says and proposes, and the rows of the next one."""
    prompts, kept = config.prompts, rounds.path / KEPT
    cases, held_out = rounds.cases(number), rounds.cases(HELD_OUT)
    with ExitStack() as opened:
        generator = opened.enter_context(open_generator(str(rounds.run(number)), kept, chat=about(rounds.path)["chat"]))
        judge = open_discriminator(prompts, kept, template)
        judge = SelfJudge(generator, template) if judge is None else opened.enter_context(judge)
        with _Progress(show) as progress:
            seed = (config.seed + number) % SEEDS
            asking = Asking(generator, template, judge, prompts, seed, progress)
            line: dict[str, Any] = {"rows": len(cases), "discriminator": {"name": judge.name}}
            for side, rows in ((HELD_OUT, held_out), ("training", cases)):
                found = measure(asking, to_measure(rows, prompts.measured, config.seed), f"round {number}: {side}")
                line["discriminator"][side] = found
            if number < prompts.rounds:
                following, proposals = propose(asking, cases, number)
                write_cases(rounds.data(number + 1), following, template, generator.chat)
                line |= proposals.as_json()
    return line


def _figures(run: Run) -> dict[str, Any]:
    """Of a round's run, for its line."""
    summary = run.summary
    after = summary.get("after", {})
    names = ("loss", "preference_accuracy", "margin")
    figures = {name: after[name] for name in names if after.get(name) is not None}
    return {**figures, "steps": summary["steps"], "train_seconds": summary["seconds"]}


def about(folder: Path) -> dict[str, Any]:
    """What `prompts.json` says.

    Raises:
        PreftuneError: if it cannot be read.
    """
    try:
        found: dict[str, Any] = json.loads((folder / templates.ABOUT).read_text(encoding="utf-8"))
        bool(found["chat"])  # it must be there
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise PreftuneError(f"{folder / templates.ABOUT} cannot be read ({error}): restore it") from None
    return found


class _Progress:
    """One bar for whatever is being done."""

    def __init__(self, show: bool) -> None:
        self.show, self.what, self.done = show, "", 0
        self.bar: Bar | None = None

    def __call__(self, what: str, done: int, count: int) -> None:
        if what != self.what:
            self._close()
            self.bar, self.what, self.done = Bar(count, self.show, title=what).__enter__(), what, 0
        if self.bar is not None:
            self.bar.advance(done - self.done)
            self.done = done

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.__exit__(None, None, None)
            self.bar = None
