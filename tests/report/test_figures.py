from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.report.drawing import CHOSEN, REJECTED
from preftune.report.figures import overview, panels
from preftune.report.reading import read


def by_key(history):
    return {panel.key: panel for panel in panels(history)}


def traces(panel, cell=0):
    return {trace.name: (list(trace.x), list(trace.y)) for trace in panel.cells[cell].traces}


def test_a_whole_run_has_all_panels(history):
    assert list(by_key(history)) == [
        "loss",
        "accuracy",
        "rewards",
        "margin",
        "histograms",
        "logps",
        "optimiser",
        "throughput",
    ]


def test_curves_hold_the_numbers_of_the_run(history):
    panel = by_key(history)
    assert traces(panel["loss"])["training"] == ([10, 20, 30], [0.66, 0.62, 0.6])
    assert traces(panel["loss"])["held-out"] == ([0, 30], [0.693, 0.573])
    assert traces(panel["rewards"])["rejected, held-out"] == ([0, 30], [0.0, -0.3])
    assert traces(panel["logps"])["chosen, held-out"] == ([0, 30], [0.0, 0.3])
    assert traces(panel["optimiser"], 1)["learning rate"] == ([10, 20, 30], [1e-4] * 3)


def test_what_answers_are_like_has_a_panel_where_it_was_measured():
    rows = [{"kind": "eval", "step": step, "sample_length": 10 + step, "sample_kl": step / 4} for step in (0, 8)]
    panel = by_key(rows)["answers"]
    assert traces(panel) == {"length": ([0, 8], [10, 18])}
    assert traces(panel, 1) == {"KL per response, rough": ([0, 8], [0, 2])}


def test_bands_go_up_one_side_and_down_the_other(history):
    panel = by_key(history)
    assert traces(panel["accuracy"])["95% interval"] == ([0, 30, 30, 0], [0.5, 0.8, 0.7, 0.5])
    steps, values = traces(panel["margin"])["middle 80%"]
    assert (steps, values) == ([0, 30, 30, 0], pytest.approx([0.3, 0.9, 0.3, -0.3]))


def test_the_band_of_the_margin_is_of_training_where_nothing_is_held_out(history):
    panel = by_key([row for row in history if row["kind"] == "train"])["margin"]
    assert traces(panel)["middle 80%"][0] == [10, 20, 30, 30, 20, 10]


def test_histograms_are_densities_before_and_after(history):
    before, after = by_key(history)["histograms"].cells
    assert (before.y_title, after.y_title) == ("density, step 0", "density, step 30")
    chosen, rejected = after.traces
    assert (list(chosen.x), list(chosen.y)) == ([-1, -1, 0, 1], [0, 0.25, 0.75, 0])
    assert (list(rejected.x), list(rejected.y)) == ([-1, -1, 0, 1], [0, 0.6, 0.4, 0])
    assert (chosen.line.color, rejected.line.color) == (CHOSEN, REJECTED)


@pytest.mark.parametrize(
    "histogram",
    [
        None,
        [],
        {"edges": [0, 1]},
        {"edges": [0, 1], "counts": [0]},
        {"edges": [0, 1, 2], "counts": [3]},
        {"edges": [0, 0, 1], "counts": [1, 1]},
        {"edges": [0, None, 1], "counts": [1, 1]},
        {"edges": [5], "counts": []},
    ],
)
def test_a_histogram_that_is_none_is_left_out(histogram):
    row = {"kind": "eval", "step": 0, "chosen_reward_histogram": histogram}
    assert panels([row]) == []


def test_demonstrations_have_the_panels_that_they_can_have(sft_run):
    history = read(sft_run).history
    assert list(by_key(history)) == ["loss", "optimiser"]
    assert traces(by_key(history)["loss"])["held-out"] == ([0, 20], [4.0, 2.0])
    assert len(overview(history).layout.annotations) == 2


def test_missing_and_null_values_are_passed_over():
    rows = [{"kind": "train", "step": step, "loss": loss} for step, loss in enumerate([1.0, None, float("nan"), 0.5])]
    assert traces(by_key([*rows, {"kind": "train", "step": 9}])["loss"]) == {"training": ([0, 3], [1.0, 0.5])}


def test_a_step_that_was_written_twice_counts_as_written_last():
    rows = [{"kind": "train", "step": step, "loss": loss} for step, loss in [(1, 1.0), (2, 0.9), (1, 0.8)]]
    assert traces(by_key(rows)["loss"])["training"] == ([1, 2], [0.8, 0.9])


def test_the_overview_is_a_grid_of_two_by_three(history):
    figure = overview(history)
    assert [title.text for title in figure.layout.annotations] == [
        "Loss",
        "Preference accuracy",
        "Rewards",
        "Reward margin",
        "Log-probability since the start",
        "Gradient norm and learning rate",
    ]
    domains = [(axis.domain[0], axis.anchor) for axis in figure.select_xaxes()]
    assert len(domains) == 6
    assert len({left for left, _ in domains}) == 3


def test_a_name_stands_once_in_the_legend(history):
    shown = [trace.name for trace in overview(history).data if trace.showlegend]
    assert len(shown) == len(set(shown))


def test_an_empty_run_has_no_panels_and_says_so():
    assert panels([]) == []
    assert overview([]).layout.title.text == "No metrics were recorded."


def test_nothing_but_numbers_of_the_run_enters_a_figure(history):
    nasty = "<b>x</b>"
    rows = [{**row, nasty: 1.0, "loss": nasty, "note": nasty} for row in history]
    assert nasty not in "".join(panel.figure().to_json() + panel.caption for panel in panels(rows))


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(),
    st.integers(-(10**400), 10**400),
    st.text(max_size=3),
    st.lists(st.one_of(st.none(), st.floats()), max_size=3),
    st.fixed_dictionaries({"edges": st.lists(st.floats(), max_size=4), "counts": st.lists(st.integers(), max_size=3)}),
)
KEYS = [
    *("loss", "preference_accuracy", "preference_accuracy_ci95", "margin", "margin_q10", "margin_q90"),
    *("chosen_reward", "chosen_reward_histogram", "chosen_logp_per_token_change", "gradient_norm", "padding_share"),
]
ROWS = st.fixed_dictionaries(
    {"kind": st.sampled_from(["train", "eval", "other", None])},
    optional={"step": st.one_of(st.integers(0, 5), JUNK), **dict.fromkeys(KEYS, JUNK)},
)


@settings(max_examples=40, deadline=None)
@given(st.lists(ROWS, max_size=6))
def test_no_metrics_break_the_figures(history):
    for figure in [overview(history), *(panel.figure() for panel in panels(history))]:
        json.loads(figure.to_json(), parse_constant=pytest.fail)


def test_what_the_log_probabilities_do_is_left_to_the_curves(history):
    caption = by_key(history)["logps"].caption
    assert "Where rejected falls further" in caption
    assert "where chosen falls further" in caption


def test_a_reward_model_has_scores(history):
    told = {panel.key: panel for panel in panels(history, scores=True)}
    words = [
        text
        for panel in told.values()
        if panel.key not in ("logps", "answers")
        for text in (panel.caption, panel.x_title, *(cell.y_title for cell in panel.cells))
    ]
    assert not [text for text in words if "reference" in text or "implicit" in text]
    assert told["rewards"].cells[0].y_title == told["histograms"].x_title == "score"
    assert "implicit reward" in [cell.y_title for panel in panels(history) for cell in panel.cells]
