"""The page of the study of the frontier: what it says is what was measured."""

import csv
import math
import re

import pytest

from preftune.report.frontier import page, show, write
from preftune.report.frontier_figures import figures
from preftune.studies.frontier.axes import AXES, QUICK, Form, scored_cells
from preftune.studies.frontier.cells import Outcome
from preftune.studies.frontier.study import Found
from preftune.studies.frontier.tables import compared_at, comparisons, points, regrets_at

SMALL = Form(20, 2, 3, (1,), (1,), False, (20, 40), (4, 16))
CURVE = [(0.0, 1.0), (0.5, 2.0), (1.0, 2.5), (9.0, 3.0)]


def outcome(cell, number):
    """Figures that are easy to recognise: a method's number decides them, and the seed moves them a little."""
    regret = 0.1 * number + 0.01 * cell.seed
    kl = 0.2 + 0.05 * number
    figures = {
        "reward": 2.0 - regret,
        "parts": {"helpfulness": 1.5, "harmlessness": 0.5 - regret},
        "kl": kl,
        "reference": 1.0,
        "best": 2.0,
        "share": 1 - regret,
        "regret": regret,
        "attainable": 0.6,
        "proxy": 3 * kl if "best_of_n" in cell.method else None,
        "win": 0.7,
        "updates": cell.updates,
        "sampled_tokens": 0,
        "training_seconds": 2.0,
        "train_accuracy": 0.9,
        "held_out_accuracy": 0.7,
        "seconds": 3.0,
    }
    failed = "it diverged" if cell.method == "orpo" and cell.seed == 3 else None
    return Outcome(cell, failed, {} if failed else figures)


def found(key):
    axis = AXES[key]
    order = [each for each in axis.methods if each != "reference"]
    scored = [
        (condition, outcome(cell, order.index(cell.method)))
        for condition, cell in scored_cells(axis, order, "listed", SMALL, {}, 3)
    ]
    made = points(scored)
    chosen = {point.method.key: point.strength for point in made}
    failures = [each for _, each in scored if each.failed]
    compared = comparisons(axis, made, chosen)
    return Found(axis, "listed", SMALL, 3, made, chosen, compared, CURVE, failures, "preftune study", ["abc"])


def table(path):
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


@pytest.mark.parametrize("key", AXES)
def test_each_page_has_its_figures_and_each_figure_its_data(key, tmp_path):
    given = found(key)
    write(given, tmp_path / "page")
    drawn = figures(given)
    assert drawn
    text = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    for figure in drawn:
        assert f'id="figure-{figure.key}"' in text
        rows = table(tmp_path / "page" / f"{figure.key}.csv")
        assert len(rows) == sum(len(trace.x) for cell in figure.cells for trace in cell.traces)
        shown = {(row["line"], float(row["value"])) for row in rows}
        assert {(trace.name, y) for cell in figure.cells for trace in cell.traces for y in trace.y} == shown
    assert "preftune study" in text
    assert "src=" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def test_points_are_means_over_seeds_with_their_intervals(tmp_path):
    write(found("noise"), tmp_path)
    rows = {(row["condition"], row["method"]): row for row in table(tmp_path / "points.csv")}
    ipo = rows["10% flipped", "ipo"]  # the second method: 0.1 + 0.01 * (1, 2, 3)
    assert float(ipo["regret"]) == pytest.approx(0.12)
    half = 4.30265 * 0.01 / math.sqrt(3)
    assert float(ipo["regret_low"]) == pytest.approx(0.12 - half, abs=1e-5)
    assert float(ipo["regret_high"]) == pytest.approx(0.12 + half, abs=1e-5)
    assert ipo["seeds"] == "3"
    assert float(ipo["helpfulness"]) + float(ipo["harmlessness"]) == pytest.approx(float(ipo["reward"]))


def test_methods_are_compared_with_dpo_and_only_with_it(tmp_path):
    given = found("noise")
    write(given, tmp_path)
    rows = table(tmp_path / "comparisons.csv")
    assert {row["baseline"] for row in rows} == {"DPO"}
    assert len(rows) == 3 * (len(given.axis.methods) - 2)
    assert all(float(row["p_holm"]) >= float(row["p"]) for row in rows)
    by_method = {row["method"]: float(row["regret_difference"]) for row in rows}
    assert by_method["IPO"] == pytest.approx(0.1)


def test_what_failed_is_said_and_left_out_of_means():
    given = found("methods")
    made = page(given, figures(given))
    assert [row[1] for row in made.tables[-1].rows] == ["it diverged"]
    (orpo,) = [point for point in given.points if point.method.key == "orpo"]
    assert (orpo.failed, orpo.figures["reward"].n) == (1, 2)
    assert "1 cells failed" in " ".join(made.paragraphs)


def test_the_headline_names_the_least_regret_of_the_plain_condition():
    made = page(found("methods"), [])
    assert "The least regret: best of n, learned reward, 2.0 ± " in made.headline
    assert "show a difference after Holm's adjustment" in made.headline
    assert any("half of all gain" in paragraph for paragraph in made.paragraphs)
    assert "quick form" in made.paragraphs[0]


def test_a_study_that_has_only_begun_has_a_page_too(tmp_path):
    axis = AXES["sizes"]
    nothing = Found(axis, "listed", QUICK, 3, [], {}, [], CURVE, [], "preftune study", [None])
    write(nothing, tmp_path)
    assert "Nothing has been measured yet." in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_what_is_printed_names_each_method_and_the_page(tmp_path, capsys):
    show(found("shift"), tmp_path)
    printed = capsys.readouterr().out
    assert "Dr. DPO" in printed
    assert str(tmp_path / "index.html") in printed.replace("\n", "")


def test_the_page_draws_all_its_figures_in_a_browser(tmp_path, visit):
    write(found("methods"), tmp_path)
    seen = visit(tmp_path / "index.html")
    assert seen.draw_all() == len(figures(found("methods")))


def test_pictures_stand_beside_the_page(tmp_path, chromium):
    write(found("shift"), tmp_path, png=True)
    assert (tmp_path / "frontier.png").read_bytes()[:4] == b"\x89PNG"
    svg = (tmp_path / "frontier.svg").read_text(encoding="utf-8")
    assert "Dr. DPO" in svg


def test_regret_is_read_at_one_kl_between_a_methods_strengths(tmp_path):
    axis, form = AXES["shift"], Form(20, 2, 3, (0, 1), (0, 1), False, (20,), (4,))
    scored = []
    for condition, cell in scored_cells(axis, ("dpo", "kl_dpo"), "listed", form, {}, 3):
        near = cell.strength == 0.1
        given = outcome(cell, 0).figures | {"kl": 0.25 if near else 1.0, "regret": 0.1 if near else 0.3}
        if cell.method == "kl_dpo":
            given |= {
                "regret": given["regret"] + 0.01 * cell.seed,
                "kl": given["kl"] if cell.seed < 3 else 2 * given["kl"],
            }
        scored.append((condition, Outcome(cell, None, given)))
    made = points(scored)
    at = regrets_at(made, 0.5)  # half way from 0.25 to 1 on a logarithmic scale
    assert at["no shift", "dpo"] == pytest.approx({1: 0.2, 2: 0.2, 3: 0.2})
    assert at["no shift", "kl_dpo"] == pytest.approx({1: 0.21, 2: 0.22, 3: 0.13})  # its third seed went twice as far
    assert set(regrets_at(made, 0.3)["no shift", "kl_dpo"]) == {1, 2}
    compared = compared_at(axis, made, 0.5)
    assert compared["no shift", "kl_dpo"].difference.value == pytest.approx((0.01 + 0.02 - 0.07) / 3)
    assert ("no shift", "dpo") not in compared
