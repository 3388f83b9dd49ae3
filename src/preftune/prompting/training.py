"""Training an optimiser: pairs of rewrites -> rows -> an ordinary run, or rounds of them.

trained = train_prompts({"model": {"path": "my-model"}, "data": {"path": "pairs.jsonl"}, "prompts": {"rounds": 3}})
with open_rewriter(str(trained.path)) as rewriter: ...
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import compress, islice
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from preftune import api, yaml_tree
from preftune.data.chat_template import find_template
from preftune.data.records import Drops
from preftune.data.split import choose
from preftune.errors import PreftuneError
from preftune.policy.loading import SCRATCH, read_tokenizer
from preftune.prompting import template as templates
from preftune.prompting.cases import Case, diversify, render
from preftune.prompting.config import PromptsRunConfig, check_prompts, without_effect
from preftune.prompting.records import PromptPair, read_pairs
from preftune.prompting.rewriter import template_of
from preftune.prompting.rounds import SUMMARY, Rounds, Say, begin, carry_out, reopen
from preftune.prompting.template import Template
from preftune.report.prompt_rounds import write as write_page
from preftune.run import Run
from preftune.training.run_folder import RunFolder, to_json


@dataclass(frozen=True)
class Trained:
    """An optimiser that was trained.

    Attributes:
        path: what `open_rewriter`, `preftune evaluate` and others take: a run folder, or a folder of rounds.
        run: its run, or that of the last round.
        rounds: what came of each round; none of a plain run.
    """

    path: Path
    run: Run
    rounds: tuple[Mapping[str, Any], ...] = ()


def train_prompts(
    config: PromptsRunConfig | str | Path | Mapping[str, Any],
    *,
    pairs: Iterable[PromptPair] | None = None,
    model: nn.Module | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    quiet: bool = False,
    file: Path | None = None,
    say: Say = lambda _: None,
) -> Trained:
    """Train a model that rewrites prompts.

    Args:
        config: a resolved one, a YAML file, or a mapping of the same form.
        pairs: rewrites to learn from; None: those of `data.path`.
        model: a loaded model, trained in place, instead of `model.path`; not for rounds.
        tokenizer: its tokenizer.
        quiet: no progress bars.
        file: the config file, if `config` was read from one.
        say: told what to know, and what came of each round, in lines.

    Returns:
        Where the optimiser is, and what it came to.

    Raises:
        PreftuneError: for anything that a user can mend.
    """
    config = _resolved(config)
    check_prompts(config, loaded=model is not None)
    for note in without_effect(config.prompts):
        say(f"note: {note}")
    given = config.prompts.template
    template = template_of(config.model.path) if given is None else Template.read(Path(given))
    chat = _asks_in_chat(config, tokenizer)
    drops = Drops(config.data.doctor.identical)
    train, held_out = (_cases(config, side, drops) for side in _sides(config, pairs))
    if drops.total:
        say(f"note: pairs: {drops.summary()}")
    if not train:
        raise PreftuneError(f"no pair is left to learn from ({drops.summary()}): mend the data")
    about = _about(config, chat, train, held_out)
    path = Path(config.output.path or f"runs/{config.strategy}-{datetime.now().strftime('%Y%m%d-%H%M%S')}")
    if config.iterates:
        rounds = Rounds(path)
        folder = begin(config, rounds, (train, held_out), template, about, file)
        try:
            run = carry_out(reopen(rounds, ()), rounds, show=not quiet, say=say)
        except PreftuneError:
            if not (rounds.run(1) / "config.yaml").is_file():
                folder.discard()  # nothing was trained: leave no folder in the way of the next attempt
            raise
        finally:
            folder.unlock()
        return Trained(path, run, tuple(rounds.lines()))
    plain = config.plain()
    data = plain.data.model_copy(update={"held_out": type(plain.data)().held_out, "held_out_path": None, "limit": None})
    output = plain.output.model_copy(update={"path": str(path)})
    run = api.run(
        plain.model_copy(update={"data": data, "output": output}),
        rows=[render(case, template, chat) for case in train],
        held_out=[render(case, template, chat) for case in held_out],
        model=model,
        tokenizer=tokenizer,
        file=file,
        files={templates.FILE: template.as_yaml(), templates.ABOUT: to_json(about, indent=2)},
        show=not quiet,
    )
    return Trained(run.path, run)


def resume_prompts(
    path: str | Path, *, changes: Sequence[str] = (), quiet: bool = False, say: Say = lambda _: None
) -> Trained:
    """Go on with a run or with rounds that were stopped. On a CPU, what comes out is what would have come out without
    the stop, bit by bit; nothing that was written, said or paid for is asked again.

    Args:
        path: folder of the run or the rounds.
        changes: overrides, `key=value`, of how it is carried out.
        quiet: no progress bars.
        say: told what came of each round, in a line.

    Raises:
        PreftuneError: if there is nothing to go on with, or what it began with has changed.
    """
    rounds = Rounds(Path(path))
    if not rounds.config.is_file():
        if not (rounds.path / templates.ABOUT).is_file():
            raise PreftuneError(
                f"{path} holds no optimiser, it has no {templates.ABOUT}: name the output.path of a run of preftune "
                "prompts train"
            )
        run = api.resume(path, changes=changes, quiet=quiet)
        return Trained(run.path, run)
    config = reopen(rounds, changes)
    if (rounds.path / SUMMARY).is_file():
        if not (rounds.path / "report.html").is_file():
            write_page(rounds.path)
        return Trained(rounds.path, Run(rounds.run(config.prompts.rounds)), tuple(rounds.lines()))
    folder = RunFolder(rounds.path).lock()
    try:
        run = carry_out(config, rounds, changes=changes, show=not quiet, say=say)
    finally:
        folder.unlock()
    return Trained(rounds.path, run, tuple(rounds.lines()))


def _resolved(config: PromptsRunConfig | str | Path | Mapping[str, Any]) -> PromptsRunConfig:
    if isinstance(config, PromptsRunConfig):
        return config
    file = Path(config) if isinstance(config, str | Path) else None
    base = config if isinstance(config, Mapping) else None
    return yaml_tree.load(PromptsRunConfig, file, base=base, tagged=("objective",))


def _asks_in_chat(config: PromptsRunConfig, tokenizer: PreTrainedTokenizerBase | None) -> bool:
    """True if the optimiser is asked in a user's turn."""
    model, given = config.model, config.prompts.chat
    if given is not None:
        return given
    if tokenizer is None and model.path.startswith(SCRATCH):
        return True  # its tokenizer is made with one
    found = tokenizer or read_tokenizer(model.tokenizer or model.path, model.trust_remote_code, model.revision)
    return find_template(found, config.data.rendering.chat_template) is not None


def _sides(config: PromptsRunConfig, given: Iterable[PromptPair] | None) -> tuple[list[PromptPair], list[PromptPair]]:
    """Pairs to train on, and held-out ones, by source prompt."""
    data = config.data
    if given is None and data.path is None:
        raise PreftuneError("data.path is missing: name a file of pairs of rewrites (--data)")
    pairs = list(islice(read_pairs(str(data.path)) if given is None else given, data.limit))
    if not pairs:
        raise PreftuneError("there are no pairs of rewrites to learn from: give some")
    if data.held_out_path is not None:
        known = {pair.id for pair in pairs}
        apart = [pair for pair in read_pairs(data.held_out_path) if pair.id not in known]
        if not apart:
            raise PreftuneError(
                f"every prompt of data.held_out_path {data.held_out_path} is trained on: give pairs of other prompts"
            )
        return pairs, apart
    if not data.held_out:
        return pairs, []
    held = choose([pair.id for pair in pairs], data.held_out, config.seed)
    return list(compress(pairs, ~held)), list(compress(pairs, held))


def _cases(config: PromptsRunConfig, pairs: Sequence[PromptPair], drops: Drops) -> list[Case]:
    """The rows that pairs become."""
    prompts = config.prompts
    extra = config.iterates if prompts.extra is None else prompts.extra
    found = diversify(
        pairs,
        seed=config.seed,
        each=prompts.each if prompts.cases else 1,
        multiple_choice=prompts.multiple_choice if prompts.cases else 0.0,
        right_naive=prompts.right_naive,
        words=prompts.words,
        extra=extra,
        drops=drops,
    )
    if prompts.cases:
        return list(found)
    return [
        replace(case, shows_response=False, shows_ground_truth=False) if case.kind == "rewrite" else case
        for case in found
    ]


def _about(config: PromptsRunConfig, chat: bool, train: Sequence[Case], held_out: Sequence[Case]) -> dict[str, Any]:
    """What stands in prompts.json: what the optimiser is, and what it was trained on."""
    sides = {"train": train, "held_out": held_out}
    return {
        "strategy": config.strategy,
        "chat": chat,
        "prompts": config.prompts.model_dump(mode="json"),
        "rows": {name: dict(sorted(Counter(case.type for case in cases).items())) for name, cases in sides.items()},
    }
