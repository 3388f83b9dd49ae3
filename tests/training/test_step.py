from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import miniatures
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from preftune.data.examples import Example
from preftune.data.packing import pack
from preftune.errors import PreftuneError
from preftune.objectives import terms
from preftune.policy.loading import LoraConfig, ModelConfig, adapt
from preftune.policy.policy import PolicyModule, logps
from preftune.policy.reference import FrozenReference, ReferenceConfig
from preftune.training.optim import OptimConfig, optimizer
from preftune.training.references import live_reference, reference_for
from preftune.training.scored import fetch
from preftune.training.step import Micro, Step

DPO = terms([{"name": "dpo", "beta": 0.3}])
STATES: tuple[dict, ...] = ({},)


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def micros(*groups: Sequence[Example]) -> list[Micro]:
    return [Micro(group, pack(group)) for group in groups or (miniatures.pairs(),)]


def weights(lm: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in lm.named_parameters()}


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("name", ["dpo", "ipo"])
def test_promise_09_the_first_loss_is_that_of_no_preference(accelerator, adapter, name):
    lm: Any = miniatures.build("qwen2", attention_dropout=0.3)
    if adapter:
        lm = adapt(lm, ModelConfig(lora=LoraConfig(r=2, dropout=0.3)), seed=0)
    policy = PolicyModule(lm, "tree").train()
    frozen = live_reference(ReferenceConfig(), ModelConfig(), policy, torch.device("cpu"))
    objective = terms([{"name": name, **({"beta": 0.3} if name == "dpo" else {"tau": 0.25})}])
    step = Step(policy, reference_for(frozen, policy, policy), objective, accelerator, seed=0)
    # DPO: -log sigmoid(0); IPO: (0 - 1 / (2 tau))^2
    expected = math.log(2) if name == "dpo" else 4.0
    assert step.evaluate(micros(), STATES).loss == pytest.approx(expected, abs=1e-6)


def test_gradients_are_those_of_the_loss_written_out(accelerator):
    lm = miniatures.build("llama")
    examples = miniatures.pairs()
    expected = miniatures.plain(lm, examples)

    class Made(FrozenReference):
        def __init__(self) -> None: ...

        def logps(self, batch: Any, examples: Any) -> Any:
            from preftune.objectives.batch import LogProbs

            return LogProbs(expected.reference_K.float())

    policy = PolicyModule(lm, "tree")
    step = Step(policy, Made(), terms([{"name": "dpo", "beta": miniatures.BETA}]), accelerator, seed=0)
    optim = torch.optim.SGD(policy.parameters(), lr=1.0)
    before = weights(lm)
    scored = step.train(micros(), STATES, optim, 0, None)
    scale = max(float(g.abs().max()) for g in expected.gradients.values())
    for name, after in weights(lm).items():
        assert (before[name] - after - expected.gradients[name]).abs().max() <= miniatures.EXACT * max(scale, 1), name
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in expected.gradients.values()))
    assert scored.gradient_norm == pytest.approx(norm, rel=1e-4)


def test_clipping_shortens_the_step_and_reports_the_norm_before(accelerator):
    moves, norms = {}, {}
    for limit in (None, 0.01):
        lm = miniatures.build("llama")
        policy = PolicyModule(lm, "tree")
        reference = FrozenReference(PolicyModule(miniatures.build("llama", seed=1), "tree"))
        step = Step(policy, reference, DPO, accelerator, seed=0)
        before = weights(lm)
        norms[limit] = step.train(
            micros(), STATES, torch.optim.SGD(policy.parameters(), lr=1.0), 0, limit
        ).gradient_norm
        moves[limit] = math.sqrt(sum(float((p - before[n]).square().sum()) for n, p in weights(lm).items()))
    assert norms[None] == norms[0.01] == pytest.approx(moves[None], rel=1e-3)
    assert moves[0.01] == pytest.approx(0.01, rel=1e-2)
    assert moves[None] > 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_not_taken_and_names_its_rows(accelerator, value):
    lm: Any = miniatures.build("llama")
    examples = [miniatures.pair(4, 3, 2, row) for row in (5, 7)]
    policy = PolicyModule(lm, "tree")
    step = Step(policy, FrozenReference.copy_of(policy), DPO, accelerator, seed=0)
    with torch.no_grad():
        lm.model.norm.weight[0] = value
    before = weights(lm)
    scored = step.train(micros(examples), STATES, optimizer(policy, OptimConfig(), 1e-3), 3, 1.0)
    with pytest.raises(PreftuneError, match=r"gradient of step 4 is not finite .*rows \[5, 7\]"):
        scored.require_finite()
    for name, after in weights(lm).items():
        torch.testing.assert_close(after, before[name], rtol=0, atol=0, equal_nan=True)


def test_no_step_is_taken_after_one_that_is_not_finite(accelerator):
    """Whenever the host looks, the weights are those before the first such step, and it is the one that is named."""
    policy = PolicyModule(miniatures.build("llama"), "tree")
    step = Step(policy, FrozenReference(PolicyModule(miniatures.build("llama", seed=1), "tree")), DPO, accelerator, 0)
    optim = optimizer(policy, OptimConfig(), 1e-3)
    broken = miniatures.pair(5, 4, 3, 8, weight=math.nan)
    window = [step.train(micros(), STATES, optim, 0, 1.0)]
    good = weights(policy)
    window += [step.train(micros([broken]), STATES, optim, 1, 1.0), step.train(micros(), STATES, optim, 2, 1.0)]
    for name, after in weights(policy).items():
        assert torch.equal(after, good[name]), name
    first, second, third = fetch(window)
    first.require_finite()
    third.require_finite()
    with pytest.raises(PreftuneError, match=r"of step 2 is not finite \(loss nan, rows \[8\]\): it was not taken"):
        second.require_finite()


def test_an_optimiser_that_reads_no_flag_is_kept_from_its_step_by_the_host(accelerator):
    policy = PolicyModule(miniatures.build("llama"), "tree")
    step = Step(policy, FrozenReference.copy_of(policy), DPO, accelerator, 0)
    before = weights(policy)
    broken = [miniatures.pair(5, 4, 3, 8, weight=math.inf)]
    with pytest.raises(PreftuneError, match=r"the gradient of step 1 is not finite .* nothing was trained yet"):
        step.train(micros(broken), STATES, torch.optim.SGD(policy.parameters(), lr=1.0, fused=False), 0, 1.0)
    for name, after in weights(policy).items():
        assert torch.equal(after, before[name]), name


def test_what_is_fetched_together_is_what_is_asked_for_one_by_one(accelerator):
    policy = PolicyModule(miniatures.build("llama"), "tree")
    step = Step(policy, FrozenReference(PolicyModule(miniatures.build("llama", seed=1), "tree")), DPO, accelerator, 0)
    optim = optimizer(policy, OptimConfig(), 1e-3)
    same = miniatures.pairs()
    scored = [step.train(micros(same, same), STATES, optim, number, 1.0) for number in range(3)]
    for one, other in zip(scored, fetch(scored), strict=True):
        assert (one.loss, one.gradient_norm, one.step, one.rows) == (
            other.loss,
            other.gradient_norm,
            other.step,
            other.rows,
        )
        for piece, same_piece in zip(one.columns, other.columns, strict=True):
            assert piece.keys() == same_piece.keys()
            assert all(torch.equal(value, same_piece[name]) for name, value in piece.items())
    assert fetch([]) == []


def test_dropout_is_a_function_of_seed_step_and_forward_alone(accelerator):
    def losses(seed: int, step_number: int, disturbance: int) -> float:
        policy = PolicyModule(miniatures.build("llama", attention_dropout=0.5), "tree")
        reference = FrozenReference.copy_of(policy)
        step = Step(policy, reference, DPO, accelerator, seed)
        torch.manual_seed(disturbance)
        torch.rand(disturbance)
        return step.train(micros(), STATES, optimizer(policy, OptimConfig(), 1e-3), step_number, 1.0).loss

    first = losses(0, 0, 1)
    assert losses(0, 0, 2) == first
    assert len({first, losses(1, 0, 1), losses(0, 1, 1)}) == 3


def test_forwards_of_one_step_draw_different_dropout(accelerator):
    policy = PolicyModule(miniatures.build("llama", attention_dropout=0.5), "tree")
    step = Step(policy, FrozenReference.copy_of(policy), DPO, accelerator, 0)
    same = miniatures.pairs()
    scored = step.train(micros(same, same), STATES, optimizer(policy, OptimConfig(), 1e-3), 0, 1.0)
    first, second = (piece["chosen_logp"] for piece in scored.columns)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e29])
@pytest.mark.parametrize("cut", [False, True])
def test_weights_count_by_their_ratio_alone(accelerator, scale, cut):
    def trained(by: float) -> tuple[float, dict[str, Tensor]]:
        policy = PolicyModule(miniatures.build("llama"), "tree")
        reference = FrozenReference(PolicyModule(miniatures.build("llama", seed=1), "tree"))
        step = Step(policy, reference, DPO, accelerator, 0)
        weighted = [miniatures.pair(5, 4, 3, row, weight=by * (row + 1)) for row in range(2)]
        given = micros(*([one] for one in weighted)) if cut else micros(weighted)
        loss = step.train(given, STATES, torch.optim.SGD(policy.parameters(), lr=1.0), 0, None).loss
        return loss, weights(policy)

    (loss, after), (scaled_loss, scaled_after) = trained(1.0), trained(scale)
    assert scaled_loss == pytest.approx(loss, rel=1e-5)
    for name, value in after.items():
        torch.testing.assert_close(scaled_after[name], value, rtol=1e-4, atol=1e-5)


def test_a_batch_without_weight_has_loss_0_and_moves_nothing(accelerator):
    policy = PolicyModule(miniatures.build("llama"), "tree")
    reference = FrozenReference(PolicyModule(miniatures.build("llama", seed=1), "tree"))
    step = Step(policy, reference, DPO, accelerator, 0)
    weightless = micros([miniatures.pair(5, 4, 3, row, weight=0.0) for row in range(2)])
    before = weights(policy)
    scored = step.train(weightless, STATES, torch.optim.SGD(policy.parameters(), lr=1.0), 0, None)
    assert (scored.loss, scored.gradient_norm) == (0.0, 0.0)
    assert step.evaluate(weightless, STATES).loss == 0.0
    for name, value in weights(policy).items():
        assert torch.equal(value, before[name])


def test_a_mix_is_the_weighted_sum_of_its_terms(accelerator):
    policy = PolicyModule(miniatures.build("llama"), "tree")
    reference = FrozenReference(PolicyModule(miniatures.build("llama", seed=1), "tree"))

    def loss(spec: Any) -> float:
        objective = terms(spec)
        return Step(policy, reference, objective, accelerator, 0).evaluate(micros(), STATES * len(objective)).loss

    dpo, sft = loss({"name": "dpo", "beta": 0.3}), loss("sft")
    mix = loss([{"name": "dpo", "beta": 0.3, "weight": 0.5}, {"name": "sft", "weight": 2.0}])
    assert mix == pytest.approx(0.5 * dpo + 2 * sft, rel=1e-6)


def test_sft_is_cross_entropy_per_response_token(accelerator):
    lm = miniatures.build("gpt2")
    chosen, tokens = 0.0, 0
    with torch.no_grad():
        for example in miniatures.pairs():
            response = example.responses[0]
            row = torch.as_tensor([*example.prompt, *response.ids]).long()
            logits = lm(input_ids=row[None]).logits[0, len(example.prompt) - 1 : -1]
            chosen += float(torch.nn.functional.cross_entropy(logits, row[len(example.prompt) :], reduction="sum"))
            tokens += response.length
    found = Step(PolicyModule(lm, "tree"), None, terms("sft"), accelerator, 0).evaluate(micros(), STATES).loss
    assert found == pytest.approx(chosen / tokens, rel=1e-5)


def test_only_adapters_move(accelerator):
    lm: Any = adapt(miniatures.build("qwen2"), ModelConfig(lora=LoraConfig(r=2)), seed=0)
    policy = PolicyModule(lm, "tree")
    reference = reference_for(None, policy, policy)
    step = Step(policy, reference, DPO, accelerator, 0)
    before = weights(lm)
    optim = optimizer(policy, OptimConfig(), 1e-2)
    for number in range(2):
        step.train(micros(), STATES, optim, number, 1.0)
    moved = {name for name, p in weights(lm).items() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_" in name}
    assert step.evaluate(micros(), STATES).loss < math.log(2)


def test_steps_lower_the_loss_under_bf16_autocast_with_log_probs_in_float32():
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    try:
        policy = PolicyModule(miniatures.build("llama"), "tree")
        reference = FrozenReference.copy_of(policy)
        prepared, optim = accelerator.prepare(policy, optimizer(policy, OptimConfig(), 1e-3))
        step = Step(prepared, reference, DPO, accelerator, 0)
        exact_K = logps(reference.module, pack(miniatures.pairs())).logps_K
        with torch.no_grad():
            rounded_K = logps(prepared, pack(miniatures.pairs())).logps_K
        assert rounded_K.dtype == torch.float32
        assert 0 < (rounded_K - exact_K).abs().max() < 0.5
        losses = [step.train(micros(), STATES, optim, number, 1.0).loss for number in range(4)]
        assert losses[-1] < losses[0]
        assert {p.dtype for p in policy.parameters()} == {torch.float32}
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
