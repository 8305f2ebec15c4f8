import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from finetune.monitor.metrics_log import History
from finetune.monitor.plots import (
    PLOTS,
    before_after_figure,
    lengths_figure,
    loss_figure,
    plot_run,
    training_figure,
)
from finetune.monitor.smoothing import running_mean, thinned
from tests.finetune.histories import made_up_history

LOSSES = st.lists(st.floats(0, 50), min_size=1, max_size=60)


def texts_outside(figure: Figure) -> list[str]:
    """The labels, ticks and legends that do not fit into the picture."""
    figure.draw_without_rendering()
    room = figure.bbox.padded(1.0)
    texts = [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        texts += [axes.xaxis.label, axes.yaxis.label, axes.title, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text() and text.get_visible()]
    return [
        text
        for text, box in boxes
        if not (room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1)
    ]


def rough(history: History) -> History:
    """With spikes of the loss, skipped steps and lack of memory."""
    for place in range(50, len(history.steps), 97):
        found = history.steps[place]
        history.steps[place] = dataclasses.replace(found, loss_nats_per_token=39.25, grad_norm=math.inf)
    history.events += [{"kind": "out of memory", "step": step, "batch_tokens": 512} for step in (3, 9)]
    return history


HISTORIES = {
    "one step": made_up_history(1, validations=1),
    "no validation": made_up_history(7, validations=0),
    "some steps": made_up_history(200),
    "rough": rough(made_up_history(3000, validations=20)),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_every_picture_of_a_run_is_written(name: str, tmp_path: Path) -> None:
    plot_run(tmp_path, HISTORIES[name], [12, 30, 31, 500], (3.1, 2.2))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(PLOTS)
    for plot in PLOTS:
        assert (tmp_path / plot).read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("name", HISTORIES)
def test_no_text_of_a_picture_is_cut_off(name: str) -> None:
    history = HISTORIES[name]
    lengths = [57] if name == "one step" else [*range(20, 400), 9000, 12000]
    for figure in (
        loss_figure(history),
        training_figure(history),
        lengths_figure(lengths),
        before_after_figure(12.3, 0.02),
    ):
        assert texts_outside(figure) == []


def test_the_best_validation_is_marked_and_its_value_told() -> None:
    figure = loss_figure(History(made_up_history(30).steps, [(10, 2.5), (20, 1.75), (30, 1.9)]))
    marked = [line for line in figure.axes[0].lines if str(line.get_label()).startswith("best")]
    assert [line.get_label() for line in marked] == ["best validation: 1.750 at step 20"]
    assert np.array_equal(marked[0].get_xydata(), [[20, 1.75]])


def test_a_few_spikes_do_not_press_the_curve_flat_and_are_counted() -> None:
    history = HISTORIES["rough"]
    figure = loss_figure(history)
    assert figure.axes[0].get_ylim()[1] < 6
    spikes = sum(stats.loss_nats_per_token > 30 for stats in history.steps)
    assert f"{spikes} steps above, up to 39.2" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_steps_redone_for_lack_of_memory_are_marked_in_every_panel() -> None:
    figure = training_figure(HISTORIES["rough"])
    for axes in figure.axes:
        marks = [np.asarray(line.get_xdata()).tolist() for line in axes.lines if line.get_linestyle() == ":"]
        assert marks == [[3, 3], [9, 9]]


def test_every_row_is_in_a_bar_and_the_long_ones_in_the_last() -> None:
    lengths = [*range(20, 400), 9000, 12000]
    axes = lengths_figure(lengths).axes[0]
    heights = [bar.get_height() for bar in axes.patches]  # type: ignore[attr-defined]
    assert sum(heights) == len(lengths)
    assert heights[-1] == 2
    assert axes.get_xlim()[1] < 1000


@pytest.mark.parametrize(("before", "after", "told"), [(4.0, 3.0, "25.0 % lower"), (2.0, 2.1, "5.0 % higher")])
def test_the_change_of_the_held_out_loss_is_told_in_words(before: float, after: float, told: str) -> None:
    axes = before_after_figure(before, after).axes[0]
    assert axes.get_title("left").endswith(told)
    assert [bar.get_width() for bar in axes.patches] == [before, after]  # type: ignore[attr-defined]
    assert f"{before:.3f}   perplexity {math.exp(before):,.2f}" in [text.get_text() for text in axes.texts]


@given(LOSSES)
def test_a_running_mean_lies_between_the_extremes_so_far(values: list[float]) -> None:
    means = running_mean(values)
    for place, mean in enumerate(means):
        seen = values[: place + 1]
        assert min(seen) - 1e-9 <= mean <= max(seen) + 1e-9


def test_a_running_mean_is_the_weighted_mean_written_out() -> None:
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    weights = [0.9**age for age in range(5)][::-1]
    assert running_mean(values)[-1] == pytest.approx(np.average(values, weights=weights))


def test_a_running_mean_passes_over_what_is_not_finite() -> None:
    means = running_mean([math.nan, 2.0, math.inf, 2.0])
    assert math.isnan(means[0])
    assert means[1:].tolist() == [2.0, 2.0, 2.0]


@given(st.integers(1, 5000), st.integers(1, 50))
def test_thinning_keeps_the_extremes_and_the_mean(count: int, points: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    curve = thinned(range(1, count + 1), values, points)
    assert len(curve) == min(count, points)
    assert curve.high.max() == values.max()
    assert curve.low.min() == values.min()
    assert np.all((curve.low <= curve.values + 1e-12) & (curve.values <= curve.high + 1e-12))
    if count % points == 0:
        assert curve.values.mean() == pytest.approx(values.mean())


def test_thinning_leaves_out_what_is_not_finite() -> None:
    curve = thinned([1, 2, 3], [1.0, math.inf, 3.0])
    assert curve.steps.tolist() == [1, 3]
    assert len(thinned([], [])) == 0
