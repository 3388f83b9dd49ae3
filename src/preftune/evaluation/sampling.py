"""Responses sampled from a model, and the KL divergence measured on them.

Shapes: B rows still being written, L tokens so far, T new tokens, V vocabulary, N positions.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from preftune.errors import PreftuneError

Tokens = Sequence[int] | NDArray[np.int32]


@dataclass(frozen=True, eq=False, slots=True)
class Sampled:
    """A sampled response.

    Attributes:
        ids: its tokens, the end token included if one was reached, shape (tokens,).
        logps: log-probability of each token, nats, in fp32 and under the model itself, whatever the temperature and
            top-p it was sampled with, shape (tokens,).
        ended: True if the last token is an end token, False if the response was cut at its longest.
    """

    ids: NDArray[np.int32]
    logps: NDArray[np.float32]
    ended: bool


def sample(
    model: nn.Module,
    prompts: Sequence[Tokens],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    samples_per_prompt: int = 1,
    seed: int,
    numbers: Sequence[int] | None = None,
    end_ids: Sequence[int],
    batch_size: int = 256,
    pad_id: int,
) -> list[Sampled]:
    """Sample responses to prompts.

    What is drawn is a function of the seed, the index of the prompt, the index of the sample and the model's
    probabilities; the batch size changes these by rounding alone. Models of transformers write with a cache; those
    whose cache is not one of keys and values (state-space, hybrid), and any other module whose forward takes token ids
    and returns `.logits`, read the whole text again for each token.

    Args:
        model: a causal language model; it is put into evaluation mode meanwhile.
        prompts: token ids of each prompt, at least one token each.
        max_new_tokens: tokens at which a response is cut.
        temperature: divides the logits; 0 takes the most probable token.
        top_p: smallest mass of the most probable tokens to draw from, in (0, 1]; 1 draws from all.
        samples_per_prompt: responses to each prompt.
        seed: whole number >= 0.
        numbers: of each prompt, which draws follow from; none: 0, 1, 2 and so on.
        end_ids: tokens that end a response.
        batch_size: responses written at a time.
        pad_id: any token; it fills shorter prompts and is never read.

    Returns:
        The responses, those to one prompt side by side: prompt i has `[i * samples_per_prompt : (i + 1) * ...]`.

    Raises:
        PreftuneError: if a prompt is empty, an argument is out of its range, or the model gives no finite log-probs.
    """
    _check(prompts, max_new_tokens, temperature, top_p, samples_per_prompt, seed)
    rows = [(i, k) for i in range(len(prompts)) for k in range(samples_per_prompt)]
    streams = [(i if numbers is None else numbers[i], k) for i, k in rows]
    # Like lengths go together, the longest first: little padding, and memory runs out at once if at all.
    order = sorted(range(len(rows)), key=lambda row: -len(prompts[rows[row][0]]))
    found: dict[int, Sampled] = {}
    with _evaluating(model), torch.no_grad():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            writer = _writer(model, [prompts[rows[row][0]] for row in batch], pad_id)
            # A stream per response, so that no draw depends on what else is in the batch.
            uniform_BT = np.stack(
                [np.random.default_rng((seed, *streams[row])).random(max_new_tokens) for row in batch]
            )
            found.update(zip(batch, _write(writer, uniform_BT, temperature, top_p, end_ids), strict=True))
    return [found[row] for row in range(len(rows))]


def kl_on_samples(
    policy: nn.Module,
    reference: nn.Module,
    prompts: Sequence[Tokens],
    responses: Sequence[Sampled],
    *,
    batch_size: int = 256,
) -> NDArray[np.float64]:
    """KL divergence of policy from reference, measured on responses that the policy sampled at temperature 1.

    Sums, over the positions of a response, the exact divergence of the two next-token distributions. Its mean over
    responses estimates KL(policy || reference) of whole responses without bias and with less noise than the mean of
    log-ratios does; it is 0 exactly if the two models are one.

    Args:
        policy: the model that sampled.
        reference: the model to compare with, of the same vocabulary.
        prompts: token ids of the prompt of each response.
        responses: what `sample` gave.
        batch_size: responses read at a time.

    Returns:
        Nats per response, shape (responses,).
    """
    kl = np.zeros(len(responses))
    order = sorted(range(len(responses)), key=lambda i: -(len(prompts[i]) + len(responses[i].ids)))
    with _evaluating(policy), _evaluating(reference), torch.no_grad():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            texts = [np.concatenate([prompts[i], responses[i].ids]) for i in batch]
            # A causal model reads nothing to the right, so any token may fill up there.
            ids_BL = _stack(texts, 0, left=False).to(_device(policy))
            position_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
            first_B = torch.tensor([len(prompts[i]) - 1 for i in batch], device=ids_BL.device)
            last_B = torch.tensor([len(text) - 2 for text in texts], device=ids_BL.device)
            read_BL = (position_L >= first_B[:, None]) & (position_L <= last_B[:, None])
            policy_NV = policy(ids_BL).logits[read_BL].float().log_softmax(-1)
            reference_NV = reference(ids_BL.to(_device(reference))).logits.to(ids_BL.device)[read_BL]
            reference_NV = reference_NV.float().log_softmax(-1)
            kl_N = torch.nn.functional.kl_div(reference_NV, policy_NV, reduction="none", log_target=True).sum(-1)
            kl_B = torch.zeros(len(batch), device=ids_BL.device).index_add(0, read_BL.nonzero()[:, 0], kl_N)
            kl[batch] = kl_B.cpu().numpy()
    return kl


class _Writer(ABC):
    """Rows of text under way, and the logits of what comes next."""

    @abstractmethod
    def logits_BV(self) -> Tensor:
        """Logits of the next token of each row."""

    @abstractmethod
    def append(self, ids_B: Tensor) -> None:
        """Write one token to each row."""

    @abstractmethod
    def keep(self, rows_B: Tensor) -> None:
        """Go on with these rows alone."""


class _CachedWriter(_Writer):
    """Keeps keys and values; prompts of different lengths are padded on the left."""

    def __init__(self, model: nn.Module, cache: Any, prompts: Sequence[Tokens], pad_id: int) -> None:
        self.model, self.cache = model, cache
        unwrap: Any = getattr(model, "get_base_model", None)  # PEFT hides the signature of the model that it wraps
        base = model if unwrap is None else unwrap()
        accepted = inspect.signature(base.forward).parameters
        self.options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self.takes_positions = "position_ids" in accepted
        self.ids_BL = _stack(prompts, pad_id, left=True).to(_device(model))
        length_B = torch.tensor([len(prompt) for prompt in prompts], device=self.ids_BL.device)
        position_L = torch.arange(self.ids_BL.shape[1], device=self.ids_BL.device)
        mask_BL = position_L >= position_L.numel() - length_B[:, None]
        # Without padding, no mask: attention is faster, and there is nothing that a model could get wrong.
        self.mask_BL = None if bool(mask_BL.all()) else mask_BL.long()

    def logits_BV(self) -> Tensor:
        inputs = dict(self.options)
        if self.mask_BL is not None:
            inputs["attention_mask"] = self.mask_BL
            if self.takes_positions:
                position_BL = (self.mask_BL.cumsum(1) - 1).clamp(min=0)
                inputs["position_ids"] = position_BL[:, -self.ids_BL.shape[1] :]
        output = self.model(input_ids=self.ids_BL, past_key_values=self.cache, use_cache=True, **inputs)
        return output.logits[:, -1]

    def append(self, ids_B: Tensor) -> None:
        self.ids_BL = ids_B[:, None]
        if self.mask_BL is not None:
            self.mask_BL = torch.cat([self.mask_BL, torch.ones_like(self.ids_BL)], 1)

    def keep(self, rows_B: Tensor) -> None:
        self.cache.batch_select_indices(rows_B)
        self.ids_BL = self.ids_BL[rows_B]
        if self.mask_BL is not None:
            self.mask_BL = self.mask_BL[rows_B]


class _RereadingWriter(_Writer):
    """Reads the whole text for each token: right for any causal model, as rows are padded on the right."""

    def __init__(self, model: nn.Module, prompts: Sequence[Tokens], pad_id: int) -> None:
        self.model, self.pad_id = model, pad_id
        self.ids_BL = _stack(prompts, pad_id, left=False).to(_device(model))
        self.length_B = torch.tensor([len(prompt) for prompt in prompts], device=self.ids_BL.device)

    def logits_BV(self) -> Tensor:
        row_B = torch.arange(len(self.ids_BL), device=self.ids_BL.device)
        return self.model(self.ids_BL).logits[row_B, self.length_B - 1]

    def append(self, ids_B: Tensor) -> None:
        longer_BL = torch.nn.functional.pad(self.ids_BL, (0, 1), value=self.pad_id)
        self.ids_BL = longer_BL.scatter(1, self.length_B[:, None], ids_B[:, None])
        self.length_B = self.length_B + 1

    def keep(self, rows_B: Tensor) -> None:
        self.ids_BL, self.length_B = self.ids_BL[rows_B], self.length_B[rows_B]


def _writer(model: nn.Module, prompts: Sequence[Tokens], pad_id: int) -> _Writer:
    """A cached writer where the model's cache is of a kind that rows can be taken from, else a rereading one."""
    from transformers import DynamicCache, PreTrainedConfig
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    config = getattr(model, "config", None)
    if isinstance(config, PreTrainedConfig):
        cache = DynamicCache(config=config)
        # Exact types: layers derived from these (hybrids) hold further state, which taking rows would leave behind.
        if all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
            return _CachedWriter(model, cache, prompts, pad_id)
    return _RereadingWriter(model, prompts, pad_id)


def _write(
    writer: _Writer, uniform_BT: NDArray[np.float64], temperature: float, top_p: float, end_ids: Sequence[int]
) -> list[Sampled]:
    """Write all rows to their ends. Rows that have ended leave the batch."""
    rows, steps = uniform_BT.shape
    ids_BT, logps_BT = np.zeros((rows, steps), np.int32), np.zeros((rows, steps), np.float32)
    length, ended = np.full(rows, steps), np.zeros(rows, bool)
    active = np.arange(rows)
    for t in range(steps):
        logits_BV = writer.logits_BV().float()
        next_B = _draw(logits_BV, uniform_BT[active, t], temperature, top_p)
        logps_B = logits_BV.log_softmax(-1).gather(1, next_B[:, None])[:, 0]
        ids_BT[active, t], logps_BT[active, t] = next_B.cpu().numpy(), logps_B.cpu().numpy()
        over = np.isin(ids_BT[active, t], list(end_ids))
        ended[active[over]], length[active[over]] = True, t + 1
        active = active[~over]
        if not len(active) or t + 1 == steps:
            break
        writer.append(next_B)
        if over.any():
            writer.keep(torch.from_numpy(np.flatnonzero(~over)).to(next_B.device))
    if not np.isfinite(logps_BT).all():
        raise PreftuneError(
            "the model gave log-probs that are not finite while sampling, so its weights are damaged or training "
            "diverged: go back to an earlier checkpoint, or train with a lower learning rate"
        )
    return [
        Sampled(ids[:n].copy(), logps[:n].copy(), bool(end))
        for ids, logps, n, end in zip(ids_BT, logps_BT, length, ended, strict=True)
    ]


def _draw(logits_BV: Tensor, uniform_B: NDArray[np.float64], temperature: float, top_p: float) -> Tensor:
    """Next token of each row, by inversion of the distribution function at one uniform number per row."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    # A sum over a large vocabulary in fp32 loses rare tokens; Apple's devices have no fp64.
    precise = torch.float32 if logits_BV.device.type == "mps" else torch.float64
    p_BV = (logits_BV / temperature).softmax(-1, dtype=precise)
    order_BV = None
    if top_p < 1:
        p_BV, order_BV = p_BV.sort(dim=-1, descending=True, stable=True)
        p_BV = p_BV.where(p_BV.cumsum(-1) - p_BV < top_p, 0.0)
    mass_BV = p_BV.cumsum(-1)
    uniform_B1 = torch.from_numpy(uniform_B[:, None]).to(mass_BV)
    next_B1 = torch.searchsorted(mass_BV, uniform_B1 * mass_BV[:, -1:], right=True)
    next_B1 = next_B1.clamp(max=logits_BV.shape[-1] - 1)
    return (next_B1 if order_BV is None else order_BV.gather(1, next_B1))[:, 0]


def _stack(rows: Sequence[Tokens], pad_id: int, left: bool) -> Tensor:
    """Rows of token ids as one tensor (rows, longest), padded on one side."""
    longest = max(len(row) for row in rows)
    ids_BL = np.full((len(rows), longest), pad_id, np.int64)
    for ids_L, row in zip(ids_BL, rows, strict=True):
        ids_L[longest - len(row) if left else 0 :][: len(row)] = row
    return torch.from_numpy(ids_BL)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off, and afterwards as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _check(
    prompts: Sequence[Tokens], max_new_tokens: int, temperature: float, top_p: float, samples_per_prompt: int, seed: int
) -> None:
    empty = next((i for i, prompt in enumerate(prompts) if len(prompt) == 0), None)
    if empty is not None:
        raise PreftuneError(
            f"prompt {empty} has no tokens, but a response is predicted from the last token of its prompt: "
            "give it at least one, such as the tokenizer's start token"
        )
    for name, value, fits, expected in (
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "at least 1"),
        ("temperature", temperature, temperature >= 0, "0 (greedy) or more"),
        ("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1"),
        ("samples_per_prompt", samples_per_prompt, samples_per_prompt >= 1, "at least 1"),
        ("seed", seed, seed >= 0, "a whole number of at least 0"),
    ):
        if not fits:
            raise PreftuneError(f"{name} is {value}, but it must be {expected}")
