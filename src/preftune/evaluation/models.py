"""What a path names: a run folder, or any model; and the models that are in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from preftune.checks import trains_rewards
from preftune.config import RunConfig
from preftune.data import dataset
from preftune.errors import PreftuneError
from preftune.objectives import registry
from preftune.policy import loading
from preftune.policy.loading import SCRATCH, Loaded, ModelConfig, is_built_in
from preftune.policy.reasons import reason
from preftune.policy.weights import check_finite
from preftune.resuming import config_of, has_ended, start_hash
from preftune.training.references import adapter_off_is_the_start
from preftune.training.run_folder import RunFolder

MODEL = "model"  # folder of a run's trained model
ROUNDS_CONFIG = "prompts.yaml"  # in a folder of rounds, each a run: the last one is what the folder stands for
ADAPTER = "adapter_model.safetensors"


@dataclass(frozen=True)
class Named:
    """A run that has finished, or a model.

    Attributes:
        path: as it was named.
        run: the run folder; None for a model.
        config: the run's, with its paths found again; for a model, the defaults and its path.
    """

    path: str
    run: Path | None
    config: RunConfig

    @cached_property
    def terms(self) -> tuple[registry.Term, ...]:
        """The run's objective; of a model none is known."""
        return registry.terms(self.config.objective) if self.run is not None else ()

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The run's; empty for a model."""
        return {} if self.run is None else RunFolder(self.run).manifest()

    @property
    def has_adapter(self) -> bool:
        """True if what was trained is an adapter."""
        return self.run is not None and (self.run / MODEL / "adapter_config.json").is_file()

    @cached_property
    def is_reward_model(self) -> bool:
        """True if it gives rewards and no log-probs."""
        if self.run is not None:
            return trains_rewards(self.terms)
        return any(name.endswith("ForSequenceClassification") for name in _architectures(Path(self.path)))

    def records(self) -> dataset.Records:
        """The run's data, both sides.

        Raises:
            PreftuneError: if it is not what the run was trained on.
        """
        data = self.config.data
        if data.path is None:
            raise PreftuneError(f"{self.path} does not say what data it was trained on: restore its config.yaml")
        found = dataset.read(data, data.path, self.config.seed)
        if found.fingerprint != self.manifest.get("data_sha256"):
            raise PreftuneError(
                f"the data has changed since {self.path} began (data_sha256 in its manifest.json), so that what it "
                "held out is not known any more: restore it, or name data to evaluate on with --data"
            )
        return found


def find(path: str | Path) -> Named:
    """What a path names.

    Raises:
        PreftuneError: for a run that has not finished, and a folder that holds neither a run nor a model.
    """
    path = str(path)
    built_in = is_built_in(path)
    folder = Path(path).expanduser() if built_in else standing_for(path)
    path = path if folder == Path(path).expanduser() else str(folder)
    if not built_in and (folder / "config.yaml").is_file():
        if not has_ended(folder):
            raise PreftuneError(
                f"the run in {path} has not finished: go on with it (preftune train --resume {path}), or name one of "
                f"its checkpoints (a folder in {path}/checkpoints) as a model"
            )
        if not (folder / MODEL).is_dir():
            raise PreftuneError(f"the run in {path} has no folder {MODEL}: restore it, or train again")
        return Named(path, folder, config_of(folder, ()))
    if path.startswith(SCRATCH):
        raise PreftuneError(f"{path} is a model that is yet to be made: name a run, a folder or a hub id")
    if not built_in and folder.is_file():
        raise PreftuneError(f"{path} is a file, expected a run folder, or a model: folder or hub id")
    if folder.is_dir() and not built_in and not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        what = "an adapter alone: name the run that trained it" if adapter else "neither a run nor a model: check it"
        raise PreftuneError(f"{path} holds {what}")
    model = ModelConfig(path=path if built_in else str(folder) if folder.exists() else path)
    loading.check_path(model)
    return Named(path, None, RunConfig(model=model))


def standing_for(path: str | Path) -> Path:
    """The folder that a path stands for: of a folder of rounds, the run of the last one; else itself.

    Raises:
        PreftuneError: for rounds that have not finished.
    """
    folder = Path(path).expanduser()
    if not (folder / ROUNDS_CONFIG).is_file():
        return folder
    try:
        return folder / str(json.loads((folder / "summary.json").read_text(encoding="utf-8"))["last"])
    except FileNotFoundError:
        raise PreftuneError(
            f"the rounds in {folder} have not finished: go on with them (preftune prompts train --resume {folder}), or "
            f"name one that has ({folder / 'round-1'})"
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise PreftuneError(f"{folder / 'summary.json'} cannot be read ({error}): restore it") from None


def load_policy(named: Named) -> Loaded:
    """The trained model with its tokenizer: with its adapters, if it has any.

    Raises:
        PreftuneError: if it cannot be loaded.
    """
    config = named.config
    if named.run is None:
        return loading.load(config.model, config.seed, list, named.is_reward_model)
    folder = named.run / MODEL
    if not named.has_adapter:
        if not (folder / "config.json").is_file():
            raise PreftuneError(
                f"the model of {named.path} is a module of its own and no transformers model, which cannot be made "
                f"from its weights alone: load {folder}/model.safetensors into it yourself"
            )
        update = {"path": str(folder), "dtype": _dtype(named), "gradient_checkpointing": False}
        fresh = dict.fromkeys(("tokenizer", "revision", "rope_scaling"))
        model = config.model.model_copy(update={**update, **fresh, "quantize": "none", "lora": None})
        return loading.load(model, config.seed, list, named.is_reward_model)
    lm = load_start(named, list).lm
    _set_adapter(lm, folder)
    return Loaded(lm, loading.read_tokenizer(str(folder)))


def load_start(named: Named, texts: Callable[[], Iterable[str]]) -> Loaded:
    """The model that a run began with, adapters included, as it was then.

    Args:
        named: a run.
        texts: of its training data, for a model that was made from nothing.

    Raises:
        PreftuneError: if it is not there any more, or not the same.
    """
    config, manifest = named.config, named.manifest
    model = config.model.model_copy(update={"gradient_checkpointing": False})
    try:
        if manifest.get("given") and not Path(model.path).is_dir():
            raise PreftuneError(f"{model.path} is no folder")
        loaded = loading.load(model, config.seed, texts, named.is_reward_model)
    except PreftuneError as error:
        if not manifest.get("given"):
            raise
        raise PreftuneError(
            f"the model that {named.path} began with was given as an object, and is not to be found again ({error})"
        ) from error
    if manifest.get("start_sha256") != start_hash(loaded.lm):
        raise PreftuneError(
            f"the model that {named.path} began with ({model.path}) has changed since (start_sha256 in its "
            "manifest.json): restore it"
        )
    return loaded


@dataclass(frozen=True)
class Other:
    """What a policy is compared with.

    Attributes:
        loaded: a model of its own; None: the policy with its adapters off.
        name: in words.
    """

    loaded: Loaded | None
    name: str


def load_other(named: Named, policy: nn.Module, against: Named | None) -> Other | None:
    """The reference of a run, or what `against` names; None for a model that is compared with nothing.

    Args:
        named: the policy's.
        policy: its language model.
        against: what to compare with instead of the run's reference.

    Raises:
        PreftuneError: if it cannot be loaded.
    """
    if named.is_reward_model or (against is not None and against.is_reward_model):
        if against is not None:
            which = named if named.is_reward_model else against
            raise PreftuneError(
                f"{which.path} is a reward model, which gives no log-probs to compare: leave --against out"
            )
        return None
    if against is not None:
        return Other(load_policy(against), against.path)
    if named.run is None:
        return None
    other = named.config.reference.path
    if other is not None:
        model = named.config.model.model_copy(update={"path": other, "lora": None, "quantize": "none"})
        fresh = {"revision": None, "gradient_checkpointing": False}
        return Other(loading.load(model.model_copy(update=fresh), 0, list), other)
    name = f"the start of the run ({named.config.model.path})"
    if adapter_off_is_the_start(policy):
        return Other(None, name)
    try:
        return Other(load_start(named, lambda: named.records().texts()), name)
    except PreftuneError as error:
        raise PreftuneError(f"{error}; or name what to compare with (--against)") from error


def _architectures(folder: Path) -> list[str]:
    """What a model's config names, as far as there is one to look at."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures")
    except (OSError, ValueError, AttributeError):
        return []
    return [str(name) for name in found or ()]


def _dtype(named: Named) -> loading.Dtype:
    """In which precision a run's weights were held: as they are stored, of a model that was given as an object."""
    if not named.manifest.get("given") or named.run is None:
        return named.config.model.dtype
    stored = json.loads((named.run / MODEL / "config.json").read_text(encoding="utf-8")).get("dtype")
    names: dict[str, loading.Dtype] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
    return names.get(str(stored), "auto")


def _set_adapter(lm: nn.Module, folder: Path) -> None:
    """Give a fresh adapter the weights that were trained."""
    import peft

    try:
        found = peft.set_peft_model_state_dict(lm, load_file(folder / ADAPTER))
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise PreftuneError(f"the adapter in {folder} cannot be read ({reason(error)}): restore it") from error
    if found.unexpected_keys:
        raise PreftuneError(
            f"the adapter in {folder} does not belong to this model, which has no {found.unexpected_keys[0]}: restore "
            "it"
        )
    check_finite(lm, f"the adapter in {folder}")
