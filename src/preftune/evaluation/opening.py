"""A run, or any model, opened for evaluation: policy, reference, tokenizer, objective and held-out examples.

    opened = open_for_evaluation("runs/first")                          # the run's own reference and held-out examples
    opened = open_for_evaluation("./my-model", data="pairs.jsonl", against="./my-start")

What is opened computes as the run did: in its layout, its precision, and forwards of its size, so that log-probs are
those that training logged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from preftune.checks import check_columns
from preftune.config import RunConfig, TrainConfig
from preftune.data import dataset, sources
from preftune.data.baselines import with_baselines
from preftune.data.examples import Example
from preftune.data.records import Record
from preftune.errors import PreftuneError
from preftune.evaluation.credit import scale
from preftune.evaluation.models import Named, Other, find, load_other, load_policy
from preftune.inputs import render
from preftune.objectives import registry
from preftune.objectives.base import DataKind
from preftune.policy.layout import laid_out, original_context
from preftune.policy.loading import Loaded, vocabulary
from preftune.policy.policy import PolicyModule
from preftune.policy.reference import AdapterOffReference, FrozenReference, LiveReference
from preftune.training.batches import lengths
from preftune.training.engine import make_accelerator, prepare_reference
from preftune.training.feed import Feed
from preftune.training.processes import launched
from preftune.training.run_folder import RunFolder


@dataclass(frozen=True)
class Opened:
    """What is evaluated; `scoring.score` gives its log-probs and rewards.

    Attributes:
        name: what was opened, as it was named.
        against: the reference, in words; None if there is none.
        run: the run folder; None for a model.
        config: of the run; for a model, the defaults.
        term: the objective that gives implicit rewards (a run's first one, with its beta); None where there are none.
        tokenizer: the policy's.
        policy: in evaluation mode, on its device; to be called as `preftune.policy.policy.logps(opened.policy, batch)`.
        reference: None for reward models, and for a model that is compared with nothing.
        feed: makes forwards of examples, on the policy's device.
        examples: what to evaluate on, in the order of the data; empty if nothing was asked for.
        kind: what they are.
        data: the source that they come from; empty if there is none.
        end_ids: tokens that end a response.
        messages: what to know of data and layout, a line each.
        accelerator: device and precision.
    """

    name: str
    against: str | None
    run: Path | None
    config: RunConfig
    term: registry.Term | None
    tokenizer: PreTrainedTokenizerBase
    policy: PolicyModule
    reference: LiveReference | None
    feed: Feed
    examples: Sequence[Example]
    kind: DataKind
    data: str
    end_ids: tuple[int, ...]
    messages: list[str]
    accelerator: Accelerator
    _records: Callable[[], Iterator[Record]]
    _split: str | None

    @property
    def is_reward_model(self) -> bool:
        """True if the policy is a scalar head, which gives rewards and no log-probs."""
        return self.policy.scores

    @property
    def beta(self) -> float | None:
        """Of the objective, reward per nat: its `beta`, or `tau`; None if it has neither."""
        return None if self.term is None else scale(self.term.objective)

    def records(self) -> Iterator[Record]:
        """The record of each example, in the order of `examples`; read from disk each time."""
        return self._records()

    def rows(self) -> list[Mapping[str, Any]]:
        """The row of the data that each example came from, with all fields that it has there, in their order."""
        places = [record.where for record in self.records()]
        wanted, found = set(places), dict[Any, Mapping[str, Any]]()
        for where, row in sources.rows(self.data, split=self._split, broken=lambda *_: None):
            if where in wanted:
                found[where] = row
        return [found.get(where, {}) for where in places]

    @contextmanager
    def generating(self) -> Iterator[nn.Module]:
        """The policy's language model, to sample from: with the attention it was loaded with, without gradient, in bf16
        where forwards are."""
        with self.policy.generating() as lm, self.accelerator.autocast():
            yield lm

    @contextmanager
    def generating_reference(self) -> Iterator[nn.Module]:
        """The same of the reference.

        Raises:
            ValueError: if there is none.
        """
        if self.reference is None:
            raise ValueError(f"{self.name} was opened without a reference")
        with self.reference.module.generating() as lm, self.accelerator.autocast():
            if isinstance(self.reference, AdapterOffReference):
                with lm.disable_adapter():  # type: ignore[operator]
                    yield lm
            else:
                yield lm


def open_for_evaluation(
    path: str | Path,
    *,
    data: str | Path | None = None,
    against: str | Path | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] | None = None,
) -> Opened:
    """Open a run folder or a model.

    Args:
        path: a run folder, or a model: folder, hub id or "sandbox".
        data: file, folder, hub id or "sandbox", all of which is evaluated on; none: what the run held out.
        against: run or model to compare with instead of the run's reference; a model has none of its own.
        device: where to compute; none: "cpu" if the run was told so, else "auto".

    Raises:
        PreftuneError: for a run that has not finished or held nothing out, data that has changed or does not fit, and
            models that do not belong together.
    """
    if launched() > 1:
        raise PreftuneError("an evaluation runs in one process: start it without a launcher")
    named = find(path)
    if data is None and named.run is None:
        raise PreftuneError(
            f"{path} is no run folder, and a model held nothing out: name data to evaluate on with --data"
        )
    other_named = None if against is None else find(against)
    given = None if data is None else str(data)
    records = named.records() if given is None else _read_all(named.config, given)
    if given is None and not records.held_out:
        raise PreftuneError(f"{path} held nothing out: name data to evaluate on with --data")
    term = _term(named, records, against is not None)
    accelerator = make_accelerator(_computing(named.config.train, device), (), RunFolder(named.run or Path()))
    loaded = load_policy(named)
    rendered = render(records, loaded, named.config)
    side: Literal["train", "held_out"] = "held_out" if given is None else "train"
    plain: Sequence[Example] = getattr(rendered, side)
    baselines = term is not None and term.objective.baselines
    examples = with_baselines(plain, rendered.train, named.config.seed) if baselines else plain
    other = load_other(named, loaded.lm, other_named)
    _check_same_tokens(named, loaded, other)
    policy, reference, said = _modules(loaded, other, examples, named.config, accelerator)
    return Opened(
        name=str(path),
        against=None if other is None else other.name,
        run=named.run,
        config=named.config,
        term=term,
        tokenizer=loaded.tokenizer,
        policy=policy,
        reference=reference,
        feed=_feed(named.config, policy, loaded, accelerator),
        examples=examples,
        kind=records.kind,
        data=given or (named.config.data.held_out_path or named.config.data.path or ""),
        end_ids=rendered.end_ids,
        messages=[*dict.fromkeys([*rendered.messages, *said])],
        accelerator=accelerator,
        _records=lambda: dataset.records_of(records, side, plain),
        _split=None if given or named.config.data.held_out_path else named.config.data.split,
    )


def _read_all(config: RunConfig, source: str) -> dataset.Records:
    """All of a source, as it stands: what a run looks for in its training data is no matter here."""
    data = dataset.DataConfig(
        path=source,
        held_out=0,
        bad_rows=config.data.bad_rows,
        workers=config.data.workers,
        rendering=config.data.rendering,
        doctor=config.data.doctor.passed(),
    )
    return dataset.read(data, source, config.seed)


def _term(named: Named, records: dataset.Records, compares: bool) -> registry.Term | None:
    """The objective whose rewards are read.

    Raises:
        PreftuneError: if the data is of a kind that it does not know, or lacks a value that it needs.
    """
    if named.run is None:
        if named.is_reward_model:
            name: str | None = registry.REWARD_MODEL
        else:
            name = registry.BY_KIND.get(records.kind) if compares else None
        terms = () if name is None else registry.terms(name)
    else:
        terms = named.terms[:1]
    if records.kind == "rollouts":  # prompts alone: there are no responses to read rewards of
        return terms[0] if terms else None
    # of rollouts there is no data: what they were trained for says something of any response
    known = (registry.data_kind(terms), "pairs") if terms else ()
    if terms and "rollouts" not in known and records.kind not in known:
        raise PreftuneError(
            f"{named.path} was trained with objective {terms[0].name}, which scores "
            f"{dataset.WHAT[registry.data_kind(terms)]}, but the data has {dataset.WHAT[records.kind]}: name other data"
        )
    check_columns(terms, records)
    return terms[0] if terms else None


def _computing(train: TrainConfig, device: str | None) -> TrainConfig:
    """How a run computes, in one process; on another device if its own is not asked for by name."""
    where = device or ("cpu" if train.device == "cpu" else "auto")
    precision = "auto" if where == "cpu" and train.precision == "fp16" else train.precision
    return train.model_copy(update={"strategy": "ddp", "compile": False, "device": where, "precision": precision})


def _check_same_tokens(named: Named, loaded: Loaded, other: Other | None) -> None:
    """Refuse a reference that reads other tokens.

    Raises:
        PreftuneError: names both.
    """
    if other is None or other.loaded is None:
        return
    ours, theirs = loaded.tokenizer.get_vocab(), other.loaded.tokenizer.get_vocab()
    known = vocabulary(other.loaded.lm)
    if ours != theirs or (known is not None and known <= max(ours.values())):
        raise PreftuneError(
            f"{named.path} and {other.name} have different vocabularies ({len(ours)} and {len(theirs)} tokens), so "
            "that their log-probs cannot be compared: name a model with the same tokenizer"
        )


def _modules(
    loaded: Loaded, other: Other | None, examples: Sequence[Example], config: RunConfig, accelerator: Accelerator
) -> tuple[PolicyModule, LiveReference | None, list[str]]:
    """Policy and reference, in one layout, on the device, in the precision of the run."""
    device, longest = accelerator.device, int(lengths(examples)[:, 1].max(initial=1))
    policy, said = laid_out(loaded.lm.to(device), config.model.layout, longest)
    frozen = None
    if other is not None and other.loaded is not None:
        frozen, more = laid_out(other.loaded.lm.to(device), config.model.layout, longest)
        said = [*said, *(f"{other.name}: {line}" for line in more)]
        if frozen.layout != policy.layout:
            frozen.use_layout("padded")
            policy.use_layout("padded")
        frozen = prepare_reference(accelerator, frozen)
    policy = prepare_reference(accelerator, policy.eval().requires_grad_(False))
    if other is None:
        return policy, None, said
    return policy, AdapterOffReference(policy, policy) if frozen is None else FrozenReference(frozen), said


def _feed(config: RunConfig, policy: PolicyModule, loaded: Loaded, accelerator: Accelerator) -> Feed:
    context, pad_id = original_context(loaded.lm), loaded.tokenizer.pad_token_id or 0
    return Feed(policy, config.batch, context, torch.device(accelerator.device), pad_id)
