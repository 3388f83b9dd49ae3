"""The frontier between true reward and KL in the built-in world, by importance sampling from its base model.

Sampling is done once: what the responses are worth is kept in the cache folder.

    curve = frontier()                       # of PROMPTS, 16 held-out prompts with 6,250 responses each
    curve.gain_share(true_reward, kl)        # as `evaluate_policy(model, base_model(), PROMPTS)` measures them

Samples of the base model alone reach to about 2 nats. Where policies that moved further are at hand, they can propose
responses as well: each sample then weighs as much as the base model's probability over the mean of all proposals'.

Tensor names carry their shape: P prompts, S samples of a prompt, N samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from preftune.data import entries
from preftune.errors import PreftuneError
from preftune.evaluation.sampling import Sampled, sample
from preftune.sandbox import world
from preftune.sandbox.preferences import BASE, base_model, base_tokenizer
from preftune.sandbox.world import MAX_RESPONSE_TOKENS, PARTS, components
from preftune.theory.frontier import SampledFrontier

if TYPE_CHECKING:
    from torch import nn

_HELD_OUT = world.prompts()[1]
# Two of each genre, of all looks: few, so that each has many samples.
PROMPTS = tuple(_HELD_OUT[9 * i % len(_HELD_OUT)] for i in range(16))
_WRITTEN_AT_ONCE, _READ_AT_ONCE = 1024, 512


def frontier(
    prompts: Sequence[str] = PROMPTS,
    *,
    samples: int = 100_000,
    seed: int = 0,
    proposals: Sequence[nn.Module] = (),
    least_effective: float = 100.0,
) -> SampledFrontier:
    """The frontier on average over some prompts, with the parts of the reward.

    Args:
        prompts: of this world.
        samples: in all; prompts share them alike.
        seed: whole number >= 0, of the samples.
        proposals: models that propose responses beside the base model, as many each; for instance trained policies.
        least_effective: effective sample size of a prompt at which the curve is cut.

    Raises:
        PreftuneError: if there are fewer samples than prompts and proposals.
        ValueError: if the curve has no point beside the reference.
    """
    each = samples // (len(prompts) * (1 + len(proposals))) if prompts else 0
    if each < 1:
        raise PreftuneError(
            f"{samples} samples are too few for {len(prompts)} prompts and {1 + len(proposals)} models that sample: "
            "give at least one for each of both"
        )
    if proposals:
        table = _sampled(prompts, each, seed, proposals)
    else:
        code = hashlib.sha256(Path(world.__file__).read_bytes()).hexdigest()
        weights = hashlib.sha256((BASE / "model.safetensors").read_bytes()).hexdigest()
        key = entries.key_of("frontier", code, weights, list(prompts), each, seed)

        def make(folder: Path) -> entries.About:
            np.save(folder / "table.npy", _sampled(prompts, each, seed, ()))
            return {}

        # an entry that is not kept lives as long as it is held
        entry = entries.fetch("frontier", key, make)
        table = np.load(entry.folder / "table.npy")
    *parts, log_weight_PS = torch.from_numpy(table)
    return SampledFrontier.of(
        sum(parts), log_weight_PS, dict(zip(PARTS, parts, strict=True)), least_effective=least_effective
    )


def _sampled(prompts: Sequence[str], each: int, seed: int, proposals: Sequence[nn.Module]) -> np.ndarray:
    """Parts of the reward of samples of all models, and log of base over summed proposal probability: (4, P, S)."""
    tokenizer, base = base_tokenizer(), base_model()
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    models = [base, *proposals]
    drawn = [
        sample(
            model,
            ids,
            max_new_tokens=MAX_RESPONSE_TOKENS,
            samples_per_prompt=each,
            seed=seed + i,
            end_ids=[tokenizer.eos_token_id],
            batch_size=_WRITTEN_AT_ONCE,
            pad_id=tokenizer.pad_token_id,
        )
        for i, model in enumerate(models)
    ]
    # samples to one prompt side by side, whoever drew them
    by_prompt = [one for p in range(len(prompts)) for found in drawn for one in found[p * each : (p + 1) * each]]
    texts = tokenizer.batch_decode([one.ids for one in by_prompt], skip_special_tokens=True)
    parts = [components(text) for text in texts]
    log_weight_N = torch.zeros(len(by_prompt))
    if proposals:
        repeated = [prompt for prompt in ids for _ in range(each * len(models))]
        logps_MN = torch.stack([response_logps(model, repeated, by_prompt) for model in models])
        log_weight_N = logps_MN[0] - logps_MN.logsumexp(0)
    columns = [*([part[name] for part in parts] for name in PARTS), log_weight_N.tolist()]
    return np.reshape(columns, (len(columns), len(prompts), -1))


def response_logps(model: nn.Module, prompts: Sequence[Sequence[int]], responses: Sequence[Sampled]) -> Tensor:
    """Log-probability of each response to its prompt under a model, nats, shape (responses,).

    Args:
        model: of the base model's vocabulary; put it into evaluation mode.
        prompts: token ids of the prompt of each response.
        responses: what was sampled.
    """
    found = torch.zeros(len(responses))
    order = sorted(range(len(responses)), key=lambda i: -(len(prompts[i]) + len(responses[i].ids)))
    for start in range(0, len(order), _READ_AT_ONCE):
        rows = order[start : start + _READ_AT_ONCE]
        longest = max(len(prompts[i]) + len(responses[i].ids) for i in rows)
        # a causal model reads nothing to the right, so any token may fill up there
        ids_BL = torch.zeros(len(rows), longest, dtype=torch.long)
        asked_BL = torch.zeros(len(rows), longest - 1, dtype=torch.bool)
        for row, i in enumerate(rows):
            begin, end = len(prompts[i]), len(prompts[i]) + len(responses[i].ids)
            ids_BL[row, :end] = torch.tensor([*prompts[i], *responses[i].ids.tolist()])
            asked_BL[row, begin - 1 : end - 1] = True
        with torch.no_grad():
            logps_BLV = model(ids_BL).logits[:, :-1].float().log_softmax(-1)
        token_BL = logps_BLV.gather(-1, ids_BL[:, 1:, None])[..., 0]
        found[torch.tensor(rows)] = torch.where(asked_BL, token_BL, 0).sum(1)
    return found
