import math
import sys

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from preftune.errors import PreftuneError
from preftune.objectives import registry
from preftune.objectives.dpo import DPO
from preftune.objectives.ipo import IPO
from preftune.objectives.psi_po import NAMED, PsiPO
from preftune.theory import tabular

ZERO = torch.zeros(1, dtype=torch.float64)
# Psi by its mathematics, and whether Psi(q) + Psi(1 - q) is constant
DEFINITIONS = {
    "identity": (lambda q: q, True),
    "logit": (lambda q: mpmath.log(q / (1 - q)), True),
    "log": (mpmath.log, False),
    "square": (lambda q: q * q, False),
    "root": (mpmath.sqrt, False),
    "arcsine": (lambda q: mpmath.atan2(mpmath.sqrt(q), mpmath.sqrt(1 - q)), True),
}
logps = st.floats(-200, 0)
inside = st.floats(0.001, 0.999)


def doubles(*values):
    return [tensor([value], dtype=torch.float64) for value in values]


def at(objective, delta, confidence=1.0):
    """Loss of a pair with this difference of log-ratios."""
    return objective.on_pairs(delta, ZERO, ZERO, ZERO, confidence=tensor([confidence], dtype=torch.float64)).loss


def test_every_named_psi_is_defined_here():
    assert list(DEFINITIONS) == list(NAMED)


@pytest.mark.parametrize("psi", list(NAMED))
@settings(max_examples=50, deadline=None)
@given(values=st.tuples(logps, logps, logps, logps), tau=st.floats(0.05, 5), c=inside, p=st.floats(0.5, 0.999))
def test_value_and_gradient_equal_the_definition(psi, values, tau, c, p):
    leaves = [value.requires_grad_() for value in doubles(*values)]
    loss = PsiPO(psi=psi, tau=tau, p=p).on_pairs(*leaves, confidence=tensor([c], dtype=torch.float64)).loss
    with mpmath.workdps(40):
        chosen, rejected, reference_chosen, reference_rejected = map(mpmath.mpf, values)
        q = mpmath.mpf(c) * mpmath.mpf(p) + (1 - mpmath.mpf(c)) * (1 - mpmath.mpf(p))
        function = DEFINITIONS[psi][0]
        target = (function(q) - function(1 - q)) / 2 / mpmath.mpf(tau)
        short = (chosen - reference_chosen) - (rejected - reference_rejected) - target
        value, slope, scale = float(short**2), float(2 * short), float(1 + abs(target))
    assert loss.item() == pytest.approx(value, rel=1e-6, abs=1e-8 * scale**2)
    gradients = [gradient.item() for gradient in torch.autograd.grad(loss, leaves[:2])]
    assert gradients == pytest.approx([slope, -slope], rel=1e-6, abs=1e-8 * scale)


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
def test_identity_with_certain_labels_is_ipo(tau):
    values = [-20 * torch.rand(16, dtype=torch.float64) for _ in range(4)]
    ours, ipo = PsiPO(tau=tau).on_pairs(*values), IPO(tau=tau).on_pairs(*values)
    torch.testing.assert_close(ours.loss_E, ipo.loss_E, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.margin_E, ipo.margin_E, rtol=1e-12, atol=0)
    assert PsiPO(tau=tau).target(torch.ones(1)).item() == pytest.approx(1 / (2 * tau))


@settings(max_examples=40, deadline=None)
@given(delta=st.floats(-20, 20), tau=st.floats(0.05, 5), p=st.floats(0, 1))
def test_identity_with_soft_labels_is_ipo_up_to_a_constant(delta, tau, p):
    slopes = []
    for objective in (PsiPO(tau=tau), IPO(tau=tau)):
        leaf = tensor([delta], dtype=torch.float64, requires_grad=True)
        slopes.append(torch.autograd.grad(at(objective, leaf, p), leaf)[0].item())
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-9, abs=1e-9 / tau)


@pytest.mark.parametrize("confidence", [0.5, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_logit_has_the_optimum_of_dpo_under_bradley_terry(tau, confidence):
    """Where PsiPO's loss is 0, the slope of DPO with that soft label and beta = tau is 0."""
    target = PsiPO(psi="logit", tau=tau).target(tensor([confidence], dtype=torch.float64))
    assert target.item() == pytest.approx(math.log(confidence / (1 - confidence)) / tau, abs=1e-12)
    leaf = target.clone().requires_grad_()
    slope = torch.autograd.grad(at(DPO(beta=tau), leaf, confidence), leaf)[0].item()
    assert slope == pytest.approx(0, abs=1e-12)
    assert at(PsiPO(psi="logit", tau=tau), target, confidence).item() == 0


def test_logit_diverges_as_labels_agree_where_identity_stays():
    """The overfitting that IPO cures: each nine more moves logit's target by log(10) / tau, and identity's hardly."""
    sure = 1 - 10.0 ** -torch.arange(1, 9, dtype=torch.float64)
    steps = PsiPO(psi="logit", tau=0.1).target(sure).diff()
    torch.testing.assert_close(steps[3:], torch.full_like(steps[3:], math.log(10) / 0.1), rtol=1e-3, atol=0)
    assert PsiPO(psi="identity", tau=0.1).target(sure).max() < 1 / (2 * 0.1)


@pytest.mark.parametrize("psi", ["logit", "log"])
def test_an_infinite_target_is_refused_unless_a_clamp_is_named(psi):
    with pytest.raises(PreftuneError) as raised:
        at(PsiPO(psi=psi), ZERO)
    assert str(raised.value) == (
        f"psi {psi} has no finite target for a preference probability of 1: set clamp (0.01, say), or p below 1, or "
        "give the data confidences below 1"
    )
    clamped = PsiPO(psi=psi, clamp=0.01)
    assert clamped.target(tensor([1.0, 0.0])).tolist() == clamped.target(tensor([0.99, 0.01]).double()).tolist()
    assert at(PsiPO(psi=psi, p=0.9), ZERO).isfinite()
    assert at(PsiPO(psi=psi), ZERO, 0.9).isfinite()


def test_the_clamp_spares_probabilities_inside():
    free, clamped = PsiPO(psi="logit"), PsiPO(psi="logit", clamp=0.1)
    q = tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    assert torch.equal(free.target(q), clamped.target(q))
    assert clamped.target(tensor([0.95])).item() == pytest.approx(math.log(9) / 0.1)


@settings(max_examples=40, deadline=None)
@given(c=inside, p=st.floats(0.5, 1), delta=st.floats(-20, 20), psi=st.sampled_from(list(NAMED)))
def test_swapping_the_pair_is_the_same_as_doubting_the_label(c, p, delta, psi):
    objective, leaf = PsiPO(psi=psi, tau=0.5, p=p), tensor([delta], dtype=torch.float64)
    torch.testing.assert_close(at(objective, leaf, c), at(objective, -leaf, 1 - c), rtol=1e-6, atol=1e-6)


def test_a_fixed_p_doubts_every_label_alike():
    """Labels right with probability 0.9, of which one is sure and one is even: 0.9 and 0.5."""
    c = tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    expected = PsiPO(psi="logit").target(tensor([0.9, 0.5, 0.1], dtype=torch.float64))
    torch.testing.assert_close(PsiPO(psi="logit", p=0.9).target(c), expected)


def optima(psi, tau):
    """Three responses, drawn uniformly by pi_ref and mu, with any preferences: PsiPO's policy by its closed form, that
    of the antisymmetrised Psi, and the minimum of the regression over all pairs of them, both orders, as log-ratios."""
    wins = np.array([[0.5, 0.7, 0.95], [0.3, 0.5, 0.6], [0.05, 0.4, 0.5]])
    function = NAMED[psi]
    utility = function(torch.tensor(wins)).numpy()
    theory = utility.mean(1) / tau
    antisymmetrised = ((utility - utility.T) / 2).mean(1) / tau
    better, worse = torch.tensor([(i, j) for i in range(3) for j in range(3) if i != j]).T
    objective, confidence = PsiPO(psi=psi, tau=tau), torch.tensor(wins)[better, worse]
    nothing = torch.zeros(6, dtype=torch.float64)

    def loss(ratio):
        return objective.on_pairs(ratio[better], ratio[worse], nothing, nothing, confidence=confidence).loss

    zero = torch.zeros(3, dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(loss, zero)
    found = (-torch.linalg.pinv(torch.autograd.functional.hessian(loss, zero)) @ slope).numpy()
    return [values - values.mean() for values in (theory, antisymmetrised, found)]


@pytest.mark.parametrize("psi", list(NAMED))
def test_the_minimum_is_that_of_psipo_where_it_says_so_and_of_the_antisymmetrised_psi_always(psi):
    theory, antisymmetrised, found = optima(psi, tau=0.5)
    np.testing.assert_allclose(found, antisymmetrised, rtol=1e-9, atol=1e-9)
    assert PsiPO(psi=psi).exact == DEFINITIONS[psi][1]
    gap = np.abs(np.exp(theory) / np.exp(theory).sum() - np.exp(found) / np.exp(found).sum()).sum() / 2
    assert gap < 1e-9 if PsiPO(psi=psi).exact else gap > 0.003


def test_square_and_log_antisymmetrise_to_identity_and_half_of_logit():
    q = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    torch.testing.assert_close(PsiPO(psi="square").target(q), PsiPO(psi="identity").target(q))
    torch.testing.assert_close(2 * PsiPO(psi="log").target(q), PsiPO(psi="logit").target(q))


def cube(q):
    return q**3


def test_any_increasing_function_is_a_psi():
    target = PsiPO(psi=cube, tau=0.5).target(tensor([1.0, 0.8], dtype=torch.float64))
    assert target.tolist() == pytest.approx([1.0, 0.8**3 - 0.2**3])
    assert not PsiPO(psi=cube).exact
    assert PsiPO(psi=lambda q: 2 * q - 1, tau=0.5).exact


def test_functions_of_a_single_number_are_psis_too():
    c = tensor([[1.0, 0.8], [0.5, 0.3]], dtype=torch.float64)
    for given_psi, named in (("math:sqrt", "root"), (math.sqrt, "root"), (lambda q: math.log(q), "log")):
        ours, theirs = (PsiPO(psi=psi, tau=0.5, p=0.9) for psi in (given_psi, named))
        torch.testing.assert_close(ours.target(c), theirs.target(c), rtol=1e-12, atol=1e-12)
        assert at(ours, ZERO, 0.7) == pytest.approx(at(theirs, ZERO, 0.7).item(), rel=1e-12)
    steps = PsiPO(psi=lambda q: q if q < 0.5 else 2 * q - 0.5, tau=0.5)
    assert steps.target(c).flatten().tolist() == pytest.approx([1.5, 0.9, 0.0, -0.6])
    (term,) = registry.terms(PsiPO(psi=math.sqrt))
    assert registry.spec_of([term])["psi"] == "math:sqrt"


@pytest.mark.parametrize("confidence", [1.0, 0.0])
def test_a_function_of_a_single_number_without_a_value_there_asks_for_a_clamp(confidence):
    def odds(q):
        return q / (1 - q)

    for psi in (math.log, math.atanh, lambda q: math.log(q) if q < 0.5 else odds(q)):
        with pytest.raises(
            PreftuneError, match=r"has no finite target for a preference probability of [01]: set clamp"
        ):
            at(PsiPO(psi=psi), ZERO, confidence)
        assert at(PsiPO(psi=psi, clamp=0.01), ZERO, confidence).isfinite()


def test_a_psi_that_fails_on_the_datas_probabilities_is_one_sentence():
    def fails_at_the_end(q):
        if isinstance(q, torch.Tensor) and len(q) == 1:
            raise RuntimeError("x\ny")
        return q

    with pytest.raises(PreftuneError) as raised:
        at(PsiPO(psi=fails_at_the_end), ZERO)
    name = "test_a_psi_that_fails_on_the_datas_probabilities_is_one_sentence.<locals>.fails_at_the_end"
    assert str(raised.value) == f"psi {name} failed on probabilities of pairs: RuntimeError: x y"


@pytest.mark.parametrize("psi", list(NAMED))
def test_notes_say_so_where_another_psi_is_optimised(psi):
    notes = PsiPO(psi=psi).notes()
    assert len(notes) == (0 if DEFINITIONS[psi][1] else 1)
    assert DPO().notes() == []
    for note in notes:
        assert note.startswith(f"psi {psi} is trained as its antisymmetrised form, (Psi(q) - Psi(1 - q)) / 2")
        assert "preftune.theory.tabular.psi_po_gap" in note
        assert hasattr(tabular, "psi_po_gap")
        assert "\n" not in note


@pytest.fixture
def users(tmp_path, monkeypatch):
    (tmp_path / "my_psis.py").write_text(
        "import torch\ndef cube(q):\n    return q ** 3\ndef falls(q):\n    return -q\nnumber = 3\n"
        "def scalar(q):\n    return 1.0\ndef fails(q):\n    raise KeyError('x')\n"
        "def text(q):\n    return 'high'\n"
        "def late(q):\n    return -1 / max(0, 0.9 - float(q))\n"
    )
    (tmp_path / "bad_psis.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    yield
    for module in ("my_psis", "bad_psis"):
        sys.modules.pop(module, None)


def test_a_users_psi_is_named_in_the_config_and_read_back(users):
    (term,) = registry.terms({"name": "psi_po", "psi": "my_psis:cube", "tau": 0.5})
    assert term.objective.target(tensor([0.8])).item() == pytest.approx(0.8**3 - 0.2**3, rel=1e-6)
    assert registry.terms(registry.spec_of([term])) == (term,)
    import my_psis

    (term,) = registry.terms(PsiPO(psi=my_psis.cube))
    assert registry.spec_of([term])["psi"] == "my_psis:cube"
    (term,) = registry.terms(PsiPO(psi=lambda q: q))
    with pytest.raises(PreftuneError, match="which no config can name: define it at the top of a module of its own"):
        registry.spec_of([term])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tau": 0}, "is refused: tau must be finite and > 0, got 0"),
        ({"p": 0.4}, "is refused: p must be in [0.5, 1], got 0.4"),
        ({"p": 1.1}, "is refused: p must be in [0.5, 1], got 1.1"),
        ({"clamp": 0.5}, "is refused: clamp must be in [0, 0.5), got 0.5"),
        ({"psi": "probit"}, "is refused: psi must be one of identity, logit, log, square, root, arcsine, or package."),
        ({"psi": "my_psis:"}, "is refused: psi must be one of identity"),
        ({"psi": "my_psis:none"}, "is refused: psi my_psis:none cannot be imported: AttributeError: "),
        ({"psi": "no_psis:cube"}, "is refused: psi no_psis:cube cannot be imported: ModuleNotFoundError: "),
        ({"psi": "bad_psis:cube"}, "is refused: psi bad_psis:cube cannot be imported: ZeroDivisionError: "),
        ({"psi": "my_psis:number"}, "is refused: psi my_psis:number is of type int, expected a function"),
        ({"psi": "my_psis:falls"}, "is refused: psi my_psis:falls must increase"),
        ({"psi": "my_psis:scalar"}, "is refused: psi my_psis:scalar must increase"),
        ({"psi": "my_psis:late"}, "is refused: psi my_psis:late must give a finite number for each probability inside"),
        (
            {"psi": "my_psis:fails"},
            "is refused: psi my_psis:fails failed on a tensor of probabilities (KeyError: 'x') and on a probability by "
            "itself (KeyError: 'x')",
        ),
        (
            {"psi": "my_psis:text"},
            "is refused: psi my_psis:text failed on a tensor of probabilities (it gave no tensor of the same shape) "
            "and on a probability by itself (ValueError: could not convert string to float: 'high')",
        ),
        ({"psi": 3}, ": psi is the number 3, expected text"),
        (
            {"modifiers": {"label_smoothing": 0.1}},
            ": modifiers.label_smoothing is refused: set p on psi_po itself, to 1 - label_smoothing",
        ),
    ],
)
def test_refused_fields_are_one_sentence(users, fields, message):
    with pytest.raises(PreftuneError) as raised:
        registry.build("psi_po", **fields)
    assert str(raised.value).startswith("objective psi_po" + (message if message[0] == ":" else f" {message}"))
    assert "\n" not in str(raised.value)
