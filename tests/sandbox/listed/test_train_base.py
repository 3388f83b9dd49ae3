import filecmp
import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from preftune.sandbox import listed
from preftune.sandbox.listed.train_base import make_batch, make_tokenizer, next_word_weights, sample_response, train
from preftune.sandbox.train_base import save


def test_the_shipped_model_is_small_and_plain() -> None:
    folder = listed.reference_folder()
    assert (folder / "model.safetensors").stat().st_size < 150_000
    model = listed.reference_model()
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.vocab_size == 8 == len(listed.tokenizer())
    assert model.config.eos_token_id == listed.tokenizer().eos_token_id == listed.END


def test_the_shipped_tokenizer_is_the_one_of_the_script(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    assert filecmp.cmp(tmp_path / "tokenizer.json", listed.reference_folder() / "tokenizer.json", shallow=False)


def test_the_reference_has_learnt_the_language() -> None:
    prompt, n = listed.TEST[3], 4000
    words, rng = listed.words_of(prompt), random.Random(0)
    counts = Counter(tuple(sample_response(rng, words)) for _ in range(n))
    logp = dict(zip(map(tuple, listed.response_ids()), listed.reference_logps([prompt])[0].tolist(), strict=True))
    # cross-entropy of the language under the model, against the language itself
    model_nats = -sum(count * logp[said] for said, count in counts.items()) / n
    assert model_nats == pytest.approx(language_entropy(words), abs=0.15)


def language_entropy(prompt: tuple[int, ...]) -> float:
    """Entropy of responses, by recursion over words said."""

    def left(said: tuple[int, ...]) -> float:
        if len(said) == listed.LONGEST:
            return 0.0
        end = torch.tensor([0.0, 0.15, 0.25, 0.35][len(said)])
        p = torch.tensor(next_word_weights(prompt, said))
        p = p / p.sum()
        here = float(torch.special.entr(end) + torch.special.entr((1 - end) * p).sum())
        return here + sum(float((1 - end) * p[word]) * left((*said, word)) for word in range(7))

    return left(())


def test_batches_predict_responses_alone() -> None:
    ids_BT, targets_BT = make_batch(random.Random(1), 16)
    assert ids_BT.shape == targets_BT.shape == (16, 7)
    assert (targets_BT[:, :2] == -100).all()
    assert (targets_BT[:, 2] != -100).all()
    read = targets_BT[:, :-1] != -100
    assert (ids_BT[:, 1:][read] == targets_BT[:, :-1][read]).all()


def test_training_is_deterministic_and_saves_what_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = train(steps=3, batch_size=4), train(steps=3, batch_size=4)
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert "nats per token" in capsys.readouterr().out
    save(first, make_tokenizer(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in listed.reference_folder().iterdir()}
    assert (tmp_path / "config.json").read_text() == (listed.reference_folder() / "config.json").read_text()
