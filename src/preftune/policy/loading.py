"""A model and its tokenizer from a folder, a hub id, the built-in world or scratch; adapters; precision."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from preftune.errors import PreftuneError
from preftune.policy.scratch import ScratchConfig, build, model_type_of
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
    tokenizer: str | None = Field(None, description="folder or hub id of the tokenizer, if not the model's")
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


def load(config: ModelConfig, seed: int, texts: Callable[[], Iterable[str]]) -> Loaded:
    """Load or build what the config names.

    Args:
        config: which model, in which form.
        seed: of scratch weights and adapters.
        texts: gives text to train a scratch tokenizer on; called for `scratch:` models only.

    Raises:
        PreftuneError: if the model or its tokenizer cannot be loaded as asked.
    """
    check_path(config)
    torch.manual_seed(seed)
    if config.path.startswith(SCRATCH):
        lm, tokenizer = build(config.path.removeprefix(SCRATCH), texts(), config.scratch, seed)
        lm = lm.to(_weights_dtype(config, torch.float32))
    else:
        path = str(built_in_folder()) if config.path == BUILT_IN else config.path
        tokenizer = _tokenizer(config, config.tokenizer or path)
        with without_progress_bars():
            lm = _pretrained(config, path)
    if config.gradient_checkpointing:
        # transformers 5.23 renamed the method and warns under the old name; the argument is the same
        enable = getattr(lm, "activation_checkpointing_enable", None) or lm.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return Loaded(adapt(lm, config, seed), tokenizer)


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
    if config.path == BUILT_IN:
        return
    folder = Path(config.path)
    if not folder.exists():
        if config.path.startswith((".", "/", "~")) or config.path.count("/") > 1:
            raise PreftuneError(f"model folder {config.path} does not exist")
        return
    if not (folder / "config.json").is_file():
        raise PreftuneError(
            f"model folder {config.path} has no config.json: expected a folder that save_pretrained wrote"
        )
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]
    if not weights:
        raise PreftuneError(
            f"model folder {config.path} has no weights: expected model.safetensors "
            "(other formats are not read: convert them with save_pretrained)"
        )


def built_in_folder() -> Path:
    """The folder of the built-in world's base model."""
    from preftune.sandbox.preferences import BASE

    return BASE


def adapt(lm: nn.Module, config: ModelConfig, seed: int) -> nn.Module:
    """The model with LoRA adapters as configured, or as it is."""
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
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():  # peft reads a property that transformers 5.23 has renamed
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            return peft.get_peft_model(lm, lora)
    except ValueError as error:
        raise PreftuneError(f"model.lora.targets={config.lora.targets} does not fit this model: {error}") from error


def _keep_gradients(lm: nn.Module) -> None:
    """Keep 4-bit layers differentiable on CPUs with AVX512-BF16.

    There, bitsandbytes (0.50) packs the weights for inference in the first forward in evaluation mode, and forwards
    through packed weights have no gradient ever after: layers below would learn nothing, without an error.
    """
    from bitsandbytes.nn import Linear4bit

    for module in lm.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _pretrained(config: ModelConfig, path: str) -> nn.Module:
    extra: dict[str, Any] = {"trust_remote_code": config.trust_remote_code, "revision": config.revision}
    try:
        settings = AutoConfig.from_pretrained(path, **extra)
        if config.rope_scaling is not None:
            settings.rope_parameters = {**(getattr(settings, "rope_parameters", None) or {}), **config.rope_scaling}
        if config.quantize != "none":
            extra["quantization_config"] = _quantization(config)
        return AutoModelForCausalLM.from_pretrained(
            path,
            config=settings,
            dtype=_weights_dtype(config, "auto"),
            use_safetensors=True,
            **extra,
        )
    except PreftuneError:
        raise
    except Exception as error:  # the libraries below raise whatever they please; the sentence keeps their reason
        raise PreftuneError(f"cannot load model {config.path}: {_first_line(error)}") from error


def _tokenizer(config: ModelConfig, path: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust_remote_code, revision=config.revision)
    except Exception as error:
        raise PreftuneError(
            f"cannot load a tokenizer from {path}: {_first_line(error)}; name one with model.tokenizer"
        ) from error


def _weights_dtype(config: ModelConfig, stored: Any) -> Any:
    """Weights that train are kept in fp32 (small updates vanish in bf16); frozen ones stay as stored."""
    if config.dtype != "auto":
        return DTYPES[config.dtype]
    return torch.float32 if config.lora is None else stored


def _quantization(config: ModelConfig) -> Any:
    from transformers import BitsAndBytesConfig

    compute = torch.bfloat16 if config.dtype == "auto" else DTYPES[config.dtype]
    if config.quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
