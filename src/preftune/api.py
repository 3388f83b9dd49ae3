"""The public verbs: one call from model, data and objective to a run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preftune import yaml_tree
from preftune.checks import check, check_columns, check_kind, check_sizes, trains_rewards, without_effect
from preftune.config import RunConfig
from preftune.data import dataset
from preftune.data.baselines import with_baselines
from preftune.data.writing import write_records
from preftune.errors import PreftuneError
from preftune.files import settle_all
from preftune.full_disk import check_room
from preftune.inputs import render
from preftune.objectives import registry
from preftune.policy import loading
from preftune.policy.given import check_given
from preftune.policy.policy import base_model
from preftune.policy.reward_head import with_reward_head
from preftune.policy.weights import check_precision
from preftune.report.html import write as write_report
from preftune.resuming import config_of, go_on, has_ended, start_hash
from preftune.rlhf.plan import planned
from preftune.run import Run
from preftune.training.engine import shards
from preftune.training.held_out import fixed_prompts, prompts_wanted
from preftune.training.processes import current, joined
from preftune.training.run_folder import Onlooker, RunFolder
from preftune.training.saving import model_card, save
from preftune.training.trainer import Trainer

Probe = Callable[[nn.Module], Mapping[str, Any]]


def train(
    model: str | Path | nn.Module,
    data: str | Path | Iterable[Any],
    objective: Any = None,
    *,
    held_out: Iterable[Any] | None = None,
    tokenizer: str | PreTrainedTokenizerBase | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    probe: Probe | None = None,
    quiet: bool = False,
    config: str | Path | Mapping[str, Any] | None = None,
    **settings: Any,
) -> Run:
    """Align a causal language model on preference data.

    Args:
        model: folder, hub id, "sandbox", "scratch:<type>", a loaded model (trained in place), or any module whose
            `forward(input_ids)` returns `.logits`.
        data: file, folder, hub id, "sandbox", rows (dicts) of any known layout, or records.
        objective: name, mapping (`{"name": "ipo", "tau": 0.1}`), objective, or a list of those with weights; the
            config's if not given, which is "dpo" by default.
        held_out: rows or records to evaluate on; otherwise the config's `data.held_out` (a tenth) is set apart.
        tokenizer: needed with a loaded model; otherwise the model's own.
        output: run folder; default runs/<objective>-<time>.
        overwrite: replace a run folder that is already there.
        probe: called with the language model before and after training; its values join the summary.
        quiet: no progress bar.
        config: a YAML file, or a mapping of the same form: `{"model": {"lora": {}}}`; what is given here as an
            argument goes before it.
        settings: blocks of the config, as in YAML: `optim={"learning_rate": 1e-5}`, `batch={"size": 64}`, `seed=1`.

    Returns:
        The run: `run.history`, `run.plot()`, `run.summary`, `run.model`.

    Raises:
        PreftuneError: for anything that a user can mend: config, data, model, reference.
    """
    if not isinstance(model, str | Path | nn.Module):
        raise PreftuneError(f"model is of type {type(model).__name__}, expected a folder, a hub id or a module")
    if not isinstance(tokenizer, str | PreTrainedTokenizerBase | None):
        raise PreftuneError(f"tokenizer is of type {type(tokenizer).__name__}, expected a tokenizer, folder or hub id")
    blocks = _blocks(config, settings)
    given = model if isinstance(model, nn.Module) else None
    blocks["model"]["path"] = (
        str(model) if given is None else getattr(model, "name_or_path", "") or type(model).__name__
    )
    if isinstance(tokenizer, str):
        blocks["model"]["tokenizer"] = tokenizer
    if isinstance(data, str | Path):
        blocks["data"]["path"] = str(data)
    if output is not None:
        blocks["output"]["path"] = str(output)
    if overwrite:
        blocks["output"]["overwrite"] = True
    terms = None if objective is None else registry.terms(objective)
    if terms is not None:
        blocks["objective"] = registry.spec_of(terms)
    resolved = yaml_tree.load(RunConfig, None, [], base=blocks, tagged=("objective",))
    return run(
        resolved,
        rows=data,
        held_out=held_out,
        model=given,
        tokenizer=tokenizer,
        terms=terms,
        probe=probe,
        show=not quiet,
    )


def resume(
    path: str | Path,
    *,
    model: nn.Module | None = None,
    tokenizer: str | PreTrainedTokenizerBase | None = None,
    probe: Probe | None = None,
    quiet: bool = False,
    changes: Sequence[str] = (),
) -> Run:
    """Go on with a run that was stopped, from its newest whole checkpoint. On a CPU, what comes out is what would have
    come out without the stop, bit by bit.

    Args:
        path: run folder.
        model: the model that the run began with, as it was then, if that was given as an object.
        tokenizer: likewise.
        probe: as given to `train`.
        quiet: no progress bar.
        changes: overrides, `key=value`, of how the run is carried out, watched or kept.

    Returns:
        The run; one that had ended is given back as it is.

    Raises:
        PreftuneError: if there is no run, if what it began with has changed, or a key cannot change any more.
    """
    folder = Path(path)
    config = config_of(folder, changes)
    if has_ended(folder):
        if not (folder / "report.html").exists():
            write_report(folder)
        return Run(folder)
    if RunFolder(folder).manifest().get("given") and model is None:
        raise PreftuneError(
            f"the model of {folder} was given as an object: give it again, as it was when the run began, with its "
            "tokenizer: preftune.resume(folder, model=..., tokenizer=...)"
        )
    return run(config, model=model, tokenizer=tokenizer, probe=probe, show=not quiet, changes=changes, resumes=True)


@joined
def run(
    config: RunConfig,
    *,
    rows: str | Path | Iterable[Any] | None = None,
    held_out: Iterable[Any] | None = None,
    model: nn.Module | None = None,
    tokenizer: str | PreTrainedTokenizerBase | None = None,
    terms: tuple[registry.Term, ...] | None = None,
    probe: Probe | None = None,
    file: Path | None = None,
    show: bool = True,
    resumes: bool = False,
    changes: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
) -> Run:
    """Carry out a resolved config, which `file` may name. See `train`, and `resume` for a run that goes on.

    `files` are texts that the run folder keeps from the start, by name: of `run_folder.FILES`.
    """
    terms = terms or registry.terms(config.objective)
    source = config.data.path if rows is None else str(rows) if isinstance(rows, Path) else rows
    if source is None:
        raise PreftuneError("data.path is missing: name a file, a folder, a hub id, or 'sandbox'")
    group = current()
    show = show and group.main
    output = group.told(_output(config, terms))
    check(config, terms, output, loaded=model is not None, file=file, resumes=resumes)
    records, loaded, examples = _read(config, terms, source, held_out, model, tokenizer)
    start = group.on_main(lambda: start_hash(loaded.lm))
    with _own_attention(loaded.lm):
        opened = RunFolder.reopen if resumes else partial(RunFolder.create, overwrite=config.output.overwrite)
        folder = opened(output) if group.main else Onlooker(output)
        try:
            group.on_main(lambda: check_room(output, loaded.lm, config.output))
            going = group.on_main(lambda: go_on(folder, records.fingerprint, start)) if resumes else None
            examples.messages.extend(going.notes if going else [])
            fitting, at = _answers_that_fit(config, loaded.lm, examples), going.checkpoint if going else None
            trainer = Trainer(loaded.lm, loaded.tokenizer, examples, terms, fitting, folder, probe, show, at)
            if going is not None:
                folder.go_on(yaml_tree.dump(config), going.step, going.sizes, changes)
            elif group.main:
                given = model is not None or isinstance(tokenizer, PreTrainedTokenizerBase)
                _write_manifest(folder, config, trainer, records, start, given)
                folder.write_data_doctor(records.doctor)
                folder.write_texts(files or {})
                resolved = _resolved(config, terms, folder, records, source, held_out)
                folder.write_config(yaml_tree.dump(resolved))  # last: a folder with a config holds a run
        except BaseException:
            if resumes:
                folder.unlock()
            else:
                folder.discard()  # nothing was trained: leave no folder in the way of the next attempt
            raise
        folder.keep()
        try:
            with trainer.keeper.stops:
                summary = trainer.fit()
                lm, state = trainer.policy.lm.eval(), trainer.state()
                if group.main:
                    card = model_card(summary, config.model.path, lm, folder.path / "model", _version())
                    save(folder, "model", lm, loaded.tokenizer, state, card)
                    folder.write_summary(summary)
        finally:
            folder.unlock()
    if group.main:
        write_report(folder.path)
    return Run(folder.path, lm, loaded.tokenizer)


def _read(
    config: RunConfig,
    terms: tuple[registry.Term, ...],
    source: str | Iterable[Any],
    held_out: Iterable[Any] | None,
    model: nn.Module | None,
    tokenizer: str | PreTrainedTokenizerBase | None,
) -> tuple[dataset.Records, loading.Loaded, dataset.Examples]:
    """Data and model, and the data as that model's tokens."""
    with current().first_alone():
        records = dataset.read(config.data, source, config.seed, held_out)
    if config.online is None:
        check_kind(terms, records.kind)
        check_columns(terms, records)
    loaded = _load(config, model, tokenizer, records, trains_rewards(terms))
    check_precision(loaded.lm)
    with current().first_alone():
        examples = render(records, loaded, config)
    if config.online is not None:
        examples = planned(records, examples, config.online, loading.positions(loaded.lm))
    check_sizes(terms, examples)
    examples.messages.extend(without_effect(config, bool(examples.held_out)))
    examples.messages.extend(note for term in terms for note in term.objective.notes())
    if config.online is None and any(term.objective.baselines for term in terms):
        sides = [with_baselines(side, examples.train, config.seed) for side in (examples.train, examples.held_out)]
        examples = replace(examples, train=sides[0], held_out=sides[1])
    return records, loaded, examples


def _write_manifest(
    folder: RunFolder, config: RunConfig, trainer: Trainer, records: dataset.Records, start: str, given: bool
) -> None:
    """What a run begins with; it is held against this when it is to go on."""
    folder.write_manifest(
        seed=config.seed,
        data_sha256=records.fingerprint,
        start_sha256=start,
        given=given,
        records={"train": len(trainer.examples.train), "held_out": len(trainer.examples.held_out)},
        device=str(trainer.accelerator.device),
        processes=trainer.accelerator.num_processes,
    )


def _resolved(
    config: RunConfig,
    terms: tuple[registry.Term, ...],
    folder: RunFolder,
    records: dataset.Records,
    source: str | Iterable[Any],
    held_out: Iterable[Any] | None,
) -> RunConfig:
    """The config that gives this run again: rows that came as objects are kept in the folder, and named."""
    data = config.data
    if not (isinstance(source, str) and (held_out is None or isinstance(held_out, str))):
        paths = {"train": folder.path / "data" / "train.jsonl", "held_out": folder.path / "data" / "held_out.jsonl"}
        write_records(paths["train"], records.train)
        if records.held_out:
            write_records(paths["held_out"], records.held_out)
        settle_all(folder.path / "data")
        there = str(paths["held_out"]) if records.held_out else None
        changes = {"path": str(paths["train"]), "held_out_path": there, "layout": None, "split": None, "limit": None}
        share = type(data)().held_out if records.held_out else 0  # a path goes before a share, and refuses another
        data = data.model_copy(update={**changes, "held_out": share, "doctor": data.doctor.passed()})
    # whether a folder may be replaced is a matter of the command, not of the run
    output = config.output.model_copy(update={"path": str(folder.path), "overwrite": False})
    return config.model_copy(update={"objective": registry.spec_of(terms), "data": data, "output": output})


def _blocks(config: str | Path | Mapping[str, Any] | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The config as given, as a mapping of blocks that may be written to."""
    given = yaml_tree.read(Path(config)) if isinstance(config, str | Path) else dict(config or {})
    blocks = {key: dict(value) if isinstance(value, Mapping) else value for key, value in given.items()}
    for key, value in settings.items():
        blocks[key] = {**blocks.get(key, {}), **value} if isinstance(value, Mapping) else value
    for key in ("model", "data", "output"):
        blocks.setdefault(key, {})
    return blocks


def _answers_that_fit(config: RunConfig, lm: nn.Module, examples: dataset.Examples) -> RunConfig:
    """The config, with sampled answers no longer than a table of positions allows."""
    end = loading.positions(lm)
    wanted = prompts_wanted(config.evaluate, config.doctor)
    prompts = fixed_prompts(examples.held_out, examples.train, wanted)
    if end is None or not prompts:
        return config
    room = end - max(len(prompt) for prompt in prompts)
    if config.evaluate.max_new_tokens <= room:
        return config
    examples.messages.append(f"sampled answers are cut at {room} tokens: the model reads {end} tokens, prompt included")
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"max_new_tokens": room})})


@contextmanager
def _own_attention(lm: nn.Module) -> Iterator[None]:
    """Give the model back with the attention it came with, whatever happens meanwhile."""
    model = base_model(lm)
    own = model.config._attn_implementation if isinstance(model, PreTrainedModel) else None
    try:
        yield
    finally:
        if isinstance(model, PreTrainedModel) and model.config._attn_implementation != own:
            model.set_attn_implementation(own)


def _load(
    config: RunConfig,
    model: nn.Module | None,
    tokenizer: str | PreTrainedTokenizerBase | None,
    records: dataset.Records,
    reward: bool,
) -> loading.Loaded:
    if model is None:
        blank = shards(config.train) and not current().main  # the main process sends it
        loaded = loading.load(config.model, config.seed, records.texts, reward, blank)
        given = tokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else loaded.tokenizer
        return loading.Loaded(loaded.lm, given)
    if tokenizer is None:
        raise PreftuneError(
            "a loaded model comes without its tokenizer: give tokenizer= (a tokenizer, folder or hub id)"
        )
    check_given(model, config.model.lora is not None, reward)
    read = loading.read_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
    if reward:
        model = with_reward_head(model, read.pad_token_id)
    return loading.Loaded(loading.adapt(model, config.model, config.seed), read)


def _output(config: RunConfig, terms: tuple[registry.Term, ...]) -> Path:
    if config.output.path is not None:
        return Path(config.output.path)
    name = "+".join(term.name.rpartition(":")[2] for term in terms)
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def _version() -> str:
    from preftune import __version__

    return __version__
