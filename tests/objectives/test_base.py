"""What holds for every objective, found by discovery: a new file in objectives/ is tested here as it comes."""

import dataclasses
import itertools
import math
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data.packing import pack, pad
from preftune.errors import PreftuneError
from preftune.objectives import registry
from preftune.objectives.base import LogProbs, PairObjective, pair_indices

NAMES = registry.names()
PAIRS = [name for name in NAMES if issubclass(registry.resolve(name), PairObjective)]
FIELDS = [(name, field.name) for name in NAMES for field in dataclasses.fields(registry.resolve(name))]

# values of fields that show on a batch of ordinary log-probs, where simple multiples of the default do not
VALUES = {("orpo", "clamp"): (0.0, 2.0, 3.0), ("psi_po", "psi"): ("identity", "root", "arcsine")}
# shares of what an objective says it is finite up to
share = st.floats(-1, 0)
four = st.tuples(share, share, share, share)
length = st.integers(1, 100_000)


def settings_of(name):
    """The fields of the objective at its defaults ({}), and with each choice of each Literal field."""
    cls = registry.resolve(name)
    hints = {field.name: get_type_hints(cls)[field.name] for field in dataclasses.fields(cls)}
    found = [{}]
    for field, hint in hints.items():
        for choice in get_args(hint) if get_origin(hint) is Literal else ():
            given = {field: choice}
            if not accepted(name, given):  # a choice may ask for a number that only it has
                given |= {other: 0.5 for other, kind in hints.items() if kind == float | None}
            registry.build(name, **given)
            found.append(given)
    return found


def accepted(name, given):
    try:
        return registry.build(name, **given)
    except PreftuneError:
        return None


def some_values(hint, default):
    """Values to try for a field; some of them may be refused."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    if hint is bool:
        return True, False
    return (0.3, 0.7) if default is None else (default, default * 2, default + 0.25, default / 2)


def variants(name):
    """The objective at its defaults, and with each choice of each Literal field."""
    return list(dict.fromkeys(registry.build(name, **given) for given in settings_of(name)))


def scaled(objective, rows, dtype=torch.float32):
    """Columns of log-probs, from rows of shares of the objective's range."""
    return [torch.tensor(column, dtype=dtype) * objective.finite_up_to for column in zip(*rows, strict=True)]


def on_pairs(objective, values, **kwargs):
    count = len(values[0])
    columns = {
        "chosen_lengths": torch.arange(3, 3 + count),
        "rejected_lengths": torch.arange(5, 5 + count),
        "gap": torch.arange(1, 1 + count) / 2,
    }
    return objective.on_pairs(*values, **(columns | kwargs))


def evaluate(objective, batch, spread, draw):
    """Everything that a hyperparameter may change, as one tensor: for ordinary responses and for certain ones, at which
    clamps bite."""
    values = []
    for scale in (1, 0):
        policy, reference = (spread(batch, [scale * tokens for tokens in draw(batch, seed)]) for seed in (1, 2))
        outcome = objective(policy, reference, batch, objective.init())
        values += [outcome.loss_E, outcome.rewards_R, objective.weight_E(batch), *outcome.extras.values()]
    return torch.cat(values).nan_to_num()


@pytest.mark.parametrize("name", PAIRS)
def test_batches_and_plain_tensors_agree(name, batch, spread, draw):
    policy, reference = draw(batch, 1), draw(batch, 2)
    sums = [torch.stack([tokens.sum() for tokens in drawn]) for drawn in (policy, reference)]
    for objective in variants(name):
        outcome = objective(spread(batch, policy), spread(batch, reference), batch, objective.init())
        result = objective.on_pairs(
            sums[0][0::2],
            sums[0][1::2],
            sums[1][0::2],
            sums[1][1::2],
            batch.length_R[0::2],
            batch.length_R[1::2],
            batch.confidence_E,
            batch.gap_E,
        )
        torch.testing.assert_close(outcome.loss_E, result.loss_E, rtol=1e-12, atol=0)
        rewards = torch.stack([result.chosen_reward_E, result.rejected_reward_E], dim=1).flatten()
        torch.testing.assert_close(outcome.rewards_R, rewards, rtol=1e-12, atol=0)
        assert not outcome.rewards_R.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_padding_is_never_seen(name, make_pairs, spread, draw):
    examples = make_pairs([(2, 9), (5, 1), (30, 3)], gap=[1.0, 2.0, 0.5])
    packed, padded = pack(examples), pad(examples)
    assert padded.tokens > padded.real_tokens
    objective, drawn = registry.build(name), [draw(packed, 1), draw(packed, 2)]
    outcomes = []
    for batch in (packed, padded):
        policy, reference = (spread(batch, tokens) for tokens in drawn)
        assert len(policy.logps_K) == batch.length_R.sum()  # targets alone, of no example's padding
        outcomes.append(objective(policy, reference, batch, objective.init()))
    assert torch.equal(outcomes[0].loss_E, outcomes[1].loss_E)
    assert torch.equal(objective.weight_E(packed), objective.weight_E(padded))


@pytest.mark.parametrize("name", NAMES)
def test_order_of_targets_does_not_matter(name, batch, spread, draw):
    objective = registry.build(name)
    order = torch.randperm(len(batch.response_K), generator=torch.Generator().manual_seed(0))
    shuffled = dataclasses.replace(batch, response_K=batch.response_K[order])
    policy, reference = (spread(batch, draw(batch, seed)) for seed in (1, 2))
    straight = objective(policy, reference, batch, objective.init())
    mixed = objective(LogProbs(policy.logps_K[order]), LogProbs(reference.logps_K[order]), shuffled, objective.init())
    torch.testing.assert_close(straight.loss_E, mixed.loss_E, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name, batch, spread, draw):
    reference = spread(batch, draw(batch, 2))
    for objective in variants(name):

        def losses(logps_K, objective=objective):
            return objective(LogProbs(logps_K), reference, batch, objective.init()).loss_E

        leaf = spread(batch, draw(batch, 1)).logps_K.requires_grad_()
        # undefined gradients are a matter of functions with a backward of their own, and would take most of the time
        assert torch.autograd.gradcheck(losses, leaf, check_undefined_grad=False)


@pytest.mark.parametrize("name", [name for name in NAMES if not registry.resolve(name).couples])
def test_examples_do_not_depend_on_each_other_unless_declared(name, batch, spread, draw):
    drawn, reference = draw(batch, 1), spread(batch, draw(batch, 2))
    others = [tokens * (2 if example == 3 else 1) for tokens, example in zip(drawn, batch.example_R, strict=True)]
    for objective in variants(name):
        plain, moved = (
            objective(spread(batch, tokens), reference, batch, objective.init()).loss_E for tokens in (drawn, others)
        )
        assert torch.equal(plain[:3], moved[:3])
        assert plain[3] != moved[3]


@pytest.mark.parametrize("name", PAIRS)
@settings(max_examples=60, deadline=None)
@given(rows=st.lists(four, min_size=1, max_size=4), confidence=st.floats(0, 1), lengths=st.tuples(length, length))
def test_values_and_gradients_are_finite_for_any_log_probs_in_range(name, rows, confidence, lengths):
    for objective in variants(name):
        values = [value.requires_grad_() for value in scaled(objective, rows)]
        chosen, rejected, p = (torch.full((len(rows),), value) for value in (*lengths, confidence))
        result = on_pairs(objective, values, chosen_lengths=chosen, rejected_lengths=rejected, confidence=p)
        gradients = torch.autograd.grad(result.loss, values[:2])
        for tensor in (result.loss_E, result.margin_E, *gradients):
            assert tensor.isfinite().all()


@pytest.mark.parametrize("name", PAIRS)
def test_float32_is_close_to_float64(name):
    generator = torch.Generator().manual_seed(0)
    values = [-torch.rand(64, generator=generator) * 20 for _ in range(4)]
    for objective in variants(name):
        results = []
        for dtype in (torch.float32, torch.float64):
            leaves = [value.to(dtype).requires_grad_() for value in values]
            result = on_pairs(objective, leaves)
            results.append([result.loss_E, *torch.autograd.grad(result.loss, leaves[:2])])
        for single, double in zip(*results, strict=True):
            torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5 * double.abs().max().item())


@pytest.mark.parametrize("name", [name for name in PAIRS if registry.resolve(name).reference])
@settings(max_examples=40, deadline=None)
@given(values=four, shift=st.floats(-100, 0))
def test_an_equal_shift_of_policy_and_reference_changes_nothing(name, values, shift):
    for objective in variants(name):
        chosen, rejected, reference_chosen, reference_rejected = scaled(objective, [values], torch.float64)
        leaf = chosen.clone().requires_grad_()
        plain = on_pairs(objective, (leaf, rejected, reference_chosen, reference_rejected))
        moved = on_pairs(objective, (chosen + shift, rejected, reference_chosen + shift, reference_rejected))
        # the shift rounds the log-ratio by some 1e-12 nats, and steep losses make more of it
        slope = abs(torch.autograd.grad(plain.loss, leaf)[0].item())
        torch.testing.assert_close(moved.loss_E, plain.loss_E.detach(), rtol=1e-9, atol=1e-9 * max(1, slope))
        largest = max(plain.chosen_reward_E.abs().item(), plain.rejected_reward_E.abs().item())
        torch.testing.assert_close(moved.margin_E, plain.margin_E, rtol=1e-9, atol=1e-9 * max(1, largest))


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_promise_06_every_accepted_key_changes_a_result(name, field, batch, spread, draw):
    """Beside any other choice that lets a value in, it gives another result than all other values."""
    hint = get_type_hints(registry.resolve(name))[field]
    candidates = VALUES.get((name, field)) or some_values(hint, getattr(registry.build(name), field))
    compared = 0
    for others in settings_of(name):
        if field in others and get_origin(hint) is Literal:
            continue
        objectives = [accepted(name, others | {field: value}) for value in dict.fromkeys(candidates)]
        results = [evaluate(objective, batch, spread, draw) for objective in objectives if objective is not None]
        for a, b in itertools.combinations(results, 2):
            assert not torch.equal(a, b)
            compared += 1
    assert compared, f"of the candidate values of {name}.{field}, fewer than two were accepted"


@pytest.mark.parametrize("name", NAMES)
def test_docstrings_say_equation_source_use_and_example(name):
    doc = registry.resolve(name).__doc__
    assert all(f"{part}:" in doc for part in ("Equation", "Source", "When to use", "Example"))
    assert all(f"{field}:" in doc.partition("Args:")[2] for kind, field in FIELDS if kind == name)
    assert ">>> " in doc


@pytest.mark.parametrize("name", PAIRS)
def test_a_reference_is_read_only_where_one_is_declared(name, batch, spread, draw):
    objective = registry.build(name)
    policy, reference = (spread(batch, draw(batch, seed)) for seed in (1, 2))
    if type(objective).reference:
        with pytest.raises(ValueError, match="compares with a reference"):
            objective(policy, None, batch, {})
        with pytest.raises(ValueError, match="compares with a reference"):
            objective.on_pairs(torch.zeros(1), torch.zeros(1))
    else:
        with_one, without = (objective(policy, each, batch, {}).loss_E for each in (reference, None))
        assert torch.equal(with_one, without)


def test_on_pairs_names_what_is_missing_or_of_another_shape():
    two = torch.zeros(2)
    with pytest.raises(ValueError, match="reads lengths here: give chosen_lengths and rejected_lengths"):
        registry.build("ipo", average="mean").on_pairs(two, two, two, two)
    message = r"reference_rejected_logps has shape \(3,\), expected \(2,\) as policy_chosen_logps"
    with pytest.raises(ValueError, match=message):
        registry.build("dpo").on_pairs(two, two, two, torch.zeros(3))


def test_pairs_are_found_by_role_in_any_order_and_others_are_refused(batch):
    order = torch.tensor([1, 0, 2, 3, 7, 6, 4, 5])
    mixed = dataclasses.replace(batch, role_R=batch.role_R[order], example_R=batch.example_R[order])
    chosen, rejected = pair_indices(mixed)
    assert order[chosen].tolist() == [0, 2, 4, 6]
    assert order[rejected].tolist() == [1, 3, 5, 7]
    with pytest.raises(ValueError, match="of 4 examples 8 have a chosen and 0 a rejected response"):
        pair_indices(dataclasses.replace(batch, role_R=torch.zeros_like(batch.role_R)))


def test_weights_are_those_of_the_data(batch):
    assert torch.equal(registry.build("dpo").weight_E(batch), torch.tensor([1.0, 0.5, 2.0, 1.0]))


def test_a_weighted_mix_has_the_weighted_sum_of_the_gradients(batch, spread, draw):
    """Each term is a mean over its own weights: examples for DPO, tokens of chosen for SFT."""
    drawn, reference = spread(batch, draw(batch, 1)), spread(batch, draw(batch, 2))
    mix = registry.terms([{"name": "dpo", "beta": 0.3}, {"name": "sft", "weight": 0.25}])

    def gradient(terms):
        policy = LogProbs(drawn.logps_K.clone().requires_grad_())
        total = torch.zeros((), dtype=torch.float64)
        for term in terms:
            weight_E = term.objective.weight_E(batch)
            outcome = term.objective(policy, reference, batch, term.objective.init())
            total = total + term.weight * (weight_E * outcome.loss_E).sum() / weight_E.sum()
        return torch.autograd.grad(total, policy.logps_K)[0]

    dpo, sft = gradient(registry.terms({"name": "dpo", "beta": 0.3})), gradient(registry.terms("sft"))
    torch.testing.assert_close(gradient(mix), dpo + 0.25 * sft, rtol=1e-12, atol=0)
    # by hand: a token of chosen pulls on the SFT term by weight / sum of weight * tokens = w / (2 + 3.5 + 8 + 1)
    chosen_K = batch.role_R[batch.response_K] == 0
    expected = -batch.weight_E[batch.example_R[batch.response_K]].double() / 14.5 * chosen_K
    torch.testing.assert_close(sft, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("dpo", {"beta": 0}, "objective dpo is refused: beta must be finite and > 0, got 0"),
        ("dpo", {"beta": -1}, "objective dpo is refused: beta must be finite and > 0, got -1"),
        ("dpo", {"beta": math.nan}, "objective dpo is refused: beta must be finite and > 0, got nan"),
        ("dpo", {"beta": math.inf}, "objective dpo is refused: beta must be finite and > 0, got inf"),
        ("dpo", {"beta": "0.1"}, "objective dpo: beta is the text '0.1', expected a number"),
        ("dpo", {"beta": True}, "objective dpo: beta is true, expected a number"),
        ("dpo", {"beta": None}, "objective dpo: beta is empty, expected a number"),
        ("dpo", {"beta": [0.1]}, "objective dpo: beta is a list, expected a number"),
        ("dpo", {"beta": torch.ones(1)}, "objective dpo: beta is of type Tensor, expected a plain value"),
        ("dpo", {"label_smoothing": 0.5}, "objective dpo is refused: label_smoothing must be in [0, 0.5), got 0.5"),
        ("dpo", {"label_smoothing": -0.1}, "objective dpo is refused: label_smoothing must be in [0, 0.5), got -0.1"),
        ("dpo", {"betta": 0.1}, "objective dpo has no field betta; did you mean beta?"),
        ("dpo", {"tau": 0.1}, "objective dpo has no field tau; known: beta, label_smoothing"),
        ("ipo", {"tau": 0}, "objective ipo is refused: tau must be finite and > 0, got 0"),
        ("ipo", {"tau": math.inf}, "objective ipo is refused: tau must be finite and > 0, got inf"),
        ("ipo", {"average": "median"}, "objective ipo: average is the text 'median', expected 'sum' or 'mean'"),
        ("sft", {"beta": 0.1}, "objective sft has no field beta; known: none"),
    ],
)
def test_refused_hyperparameters_are_one_sentence(name, fields, message):
    with pytest.raises(PreftuneError) as raised:
        registry.build(name, **fields)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
