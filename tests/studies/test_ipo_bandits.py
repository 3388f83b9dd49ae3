"""The bandit study in its quick form: 2,000 of the paper's 18,000 steps.

By then IPO has arrived at its optimum, and DPO is past .98 on its way to the corner where beta <= 1; that it comes past
.999 is for the full form to show (make study-ipo-bandits).
"""

import csv
import json
import math
import shlex
from html.parser import HTMLParser

import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

from preftune import cli
from preftune.errors import PreftuneError
from preftune.objectives.dpo import DPO
from preftune.objectives.ipo import IPO
from preftune.studies import ipo_bandits
from preftune.studies.ipo_bandits import (
    CYCLE,
    DATA,
    FULL,
    ONE_LOSS,
    ORDER,
    PRINTED,
    QUICK,
    TAUS,
    TWO,
    Form,
    rerun,
    study,
)

THIRD = math.log(1 / 3)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return study(tmp_path_factory.mktemp("study") / "made" / "here", quick=True)


@pytest.fixture(scope="module")
def curves(found):
    return {each.data.key: each for each in found.curves}


def test_all_limits_hold(found):
    assert [limit for limit in found.limits if not limit.held] == []
    assert len(found.limits) == 41


@pytest.mark.parametrize("u", range(len(TAUS)))
def test_ipo_lands_on_the_closed_form_and_dpo_does_not_stop(curves, u):
    tau = TAUS[u]
    expected = {0.1: [0.964, 0.034, 0.001], 0.5: [0.563, 0.289, 0.148], 1.0: [0.448, 0.321, 0.230]}
    order, two = curves[ORDER.key], curves[TWO.key]
    if tau in expected:
        assert order.settled_OUA[1, u].tolist() == pytest.approx(expected[tau], abs=0.005)
    assert two.mean_ROUA[-1, 1, u, 0].item() == pytest.approx(1 / (1 + math.exp(-0.5 / tau)), abs=1e-3)
    for each in (order, two):
        quarters = each.gap_ROU[25::25, 0, u]
        assert (quarters.diff() > 0.05).all()
        assert each.mean_ROUA[-1, 0, u, 0] > each.mean_ROUA[-1, 1, u, 0]


def test_dpo_in_the_corner(curves):
    """At beta 0.1 and 0.5 past .999 already, at 1 only past .98: the limit of the quick form says no more."""
    best = curves[ORDER.key].mean_ROUA[-1, 0, :, 0].tolist()
    assert best[0] > 0.9999
    assert best[1] > 0.999
    assert 0.98 < best[2] < FULL.corner
    assert best[3] < 0.9


def test_a_cycle_moves_neither(curves):
    for each in curves[CYCLE.key].settled_OUA.flatten(0, 1):
        assert each.tolist() == pytest.approx([1 / 3] * 3, abs=0.04)


def test_the_printed_third_data_set_cannot_move_c_and_the_other_reading_does(curves):
    printed, one_loss = curves[PRINTED.key].mean_ROUA[-1], curves[ONE_LOSS.key].mean_ROUA[-1]
    assert printed[:, :, 2].flatten().tolist() == pytest.approx([1 / 3] * 8, abs=0.005)
    assert (one_loss[0, :3, 2] < 0.01).all()
    assert one_loss[1, :, 2].tolist() == pytest.approx([1 / (2 * math.exp(0.5 / tau) + 1) for tau in TAUS], abs=0.01)


@pytest.mark.parametrize(("o", "objective"), [(0, DPO(beta=0.5)), (1, IPO(tau=0.5))])
def test_each_policy_trains_as_it_would_alone(o, objective):
    """One policy, one seed, the plain optimiser and the plain call of the objective, on the same mini-batches."""
    steps, seed = 120, 7
    together = rerun((ORDER,), steps, seed)[0].logps_ROUSA[-1, o, TAUS.index(0.5), 3]
    drawn = torch.randint(3, (1000, 10, 9), generator=torch.Generator().manual_seed(seed))[:, 3]
    theta = torch.zeros(3, requires_grad=True)
    optimiser = torch.optim.Adam([theta], lr=0.01)
    reference = torch.full((9,), THIRD)
    for step in range(steps):
        better, worse = torch.tensor(ORDER.pairs)[drawn[step]].unbind(1)
        logps = torch.log_softmax(theta, 0)
        optimiser.zero_grad()
        objective.on_pairs(logps[better], logps[worse], reference, reference).loss.backward()
        optimiser.step()
    torch.testing.assert_close(together.float(), torch.log_softmax(theta.detach(), 0), rtol=1e-4, atol=1e-5)


def test_two_actions_are_not_disturbed_by_the_third_of_others():
    alone, beside = rerun((TWO,), 50, 0)[0], rerun((ORDER, TWO), 50, 0)[1]
    assert alone.logps_ROUSA.shape == (51, 2, 4, 10, 2)  # no more records than steps
    torch.testing.assert_close(alone.logps_ROUSA, beside.logps_ROUSA)


def test_the_same_seed_is_the_same_study_and_another_is_not():
    first, again, other = (rerun((ORDER,), 40, seed)[0].logps_ROUSA for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_results_and_curves_are_written(found):
    results = json.loads((found.out / "results.json").read_text())
    assert (results["steps"], results["seeds"], results["batch"], results["learning_rate"]) == (2000, 10, 9, 0.01)
    assert all(limit["held"] for limit in results["limits"])
    assert len(results["policies"]) == len(DATA) * 2 * len(TAUS)
    (policy,) = [
        each
        for each in results["policies"]
        if (each["data"], each["objective"], each["tau"]) == (ORDER.key, "ipo", 1.0)
    ]
    assert policy["pairs"] == ["ab", "bc", "ac"]
    assert sum(policy["probability"]) == pytest.approx(1, abs=1e-5)
    assert policy["closed_form"] == pytest.approx([0.448, 0.321, 0.230], abs=1e-3)
    with (found.out / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == (4 * 3 + 2) * 2 * len(TAUS) * 101
    assert {row["step"] for row in rows} == {str(20 * i) for i in range(101)}
    last = [row for row in rows if row["step"] == "2000" and row["data"] == ORDER.key and row["tau"] == "1.0"]
    assert [float(row["probability"]) for row in last if row["objective"] == "ipo"] == pytest.approx(
        policy["probability"], abs=1e-5
    )


def test_the_command_runs_the_study_and_prints_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(ipo_bandits, "QUICK", Form(60, 0.3, 1.0))  # so short that less must be asked of it
    done = CliRunner().invoke(cli.app, ["study", "ipo-bandits", "--out", str(tmp_path), "--quick"])
    assert done.exit_code == 0, done.output
    assert "41 of 41 limits hold; 60 steps in" in done.output
    assert ".448 .321 .230" in done.output
    assert "cannot give the paper's Figure 2" in done.output


def test_a_limit_that_does_not_hold_is_named_and_fails_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(ipo_bandits, "QUICK", Form(60, 0.999, 0.03))
    done = CliRunner().invoke(cli.app, ["study", "ipo-bandits", "--out", str(tmp_path), "--quick"])
    assert done.exit_code == 1
    assert "does not hold: total-order, dpo, tau 1: probability of a, above 0.999" in " ".join(done.output.split())


def test_a_folder_that_cannot_be_made_is_told_in_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PreftuneError, match=r"cannot make the folder .*: name another with --out"):
        study(tmp_path / "file", quick=True)


class Page(HTMLParser):
    """The text of the page's <pre>."""

    def __init__(self, text):
        super().__init__()
        self.inside, self.command = False, ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.inside = tag == "pre"

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        self.command += data * self.inside


@pytest.mark.parametrize("quick", [True, False])
def test_the_command_on_the_page_is_the_one_that_made_it(tmp_path, monkeypatch, quick):
    for form in ("QUICK", "FULL"):
        monkeypatch.setattr(ipo_bandits, form, Form(20, 0.3, 1.0))
    out = tmp_path / "a folder & more"
    made = study(out, quick=quick, seed=3)
    first, *words = shlex.split(Page(made.page.read_text(encoding="utf-8")).command)
    assert first == "preftune"
    command = get_command(cli.app)
    for name in words[:2]:
        command = command.commands[name]
    with command.make_context("ipo-bandits", words[2:]) as context:
        assert context.params == {"out": out, "quick": quick, "seed": 3}
    flags = [word for word in words if word.startswith("-")]
    assert sorted(flags) == sorted(set(flags))


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_policies_train_on_one_thread_and_give_the_others_back(monkeypatch, two_threads):
    """Tensors are so small that threads do nothing but wait for each other, for minutes on a busy machine."""
    seen, draw = [], ipo_bandits._draw

    def watched(data, generator):
        seen.append(torch.get_num_threads())
        return draw(data, generator)

    monkeypatch.setattr(ipo_bandits, "_draw", watched)
    rerun((TWO,), 3, 0)
    assert (seen, torch.get_num_threads()) == ([1], 2)
    with pytest.raises(ValueError, match="empty"):
        rerun((), 3, 0)  # whatever goes wrong inside
    assert torch.get_num_threads() == 2


def test_quick_asks_for_less_than_full():
    assert QUICK.steps < FULL.steps
    assert QUICK.corner < FULL.corner
    assert QUICK.tolerance > FULL.tolerance
