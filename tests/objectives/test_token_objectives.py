"""WPO, LD-DPO and TDPO, which read tokens, against numpy formulas in probabilities; and the modifiers of the same
name. Policy and reference are whole next-token distributions, drawn at random."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import tensor

from preftune.data.examples import Response
from preftune.data.packing import pack, pad
from preftune.errors import PreftuneError
from preftune.objectives import registry
from preftune.objectives.batch import LogProbs, PlainBatch, Role, swapped

VOCABULARY = 7
CONFIDENCE = np.array([1.0, 0.75, 0.5, 0.25])
EVERY_FORM = [
    ("wpo", {"beta": 0.3}),
    ("wpo", {"beta": 0.3, "clamp": None}),
    ("wpo", {"beta": 0.3, "clamp": 0.5}),
    ("ld_dpo", {"beta": 0.3, "alpha": 0.25}),
    ("ld_dpo", {"beta": 0.3, "alpha": 0.25, "of": "policy"}),
    ("tdpo", {"beta": 0.3, "form": "tdpo1"}),
    ("tdpo", {"beta": 0.3, "alpha": 0.4}),
]


class Drawn:
    """A batch of pairs, and the distributions of policy and reference at each of its targets.

    Chosen responses have even numbers, rejected ones odd numbers, as the packer makes them.
    """

    def __init__(self, batch, seed=3):
        generator = np.random.default_rng(seed)
        self.batch = batch
        self.response = batch.response_K.numpy()
        targets = len(self.response)
        self.p, self.q = (generator.dirichlet(np.ones(VOCABULARY), targets) for _ in range(2))
        self.target = np.array([generator.choice(VOCABULARY, p=row) for row in self.p])
        self.squares = (self.p**2).sum(1)
        self.kl = (self.q * (np.log(self.q) - np.log(self.p))).sum(1)

    def of(self, values, response):
        return values[self.response == response]

    @property
    def policy(self):
        chosen = self.p[np.arange(len(self.target)), self.target]
        return LogProbs(*(tensor(each) for each in (np.log(chosen), np.log(self.squares))), kl_K=tensor(self.kl))

    @property
    def reference(self):
        return LogProbs(tensor(np.log(self.q[np.arange(len(self.target)), self.target])))

    def ratios(self):
        """Token probabilities of the policy as multiples of the reference's, for each response."""
        ratio = (self.p / self.q)[np.arange(len(self.target)), self.target]
        return [self.of(ratio, response) for response in range(len(self.batch.length_R))]

    def run(self, objective, batch=None):
        return objective(self.policy, self.reference, self.batch if batch is None else batch, objective.init())


@pytest.fixture
def drawn(batch):
    return Drawn(batch)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def close(actual, expected):
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=1e-6, atol=1e-12)


def soft(x, p=CONFIDENCE):
    """Loss of a logit, and its slope, under labels that hold with probability p."""
    return -np.log(sigmoid(x) ** p * sigmoid(-x) ** (1 - p)), sigmoid(x) - p


def gradients(drawn, objective, field="logps_K"):
    """Of the sum of losses, for each response."""
    leaf = getattr(drawn.policy, field).requires_grad_()
    outcome = objective(dataclasses.replace(drawn.policy, **{field: leaf}), drawn.reference, drawn.batch, {})
    (slope_K,) = torch.autograd.grad(outcome.loss_E.sum(), leaf)
    return [drawn.of(slope_K.numpy(), response) for response in range(8)]


def omega(drawn):
    """The weight of each pair: geometric means of p(token) over the chance that two draws agree."""
    policy = np.exp(drawn.policy.logps_K.numpy()) / drawn.squares
    each = np.array([np.prod(drawn.of(policy, r)) ** (1 / len(drawn.of(policy, r))) for r in range(8)])
    return each[0::2] * each[1::2]


@pytest.mark.parametrize("clamp", [1.0, 0.5, None])
def test_wpo_has_the_value_and_slope_of_the_formula(drawn, clamp):
    weight = omega(drawn)
    assert weight.max() > 1 > weight.min()  # so that the clamp shows, and spares some
    weight = weight if clamp is None else np.minimum(weight, clamp)
    whole = np.array([np.prod(ratio) for ratio in drawn.ratios()])
    loss, slope = soft(np.log((whole[0::2] / whole[1::2]) ** 0.3))
    objective = registry.build("wpo", beta=0.3, clamp=clamp)
    outcome = drawn.run(objective)
    close(outcome.loss_E, weight * loss)
    close(outcome.rewards_R, 0.3 * np.log(whole))
    for response, found in enumerate(gradients(drawn, objective)):
        sign = 1 if response % 2 == 0 else -1
        np.testing.assert_allclose(found, sign * 0.3 * (weight * slope)[response // 2], rtol=1e-6)


def test_wpo_is_dpo_where_the_policy_has_no_choice_or_every_choice_alike(drawn):
    dpo = drawn.run(registry.build("dpo", beta=0.3)).loss_E
    for squares in (1.0, 1 / VOCABULARY):  # sums of squares of one-hot and of uniform distributions
        logps_K = torch.full_like(drawn.policy.logps_K, np.log(squares))
        policy = LogProbs(logps_K, log_sum_p2_K=logps_K)
        for clamp in (None, 1.0):
            wpo = registry.build("wpo", beta=0.3, clamp=clamp)(policy, drawn.reference, drawn.batch, {})
            plain = registry.build("dpo", beta=0.3)(policy, drawn.reference, drawn.batch, {})
            torch.testing.assert_close(wpo.loss_E, plain.loss_E, rtol=1e-12, atol=0)
    assert not torch.allclose(drawn.run(registry.build("wpo", beta=0.3)).loss_E, dpo)


@pytest.mark.parametrize(("of", "on_reference"), [("both", 0.25), ("policy", 1.0)])
def test_ld_dpo_has_the_value_and_slope_of_the_formula(drawn, of, on_reference):
    policy, reference = drawn.policy.logps_K.numpy(), drawn.reference.logps_K.numpy()
    lengths = drawn.batch.length_R.tolist()
    logits, powers = [], []
    for pair in range(4):
        shorter, sides = min(lengths[2 * pair : 2 * pair + 2]), []
        for response in (2 * pair, 2 * pair + 1):
            places = np.arange(1, lengths[response] + 1)
            power, other = (np.where(places > shorter, light, 1.0) for light in (0.25, on_reference))
            powers.append(power)
            p, q = (np.exp(drawn.of(values, response)) for values in (policy, reference))
            sides.append(np.prod(p**power) / np.prod(q**other))
        logits.append(0.3 * np.log(sides[0] / sides[1]))
    loss, slope = soft(np.array(logits))
    objective = registry.build("ld_dpo", beta=0.3, alpha=0.25, of=of)
    outcome = drawn.run(objective)
    close(outcome.loss_E, loss)
    close(outcome.rewards_R[0::2] - outcome.rewards_R[1::2], np.array(logits))
    for response, found in enumerate(gradients(drawn, objective)):
        sign = 1 if response % 2 == 0 else -1
        np.testing.assert_allclose(found, sign * 0.3 * slope[response // 2] * powers[response], rtol=1e-6)


def test_ld_dpo_is_dpo_at_alpha_1_or_equal_lengths_and_blind_to_tails_at_alpha_0(drawn, make_pairs):
    dpo = registry.build("dpo", beta=0.3)
    for of in ("both", "policy"):
        whole = registry.build("ld_dpo", beta=0.3, alpha=1.0, of=of)
        assert torch.equal(drawn.run(whole).loss_E, drawn.run(dpo).loss_E)
        half = registry.build("ld_dpo", beta=0.3, alpha=0.5, of=of)
        level = Drawn(pack(make_pairs([(3, 3), (1, 1), (4, 4)])))
        assert torch.equal(level.run(half).loss_E, level.run(dpo).loss_E)
    assert [*gradients(drawn, registry.build("ld_dpo", alpha=0.0))[1][2:]] == [0.0, 0.0, 0.0]  # 5 tokens beside 2


@pytest.mark.parametrize("form", [pack, pad])
@pytest.mark.parametrize("fields", [{"alpha": 0.25}, {"alpha": 0.25, "of": "policy"}, None])
def test_a_response_of_another_prompt_does_not_shorten_the_tail(fields, form, make_pairs):
    """Beside KTO on pairs, every example carries one: it may be shorter than both responses, or longer."""
    modified = registry.build("dpo", modifiers={"tail_alpha": 0.25})
    objective = modified if fields is None else registry.build("ld_dpo", **fields)
    assert {term.objective.baselines for term in registry.terms([objective, "kto"])} == {False, True}
    plain = make_pairs([(4, 7), (6, 3), (5, 5)])
    baselines = [Response(np.arange(1, length + 1, dtype=np.int32), Role.BASELINE) for length in (1, 2, 9)]
    beside = [
        dataclasses.replace(example, responses=(*example.responses, baseline))
        for example, baseline in zip(plain, baselines, strict=True)
    ]
    more = Drawn(form(beside))
    own_K = more.batch.role_R[more.batch.response_K] != Role.BASELINE
    policy, reference = (LogProbs(each.logps_K[own_K]) for each in (more.policy, more.reference))
    expected = objective(policy, reference, form(plain), {})
    found = more.run(objective)
    torch.testing.assert_close(found.loss_E, expected.loss_E, rtol=1e-12, atol=0)
    own_R = more.batch.role_R != Role.BASELINE
    torch.testing.assert_close(found.rewards_R[own_R], expected.rewards_R, rtol=1e-12, atol=1e-15)
    whole = registry.build("dpo")(policy, reference, form(plain), {}).loss_E
    assert ((whole - expected.loss_E).abs() > 1e-6).tolist() == [True, True, False]  # there is a tail to shorten


@pytest.mark.parametrize("of", ["both", "policy"])
def test_ld_dpo_starts_at_log_2_on_both_and_not_on_the_policy_alone(drawn, of):
    objective = registry.build("ld_dpo", of=of)
    loss_E = objective(drawn.reference, drawn.reference, drawn.batch, {}).loss_E
    starts = (loss_E - np.log(2)).abs() < 1e-12
    assert starts.tolist() == ([True] * 4 if of == "both" else [False, False, True, False])


def test_tdpo1_has_the_value_and_slope_of_the_formula(drawn):
    whole = np.array([np.log(np.prod(ratio)) for ratio in drawn.ratios()])
    divergence = np.array([drawn.of(drawn.kl, response).sum() for response in range(8)])
    kappa = divergence[1::2] - divergence[0::2]
    loss, slope = soft(0.3 * (whole[0::2] - whole[1::2] - kappa))
    objective = registry.build("tdpo", beta=0.3, form="tdpo1")
    outcome = drawn.run(objective)
    close(outcome.loss_E, loss)
    close(outcome.rewards_R, 0.3 * (whole + divergence))
    for field in ("logps_K", "kl_K"):
        for response, found in enumerate(gradients(drawn, objective, field)):
            sign = 1 if response % 2 == 0 else -1
            np.testing.assert_allclose(found, sign * 0.3 * slope[response // 2], rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.4, 1.0, 2.0])
def test_tdpo2_has_the_value_and_slope_of_the_formula(drawn, alpha):
    """The divergence of the response that a label calls chosen is held: with a doubted label, each is for its share."""
    whole = np.array([np.log(np.prod(ratio)) for ratio in drawn.ratios()])
    divergence = np.array([drawn.of(drawn.kl, response).sum() for response in range(8)])
    logit = 0.3 * (whole[0::2] - whole[1::2] - alpha * (divergence[1::2] - divergence[0::2]))
    loss, slope = soft(logit)
    objective = registry.build("tdpo", beta=0.3, alpha=alpha)
    outcome = drawn.run(objective)
    close(outcome.loss_E, loss)
    close(outcome.rewards_R, 0.3 * (whole + alpha * divergence))
    for response, found in enumerate(gradients(drawn, objective)):
        sign = 1 if response % 2 == 0 else -1
        np.testing.assert_allclose(found, sign * 0.3 * slope[response // 2], rtol=1e-6)
    right, wrong = CONFIDENCE * sigmoid(-logit), (1 - CONFIDENCE) * sigmoid(logit)
    for response, found in enumerate(gradients(drawn, objective, "kl_K")):
        pull = (wrong if response % 2 == 0 else right)[response // 2]
        np.testing.assert_allclose(found, 0.3 * alpha * pull, rtol=1e-6)


def test_tdpo_pushes_up_no_divergence_in_its_second_form_and_that_of_chosen_in_its_first(drawn):
    certain = dataclasses.replace(drawn.batch, confidence_E=torch.ones(4))
    for form, expected in (("tdpo1", -1), ("tdpo2", 0)):
        leaf = drawn.policy.kl_K.requires_grad_()
        policy = dataclasses.replace(drawn.policy, kl_K=leaf)
        loss_E = registry.build("tdpo", form=form)(policy, drawn.reference, certain, {}).loss_E
        (slope_K,) = torch.autograd.grad(loss_E.sum(), leaf)
        of_chosen_K = drawn.batch.response_K % 2 == 0
        assert (slope_K[of_chosen_K].sign() == expected).all()
        assert (slope_K[~of_chosen_K] > 0).all()


def test_tdpo_is_dpo_without_weight_or_divergence(drawn):
    dpo = drawn.run(registry.build("dpo", beta=0.3)).loss_E
    assert torch.equal(drawn.run(registry.build("tdpo", beta=0.3, alpha=0.0)).loss_E, dpo)
    distances = [
        (drawn.run(registry.build("tdpo", beta=0.3, alpha=alpha)).loss_E - dpo).abs().max() for alpha in (0.1, 0.01)
    ]
    assert 0 < distances[1] < distances[0] / 9
    policy = dataclasses.replace(drawn.policy, kl_K=torch.zeros_like(drawn.policy.kl_K))
    for form in ("tdpo1", "tdpo2"):
        objective = registry.build("tdpo", beta=0.3, form=form)
        assert torch.equal(objective(policy, drawn.reference, drawn.batch, {}).loss_E, dpo)


def test_tdpo_weighs_half_the_divergence_unless_told_and_says_so():
    assert registry.build("tdpo") == registry.build("tdpo", alpha=0.5)
    assert registry.build("tdpo").describe() == {"beta": 0.1, "form": "tdpo2", "alpha": 0.5}
    first = registry.terms({"name": "tdpo", "form": "tdpo1"})
    assert registry.spec_of(first)["alpha"] is None
    assert registry.terms(registry.spec_of(first)) == first


@pytest.mark.parametrize(("name", "fields"), [(name, fields) for name, fields in EVERY_FORM if name != "wpo"])
def test_gradients_are_those_of_finite_differences(name, fields, drawn):
    """Not so of WPO, whose weights move with the log-probs and yet have no gradient: its formula is above."""
    objective, policy = registry.build(name, **fields), drawn.policy

    def losses(logps_K):
        return objective(dataclasses.replace(policy, logps_K=logps_K), drawn.reference, drawn.batch, {}).loss_E

    assert torch.autograd.gradcheck(losses, policy.logps_K.requires_grad_())
    if fields.get("form") == "tdpo1":

        def of_divergences(kl_K):
            return objective(dataclasses.replace(policy, kl_K=kl_K), drawn.reference, drawn.batch, {}).loss_E

        assert torch.autograd.gradcheck(of_divergences, policy.kl_K.requires_grad_())


@pytest.mark.parametrize(("name", "fields"), EVERY_FORM)
def test_the_opposite_label_with_the_opposite_confidence_is_the_same(name, fields, drawn):
    objective = registry.build(name, **fields)
    turned = drawn.run(objective, swapped(drawn.batch))
    torch.testing.assert_close(turned.loss_E, drawn.run(objective).loss_E, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("name", "fields"), EVERY_FORM)
def test_ragged_batches_give_the_same_in_any_order(name, fields, drawn, make_pairs):
    """Responses and examples renumbered, targets of different responses interleaved; trees and padded rows."""
    objective = registry.build(name, **fields)
    plain = drawn.run(objective)
    generator = torch.Generator().manual_seed(1)
    renumbered_R, renumbered_E = torch.randperm(8, generator=generator), torch.randperm(4, generator=generator)
    batch = drawn.batch
    tokens_K = torch.cat([torch.arange(n) for n in batch.length_R])
    order_K = torch.argsort(tokens_K * 8 + renumbered_R[batch.response_K])  # all first tokens, all second ones, ...
    columns = {}
    for name_R in ("role_R", "score_R", "length_R"):
        columns[name_R] = torch.empty_like(getattr(batch, name_R))
        columns[name_R][renumbered_R] = getattr(batch, name_R)
    for name_E in ("weight_E", "confidence_E", "gap_E"):
        columns[name_E] = torch.empty_like(getattr(batch, name_E))
        columns[name_E][renumbered_E] = getattr(batch, name_E)
    example_R = torch.empty_like(batch.example_R)
    example_R[renumbered_R] = renumbered_E[batch.example_R]
    mixed = PlainBatch(response_K=renumbered_R[batch.response_K][order_K], example_R=example_R, **columns)
    policy, reference = (
        LogProbs(**{f: v[order_K] for f, v in vars(logps).items() if v is not None})
        for logps in (drawn.policy, drawn.reference)
    )
    outcome = objective(policy, reference, mixed, {})
    torch.testing.assert_close(outcome.loss_E[renumbered_E], plain.loss_E, rtol=1e-12, atol=0)
    torch.testing.assert_close(outcome.rewards_R[renumbered_R], plain.rewards_R, rtol=1e-12, atol=1e-15)
    examples = make_pairs([(2, 9), (5, 1), (30, 3)])
    packed, padded = (Drawn(form(examples)) for form in (pack, pad))
    assert torch.equal(packed.run(objective).loss_E, padded.run(objective).loss_E)


@pytest.mark.parametrize(
    ("name", "fields", "modifiers"),
    [
        ("wpo", {"clamp": None}, {"wpo": True}),
        ("wpo", {"clamp": 1.0}, {"wpo": "clamped"}),
        ("ld_dpo", {"alpha": 0.25}, {"tail_alpha": 0.25}),
        ("ld_dpo", {"alpha": 0.25, "of": "policy"}, {"tail_alpha": 0.25, "tail_of": "policy"}),
    ],
)
def test_an_objective_and_the_modifier_of_its_name_give_the_same_numbers(name, fields, modifiers, drawn):
    own, modified = registry.build(name, beta=0.3, **fields), registry.build("dpo", beta=0.3, modifiers=modifiers)
    assert own.needs == modified.needs
    assert own.needs_tokens
    assert modified.needs_tokens
    assert torch.equal(drawn.run(own).loss_E, drawn.run(modified).loss_E)
    assert torch.equal(drawn.run(own).rewards_R, drawn.run(modified).rewards_R)
    for one, other in zip(gradients(drawn, own), gradients(drawn, modified), strict=True):
        np.testing.assert_array_equal(one, other)
    both = {"confidence": "weight", "label_smoothing": 0.1}
    own = registry.build(name, beta=0.3, **fields, modifiers=both)
    modified = registry.build("dpo", beta=0.3, label_smoothing=0.1, modifiers={**modifiers, "confidence": "weight"})
    close(drawn.run(own).loss_E, drawn.run(modified).loss_E.numpy())


def test_tdpo_takes_wpo_weights_and_penalties(drawn):
    plain, weight = drawn.run(registry.build("tdpo")).loss_E.numpy(), omega(drawn)
    weighed = registry.build("tdpo", modifiers={"wpo": True})
    assert weighed.needs == {"kl_K", "log_sum_p2_K"}
    close(drawn.run(weighed).loss_E, weight * plain)
    squares = np.array([np.log(np.prod(ratio)) ** 2 for ratio in drawn.ratios()])
    held = registry.build("tdpo", modifiers={"ratio_penalty": 0.3})
    close(drawn.run(held).loss_E, plain + 0.3 * (squares[0::2] + squares[1::2]))


@pytest.mark.parametrize(
    ("name", "modifier", "message"),
    [
        ("wpo", {"wpo": True}, "WPO weighs by the policy already: leave it out"),
        ("wpo", {"average": "mean"}, "WPO weighs by the log-probs as they are: set modifiers.wpo of dpo instead, and"),
        ("wpo", {"tail_alpha": 0.5}, "WPO weighs by the log-probs as they are: set modifiers.wpo of dpo instead, and"),
        ("wpo", {"reference_free": True}, "WPO weighs by the log-probs as they are: set modifiers.wpo of dpo instead"),
        ("ld_dpo", {"tail_alpha": 0.5}, "LDDPO has its own alpha: set it there"),
        ("ld_dpo", {"reference_free": True}, "the field of would say nothing: set modifiers.tail_alpha of dpo instead"),
        ("tdpo", {"temperature": 2.0}, "TDPO reads more of each token than its log-prob"),
        ("tdpo", {"tail_alpha": 0.5}, "TDPO reads more of each token than its log-prob"),
        ("tdpo", {"reference_free": True}, "TDPO measures divergences from the reference: leave it out"),
    ],
)
def test_modifiers_that_make_no_sense_are_refused(name, modifier, message):
    with pytest.raises(PreftuneError) as raised:
        registry.build(name, modifiers=modifier)
    assert str(raised.value).startswith(f"objective {name}: modifiers.{next(iter(modifier))} is refused: {message}")


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("wpo", {"beta": 0}, "beta must be finite and > 0, got 0"),
        ("wpo", {"clamp": 0}, "clamp must be finite and > 0, got 0"),
        ("ld_dpo", {"beta": -1}, "beta must be finite and > 0, got -1"),
        ("ld_dpo", {"alpha": 1.5}, "alpha must be in [0, 1], got 1.5"),
        ("tdpo", {"beta": 0}, "beta must be finite and > 0, got 0"),
        ("tdpo", {"alpha": -0.5}, "alpha must be finite and >= 0, got -0.5"),
        ("tdpo", {"alpha": 0.5, "form": "tdpo1"}, "alpha is 0.5, but tdpo1 has none: leave it out or set form"),
    ],
)
def test_refused_fields_are_one_sentence(name, fields, message):
    with pytest.raises(PreftuneError) as raised:
        registry.build(name, **fields)
    assert str(raised.value).startswith(f"objective {name} is refused: {message}")
    assert "\n" not in str(raised.value)


def test_what_is_missing_is_named(drawn):
    bare = LogProbs(drawn.policy.logps_K)
    with pytest.raises(ValueError, match="WPO needs log_sum_p2_K: give it in the policy's LogProbs"):
        registry.build("wpo")(bare, drawn.reference, drawn.batch, {})
    with pytest.raises(ValueError, match="TDPO needs kl_K: give it in the policy's LogProbs"):
        registry.build("tdpo")(bare, drawn.reference, drawn.batch, {})
    for name in ("wpo", "ld_dpo", "tdpo"):
        with pytest.raises(ValueError, match="compares with a reference: give its log-probs"):
            registry.build(name)(drawn.policy, None, drawn.batch, {})
