"""The built-in world of film reviews, where policies are sampled, and the optimum is found by importance sampling."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from preftune.evaluation.sampling import sample
from preftune.files import hash_file, write_whole
from preftune.sandbox import preferences as sandbox
from preftune.sandbox.world import (
    ADJECTIVES,
    ASPECTS,
    DEGREES,
    MAX_RESPONSE_TOKENS,
    NOT,
    PARTS,
    VERBS,
    components,
    prompts,
)
from preftune.studies.frontier.cells import Preferences, Split
from preftune.studies.frontier.reward_models import RewardScores
from preftune.studies.frontier.shared import once
from preftune.studies.frontier.worlds import Measured, World
from preftune.theory.frontier import SampledFrontier, best_of_n

if TYPE_CHECKING:
    from torch import nn

CERTAIN = 1e6
TASTES = ({"story": 2.0, "acting": 0.5, "craft": 0.5}, {"story": 0.5, "acting": 0.5, "craft": 2.0})
KNOWN_GENRES = ("comedy", "drama", "fantasy", "musical")  # that shifted preferences are about
CYCLE_CERTAINTY = 0.9
_SAMPLING_SEED, _POOL_SEED = 20, 21  # of policies, the same for all; of the reference
_POOLED = 256  # samples of the reference, for each prompt, that best of n draws from
Table = dict[str, NDArray[np.float64]]


def probability(source: str, first: str, second: str, taste: Mapping[str, float]) -> float:
    """How likely the first review is preferred to the second, before labels are flipped.

    Args:
        source: of `cells.SOURCES`; with "two_annotators" and "shifted", the taste decides.
        first: a review.
        second: another.
        taste: weight of each component.
    """
    parts = components(first), components(second)
    if source == "cyclic":
        leads = [PARTS.index(max(PARTS, key=each.__getitem__)) for each in parts]
        if leads[0] != leads[1]:  # story beats acting, acting beats craft, craft beats story
            return CYCLE_CERTAINTY if (leads[1] - leads[0]) % 3 == 1 else 1 - CYCLE_CERTAINTY
    weighs = source in ("two_annotators", "shifted")
    rewards = [sum(value * (taste[name] if weighs else 1.0) for name, value in each.items()) for each in parts]
    return sandbox.label_probability(*rewards, scale=CERTAIN if source == "deterministic" else World.scale)


class SandboxWorld(World):
    """See `World`. A quarter of the held-out prompts are to choose by, another to test on: few, so that there are many
    samples of the reference to each."""

    name = "sandbox"
    parts = PARTS
    longest = MAX_RESPONSE_TOKENS
    config: ClassVar[Mapping[str, Any]] = {}

    @property
    def start(self) -> str:  # noqa: D102
        return "sandbox"

    def reference(self) -> nn.Module:  # noqa: D102
        return sandbox.base_model()

    def fingerprint(self) -> str:  # noqa: D102
        rules = repr((ADJECTIVES, VERBS, DEGREES, NOT, ASPECTS, TASTES))
        weights = hash_file(sandbox.BASE / "model.safetensors")
        return hashlib.sha256(f"{weights} {rules}".encode()).hexdigest()

    @property
    def judge(self) -> str:  # noqa: D102
        return "sandbox"

    def prompts(self) -> Sequence[str]:  # noqa: D102
        return prompts()[0]

    def rows(self, preferences: Preferences, seed: int) -> list[dict[str, Any]]:  # noqa: D102
        return self._rows(preferences, seed, "train")

    def held_out_rows(self, preferences: Preferences, seed: int, split: Split) -> list[dict[str, Any]]:  # noqa: D102
        return self._rows(preferences, seed, split)

    def _rows(self, preferences: Preferences, seed: int, split: str) -> list[dict[str, Any]]:
        asked = self._split(split)
        if preferences.source == "shifted" and split == "train":
            asked = [prompt for prompt in asked if prompt.split()[2] in KNOWN_GENRES]
        rng = random.Random(f"labels {seed} {split}")
        rows = []
        for prompt, first, second in self._responses(asked, preferences, seed, split):
            taste = TASTES[rng.randrange(2)] if preferences.source == "two_annotators" else TASTES[0]
            p = probability(preferences.source, first, second, taste)
            better = rng.random() < p * (1 - preferences.noise) + (1 - p) * preferences.noise
            chosen, rejected = (first, second) if better else (second, first)
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        return rows

    def _responses(
        self, asked: Sequence[str], preferences: Preferences, seed: int, split: str
    ) -> list[tuple[str, str, str]]:
        """Two responses of the reference to each of so many prompts; sampled once for all sources."""
        kind = "shifted" if preferences.source == "shifted" else "all"

        def make(path: Path) -> None:
            drawn = sandbox.different_responses(preferences.pairs, asked, random.Random(f"responses {seed} {split}"))
            write_whole(path, json.dumps(drawn).encode())

        path = once(self.folder / "responses" / f"{kind}-{split}-{preferences.pairs}-{seed}.json", make)
        return [(str(a), str(b), str(c)) for a, b, c in json.loads(path.read_text(encoding="utf-8"))]

    def _split(self, split: str) -> Sequence[str]:
        train, held_out = prompts()
        if split == "train":
            return train
        mixed = random.Random(0).sample(held_out, len(held_out))  # their order goes by genre
        quarter = len(mixed) // 4
        return mixed[:quarter] if split == "validation" else mixed[quarter : 2 * quarter]

    def measure(  # noqa: D102
        self, lm: nn.Module, split: Split, preferences: Preferences, reward_model: Path | None = None
    ) -> Measured:
        asked = self._split(split)
        found = sandbox.evaluate_policy(
            lm, sandbox.base_model(), asked, samples_per_prompt=16 if self.quick else 64, seed=_SAMPLING_SEED
        )
        proxy = None
        if reward_model is not None:
            pool = self._pool(split)
            proxy = float(self._scores(reward_model, asked, found.samples).mean())
            proxy -= float(self._scores(reward_model, asked, [texts[:32] for texts in pool]).mean())
        win = self._win(preferences, found.samples, split)
        return self.measured(found.true_reward, found.components, found.kl, split, proxy, win)

    def best_of_n(  # noqa: D102
        self, n: int, split: Split, preferences: Preferences, reward_model: Path | None = None
    ) -> Measured:
        pool = self._pool(split)
        parts = {name: np.array([[components(text)[name] for text in texts] for texts in pool]) for name in PARTS}
        reward = np.sum(list(parts.values()), axis=0)
        scores = reward if reward_model is None else self._scores(reward_model, self._split(split), pool)
        # ties are given to the first: break them by chance, which texts in random order are already
        weight = best_of_n(torch.zeros(scores.shape), torch.from_numpy(scores), n).exp().numpy()
        mean = {name: float((weight * value).sum(1).mean()) for name, value in parts.items()}
        proxy = None if reward_model is None else float((weight * scores).sum(1).mean() - scores.mean())
        kl = math.log(n) - (n - 1) / n  # exact where no response comes twice, else a little too much
        return self.measured(sum(mean.values()), mean, kl, split, proxy)

    def curve(self, split: Split) -> SampledFrontier:  # noqa: D102
        table = self._samples(split)
        parts = {name: torch.from_numpy(table[name]) for name in PARTS}
        return SampledFrontier.of(
            torch.stack(list(parts.values())).sum(0), components=parts, least_effective=20.0 if self.quick else 50.0
        )

    def _samples(self, split: Split) -> Table:
        """Components of many responses of the reference to each prompt, shape (prompts, samples)."""
        each = 400 if self.quick else 3200

        def make(path: Path) -> None:
            rows = self._reference_texts(split, each, _POOL_SEED)
            values = {name: np.array([[components(t)[name] for t in texts] for texts in rows]) for name in PARTS}
            with path.open("wb") as file:
                np.savez(file, **values)  # type: ignore[arg-type]

        with np.load(once(self.folder / f"reference-{split}-{each}.npz", make)) as stored:
            return {name: stored[name] for name in PARTS}

    def _pool(self, split: Split) -> list[list[str]]:
        """Some responses of the reference to each prompt."""

        def make(path: Path) -> None:
            write_whole(path, json.dumps(self._reference_texts(split, _POOLED, _POOL_SEED + 1)).encode())

        path = once(self.folder / f"pool-{split}.json", make)
        found: list[list[str]] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def _reference_texts(self, split: Split, each: int, seed: int) -> list[list[str]]:
        tokenizer: Any = sandbox.base_tokenizer()
        asked = self._split(split)
        written = sample(
            sandbox.base_model(),
            [tokenizer.encode(prompt) for prompt in asked],
            max_new_tokens=MAX_RESPONSE_TOKENS,
            samples_per_prompt=each,
            seed=seed,
            end_ids=[tokenizer.eos_token_id],
            batch_size=1024,
            pad_id=tokenizer.pad_token_id,
        )
        texts = tokenizer.batch_decode([one.ids for one in written], skip_special_tokens=True)
        return [texts[start : start + each] for start in range(0, len(texts), each)]

    def _win(self, preferences: Preferences, samples: Sequence[Sequence[str]], split: Split) -> float | None:
        """How often responses are preferred to the reference's, each to one of them."""
        if preferences.source == "shifted":
            return None  # the taste that it learned from is not the one to be judged by
        tastes = TASTES if preferences.source == "two_annotators" else TASTES[:1]
        pool = self._pool(split)
        found = [
            probability(preferences.source, text, other, taste)
            for texts, others in zip(samples, pool, strict=True)
            for text, other in zip(texts, others, strict=False)
            for taste in tastes
        ]
        return float(np.mean(found))

    def _scores(self, reward_model: Path, asked: Sequence[str], texts: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """What a reward model says of texts, shape (prompts, texts of each)."""
        tokenizer: Any = sandbox.base_tokenizer()
        ids = [tokenizer.encode(prompt) for prompt in asked]
        flat = [text for group in texts for text in group]
        repeated = [prompt for prompt, group in zip(ids, texts, strict=True) for _ in group]
        responses = [[*tokenizer.encode(text), tokenizer.eos_token_id] for text in flat]
        return RewardScores(reward_model).of(repeated, responses).reshape(len(asked), -1)
