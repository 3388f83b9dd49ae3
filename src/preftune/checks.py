"""What a run is refused for before anything is loaded, trained or replaced."""

from __future__ import annotations

import errno
import os
from itertools import chain
from pathlib import Path

from accelerate.tracking import get_available_trackers

from preftune.config import RunConfig
from preftune.data import dataset
from preftune.errors import PreftuneError
from preftune.objectives import registry
from preftune.policy import loading
from preftune.training.engine import check_sharded, shards
from preftune.training.optim import check_optimizer
from preftune.training.processes import current
from preftune.training.run_folder import RunFolder
from preftune.training.zero import check_zero, zero_stage
from preftune.yaml_text import short


def check(
    config: RunConfig,
    terms: tuple[registry.Term, ...],
    output: Path,
    loaded: bool,
    file: Path | None = None,
    resumes: bool = False,
) -> None:
    """Refuse what shows to be wrong before data and model are read.

    Args:
        config: of the run.
        terms: its objective.
        output: its folder.
        loaded: True if a loaded model was given.
        file: the config file, if there is one.
        resumes: True if the run in that folder goes on.

    Raises:
        PreftuneError: in one sentence.
    """
    _check_batch(config, terms)
    trains_rewards(terms)
    check_optimizer(config.optim, config.train.device)
    check_sharded(config)
    check_zero(config)
    check_online(config, terms)
    loading.check_keys(config.model, loaded)
    if not loaded:
        loading.check_path(config.model)
    compares = registry.needs_reference(terms) or config.online is not None
    if config.reference != type(config.reference)() and not compares:
        names = "+".join(term.name for term in terms)
        raise PreftuneError(f"objective {names} compares with no reference, but one is described: leave reference out")
    if config.reference.path is not None:
        loading.check_path(config.model.model_copy(update={"path": config.reference.path}))
    if config.output.keep_best is not None and config.evaluate.every is None:
        raise PreftuneError(
            f"output.keep_best={config.output.keep_best} compares evaluations while training runs, but "
            "evaluate.every is not set: set it to a number of steps"
        )
    available = [str(name) for name in get_available_trackers()]
    for name in config.output.trackers:
        if name not in available:
            raise PreftuneError(
                f"output.trackers names {name}, which is not installed; installed: {', '.join(available) or 'none'}"
            )
    if not resumes and current().main:  # it locks the folder for a moment
        check_output(output, config.output.overwrite)
        _check_inputs(config, output, file)


def check_online(config: RunConfig, terms: tuple[registry.Term, ...]) -> None:
    """Refuse what cannot be learned from the policy's own answers, and what can be learned from nothing else.

    Raises:
        PreftuneError: names the key.
    """
    online, names = config.online, "+".join(term.name for term in terms)
    sampled = [term for term in terms if term.objective.data == "rollouts"]
    if online is None:
        if sampled:
            raise PreftuneError(
                f"objective {sampled[0].name} learns from answers that the policy itself gives: add the block online "
                "(online.judge says who scores them)"
            )
        return
    if sampled and len(terms) > 1:
        raise PreftuneError(f"objective {names} mixes {sampled[0].name}, which learns alone: name one objective")
    if trains_rewards(terms):
        raise PreftuneError(f"objective {names} trains a reward model, which gives no answers: leave online out")
    for term in terms:
        if "kl_K" in term.objective.needs:
            raise PreftuneError(
                f"objective {term.name} compares whole next-token distributions with the reference's, which answers do "
                "not carry: take another objective, or leave online out"
            )
    if config.reference.kind == "stored":
        raise PreftuneError("reference.kind=stored is for data that is there before training: leave it out with online")
    if config.reference.path is not None and online.reference == "last_round":
        raise PreftuneError(
            f"reference.path={config.reference.path} and online.reference=last_round each say what the reference is: "
            "give one of them"
        )
    if online.server is not None and config.model.lora is None:
        raise PreftuneError(
            "online.server takes the adapter that trains, but all weights train: add model.lora, or leave it out"
        )
    if online.rubric is not None and not online.judge.startswith("endpoint:"):
        raise PreftuneError(
            f"online.rubric is for a judge behind an endpoint, and online.judge={online.judge} is none: leave it out"
        )
    if config.batch.tokens is not None:
        raise PreftuneError("batch.tokens does not go with online, whose rounds have examples to share: set batch.size")
    if shards(config.train) or zero_stage(config.train) is not None:
        raise PreftuneError(
            "weights or gradients that are shared out over processes (FSDP2, DeepSpeed) do not go with online, which "
            "samples and learns in turn: set train.strategy=ddp"
        )


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse a run folder that cannot be made or must not be replaced, without touching anything.

    Raises:
        PreftuneError: says why.
    """
    try:
        RunFolder.check(output, overwrite)
        output.resolve()
    except (OSError, RuntimeError) as error:  # a name that is too long, a link to itself, no right to look
        reason = error.strerror if isinstance(error, OSError) else os.strerror(errno.ELOOP)
        raise PreftuneError(
            f"output.path {short(str(output))} cannot be used ({reason}): name another folder"
        ) from None


def _check_inputs(config: RunConfig, output: Path, file: Path | None) -> None:
    """Refuse to replace a folder that holds something the run reads."""
    template = config.data.rendering.chat_template
    inputs = {
        "model.path": config.model.path,
        "model.tokenizer": config.model.tokenizer,
        "data.path": config.data.path,
        "data.held_out_path": config.data.held_out_path,
        "data.rendering.chat_template": template if template and "\n" not in template else None,
        "reference.path": config.reference.path,
        "the config file": str(file) if file is not None and file.name != "config.yaml" else None,
    }
    for key, path in inputs.items():
        if path is not None and _exists(path) and Path(path).resolve().is_relative_to(output.resolve()):
            raise PreftuneError(f"output.path {output} would be overwritten, but it holds {key}: name another folder")


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # a template's text may be longer than any file's name
        return False


def _check_batch(config: RunConfig, terms: tuple[registry.Term, ...]) -> None:
    """Refuse batches too small for an objective."""
    for term in terms:
        least = term.objective.least_examples
        if config.batch.size is not None and config.batch.size < least:
            raise PreftuneError(
                f"objective {term.name} compares the examples of a batch, at least {least} of them, but batch.size is "
                f"{config.batch.size}: set it to {least} or more"
            )


def check_sizes(terms: tuple[registry.Term, ...], examples: dataset.Examples) -> None:
    """Refuse data too small for an objective."""
    for term in terms:
        least = term.objective.least_examples
        for name, side in (("training", examples.train), ("held-out", examples.held_out)):
            if 0 < len(side) < least:
                raise PreftuneError(
                    f"objective {term.name} compares at least {least} examples, but the {name} data has {len(side)}: "
                    "give more data, or another data.held_out"
                )


def check_kind(terms: tuple[registry.Term, ...], kind: str) -> None:
    """Refuse data of a kind that the objective cannot learn from."""
    wanted = registry.data_kind(terms)
    if kind not in (wanted, "pairs"):
        names = "+".join(term.name for term in terms)
        raise PreftuneError(
            f"objective {names} learns from {dataset.WHAT[wanted]}, but the data has "
            f"{dataset.WHAT[kind]}: choose an objective for those"  # type: ignore[index]
        )


def check_columns(terms: tuple[registry.Term, ...], records: dataset.Records) -> None:
    """Refuse records without a value that an objective cannot do without, or with one that it cannot use."""
    for term in terms:
        for name in sorted(term.objective.columns):
            for record in chain(records.train, records.held_out):
                value = getattr(record, name, None)
                if value is None:
                    raise PreftuneError(
                        f"objective {term.name} learns from {name}, but {record.where} has none: give every row one, "
                        "or choose another objective"
                    )
                try:
                    term.objective.check_column(name, value)
                except ValueError as error:
                    raise PreftuneError(f"{record.where}, for objective {term.name}: {error}") from None


def trains_rewards(terms: tuple[registry.Term, ...]) -> bool:
    """True if the objective trains a scalar head, False if a policy.

    Raises:
        PreftuneError: for a mix of both.
    """
    kinds = {"reward_R" in term.objective.needs: term.name for term in terms}
    if len(kinds) > 1:
        raise PreftuneError(
            f"objective {kinds[True]} trains a reward model and {kinds[False]} a policy: train them one after the other"
        )
    return True in kinds


def without_effect(config: RunConfig, evaluates: bool) -> list[str]:
    """Keys that change nothing beside other keys, a sentence each: an override may well switch off what they are about.

    Args:
        config: of the run.
        evaluates: True if anything is held out.
    """
    output, evaluate, train = config.output, config.evaluate, config.train
    notes = []
    if config.online is not None and train.epochs != type(train)().epochs:
        notes.append(f"train.epochs={train.epochs:g} has no effect: online.rounds decides how long")
    online = config.online
    if online is not None:
        plain = type(online)(judge=online.judge)
        if online.mix != plain.mix and online.reference != "moving":
            notes.append(f"online.mix={online.mix:g} has no effect: online.reference is not moving")
        if online.label_scale != plain.label_scale and online.labels == "hard":
            notes.append(f"online.label_scale={online.label_scale:g} has no effect: online.labels is hard")
        if online.temperature != 1:
            notes.append(
                f"answers are sampled at online.temperature={online.temperature:g}, but log-probs are those at 1: KL "
                "and entropy of rounds, and prices of KL, are no longer those of the policy that sampled"
            )
    if train.max_steps is not None and train.epochs != type(train)().epochs:
        notes.append(f"train.epochs={train.epochs:g} has no effect: train.max_steps={train.max_steps} decides how long")
    if output.keep_last != type(output)().keep_last and output.save_every is None and output.save_minutes is None:
        notes.append(
            f"output.keep_last={output.keep_last} has no effect: neither output.save_every nor save_minutes is set"
        )
    for key in ("max_new_tokens", "temperature"):
        if getattr(evaluate, key) != getattr(type(evaluate)(), key) and evaluate.samples == 0:
            notes.append(f"evaluate.{key}={getattr(evaluate, key):g} has no effect: evaluate.samples is 0")
    if evaluate.every is not None and not evaluates:
        notes.append(f"evaluate.every={evaluate.every} has no effect: nothing is held out")
    if evaluate.credit != type(evaluate)().credit and not evaluates:
        notes.append(f"evaluate.credit={evaluate.credit} has no effect: nothing is held out")
    if config.reference.folder is not None and config.reference.kind != "stored":
        notes.append(f"reference.folder={config.reference.folder} has no effect: reference.kind is not stored")
    return notes
