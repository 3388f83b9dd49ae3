"""The public verbs: one call from model, data and objective to a run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from preftune import yaml_tree
from preftune.config import RunConfig
from preftune.data import dataset
from preftune.errors import PreftuneError
from preftune.objectives import registry
from preftune.policy import loading
from preftune.report.html import write as write_report
from preftune.run import Run
from preftune.training.run_folder import RunFolder
from preftune.training.saving import model_card, save
from preftune.training.trainer import Trainer

Probe = Callable[[nn.Module], Mapping[str, Any]]


def train(
    model: str | nn.Module,
    data: str | Iterable[Any],
    objective: Any = "dpo",
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
        objective: name, mapping (`{"name": "ipo", "tau": 0.1}`), objective, or a list of those with weights.
        held_out: rows or records to evaluate on; otherwise `data={"held_out": 0.1}` of the data are set apart.
        tokenizer: needed with a loaded model; otherwise the model's own.
        output: run folder; default runs/<objective>-<time>.
        overwrite: replace a run folder that is already there.
        probe: called with the language model before and after training; its values join the summary.
        quiet: no progress bar.
        config: a YAML file, or a mapping of the same form; what is given here as an argument goes before it.
        settings: blocks of the config, as in YAML: `optim={"learning_rate": 1e-5}`, `batch={"size": 64}`, `seed=1`.

    Returns:
        The run: `run.history`, `run.plot()`, `run.summary`, `run.model`.

    Raises:
        PreftuneError: for anything that a user can mend: config, data, model, reference.
    """
    blocks = _blocks(config, settings)
    name = model if isinstance(model, str) else getattr(model, "name_or_path", "") or type(model).__name__
    blocks["model"]["path"] = name
    if isinstance(tokenizer, str):
        blocks["model"]["tokenizer"] = tokenizer
    if isinstance(data, str):
        blocks["data"]["path"] = data
    if output is not None:
        blocks["output"]["path"] = str(output)
    if overwrite:
        blocks["output"]["overwrite"] = True
    terms = registry.terms(objective)
    blocks["objective"] = registry.spec_of(terms)
    resolved = yaml_tree.load(RunConfig, None, [], base=blocks, tagged=("objective",))
    given = None if isinstance(model, str) else model
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


def run(
    config: RunConfig,
    *,
    rows: str | Iterable[Any] | None = None,
    held_out: Iterable[Any] | None = None,
    model: nn.Module | None = None,
    tokenizer: str | PreTrainedTokenizerBase | None = None,
    terms: tuple[registry.Term, ...] | None = None,
    probe: Probe | None = None,
    show: bool = True,
) -> Run:
    """Carry out a resolved config. See `train`."""
    terms = terms or registry.terms(config.objective)
    source = config.data.path if rows is None else rows
    if source is None:
        raise PreftuneError("data.path is missing: name a file, a folder, a hub id, or 'sandbox'")
    if model is None:
        loading.check_path(config.model)
    if config.reference.path is not None:
        loading.check_path(config.model.model_copy(update={"path": config.reference.path}))
    records = dataset.read(config.data, source, config.seed, held_out)
    _check_kind(terms, records.kind)
    folder = RunFolder.create(_output(config, terms), config.output.overwrite)
    resolved = config.model_copy(update={"objective": registry.spec_of(terms)})
    resolved.output.path = str(folder.path)
    folder.write_config(yaml_tree.dump(resolved))
    loaded = _load(config, model, tokenizer, records)
    examples = dataset.render(records, loaded.tokenizer, config.data)
    if examples.chat_template is not None:
        loaded.tokenizer.chat_template = examples.chat_template  # saved with the model: it was trained in this form
    trainer = Trainer(loaded.lm, loaded.tokenizer, examples, terms, config, folder, probe, show)
    folder.write_manifest(
        seed=config.seed,
        data_sha256=records.fingerprint,
        records={"train": len(examples.train), "held_out": len(examples.held_out)},
        device=str(trainer.accelerator.device),
        processes=trainer.accelerator.num_processes,
    )
    try:
        summary = trainer.fit()
    finally:
        trainer.policy.use_layout("padded")  # give the model back with the attention it came with
    target = folder.path / "model"
    card = model_card(summary, config.model.path, target, _version())
    save(folder, "model", trainer.policy.lm, loaded.tokenizer, trainer.state(), card)
    folder.write_summary(summary)
    write_report(folder.path)
    return Run(folder.path, trainer.policy.lm, loaded.tokenizer)


def _blocks(config: str | Path | Mapping[str, Any] | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The config as given, as a mapping of blocks that may be written to."""
    given = yaml_tree.read(Path(config)) if isinstance(config, str | Path) else dict(config or {})
    blocks = {key: dict(value) if isinstance(value, Mapping) else value for key, value in given.items()}
    for key, value in settings.items():
        blocks[key] = {**blocks.get(key, {}), **value} if isinstance(value, Mapping) else value
    for key in ("model", "data", "output"):
        blocks.setdefault(key, {})
    return blocks


def _check_kind(terms: tuple[registry.Term, ...], kind: str) -> None:
    wanted = registry.data_kind(terms)
    if wanted != kind and not (wanted == "demonstrations" and kind == "pairs"):
        names = "+".join(term.name for term in terms)
        raise PreftuneError(
            f"objective {names} learns from {dataset.WHAT[wanted]}, but the data has "
            f"{dataset.WHAT[kind]}: choose an objective for those"  # type: ignore[index]
        )


def _load(
    config: RunConfig,
    model: nn.Module | None,
    tokenizer: str | PreTrainedTokenizerBase | None,
    records: dataset.Records,
) -> loading.Loaded:
    if model is None:
        loaded = loading.load(config.model, config.seed, records.texts)
        given = tokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else loaded.tokenizer
        return loading.Loaded(loaded.lm, given)
    if tokenizer is None:
        raise PreftuneError(
            "a loaded model comes without its tokenizer: give tokenizer= (a tokenizer, folder or hub id)"
        )
    if isinstance(tokenizer, str):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    return loading.Loaded(loading.adapt(model, config.model, config.seed), tokenizer)


def _output(config: RunConfig, terms: tuple[registry.Term, ...]) -> Path:
    if config.output.path is not None:
        return Path(config.output.path)
    name = "+".join(term.name.rpartition(":")[2] for term in terms)
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def _version() -> str:
    from preftune import __version__

    return __version__
