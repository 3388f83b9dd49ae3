import filecmp
import random
from pathlib import Path

import pytest
import torch

from preftune.sandbox.preferences import BASE, base_model, base_tokenizer
from preftune.sandbox.train_base import END, UNKNOWN, make_batch, make_tokenizer, save, train
from preftune.sandbox.world import prompts, sample_review, vocabulary


def texts(n: int) -> list[tuple[str, str]]:
    rng = random.Random(0)
    return [(prompt, sample_review(rng, prompt)) for prompt in rng.sample(prompts()[1], n)]


def test_the_shipped_model_is_small_and_plain() -> None:
    assert (BASE / "model.safetensors").stat().st_size <= 1_000_000
    assert not list(BASE.glob("*.py"))
    model = base_model()
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert sum(parameter.numel() for parameter in model.parameters()) < 110_000
    assert base_tokenizer().eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id


def test_the_shipped_tokenizer_is_the_one_of_the_script(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    assert filecmp.cmp(tmp_path / "tokenizer.json", BASE / "tokenizer.json", shallow=False)
    tokenizer = base_tokenizer()
    for word in vocabulary():
        assert tokenizer.convert_tokens_to_ids(word) != tokenizer.convert_tokens_to_ids(UNKNOWN)


def test_prompt_and_response_have_the_same_tokens_apart_and_together() -> None:
    tokenizer = base_tokenizer()
    for prompt, review in texts(100):
        apart = tokenizer.encode(prompt) + tokenizer.encode(review)
        assert tokenizer.encode(prompt + review) == apart
        assert tokenizer.encode(prompt + review.strip()) == apart, "a lost space does no harm"
        assert tokenizer.encode(prompt + review + END) == [*apart, tokenizer.eos_token_id]


def test_decoded_tokens_read_as_the_text_they_came_from() -> None:
    tokenizer = base_tokenizer()
    for prompt, review in texts(100):
        prompt_ids, review_ids = tokenizer.encode(prompt), tokenizer.encode(review)
        assert tokenizer.decode(prompt_ids) == prompt
        assert tokenizer.decode(review_ids) == review
        assert tokenizer.decode(prompt_ids + review_ids) == prompt + review
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("The zebra.")) == ["The", UNKNOWN, "."]


def test_batches_predict_the_review_and_its_end_alone() -> None:
    tokenizer = make_tokenizer()
    ids_BL, targets_BL = make_batch(tokenizer, random.Random(1), 8)
    for ids_L, targets_L in zip(ids_BL, targets_BL, strict=True):
        read = targets_L != -100
        assert (ids_L[1:][read[:-1]] == targets_L[:-1][read[:-1]]).all()
        assert not read[:6].any()
        assert read[6], "the last token of the prompt predicts the first of the review"
        assert targets_L[read][-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids_L[:7]) in prompts()[0]


def test_training_is_deterministic_and_saves_what_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = train(steps=3, batch_size=4), train(steps=3, batch_size=4)
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert "nats per token" in capsys.readouterr().out
    save(first, make_tokenizer(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in BASE.iterdir()}
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in tmp_path.iterdir())
    assert (tmp_path / "config.json").read_text() == (BASE / "config.json").read_text()
