"""What holds for every objective, found by discovery: a new file in objectives/ is tested here as it comes.

Each is tried on its own kind of data and on pairs, which serve all, with what it needs beside log-probs (see conftest).
"""

import dataclasses
import itertools
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data.packing import pack, pad
from preftune.errors import PreftuneError
from preftune.objectives import registry
from preftune.objectives.batch import LogProbs

NAMES = registry.names()
KINDS = [(name, kind) for name in NAMES for kind in dict.fromkeys((registry.resolve(name).data, "pairs"))]
OF_PAIRS = [name for name in NAMES if not registry.build(name).needs_tokens]  # which have `on_pairs`
OF_MORE = [(name, kind) for name, kind in KINDS if name not in OF_PAIRS]
# "log_sum_p2_K" sets the policy's log-probs against its own others, whatever the reference says
SHIFTED = [
    (name, kind)
    for name, kind in OF_MORE
    if registry.resolve(name).reference
    and "log_sum_p2_K" not in registry.resolve(name).needs
    and not registry.resolve(name).carried  # nor do values that rollouts carry shift along
]
FIELDS = [(name, field.name) for name in NAMES for field in dataclasses.fields(registry.resolve(name))]
# what advantages are made by, before the objective reads them: tests/rlhf/test_critic.py
BEFOREHAND = {
    ("ppo", field)
    for field in (
        *("target_kl", "horizon", "gamma", "lam", "value_clip", "value_learning_rate"),
        *("whiten_rewards", "whiten_advantages"),
    )
}

# values of fields that show on a batch of ordinary log-probs, where simple multiples of the default do not
VALUES = {
    ("orpo", "clamp"): (0.0, 2.0, 3.0),
    ("psi_po", "psi"): ("identity", "root", "arcsine"),
    ("beta_dpo", "filter_share"): (0.0, 0.25, 0.5, 0.75),
    ("beta_dpo", "beta_min"): (0.5, 1.0, 2.0),
    ("beta_dpo", "spread_min"): (1e-3, 10.0),
}
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
    if int in get_args(hint):
        return 1, 2
    return (0.3, 0.7) if default is None else (default, default * 2, default + 0.25, default / 2)


def variants(name):
    """The objective at its defaults, and with each choice of each Literal field."""
    return list(dict.fromkeys(registry.build(name, **given) for given in settings_of(name)))


def scaled(objective, rows, dtype=torch.float32):
    """Columns of log-probs, from rows of shares of the objective's range; at least as many as it takes."""
    rows = list(itertools.islice(itertools.cycle(rows), max(len(rows), objective.least_examples)))
    return [torch.tensor(column, dtype=dtype) * objective.finite_up_to for column in zip(*rows, strict=True)]


def on_pairs(objective, values, **kwargs):
    count = len(values[0])
    columns = {
        "chosen_lengths": torch.arange(3, 3 + count),
        "rejected_lengths": torch.arange(5, 5 + count),
        "gap": torch.arange(1, 1 + count) / 2,
    }
    return objective.on_pairs(*values, **(columns | kwargs))


def run(objective, both, batch):
    return objective(*both, batch, objective.init())


def as_type(logps, dtype):
    """The same numbers, those with gradient as leaves of a type."""
    return dataclasses.replace(
        logps,
        **{name: value.to(dtype).requires_grad_() for name, value in vars(logps).items() if value is not None},
    )


def leaves_of(logps):
    return {name: value for name, value in vars(logps).items() if value is not None}


def evaluate(objective, batch, log_probs):
    """Everything that a hyperparameter may change, as one tensor: in a few steps, as what a draw decides need not show
    in the first one, for ordinary responses and once for certain ones, at which clamps bite."""
    values, state = [], objective.init()
    for scale in (1, 0, 1, 1):
        policy, reference = (log_probs(objective, batch, seed, scale) for seed in (2, 1))
        outcome = objective(policy, reference, batch, state)
        state = outcome.state
        values += [outcome.loss_E, outcome.rewards_R, objective.weight_E(batch), *outcome.extras.values()]
    return torch.cat(values).nan_to_num()


@pytest.mark.parametrize("name", OF_PAIRS)
def test_batches_and_plain_tensors_agree(name, batch_for, log_probs):
    for objective in variants(name):
        batch = batch_for(objective, "pairs")
        batch = dataclasses.replace(batch, weight_E=torch.ones(4))  # plain tensors have no weights
        policy, reference = (log_probs(objective, batch, seed) for seed in (1, 2))
        outcome = run(objective, (policy, reference), batch)
        ours, theirs = policy.sums_R(batch), reference.sums_R(batch)
        result = objective.on_pairs(
            ours[0::2],
            ours[1::2],
            theirs[0::2],
            theirs[1::2],
            batch.length_R[0::2],
            batch.length_R[1::2],
            batch.confidence_E,
            batch.gap_E,
        )
        torch.testing.assert_close(outcome.loss_E, result.loss_E, rtol=1e-12, atol=0)
        rewards = torch.stack([result.chosen_reward_E, result.rejected_reward_E], dim=1).flatten()
        torch.testing.assert_close(outcome.rewards_R, rewards, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_padding_is_never_seen(name, kind, examples_for, log_probs):
    objective = registry.build(name)
    examples = examples_for(objective, kind)
    packed, padded = pack(examples), pad(examples)
    assert padded.tokens > padded.real_tokens
    outcomes = []
    for batch in (packed, padded):
        policy, reference = (log_probs(objective, batch, seed) for seed in (1, 2))
        assert len(policy.logps_K) == batch.length_R.sum()  # targets alone, of no example's padding
        outcomes.append(run(objective, (policy, reference), batch))
    assert outcomes[0].loss_E.any()
    assert torch.equal(outcomes[0].loss_E, outcomes[1].loss_E)
    assert torch.equal(objective.weight_E(packed), objective.weight_E(padded))


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_order_of_targets_does_not_matter(name, kind, batch_for, log_probs):
    """Those of different responses may stand in any order; those of one response are in theirs."""
    objective = registry.build(name)
    batch = batch_for(objective, kind)
    response_K = batch.response_K[torch.randperm(len(batch.response_K), generator=torch.Generator().manual_seed(0))]
    order = torch.empty_like(response_K)
    order[torch.argsort(response_K, stable=True)] = torch.argsort(batch.response_K, stable=True)
    carried = {name: value[order] for name, value in batch.token.items()}
    shuffled = dataclasses.replace(batch, response_K=batch.response_K[order], token=carried)
    assert not torch.equal(shuffled.response_K, batch.response_K)
    both = [log_probs(objective, batch, seed) for seed in (1, 2)]
    moved = [
        LogProbs(**{name: value[order] if name.endswith("_K") else value for name, value in leaves_of(each).items()})
        for each in both
    ]
    straight, mixed = run(objective, both, batch), run(objective, moved, shuffled)
    torch.testing.assert_close(straight.loss_E, mixed.loss_E, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_rewards_and_state_have_no_gradient(name, kind, batch_for, log_probs):
    objective = registry.build(name)
    batch = batch_for(objective, kind)
    policy = as_type(log_probs(objective, batch, 1), torch.float64)
    outcome = run(objective, (policy, log_probs(objective, batch, 2)), batch)
    assert outcome.loss_E.requires_grad
    assert outcome.loss_E.shape == objective.weight_E(batch).shape == batch.weight_E.shape
    assert outcome.rewards_R.shape == batch.role_R.shape
    assert outcome.state.keys() == objective.init().keys()
    for tensor in (outcome.rewards_R, *outcome.state.values(), *outcome.extras.values()):
        assert not tensor.requires_grad
    assert all(extra.shape == batch.weight_E.shape for extra in outcome.extras.values())
    assert objective.couples or not outcome.state


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_gradients_are_those_of_finite_differences(name, kind, batch_for, log_probs, held):
    for objective in variants(name):
        batch = batch_for(objective, kind)
        reference = log_probs(objective, batch, 2)
        leaves = leaves_of(as_type(log_probs(objective, batch, 1), torch.float64))

        def losses(*values, objective=objective, batch=batch, reference=reference, names=tuple(leaves)):
            policy = LogProbs(**dict(zip(names, values, strict=True)))
            return run(objective, (policy, reference), batch).loss_E

        # undefined gradients are a matter of functions with a backward of their own, and would take most of the time
        assert torch.autograd.gradcheck(held(losses), tuple(leaves.values()), check_undefined_grad=False)


@pytest.mark.parametrize(("name", "kind"), [case for case in KINDS if not registry.resolve(case[0]).couples])
def test_examples_do_not_depend_on_each_other_unless_declared(name, kind, batch_for, log_probs):
    for objective in variants(name):
        batch = batch_for(objective, kind)
        policy, reference = (log_probs(objective, batch, seed) for seed in (1, 2))
        last = {"_K": batch.example_R[batch.response_K] == 3, "_R": batch.example_R == 3}
        values = {key: torch.where(last[key[-2:]], 2 * value, value) for key, value in leaves_of(policy).items()}
        plain, moved = (run(objective, (each, reference), batch).loss_E for each in (policy, LogProbs(**values)))
        assert torch.equal(plain[:3], moved[:3])
        assert plain[3] != moved[3]


@pytest.mark.parametrize("name", OF_PAIRS)
@settings(max_examples=50, deadline=None)
@given(rows=st.lists(four, min_size=1, max_size=4), confidence=st.floats(0, 1), lengths=st.tuples(length, length))
def test_values_and_gradients_are_finite_for_any_log_probs_in_range(name, rows, confidence, lengths):
    for objective in variants(name):
        values = [value.requires_grad_() for value in scaled(objective, rows)]
        doubt = 1.0 if objective.confidence == "unused" else confidence
        chosen, rejected, p = (torch.full((len(values[0]),), value) for value in (*lengths, doubt))
        result = on_pairs(objective, values, chosen_lengths=chosen, rejected_lengths=rejected, confidence=p)
        gradients = torch.autograd.grad(result.loss, values[:2])
        for tensor in (result.loss_E, result.margin_E, *gradients):
            assert tensor.isfinite().all()


@pytest.mark.parametrize(("name", "kind"), OF_MORE)
@pytest.mark.parametrize("seed", range(4))
def test_values_and_gradients_are_finite_where_there_is_more_to_read(name, kind, seed, batch_for, log_probs):
    """Some responses at either end of the range, others between."""
    generator = torch.Generator().manual_seed(seed)
    for objective in variants(name):
        batch = batch_for(objective, kind)

        def extreme(each, objective=objective, batch=batch):
            shares = (torch.rand(len(batch.role_R), generator=generator) * 3 - 1).clamp(0, 1)
            per_token = -shares * objective.finite_up_to / batch.length_R
            other = {name: value.float() for name, value in leaves_of(each).items() if name != "logps_K"}
            if "kl_K" in other:
                other["kl_K"] = -per_token.flip(0)[batch.response_K]
            return LogProbs(per_token[batch.response_K], **other)

        policy, reference = (extreme(log_probs(objective, batch, each)) for each in (1, 2))
        policy = as_type(policy, torch.float32)
        outcome = run(objective, (policy, reference), batch)
        gradients = torch.autograd.grad(
            outcome.loss_E.sum(), list(leaves_of(policy).values()), allow_unused=True, materialize_grads=True
        )
        for tensor in (outcome.loss_E, outcome.rewards_R.nan_to_num(), *gradients):
            assert tensor.isfinite().all()


@pytest.mark.parametrize("name", OF_PAIRS)
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


@pytest.mark.parametrize(("name", "kind"), OF_MORE)
def test_float32_is_close_to_float64_where_there_is_more_to_read(name, kind, batch_for, log_probs):
    for objective in variants(name):
        batch, results = batch_for(objective, kind), []
        for dtype in (torch.float32, torch.float64):
            policy, reference = (as_type(log_probs(objective, batch, seed), dtype) for seed in (1, 2))
            loss_E = run(objective, (policy, reference), batch).loss_E
            assert loss_E.dtype == dtype
            leaves = list(leaves_of(policy).values())
            gradients = torch.autograd.grad(loss_E.sum(), leaves, allow_unused=True, materialize_grads=True)
            results.append([loss_E, *gradients])
        for single, double in zip(*results, strict=True):
            torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5 * double.abs().max().item())


@pytest.mark.parametrize("name", [name for name in OF_PAIRS if registry.resolve(name).reference])
@settings(max_examples=25, deadline=None)
@given(values=four, shift=st.floats(-100, 0))
def test_an_equal_shift_of_policy_and_reference_changes_nothing(name, values, shift):
    for objective in variants(name):
        chosen, rejected, reference_chosen, reference_rejected = scaled(objective, [values], torch.float64)
        leaf = chosen.clone().requires_grad_()
        plain = on_pairs(objective, (leaf, rejected, reference_chosen, reference_rejected))
        moved = on_pairs(objective, (chosen + shift, rejected, reference_chosen + shift, reference_rejected))
        # the shift rounds the log-ratio by some 1e-12 nats, and steep losses make more of it
        slope = torch.autograd.grad(plain.loss, leaf)[0].abs().sum().item()
        torch.testing.assert_close(moved.loss_E, plain.loss_E.detach(), rtol=1e-9, atol=1e-9 * max(1, slope))
        largest = max(plain.chosen_reward_E.abs().max().item(), plain.rejected_reward_E.abs().max().item())
        torch.testing.assert_close(moved.margin_E, plain.margin_E, rtol=1e-9, atol=1e-9 * max(1, largest))


@pytest.mark.parametrize(("name", "kind"), SHIFTED)
def test_an_equal_shift_of_any_response_changes_nothing_where_there_is_more_to_read(name, kind, batch_for, log_probs):
    for objective in variants(name):
        batch = batch_for(objective, kind)
        both = [log_probs(objective, batch, seed) for seed in (1, 2)]
        first_K = torch.diff(batch.response_K, prepend=torch.tensor([-1])) != 0  # in no response's tail
        shift_K = log_probs(objective, batch, 3).logps_K * first_K
        moved = [dataclasses.replace(each, logps_K=each.logps_K + shift_K) for each in both]
        plain, other = run(objective, both, batch), run(objective, moved, batch)
        torch.testing.assert_close(other.loss_E, plain.loss_E, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(other.rewards_R, plain.rewards_R, rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize(("name", "field"), [field for field in FIELDS if field not in BEFOREHAND])
def test_promise_06_every_accepted_key_changes_a_result(name, field, batch_for, log_probs):
    """Beside any other choice that lets a value in, it gives another result than all other values."""
    hint = get_type_hints(registry.resolve(name))[field]
    candidates = VALUES.get((name, field)) or some_values(hint, getattr(registry.build(name), field))
    compared = 0
    for others in settings_of(name):
        if field in others and get_origin(hint) is Literal:
            continue
        objectives = [accepted(name, others | {field: value}) for value in dict.fromkeys(candidates)]
        found = [objective for objective in objectives if objective is not None]
        results = [evaluate(objective, batch_for(objective), log_probs) for objective in found]
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


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_a_reference_is_read_only_where_one_is_declared(name, kind, batch_for, log_probs):
    objective = registry.build(name)
    batch = batch_for(objective, kind)
    policy, reference = (log_probs(objective, batch, seed) for seed in (1, 2))
    if type(objective).reference:
        with pytest.raises(ValueError, match="compares with a reference"):
            run(objective, (policy, None), batch)
        if name in OF_PAIRS:
            with pytest.raises(ValueError, match="compares with a reference"):
                objective.on_pairs(torch.zeros(1), torch.zeros(1))
    else:
        with_one, without = (run(objective, (policy, each), batch).loss_E for each in (reference, None))
        assert torch.equal(with_one, without)
