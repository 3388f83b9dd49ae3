"""A model and its tokenizer from a folder, a hub id, the built-in world or scratch; adapters; precision."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import init_empty_weights
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from preftune.errors import PreftuneError
from preftune.policy import hub
from preftune.policy.policy import base_model
from preftune.policy.reasons import reason
from preftune.policy.reward_head import is_reward_model, with_reward_head
from preftune.policy.rope import scale_rope
from preftune.policy.scratch import ScratchConfig, build, model_type_of
from preftune.policy.weights import check_finite
from preftune.quiet import without_progress_bars

Dtype = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SCRATCH = "scratch:"
BUILT_IN = "sandbox"


class LoraConfig(BaseModel):
    """Low-rank adapters (peft)."""

    model_config = ConfigDict(extra="forbid")

    r: int = Field(16, ge=1, description="rank")
    alpha: int = Field(16, ge=1, description="the adapter's product is scaled by alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input")
    bias: Literal["none", "all", "lora_only"] = Field("none", description="which biases train")
    targets: list[str] | Literal["all-linear"] = Field(
        "all-linear", description="names of the linear layers that get an adapter"
    )


class ModelConfig(BaseModel):
    """The policy's start: which weights, in which form."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field("sandbox", description="folder, hub id, 'sandbox' (built in) or 'scratch:<model type>'")
    tokenizer: str | None = Field(None, description="folder, hub id or 'sandbox' of the tokenizer, if not the model's")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    dtype: Dtype = Field("auto", description="of the weights; auto: fp32 if they all train, else as stored")
    quantize: Literal["none", "4bit", "8bit"] = Field("none", description="of a frozen base under LoRA (bitsandbytes)")
    lora: LoraConfig | None = Field(None, description="train adapters instead of all weights")
    gradient_checkpointing: bool = Field(False, description="recompute activations in backward: less memory, slower")
    rope_scaling: dict[str, Any] | None = Field(None, description="RoPE scaling, e.g. {rope_type: linear, factor: 2}")
    layout: Literal["auto", "tree", "padded"] = Field("auto", description="prompt trees where exact, else padded rows")
    trust_remote_code: bool = Field(False, description="run code that comes with the model")
    scratch: ScratchConfig = Field(default_factory=ScratchConfig, description="size of a scratch: model")


@dataclass(frozen=True)
class Loaded:
    """A model, with adapters if there are any, and its tokenizer."""

    lm: nn.Module
    tokenizer: PreTrainedTokenizerBase


def load(
    config: ModelConfig, seed: int, texts: Callable[[], Iterable[str]], reward: bool = False, blank: bool = False
) -> Loaded:
    """Load or build what the config names.

    Args:
        config: which model, in which form.
        seed: of scratch weights and adapters.
        texts: gives text to train a scratch tokenizer on; called for `scratch:` models only.
        reward: give a reward model: the language model under a new scalar head, or a stored reward model.
        blank: leave stored weights out, for a process that will be sent them: memory that is asked for and never
            written to takes none.

    Raises:
        PreftuneError: if the model or its tokenizer cannot be loaded as asked.
    """
    check_path(config)
    torch.manual_seed(seed)
    if config.path.startswith(SCRATCH):
        lm, tokenizer = build(config.path.removeprefix(SCRATCH), texts(), config.scratch, seed)
        lm = lm.to(_weights_dtype(config, torch.float32))
    else:
        path = str(built_in_folder(config.path)) if is_built_in(config.path) else config.path
        settings = _settings(config, path)
        tokenizer = _tokenizer(config, path)
        with without_progress_bars():
            stored = reward and str((settings.architectures or [""])[0]).endswith("ForSequenceClassification")
            kind = AutoModelForSequenceClassification if stored else AutoModelForCausalLM
            blank_lm = _blank(config, settings, kind) if blank else None
            lm = _pretrained(config, path, settings, kind) if blank_lm is None else blank_lm
        if blank_lm is None:
            check_finite(lm, f"model {config.path}")
    if reward:
        lm = with_reward_head(lm, tokenizer.pad_token_id)
    return Loaded(adapt(lm, config, seed), tokenizer)


def read_only_tokenizer(config: ModelConfig) -> tuple[PreTrainedTokenizerBase, int | None]:
    """A model's tokenizer, and the most tokens that the model reads (None: no end), without its weights.

    Raises:
        PreftuneError: if there is no such model or tokenizer, or if it is to be made from nothing.
    """
    if config.path.startswith(SCRATCH):
        raise PreftuneError(f"model {config.path} has no tokenizer before it is trained: name a folder or a hub id")
    path = str(built_in_folder(config.path)) if is_built_in(config.path) else config.path
    tokenizer = _tokenizer(config, path)
    alone = Path(path).is_dir() and not (Path(path) / "config.json").is_file()  # a tokenizer without a model
    return tokenizer, None if alone else positions_of(_settings(config, path))


def check_path(config: ModelConfig) -> None:
    """Refuse a model that cannot be loaded, as far as that shows without loading it.

    Raises:
        PreftuneError: for a folder without config or weights, or options that exclude each other.
    """
    if config.quantize != "none" and config.lora is None:
        raise PreftuneError(
            f"model.quantize={config.quantize} freezes the weights, so something else must train: add model.lora"
        )
    if config.quantize != "none" and importlib.util.find_spec("bitsandbytes") is None:
        raise PreftuneError(
            f"model.quantize={config.quantize} needs bitsandbytes: pip install 'preftune[quant]', "
            "or set model.quantize=none"
        )
    if config.path.startswith(SCRATCH):
        model_type_of(config.path)
        return
    if is_built_in(config.path):
        built_in_folder(config.path)
        return
    folder = Path(config.path)
    if not folder.exists():
        inside_a_folder = "/" in config.path and folder.parent.is_dir()
        if inside_a_folder or config.path.startswith((".", "/", "~")) or config.path.count("/") > 1:
            raise PreftuneError(f"model folder {config.path} does not exist")
        return
    if (folder / "adapter_config.json").is_file():
        raise PreftuneError(
            f"model folder {config.path} holds an adapter, expected a whole model: merge it into its base first "
            "(merge_and_unload of peft, then save_pretrained)"
        )
    if not (folder / "config.json").is_file():
        raise PreftuneError(
            f"model folder {config.path} has no config.json: expected a folder that save_pretrained wrote"
        )
    _check_config_file(folder / "config.json", config.trust_remote_code)
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]
    if not weights:
        raise PreftuneError(
            f"model folder {config.path} has no weights: expected model.safetensors "
            "(other formats are not read: convert them with save_pretrained)"
        )


def _check_config_file(path: Path, own_code: bool) -> None:
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PreftuneError(f"{path} cannot be read as JSON ({reason(error)}): save the model again") from None
    model_type = given.get("model_type") if isinstance(given, dict) else None
    if not isinstance(model_type, str):
        raise PreftuneError(f"{path} names no model_type: expected the config of a transformers model")
    if model_type not in CONFIG_MAPPING and "auto_map" in given and not own_code:
        raise PreftuneError(
            f"model folder {path.parent} comes with code of its own for model_type {model_type!r}, which is not run "
            "unless asked for: read it, then set model.trust_remote_code=true"
        )
    if model_type not in CONFIG_MAPPING and "auto_map" not in given:
        raise PreftuneError(f"{path} is of model_type {model_type!r}, which this version of transformers does not know")


def check_keys(config: ModelConfig, loaded: bool) -> None:
    """Refuse keys that would be ignored for this kind of policy, or would ruin its training.

    Args:
        config: of the policy.
        loaded: True if a loaded model was given, so that nothing is left to load.

    Raises:
        PreftuneError: names the key.
    """
    scratch, local = config.path.startswith(SCRATCH), is_built_in(config.path) or Path(config.path).is_dir()
    used = {"path", "tokenizer", "lora", "gradient_checkpointing", "layout"}
    if loaded:
        why = "says how to load a model, but a loaded one was given"
    elif scratch:
        used = (used | {"dtype", "scratch"}) - {"tokenizer"}
        why = f"is about models that are stored, but model.path is {config.path}"
    else:
        used |= {"dtype", "quantize", "rope_scaling", "trust_remote_code"} | (set() if local else {"revision"})
        why = f"does not apply to a model that is stored as model.path={config.path} is"
    default = ModelConfig()
    for key in ModelConfig.model_fields:
        if key not in used and getattr(config, key) != getattr(default, key):
            raise PreftuneError(f"model.{key} {why}: leave it out")
    if scratch and config.lora is not None:
        raise PreftuneError(f"model.lora adapts a model that is stored, but model.path is {config.path}: leave it out")
    if config.dtype == "fp16" and (config.lora is None or config.lora.bias != "none"):
        trained = "weights" if config.lora is None else "biases"
        raise PreftuneError(
            f"model.dtype=fp16 would train {trained} in fp16, in which AdamW's eps of 1e-8 is 0: set it to fp32 or "
            "auto; train.precision=fp16 computes in fp16 all the same"
        )


def positions(lm: nn.Module) -> int | None:
    """Most tokens that a model with a table of positions can read; None if its positions have no such end."""
    config = getattr(base_model(lm), "config", None)
    return positions_of(config) if isinstance(config, PreTrainedConfig) else None


def positions_of(config: PreTrainedConfig) -> int | None:
    """The same, told by the model's config alone."""
    text: Any = config.get_text_config()
    return None if getattr(text, "rope_parameters", None) else getattr(text, "max_position_embeddings", None)


def vocabulary(lm: nn.Module) -> int | None:
    """Token ids that the model has an embedding for; None if it has no embedding."""
    model = base_model(lm)
    tables = [model.get_input_embeddings()] if isinstance(model, PreTrainedModel) else model.modules()
    return max((table.num_embeddings for table in tables if isinstance(table, nn.Embedding)), default=None)


def is_built_in(path: str) -> bool:
    """True for "sandbox", the built-in world's base model, and "sandbox:NAME", a model of the built-in tasks."""
    return path == BUILT_IN or path.startswith(f"{BUILT_IN}:")


def built_in_folder(path: str = BUILT_IN) -> Path:
    """The folder of a built-in model.

    Raises:
        PreftuneError: if there is none of this name.
    """
    if path != BUILT_IN:
        from preftune.sandbox.tasks import folder_of

        return folder_of(path.removeprefix(f"{BUILT_IN}:"))
    from preftune.sandbox.preferences import BASE

    return BASE


def adapt(lm: nn.Module, config: ModelConfig, seed: int) -> nn.Module:
    """The model with gradient checkpointing and LoRA adapters as configured, or as it is.

    Raises:
        PreftuneError: if the model takes neither.
    """
    if (config.lora or config.gradient_checkpointing) and not isinstance(lm, PreTrainedModel):
        key = "lora" if config.lora else "gradient_checkpointing"
        raise PreftuneError(f"model.{key} needs a transformers model, got {type(lm).__name__}: leave it out")
    if config.gradient_checkpointing:
        # transformers 5.23 renamed the method and warns under the old name; the argument is the same
        model: Any = lm
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        try:
            enable({"use_reentrant": False})
        except ValueError as error:
            raise PreftuneError(f"model.gradient_checkpointing does not fit this model: {reason(error)}") from error
    if config.lora is None:
        return lm
    import peft

    if config.quantize != "none":
        # checkpointing is on already; here it would be switched to the reentrant kind
        lm = peft.prepare_model_for_kbit_training(lm, use_gradient_checkpointing=False)
        _keep_gradients(lm)
    if config.gradient_checkpointing:
        lm.enable_input_require_grads()  # type: ignore[operator]
    lora = peft.LoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        bias=config.lora.bias,
        target_modules=config.lora.targets,
        task_type="SEQ_CLS" if is_reward_model(lm) else "CAUSAL_LM",
    )
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():  # peft reads a property that transformers 5.23 has renamed
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "fan_in_fan_out is set", UserWarning)  # and set right, by peft itself
            return peft.get_peft_model(lm, lora)
    except ValueError as error:
        raise PreftuneError(f"model.lora.targets={config.lora.targets} does not fit this model: {error}") from error


def bitsandbytes() -> Any:
    """The library, without a word on each layer of each forward (casts in 8 bits) or on kernels it does without."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return importlib.import_module("bitsandbytes")


def _keep_gradients(lm: nn.Module) -> None:
    """Keep 4-bit layers differentiable on CPUs with AVX512-BF16.

    There, bitsandbytes (0.50) packs the weights for inference in the first forward in evaluation mode, and forwards
    through packed weights have no gradient ever after: layers below would learn nothing, without an error.
    """
    layer = bitsandbytes().nn.Linear4bit
    for module in lm.modules():
        if isinstance(module, layer):
            module.support_avx512bf16_for_cpu = False


def _settings(config: ModelConfig, path: str) -> PreTrainedConfig:
    try:
        settings = AutoConfig.from_pretrained(
            path,
            trust_remote_code=config.trust_remote_code,
            revision=config.revision,
            local_files_only=hub.only_cached(path, config.revision),
        )
    except Exception as error:  # the libraries below raise whatever they please; the sentence keeps their reason
        raise PreftuneError(f"cannot load model {config.path}: {reason(error)}") from error
    if config.rope_scaling is not None:
        scale_rope(settings.get_text_config(), config.rope_scaling)
    return settings


def _blank(config: ModelConfig, settings: PreTrainedConfig, kind: Any) -> nn.Module | None:
    """The model with weights that were never written to; None if it holds more than weights that is stored."""
    with init_empty_weights(include_buffers=False):
        lm: PreTrainedModel = kind.from_config(settings, trust_remote_code=config.trust_remote_code)
    lm.tie_weights()
    if not sendable(lm):
        return None
    made: dict[Tensor, nn.Parameter] = {}  # so that tied ones stay one
    for module in lm.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter not in made:
                dtype = _weights_dtype(config, parameter.dtype)
                made[parameter] = nn.Parameter(torch.empty_like(parameter, device="cpu", dtype=dtype))
            setattr(module, name, made[parameter])
    return lm.eval()


def sendable(lm: nn.Module) -> bool:
    """True if the main process can send the others all that they need of a model: its weights."""
    return lm.state_dict().keys() <= {name for name, _ in lm.named_parameters(remove_duplicate=False)}


def _pretrained(config: ModelConfig, path: str, settings: PreTrainedConfig, kind: Any) -> nn.Module:
    extra = {"quantization_config": _quantization(config)} if config.quantize != "none" else {}
    try:
        cached = {"local_files_only": hub.only_cached(path, config.revision)}
        lm, found = kind.from_pretrained(
            path,
            config=settings,
            dtype=_weights_dtype(config, "auto"),
            use_safetensors=True,
            trust_remote_code=config.trust_remote_code,
            revision=config.revision,
            adapter_kwargs=cached,  # it looks for an adapter, too
            ignore_mismatched_sizes=True,  # told apart below, by name
            output_loading_info=True,
            **cached,
            **extra,
        )
    except Exception as error:
        raise PreftuneError(f"cannot load model {config.path}: {reason(error)}") from error
    # transformers fills what is not there with random numbers, and goes on
    wrong = {"has no": sorted(found["missing_keys"]), "has another size of": sorted(found["mismatched_keys"])}
    for what, names in wrong.items():
        if names:
            named = ", ".join(str(name[0] if isinstance(name, tuple) else name) for name in names[:3])
            raise PreftuneError(
                f"cannot load model {config.path}: its file of weights {what} {named}"
                f"{' and others' if names[3:] else ''}, which {type(lm).__name__} needs"
            )
    return lm


def _tokenizer(config: ModelConfig, path: str) -> PreTrainedTokenizerBase:
    if config.tokenizer is None:
        return read_tokenizer(path, config.trust_remote_code, config.revision)
    return read_tokenizer(config.tokenizer, config.trust_remote_code)


def read_tokenizer(path: str, trust_remote_code: bool = False, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, a hub id or the built-in world.

    Raises:
        PreftuneError: if there is none that can be read.
    """
    folder = str(built_in_folder(path)) if is_built_in(path) else path
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder,
            trust_remote_code=trust_remote_code,
            revision=revision,
            local_files_only=hub.only_cached(folder, revision),
        )
        if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes of a folder without one
            raise ValueError("it knows no tokens")
    except Exception as error:  # as in _settings
        raise PreftuneError(
            f"cannot load a tokenizer from {path} ({_broken_file(folder) or reason(error)}): name a folder or hub id "
            "that has one with model.tokenizer"
        ) from error
    return tokenizer


def _broken_file(folder: str) -> str | None:
    """What is wrong with a folder's tokenizer.json, of which transformers names no more than a missing key."""
    file = Path(folder) / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more special
        return f"its tokenizer.json is no tokenizer: {reason(error)}"
    return None


def _weights_dtype(config: ModelConfig, stored: Any) -> Any:
    """Weights that train are kept in fp32 (small updates vanish in bf16); frozen ones stay as stored."""
    if config.dtype != "auto":
        return DTYPES[config.dtype]
    return torch.float32 if config.lora is None else stored


def _quantization(config: ModelConfig) -> Any:
    from transformers import BitsAndBytesConfig

    bitsandbytes()
    compute = torch.bfloat16 if config.dtype == "auto" else DTYPES[config.dtype]
    if config.quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )
