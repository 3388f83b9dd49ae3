"""`scratch:` models: a transformers config of any causal model type, seeded weights, and a tokenizer trained on given
text, for work without downloads. `scratch:qwen3` names a small Qwen3, `scratch:gpt2` a small GPT-2.
"""

from __future__ import annotations

import difflib
import json
import tempfile
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from preftune.errors import PreftuneError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

PREFIX = "scratch:"
END = "<|endoftext|>"
PAD = "<|pad|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
SPECIAL = (END, PAD, TURN_START, TURN_END)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    f"{{{{ '{TURN_START}' + message['role'] + '\\n' + message['content'] + '{TURN_END}' + '\\n' }}}}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ '{TURN_START}assistant\\n' }}}}{{% endif %}}"
)
MAX_PARAMETERS = 500_000_000
# Beyond these, libraries run out of memory or time before the parameters can be counted.
MAX_VOCABULARY, MAX_WIDTH, MAX_LAYERS, MAX_CONTEXT = 1_000_000, 65_536, 256, 10_000_000


class ScratchConfig(BaseModel):
    """Sizes of a scratch model, by one name for all model types."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vocab_size: int = Field(
        4096,
        ge=256 + len(SPECIAL),
        le=MAX_VOCABULARY,
        description="most tokens of the tokenizer, 256 bytes and 4 special ones included; a short text gives fewer",
    )
    hidden_size: int = Field(
        256, ge=2, le=MAX_WIDTH, description="width of the residual stream, a multiple of 2 * heads"
    )
    layers: int = Field(4, ge=1, le=MAX_LAYERS, description="number of decoder layers")
    heads: int = Field(4, ge=1, le=MAX_WIDTH, description="attention heads, and as many key-value heads")
    context: int = Field(2048, ge=2, le=MAX_CONTEXT, description="longest sequence in tokens")
    overrides: dict[str, Any] = Field(
        default_factory=dict,
        description="further fields of the transformers config, by the model type's own names; the last word",
    )

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> ScratchConfig:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"hidden_size must be a multiple of 2 * heads, got {self.hidden_size} with {self.heads} heads"
            )
        return self


def model_type_of(name: str) -> str | None:
    """The model type of a `scratch:` name, checked against what transformers knows; None if it is another model name.

    Raises:
        PreftuneError: if transformers has no causal language model of this type.
    """
    if not name.startswith(PREFIX):
        return None
    model_type = name.removeprefix(PREFIX)
    _config_class(model_type)
    return model_type


def build(
    model_type: str, texts: Iterable[str], config: ScratchConfig, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A model with seeded float32 weights and a tokenizer trained on `texts`; same arguments, same bytes.

    Both save with `save_pretrained` into one folder, which loads with plain transformers.

    Args:
        model_type: as transformers names it: "qwen3", "llama", "gpt2", ...
        texts: what the tokenizer learns its merges from; read once.
        config: sizes.
        seed: of the weights. The global generators of torch are left as they were.

    Raises:
        PreftuneError: if the model type is unknown, `texts` holds no text, or the type cannot be built in these sizes.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config_class = _config_class(model_type)
    _check_fields(model_type, config_class, config)
    tokenizer = train_tokenizer(texts, model_type, config.vocab_size, config.context)
    try:
        model_config = config_class(**_sizes(config_class, config, tokenizer) | config.overrides)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            with torch.device("meta"):  # sizes without memory
                shape = AutoModelForCausalLM.from_config(model_config, dtype=torch.float32)
            parameters = sum(p.numel() for p in shape.parameters())
            if parameters > MAX_PARAMETERS:
                raise ValueError(f"{parameters:,} parameters, expected at most {MAX_PARAMETERS:,}")
            torch.default_generator.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(model_config, dtype=torch.float32).eval()
            # Sizes that do not fit together show up here, in some families only here.
            model(torch.arange(min(8, config.context))[None])
    except Exception as error:  # each family checks its fields in its own way, with its own exceptions
        reason = " ".join(str(error).split())[:200]
        raise PreftuneError(
            f"{PREFIX}{model_type} does not work in these sizes ({type(error).__name__}: {reason}): "
            "give the fields that this model type wants under `overrides`, or take qwen3, llama or gpt2"
        ) from error
    # Plain text ends with one token, a chat turn with another: generation stops at either.
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids([END, TURN_END])
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def train_tokenizer(texts: Iterable[str], model_type: str, vocab_size: int, context: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text encodes and decodes exactly, each digit and each newline is its own token.

    Digits apart make arithmetic learnable for small models; newlines apart mean that no token crosses the boundary of a
    prompt that ends with a newline. End of text is `<|endoftext|>`, padding `<|pad|>`; there is no start token. The
    chat template has the form of ChatML. For model types whose text transformers insists on splitting in their own way
    (qwen2), this way is taken, so that what is saved is what `AutoTokenizer` loads.

    Args:
        texts: what to learn merges from; read once.
        model_type: of the model that the tokenizer is saved with.
        vocab_size: most tokens.
        context: longest sequence in tokens.

    Raises:
        PreftuneError: if `texts` holds no text.
    """
    from tokenizers import pre_tokenizers, trainers
    from transformers import AutoTokenizer

    pieces = filter(None, texts)
    first = next(pieces, None)
    if first is None:
        raise PreftuneError("a scratch model trains its tokenizer on the data's text, but there is none: give it data")
    bare = _bare_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
        _wrap(bare, context).save_pretrained(folder)
        loaded = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    bare.normalizer, bare.pre_tokenizer = loaded.normalizer, loaded.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bare.train_from_iterator(chain([first], pieces), trainer)
    return _wrap(bare, context)


def _bare_tokenizer() -> Tokenizer:
    """Our way of splitting text, and no merges yet."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*SPECIAL, *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}|\n"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _wrap(tokenizer: Tokenizer, context: int) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[TURN_START, TURN_END],
        chat_template=CHAT_TEMPLATE,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def _config_class(model_type: str) -> type[PreTrainedConfig]:
    """The config class of a causal, text-only model type."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    if model_type not in KNOWN:
        near = difflib.get_close_matches(model_type.lower(), KNOWN, n=3, cutoff=0.5) or ["qwen3", "llama", "gpt2"]
        raise PreftuneError(
            f"{PREFIX}{model_type} is no causal language model that transformers knows; "
            f"nearest: {', '.join(PREFIX + name for name in near)}"
        )
    config_class: type[PreTrainedConfig] = CONFIG_MAPPING[model_type]
    if config_class.is_encoder_decoder:
        raise PreftuneError(f"{PREFIX}{model_type} is an encoder-decoder, expected a decoder: take {PREFIX}qwen3")
    parts = [part for part in config_class.sub_configs if any(word in part for word in ("text", "vision", "audio"))]
    if parts:
        text_only = f"{model_type}_text" if f"{model_type}_text" in KNOWN else "qwen3"
        raise PreftuneError(
            f"{PREFIX}{model_type} is made of several models ({', '.join(parts)}), expected one that reads text alone: "
            f"take {PREFIX}{text_only}"
        )
    return config_class


def _field_names(config_class: type[PreTrainedConfig]) -> set[str]:
    return set(config_class.__dataclass_fields__) | set(config_class.attribute_map)


def _check_fields(model_type: str, config_class: type[PreTrainedConfig], config: ScratchConfig) -> None:
    """Refuse what the model type would swallow without a word: transformers' configs accept any keyword."""
    known = _field_names(config_class)
    for key in config.overrides:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "take a field of its transformers config"
            raise PreftuneError(f"overrides of {PREFIX}{model_type}: {key!r} is no field of {model_type}; {hint}")
    layers = ("num_hidden_layers", config_class.attribute_map.get("num_hidden_layers"))
    for key, value in config.overrides.items():
        if key in layers and not (isinstance(value, int) and 1 <= value <= MAX_LAYERS):
            raise PreftuneError(
                f"overrides of {PREFIX}{model_type}: {key} is {value!r}, expected a number from 1 to {MAX_LAYERS}"
            )
    own = {"hidden_size": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads"}
    for ours, theirs in own.items():
        chosen = getattr(config, ours) != ScratchConfig.model_fields[ours].default
        if chosen and theirs not in known:
            raise PreftuneError(
                f"{PREFIX}{model_type} has no size that `{ours}` could set: leave it out and give the model type's "
                "own fields under `overrides`"
            )


def _sizes(
    config_class: type[PreTrainedConfig], config: ScratchConfig, tokenizer: PreTrainedTokenizerFast
) -> dict[str, Any]:
    """Our sizes under the names that the model type has; each config's attribute_map translates the rest."""
    experts = 4
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads,
        "head_dim": config.hidden_size // config.heads,
        "rotary_dim": config.hidden_size // config.heads,
        "intermediate_size": 3 * config.hidden_size,  # between the 8/3 of gated and the 4 of plain feed-forward layers
        "moe_intermediate_size": config.hidden_size,
        "shared_expert_intermediate_size": config.hidden_size,
        "num_local_experts": experts,
        "num_experts": experts,
        "n_routed_experts": experts,
        "num_experts_per_tok": 2,
        "max_position_embeddings": config.context,
        "is_decoder": True,  # BERT and kin are causal only when told so
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.eos_token_id,  # the tokenizer has none; some configs insist on one
        "pad_token_id": tokenizer.pad_token_id,
    }
    known = _field_names(config_class)
    return {name: value for name, value in sizes.items() if name in known}
