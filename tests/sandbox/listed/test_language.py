import itertools
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from preftune.data.records import Preference, Where
from preftune.data.rendering import Renderer, RenderingConfig
from preftune.errors import PreftuneError
from preftune.evaluation.sampling import sample
from preftune.sandbox import listed


class Recurrent(nn.Module):
    """A model without a cache of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix, self.head = nn.Embedding(8, 12), nn.GRU(12, 12, batch_first=True), nn.Linear(12, 8)

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=3 * self.head(self.mix(self.embed(input_ids))[0]))


def one_by_one(lm: nn.Module, prompt: str, responses: list[int]) -> list[float]:
    """Log-probability of each response, by a forward of its own."""
    asked, ids, found = list(listed.words_of(prompt)), listed.response_ids(), []
    for place in responses:
        with torch.no_grad():
            logps = lm(torch.tensor([asked + ids[place]])).logits[0].double().log_softmax(-1)
        found.append(sum(float(logps[len(asked) - 1 + i, token]) for i, token in enumerate(ids[place])))
    return found


def test_all_there_is_to_say_is_listed() -> None:
    assert len(listed.RESPONSES) == len(set(listed.RESPONSES)) == 1 + 7 + 49 + 343 + 2401
    assert all(listed.index_of(text) == i for i, text in enumerate(listed.RESPONSES))
    assert listed.index_of(" cefa") == listed.index_of("c e f a")
    ids = listed.response_ids()
    assert ids[0] == [listed.END]
    assert ids[-1] == [6, 6, 6, 6]
    assert ids[8] == [0, 0, listed.END]
    assert {len(each) for each in ids} == {1, 2, 3, 4}


def test_prompts_are_split_so_that_all_words_meet_on_all_sides() -> None:
    splits = (listed.TRAIN, listed.VALIDATION, listed.TEST)
    assert [len(split) for split in splits] == [245, 49, 49]
    assert set().union(*splits) == set(listed.PROMPTS)
    for split, (i, j) in itertools.product(splits, itertools.combinations(range(3), 2)):
        assert len({(text.split()[i], text.split()[j]) for text in split}) == 49


@pytest.mark.parametrize("text", ["a x", "a b c d e", "a, b"])
def test_what_is_no_response_is_refused(text: str) -> None:
    with pytest.raises(PreftuneError, match="listed world"):
        listed.index_of(text)


def test_probabilities_sum_to_one_and_are_those_of_single_forwards() -> None:
    lm, prompts = listed.reference_model(), listed.TEST[:3]
    with torch.no_grad():
        logps_PY = listed.all_logps(lm, prompts)
        torch.testing.assert_close(logps_PY.exp().sum(-1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-6)
        places = [0, 1, 7, 8, 56, 57, 300, 399, 400, 1234, 2800]
        for prompt, logps_Y in zip(prompts, logps_PY, strict=True):
            assert logps_Y[places].tolist() == pytest.approx(one_by_one(lm, prompt, places), abs=1e-5)
    torch.testing.assert_close(listed.reference_logps(prompts), logps_PY, rtol=0, atol=1e-5)


def test_any_causal_module_will_do() -> None:
    lm = Recurrent()
    logps_PY = listed.all_logps(lm, listed.TEST[:2])
    torch.testing.assert_close(logps_PY.exp().sum(-1), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-6)
    places = [0, 5, 40, 200, 1111]
    assert logps_PY[1, places].detach().tolist() == pytest.approx(one_by_one(lm, listed.TEST[1], places), abs=1e-5)
    logps_PY[:, 5].sum().backward()
    assert lm.mix.weight_hh_l0.grad.abs().sum() > 0


def test_texts_become_the_tokens_that_are_listed() -> None:
    renderer = Renderer(listed.tokenizer(), RenderingConfig(**listed.RENDERING))
    ids = listed.response_ids()
    for place, other in ((3, 2800), (56, 57), (399, 400), (1500, 20)):
        chosen, rejected = f" {listed.RESPONSES[place]}", f" {listed.RESPONSES[other]}"
        example = renderer.example(Preference("b e a", chosen, rejected, Where("test", 0)))
        assert example.prompt.tolist() == list(listed.words_of("b e a"))
        assert [each.ids.tolist() for each in example.responses] == [ids[place], ids[other]]
        written = listed.tokenizer().decode(example.responses[0].ids, skip_special_tokens=True)
        assert listed.index_of(written) == place


def test_samples_come_as_often_as_they_are_probable() -> None:
    prompt, n = listed.TEST[5], 20_000
    found = sample(
        listed.reference_model(),
        [listed.words_of(prompt)],
        max_new_tokens=listed.LONGEST,
        samples_per_prompt=n,
        seed=0,
        end_ids=[listed.END],
        batch_size=n,
        pad_id=listed.END,
    )
    texts = listed.tokenizer().batch_decode([each.ids for each in found], skip_special_tokens=True)
    counts = Counter(listed.index_of(text) for text in texts)
    p_Y = listed.reference_logps([prompt])[0].exp().numpy()
    often = p_Y * n >= 10
    expected, counted = p_Y[often] * n, np.array([counts[i] for i in np.flatnonzero(often)])
    chi_squared = ((counted - expected) ** 2 / expected).sum()
    assert often.sum() > 100
    assert abs(chi_squared - often.sum()) < 4 * np.sqrt(2 * often.sum())
