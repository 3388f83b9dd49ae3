"""The one module that is trained, wrapped and called: prompt trees or padded rows in, log-probs out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from preftune.data.packing import PackedBatch
from preftune.objectives.batch import LogProbs
from preftune.policy.heads import find_head
from preftune.policy.last_layer import spare_prompts
from preftune.policy.logprobs import Logits, exact, score, token_logps
from preftune.policy.reward_head import is_reward_model
from preftune.policy.tree_attention import NAME as TREE_ATTENTION

Layout = Literal["tree", "padded"]


class PolicyModule(nn.Module):
    """A language model as preftune calls it. What PEFT made, DDP and FSDP wrap, and everybody calls, is this module.

    Args:
        lm: a causal LM of transformers, PEFT around one, or any module whose `forward(input_ids)` returns `.logits`.
        layout: "tree" computes each prompt once; "padded" computes one row for each response.
    """

    def __init__(self, lm: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.lm = lm
        self.layout: Layout = layout
        self.own_attention: str | None = None
        self.scores = isinstance(self.base, PreTrainedModel) and is_reward_model(self.base)
        known = isinstance(self.base, PreTrainedModel) and not self.scores
        self.head = find_head(self.base) if known else None
        if known or self.scores:
            spare_prompts(self.base)
        self.growing_ropes = [m for m in self.base.modules() if "dynamic" in str(getattr(m, "rope_type", None))]
        self.use_layout(layout)

    @property
    def base(self) -> nn.Module:
        """The model under PEFT's wrapper, or the model itself; not to be called for computing."""
        return base_model(self.lm)

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes of layers, each of which FSDP2 puts together as one."""
        return sorted(getattr(self.base, "_no_split_modules", None) or ())

    def tie_weights(self) -> None:
        """Make weights one again that the model shares, after they were put elsewhere (FSDP2)."""
        tie: Any = getattr(self.base, "tie_weights", None)
        if tie is not None:
            tie()

    def use_layout(self, layout: Layout) -> None:
        """Switch between trees and padded rows, and the model's attention with it."""
        if isinstance(self.base, PreTrainedModel):
            if self.own_attention is None:
                self.own_attention = self.base.config._attn_implementation
            wanted = TREE_ATTENTION if layout == "tree" else self.own_attention
            if self.base.config._attn_implementation != wanted:
                self.base.set_attn_implementation(wanted)
        elif layout == "tree":
            raise ValueError(f"{type(self.base).__name__} is no transformers model: only the padded layout fits it")
        self.layout = layout

    @contextmanager
    def generating(self) -> Iterator[nn.Module]:
        """The language model with the attention it was loaded with, in evaluation mode, without gradient.

        Never enter it between a forward and its backward: gradient checkpointing would compute anew with the other
        attention.
        """
        training, layout = self.training, self.layout
        self.eval()
        self.use_layout("padded")
        try:
            with torch.no_grad():
                yield self.lm
        finally:
            self.use_layout(layout)
            self.train(training)

    def forward(
        self, op: Literal["logps", "rows", "score", "values", "call"], inputs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What a model says about a batch's targets.

        Args:
            op: "logps": their log-probs. "rows": what `logits_of` makes their logits of. "score": a reward model's
                value of each response. "values": the same head's value before each target. "call": what a function
                makes of the language model.
            inputs: what `forward_inputs` gives; for "call", the "function".

        Returns:
            "logps_K" and the further values asked for, each of shape K; or "rows_KX"; or "reward_R"; or "value_K"; or
            what was "found".
        """
        if op == "call":
            return {"found": inputs["function"](self.lm)}
        if op not in ("logps", "rows", "score", "values"):
            raise ValueError(f"unknown op {op!r}")
        for rope in self.growing_ropes:
            _forget(rope)
        if op == "score":
            return {"reward_R": self._scalars(inputs, inputs["last_R"])}
        if op == "values":
            return {"value_K": self._scalars(inputs, inputs["source_K"])}
        rows_KX = self._rows(inputs)
        if op == "rows":
            return {"rows_KX": rows_KX}
        target_K, needs, other = (inputs[name] for name in ("target_K", "needs", "other"))
        if self.head is not None and self.head.exact:
            return token_logps(rows_KX, self.head.output, target_K, self.head.recipe, needs, other)
        other_KV = None if other is None else other(slice(0, len(target_K)))
        values = score(exact(rows_KX), target_K, needs, other_KV)
        return dict(zip(("logps_K", *sorted(needs)), values, strict=True))

    def logits_of(self, rows_NX: Tensor) -> Tensor:
        """Logits of some of the rows that op "rows" gave, in float32 or better."""
        if self.head is None or not self.head.exact:
            return exact(rows_NX)
        return self.head.recipe.apply(exact(self.head.output(rows_NX)))

    def _scalars(self, inputs: Mapping[str, Any], rows_N: Tensor) -> Tensor:
        """The scalar head's values, read at some tokens, in float32 or better, shape N."""
        model: Any = self.base
        hidden = self._decode(getattr(model, model.base_model_prefix), inputs).last_hidden_state
        value_N1: Tensor = model.score(hidden.reshape(-1, hidden.shape[-1])[rows_N])
        return exact(value_N1).squeeze(1)

    def _rows(self, inputs: Mapping[str, Any]) -> Tensor:
        """Of each row that predicts a target: its hidden state, or its logits if no head is known to be exact."""
        if self.head is None:
            return self._logits(inputs)
        if not self.head.exact:
            return self._logits(inputs, inputs["source_K"])
        hidden = self._decode(self.head.decoder, inputs).last_hidden_state
        return hidden.reshape(-1, hidden.shape[-1])[inputs["source_K"]]

    def _decode(self, module: nn.Module, inputs: Mapping[str, Any], **kwargs: Any) -> Any:
        """One forward of the decoder or of the whole model over the batch, in the batch's layout."""
        tree, row_length = inputs["tree"], inputs["row_length"]
        if tree is None:
            shape = (-1, row_length)
            attended = inputs["attended_T"].view(shape)
            return module(
                input_ids=inputs["ids_T"].view(shape), attention_mask=attended.long(), use_cache=False, **kwargs
            )
        before = tree.consumed
        output = module(
            input_ids=inputs["ids_T"][None],
            position_ids=inputs["position_T"][None],
            tree=tree,
            use_cache=False,
            **kwargs,
        )
        config: Any = self.base.config
        layers = config.get_text_config().num_hidden_layers
        if tree.consumed - before < layers:
            raise RuntimeError(
                f"{tree.consumed - before} of {layers} attention layers of {type(self.base).__name__} used the prompt "
                "tree; its results would be wrong: set model.layout to padded"
            )
        return output

    def _logits(self, inputs: Mapping[str, Any], rows: Tensor | None = None) -> Tensor:
        """Logits of the rows that predict targets, shape (K, V), from the model's own forward."""
        if self.head is None:
            logits = self.lm(inputs["ids_T"].view(-1, inputs["row_length"])).logits
        elif inputs["tree"] is not None:
            return self._decode(self.lm, inputs, logits_to_keep=rows).logits[0]
        else:
            logits = self._decode(self.lm, inputs).logits
        return logits.reshape(-1, logits.shape[-1])[inputs["source_K"]]


def _forget(rope: nn.Module) -> None:
    """Put back the frequencies of dynamic RoPE, which keeps those of the longest forward so far: log-probs would depend
    on what the model has read before."""
    for name, original in list(rope.named_buffers(recurse=False)):
        if name.endswith("original_inv_freq"):
            setattr(rope, name.replace("original_inv_freq", "inv_freq"), original.clone())
    for name in [name for name in vars(rope) if name.endswith("max_seq_len_cached")]:
        setattr(rope, name, rope.original_max_seq_len)


def forward_inputs(
    batch: PackedBatch, needs: frozenset[str] = frozenset(), other: Logits | None = None
) -> dict[str, Any]:
    """What a forward may see of a batch: tokens and places, no weights, labels or advantages."""
    return {
        "ids_T": batch.ids_T,
        "position_T": batch.position_T,
        "attended_T": batch.attended_T,
        "source_K": batch.source_K,
        "target_K": batch.target_K,
        "last_R": batch.last_R,
        "tree": batch.tree,
        "row_length": batch.row_length,
        "needs": needs,
        "other": other,
    }


def logps(
    policy: nn.Module, batch: PackedBatch, needs: frozenset[str] = frozenset(), other: Logits | None = None
) -> LogProbs:
    """Log-probs of a batch under a `PolicyModule`, wrapped or not.

    Args:
        policy: the module as prepared.
        batch: on its device.
        needs: further fields of `LogProbs` to fill.
        other: gives the reference's logits, for "kl_K".
    """
    return LogProbs(**policy("logps", forward_inputs(batch, needs, other)))


def rewards(policy: nn.Module, batch: PackedBatch) -> LogProbs:
    """What a `PolicyModule` around a reward model says of a batch: rewards, and no log-probs."""
    reward_R = policy("score", forward_inputs(batch))["reward_R"]
    return LogProbs(reward_R.new_empty(0), reward_R=reward_R)


def values(policy: nn.Module, batch: PackedBatch) -> LogProbs:
    """What a `PolicyModule` around a value network (a sequence classifier of one label) says of a batch: the value
    before each target, and no log-probs."""
    value_K = policy("values", forward_inputs(batch))["value_K"]
    return LogProbs(value_K.new_empty(0), value_K=value_K)


def base_model(lm: nn.Module) -> nn.Module:
    """The model under PEFT's wrapper, or the model itself."""
    inner = getattr(lm, "get_base_model", None)
    return inner() if callable(inner) else lm
