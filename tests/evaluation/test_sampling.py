import itertools
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from preftune.errors import PreftuneError
from preftune.evaluation.sampling import Sampled, kl_on_samples, sample

END, PAD = 0, 1
SMALL = {"vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32, "head_dim": 8}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SMALL, **HEADS),
    "qwen3": Qwen3Config(**SMALL, **HEADS),
    "mistral, window 4": MistralConfig(**SMALL, **HEADS, sliding_window=4),
    "gemma3, window 4": Gemma3TextConfig(
        **SMALL, **HEADS, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    ),
    "gpt2": GPT2Config(vocab_size=24, n_embd=16, n_layer=2, n_head=2),
    "bloom (alibi)": BloomConfig(vocab_size=24, hidden_size=16, n_layer=2, n_head=2),
    "mamba (no keys and values)": MambaConfig(**SMALL, state_size=4),
}


class LSTM(nn.Module):
    """What a user might bring: no configuration, no cache."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.head = nn.Embedding(24, 16), nn.LSTM(16, 16, batch_first=True), nn.Linear(16, 24)

    def forward(self, ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.lstm(self.embed(ids))[0]))


class Bigram(nn.Module):
    """Exact probabilities in reach: the next token depends on the last one alone."""

    def __init__(self, seed: int, vocabulary: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.logits_VV = nn.Parameter(1.5 * torch.randn(vocabulary, vocabulary, generator=generator))

    def forward(self, ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits_VV[ids])


def tiny(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "lstm":
        return LSTM()
    model = AutoModelForCausalLM.from_config(CONFIGS[name])
    for parameter in model.parameters():  # away from the near-uniform start
        if parameter.dim() > 1 and name != "mamba (no keys and values)":
            nn.init.normal_(parameter, std=0.3)
    return model


def draw(model: nn.Module, prompts: list[list[int]], **options: object) -> list[Sampled]:
    settings = {"max_new_tokens": 12, "seed": 0, "end_ids": [END], "pad_id": PAD} | options
    return sample(model, prompts, **settings)


PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [5, 6, 7], [16, 17]]


@pytest.mark.parametrize("name", [*CONFIGS, "lstm"])
def test_logps_equal_a_plain_forward_and_do_not_depend_on_the_batch(name: str) -> None:
    model = tiny(name)
    responses = draw(model, PROMPTS, samples_per_prompt=3, temperature=0.8, top_p=0.95)
    model.eval()
    for i, response in enumerate(responses):
        prompt = PROMPTS[i // 3]
        with torch.no_grad():
            logits_LV = model(torch.tensor([prompt + response.ids.tolist()])).logits[0]
        logps_LV = logits_LV[len(prompt) - 1 : -1].log_softmax(-1)
        expected = logps_LV.gather(1, torch.from_numpy(response.ids).long()[:, None])[:, 0]
        np.testing.assert_allclose(response.logps, expected.numpy(), atol=1e-5)
    assert len({len(response.ids) for response in responses}) > 1, "rows must end at different times"
    for batch_size in (1, 4):
        again = draw(model, PROMPTS, samples_per_prompt=3, temperature=0.8, top_p=0.95, batch_size=batch_size)
        for one, other in zip(responses, again, strict=True):
            assert one.ids.tolist() == other.ids.tolist()
            np.testing.assert_allclose(one.logps, other.logps, atol=1e-5)


def test_greedy_equals_the_generation_of_transformers() -> None:
    model = tiny("qwen3").eval()
    for prompt, response in zip(PROMPTS, draw(model, PROMPTS, temperature=0.0), strict=True):
        expected = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=END,
            pad_token_id=PAD,
        )
        assert response.ids.tolist() == expected[0, len(prompt) :].tolist()


def test_a_response_depends_on_seed_prompt_index_and_sample_index_alone() -> None:
    model = tiny("qwen3")
    four = draw(model, PROMPTS, samples_per_prompt=4)
    two = draw(model, PROMPTS[:2], samples_per_prompt=2)
    assert [r.ids.tolist() for r in two] == [four[i].ids.tolist() for i in (0, 1, 4, 5)]
    assert [r.ids.tolist() for r in draw(model, PROMPTS, samples_per_prompt=4)] == [r.ids.tolist() for r in four]
    assert [r.ids.tolist() for r in draw(model, PROMPTS, samples_per_prompt=4, seed=1)] != [
        r.ids.tolist() for r in four
    ]
    assert four[0].ids.tolist() != four[12].ids.tolist(), "the same prompt at another index draws anew"


def test_responses_end_with_the_end_token_or_are_cut() -> None:
    responses = draw(tiny("qwen3"), PROMPTS, samples_per_prompt=20, max_new_tokens=5)
    assert {response.ended for response in responses} == {True, False}
    for response in responses:
        assert len(response.ids) == len(response.logps) <= 5
        assert (response.ids == END).sum() == response.ended
        assert response.ids[-1] == END if response.ended else len(response.ids) == 5


def exact(model: Bigram, start: int, steps: int, temperature: float, top_p: float) -> dict[tuple[int, ...], float]:
    """Probability of every response, by enumeration."""
    tables = []
    for logits_V in model.logits_VV.detach().double().numpy():
        p_V = np.exp(logits_V / temperature) / np.exp(logits_V / temperature).sum()
        kept, mass = np.zeros_like(p_V), 0.0
        for token in np.argsort(-p_V):
            if mass < top_p:
                kept[token] = p_V[token]
            mass += p_V[token]
        tables.append(kept / kept.sum())
    found: dict[tuple[int, ...], float] = {}
    for ids in itertools.product(range(len(tables)), repeat=steps):
        ids = ids[: ids.index(END) + 1] if END in ids else ids
        found[ids] = float(np.prod([tables[a][b] for a, b in zip((start, *ids), ids, strict=False)]))
    return found


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.5, 0.7)])
def test_frequencies_equal_exact_probabilities(temperature: float, top_p: float) -> None:
    n, model = 20_000, Bigram(0)
    responses = draw(
        model,
        [[3]],
        max_new_tokens=3,
        samples_per_prompt=n,
        temperature=temperature,
        top_p=top_p,
        batch_size=5000,
    )
    counts = Counter(tuple(response.ids.tolist()) for response in responses)
    expected = exact(model, 3, 3, temperature, top_p)
    assert sum(expected.values()) == pytest.approx(1)
    assert all(expected[ids] > 0 for ids in counts)
    # Chi-square over responses expected 5 times or more, the rest taken together; its mean is `cells`, its variance
    # twice that.
    common = {ids: p for ids, p in expected.items() if n * p >= 5}
    chi2 = sum((counts[ids] - n * p) ** 2 / (n * p) for ids, p in common.items())
    rest = 1 - sum(common.values())
    rare = n - sum(counts[ids] for ids in common)
    assert rare <= n * rest + 5 * np.sqrt(n * rest) + 5
    cells = len(common) - 1
    assert chi2 < cells + 4 * np.sqrt(2 * cells)


def test_kl_on_samples_estimates_the_exact_divergence_of_responses() -> None:
    policy, reference = Bigram(0), Bigram(1)
    responses = draw(policy, [[3]], max_new_tokens=4, samples_per_prompt=4000, batch_size=4000)
    measured = kl_on_samples(policy, reference, [[3]] * 4000, responses, batch_size=999)
    p, q = exact(policy, 3, 4, 1.0, 1.0), exact(reference, 3, 4, 1.0, 1.0)
    expected = sum(p[ids] * np.log(p[ids] / q[ids]) for ids in p)
    standard_error = measured.std() / np.sqrt(len(measured))
    assert expected > 0.5
    assert abs(measured.mean() - expected) < 4 * standard_error
    assert standard_error < 0.05 * expected
    assert (kl_on_samples(policy, policy, [[3]] * 4000, responses) == 0).all()


def test_kl_on_samples_does_not_depend_on_padding() -> None:
    policy, reference = tiny("qwen3"), tiny("llama")
    prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    responses = draw(policy, PROMPTS, samples_per_prompt=2)
    together = kl_on_samples(policy, reference, prompts, responses)
    alone = np.concatenate(
        [kl_on_samples(policy, reference, [p], [r]) for p, r in zip(prompts, responses, strict=True)]
    )
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_dropout_is_off_while_sampling_and_modes_come_back() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(24, 24), nn.Dropout(0.5))
    model.append(nn.Linear(24, 24).eval())
    wrapped = LogitsOf(model).train()
    model[2].eval()
    first = draw(wrapped, PROMPTS, seed=3)
    assert [r.logps.tolist() for r in first] == [r.logps.tolist() for r in draw(wrapped, PROMPTS, seed=3)]
    assert model.training
    assert model[1].training
    assert not model[2].training


class LogitsOf(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.inner(ids))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0, but it must be 0"),
        ({"top_p": 0.0}, "top_p is 0.0, but it must be above 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, but it must be at least 1"),
        ({"samples_per_prompt": 0}, "samples_per_prompt is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(PreftuneError, match=message):
        draw(Bigram(0), [[3]], **options)


def test_an_empty_prompt_and_a_broken_model_are_refused() -> None:
    with pytest.raises(PreftuneError, match="prompt 1 has no tokens"):
        draw(Bigram(0), [[3], []])
    broken = Bigram(0)
    broken.logits_VV.data[2] = float("nan")
    with pytest.raises(PreftuneError, match="not finite"):
        draw(broken, [[2]])
    assert draw(broken, []) == []
