import csv
import itertools
import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib._pylab_helpers import Gcf
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection

from nopr.lab import plots, tables
from nopr.lab.plots import canvas, series

METHODS = (
    "random (ERK)",
    "magnitude at initialization",
    "SNIP",
    "GraSP",
    "SynFlow",
    "magnitude after training",
    "whole units by magnitude after training",
    "IMP rewound to step 0",
)


def accuracy_rows(n=5):
    half = None if n == 1 else 0.4
    point = {"half_width": half, "n": n}
    rows = [{"method": "dense", "density": 1.0, "mean": 97.6, **point}]
    for place, method in enumerate(METHODS):
        for density, best in ((0.2, 96.9), (0.05, 93.0), (0.02, 88.0)):
            mean = best - 0.3 * place / density**0.5
            rows.append({"method": method, "density": density, "mean": mean, **point})
    return rows


def bit_curves():
    pruned = np.arange(1, 21)
    bits = 9 * np.sin(math.pi * pruned / 21)
    curves = {
        name: {"pruned": pruned, "mean": s * bits, "low": s * bits - 0.3, "high": s * bits + 0.2}
        for name, s in (("IMP", 1.0), ("SNIP", 0.7))
    }
    zero = np.zeros(20)
    for name in ("random", "SynFlow", "magnitude at init"):
        curves[name] = {"pruned": pruned, "mean": zero, "low": zero, "high": zero}
    return curves


PUBLISHED = {"SNIP": {"pruned": [3, 5, 7], "mean": [3.37, 5.35, 6.48]}}


def value_groups():
    rng = np.random.default_rng(7)
    spread = 10 ** rng.normal(-1, 0.5, (2, 50, 10))
    return {
        "dense, trained": 10 * spread,
        "units pruned to 20%": np.where(rng.random(spread.shape) < 0.25, 0.0, spread),
        "units pruned + OrthP": 1 + 1e-6 * rng.normal(size=(2, 50, 10)),
    }


def build(kind):
    if kind == "accuracy":
        return plots.accuracy_against_density(accuracy_rows(), order=METHODS)
    if kind == "bits":
        return plots.bits_against_pruned(bit_curves(), 10.81, PUBLISHED, n=5)
    if kind == "singular values":
        return plots.singular_values(value_groups(), title="A long message " * 12, note="5 seeds")
    curves = {name: {"x": [1, 2], "mean": [3.0, 3.0]} for name in METHODS}
    return plots.lines_with_intervals(curves, title="t", x_label="epoch", y_label="loss, nats")


KINDS = ("accuracy", "bits", "singular values", "lines")


def lines(figure):
    return {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}


def texts(figure):
    """Every text in the figure, with its box in pixels."""
    drawn = FigureCanvasAgg(figure)
    drawn.draw()
    renderer = drawn.get_renderer()
    found = [
        text
        for text in figure.findobj(mpl.text.Text)
        if text.get_visible() and text.get_text().strip() and text.get_window_extent(renderer).width
    ]
    shown = set(itertools.chain(*(tick_labels(axes) for axes in figure.axes)))
    ticks = {label for axes in figure.axes for label in every_tick_label(axes)}
    return [(t, t.get_window_extent(renderer)) for t in found if t not in ticks or t in shown]


def every_tick_label(axes):
    for axis in (axes.xaxis, axes.yaxis):
        for tick in axis.get_major_ticks() + axis.get_minor_ticks():
            yield from (tick.label1, tick.label2)


def tick_labels(axes):
    """The tick labels within the limits; matplotlib hides the others."""
    for axis, bounds in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        for tick in axis.get_major_ticks():
            if min(bounds) <= tick.get_loc() <= max(bounds) and tick.label1.get_visible():
                yield tick.label1


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_lies_on_another(kind):
    figure = build(kind)
    boxes = texts(figure)
    assert len(boxes) > 8
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        apart = a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
        assert apart, f"{one.get_text()!r} lies on {other.get_text()!r}"


def test_accuracy_lines_show_exactly_the_rows():
    rows = accuracy_rows()
    figure = plots.accuracy_against_density(rows)
    bars = {c.get_label(): c.get_segments() for c in figure.axes[0].collections}
    for method in METHODS:
        mine = sorted((r["density"], r["mean"]) for r in rows if r["method"] == method)
        shown = lines(figure)[method]
        np.testing.assert_array_equal(shown.get_xydata(), mine)
        ends = [[(x, y - 0.4), (x, y + 0.4)] for x, y in mine]
        np.testing.assert_array_equal(bars[f"_{method}"], ends)


def test_an_interval_that_exceeds_what_an_accuracy_can_be_is_cut():
    rows = [{"method": "SNIP", "density": 0.1, "mean": 59.6, "half_width": 174.7, "n": 2}]
    axes = plots.accuracy_against_density(rows).axes[0]
    (bar,) = (c for c in axes.collections if c.get_label() == "_SNIP")
    np.testing.assert_array_equal(bar.get_segments(), [[(0.1, 0), (0.1, 100)]])


def test_the_dense_reference_is_a_level_line_with_its_interval():
    figure = plots.accuracy_against_density(accuracy_rows())
    np.testing.assert_array_equal(lines(figure)["dense"].get_ydata(), [97.6, 97.6])
    (band,) = [p for p in figure.axes[0].patches if p.get_label() == "_dense"]
    np.testing.assert_allclose([band.get_y(), band.get_height()], [97.2, 0.8], rtol=1e-12)


@pytest.mark.parametrize("kind", ["accuracy", "lines"])
def test_every_series_is_named(kind):
    shown = {text.get_text() for text, _ in texts(build(kind))}
    assert shown.issuperset(METHODS)


@pytest.mark.parametrize(
    ("kind", "x_label", "y_label"),
    [
        ("accuracy", "weights kept, %", "test accuracy, %"),
        ("bits", "weights pruned (of 21)", "bits"),
        ("singular values", "singular value (log scale", ""),
        ("lines", "epoch", "loss, nats"),
    ],
)
def test_axes_are_labeled_with_units(kind, x_label, y_label):
    axes = build(kind).axes[-1]
    assert x_label in axes.get_xlabel()
    assert y_label in axes.get_ylabel()


def test_the_density_axis_reads_percent_and_the_sparsest_are_rightmost():
    axes = plots.accuracy_against_density(accuracy_rows()).axes[0]
    labels = {tick.get_text() for tick in axes.get_xticklabels()}
    assert labels == {"20", "5", "2"}
    assert axes.get_xlim()[0] > 0.2 > 0.02 > axes.get_xlim()[1]


def test_the_number_of_seeds_is_stated_and_a_single_seed_has_no_interval():
    many, one = accuracy_rows(), accuracy_rows(n=1)
    stated = [t.get_text() for t in plots.accuracy_against_density(many).axes[0].texts]
    assert "mean and 95% interval, n = 5 seeds" in stated
    figure = plots.accuracy_against_density(one)
    assert "mean, n = 1 seed" in [t.get_text() for t in figure.axes[0].texts]
    assert not figure.axes[0].collections


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", ["mean", "half_width", "density"])
def test_a_number_that_is_not_finite_names_its_series(key, bad):
    rows = accuracy_rows()
    rows[4][key] = bad
    with pytest.raises(ValueError, match=rf"`{key}` of the series 'magnitude at init.* finite"):
        plots.accuracy_against_density(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [], "at least one point, got none"),
        (lambda rows: rows[:1], "at least one series"),
        (lambda rows: [{**rows[1], "mean": 0.97}], "must be in %, got fractions"),
        (lambda rows: [{**rows[1], "density": 20}], r"in \(0, 1\], got 20"),
        (lambda rows: [{**rows[1], "mean": None}], "must be finite to be plotted, got None"),
    ],
)
def test_rows_that_cannot_be_plotted_are_errors(change, message):
    with pytest.raises(ValueError, match=message):
        plots.accuracy_against_density(change(accuracy_rows()))


def test_bits_show_the_curves_their_bands_and_the_published_points():
    curves = bit_curves()
    figure = plots.bits_against_pruned(curves, 10.81, PUBLISHED, n=5)
    bands = {c.get_label(): c for c in figure.axes[0].collections if isinstance(c, PolyCollection)}
    for name, curve in curves.items():
        shown = lines(figure)[name]
        np.testing.assert_array_equal(shown.get_xdata(), curve["pruned"])
        np.testing.assert_array_equal(shown.get_ydata(), curve["mean"])
        corners = bands[f"_{name}"].get_paths()[0].vertices
        for bound in ("low", "high"):
            expected = set(zip(curve["pruned"].tolist(), curve[bound].tolist(), strict=True))
            assert expected <= set(map(tuple, corners.tolist()))
    points = lines(figure)["_published SNIP"]
    np.testing.assert_array_equal(points.get_xydata(), [(3, 3.37), (5, 5.35), (7, 6.48)])
    assert points.get_color() == lines(figure)["SNIP"].get_color()
    assert points.get_markerfacecolor() == "none"


def test_both_ceilings_of_the_information_are_drawn():
    figure = build("bits")
    np.testing.assert_array_equal(lines(figure)["_H(D)"].get_ydata(), [10.81, 10.81])
    masks = lines(figure)["_log2 masks"]
    expected = [math.log2(math.comb(21, k)) for k in range(22)]
    np.testing.assert_allclose(masks.get_ydata(), expected, rtol=1e-12)
    assert any("H(D) = 10.81 bits" in text.get_text() for text, _ in texts(figure))


def test_methods_at_exactly_zero_bits_are_all_visible():
    figure = build("bits")
    shown = {text.get_text() for text, _ in texts(figure)}
    assert shown >= {"random: 0", "SynFlow: 0", "magnitude at init: 0"}
    assert figure.axes[0].get_ylim()[0] < 0
    turns = [lines(figure)[name].get_markevery() for name in ("random", "SynFlow")]
    assert turns == [(0, 3), (1, 3)]
    assert lines(figure)["IMP"].get_markevery() is None


@pytest.mark.parametrize("column", ["mean", "low", "pruned"])
def test_a_curve_that_is_not_finite_names_its_series(column):
    curves = bit_curves()
    broken = np.asarray(curves["SNIP"][column], float).copy()
    broken[3] = math.nan
    curves["SNIP"][column] = broken
    with pytest.raises(ValueError, match="of the series 'SNIP' must be finite"):
        plots.bits_against_pruned(curves, 10.81)


@pytest.mark.parametrize(
    ("curves", "ceiling", "message"),
    [
        ({}, 10.81, "at least one series"),
        ({"a": {"pruned": [], "mean": []}}, 10.81, "'a' must have columns of one length"),
        ({"a": {"pruned": [1, 2], "mean": [1.0]}}, 10.81, "got 2 of `x` and 1 of `mean`"),
        ({"a": {"pruned": [1], "mean": [1.0]}}, math.nan, "`ceiling_bits` must be finite"),
        ({"a": {"pruned": [1], "mean": [1.0]}}, 0.0, "`ceiling_bits` must be above 0"),
    ],
)
def test_curves_that_cannot_be_plotted_are_errors(curves, ceiling, message):
    with pytest.raises(ValueError, match=message):
        plots.bits_against_pruned(curves, ceiling)


def test_histograms_show_exactly_the_rows():
    rows = plots.singular_value_rows(value_groups())
    figure = plots.singular_values(value_groups())
    pairs = list(zip(figure.axes[::2], figure.axes[1::2], strict=True))
    for name, (zeros, ridge) in zip(value_groups(), pairs, strict=True):
        at_zero, *above = [row for row in rows if row["condition"] == name]
        (bar,) = zeros.containers[0].patches
        assert bar.get_width() == at_zero["share"]
        (steps,) = [p for p in ridge.patches if p.get_label() == "_shares"]
        shares, edges, _ = steps.get_data()
        np.testing.assert_array_equal(shares, [row["share"] for row in above])
        np.testing.assert_array_equal(edges[:-1], [row["low"] for row in above])
        np.testing.assert_array_equal(edges[1:], [row["high"] for row in above])
        diamond = next(line for line in ridge.get_lines() if line.get_label() == "_mean")
        assert diamond.get_xdata() == [at_zero["mean"]]


def test_every_singular_value_is_counted_once_and_zeros_are_stated():
    groups = value_groups()
    rows = plots.singular_value_rows(groups)
    for name, values in groups.items():
        mine = [row for row in rows if row["condition"] == name]
        assert sum(row["count"] for row in mine) == values.size
        np.testing.assert_allclose(sum(row["share"] for row in mine), 1, rtol=1e-12)
        assert mine[0]["count"] == (values == 0).sum()
        np.testing.assert_allclose(mine[0]["mean"], values.mean(), rtol=1e-12)
    share = (groups["units pruned to 20%"] == 0).mean()
    shown = {text.get_text() for text, _ in texts(plots.singular_values(groups))}
    assert f"{share:.1%}" in shown


def test_values_at_one_up_to_rounding_are_in_one_bin():
    rows = plots.singular_value_rows({"near": [1 - 1e-6, 1.0, 1 + 1e-6]})
    assert [row["count"] for row in rows if row["count"]] == [3]


@given(st.lists(st.floats(0, 1e30), min_size=4, max_size=4))
def test_bins_hold_all_values_whatever_their_range(values):
    rows = plots.singular_value_rows({"a": values}, floor=1e-6)
    assert sum(row["count"] for row in rows) == 4
    assert rows[0]["count"] == sum(value <= 1e-6 for value in values)


def test_a_condition_of_only_zeros_is_drawn():
    figure = plots.singular_values({"dead": np.zeros((3, 2))})
    assert {"100.0%", "mean 0"} <= {text.get_text() for text, _ in texts(figure)}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({}, "at least one condition"),
        ({"a": []}, "'a' has no singular values"),
        ({"b": [1.0, math.nan]}, "singular values of 'b' must be finite"),
        ({"c": [1.0, -0.5]}, r"of 'c' must be at least 0, got -0\.5"),
    ],
)
def test_values_that_are_not_singular_values_are_errors(groups, message):
    with pytest.raises(ValueError, match=message):
        plots.singular_values(groups)


def test_a_method_has_one_color_in_every_figure_that_shares_an_order():
    order = ("IMP", "SNIP", "random", "SynFlow", "magnitude at init")
    bits = lines(plots.bits_against_pruned(bit_curves(), 10.81, order=order))
    rows = [{"method": "SNIP", "density": 0.2, "mean": 90.0, "half_width": None, "n": 1}]
    accuracy = lines(plots.accuracy_against_density(rows, order=order))
    assert bits["SNIP"].get_color() == accuracy["SNIP"].get_color() == canvas.COLORS[1]


def test_nine_series_differ_in_color_and_marker():
    curves = {str(place): {"x": [0, 1], "mean": [place, place]} for place in range(9)}
    figure = plots.lines_with_intervals(curves, title="t", x_label="x", y_label="y")
    shown = [lines(figure)[name] for name in curves]
    assert len({line.get_color() for line in shown}) == 9
    assert len({line.get_marker() for line in shown}) == 9


@given(st.lists(st.floats(-0.5, 1.5), min_size=8, max_size=8))
def test_labels_are_apart_in_order_and_inside(heights):
    placed = series.apart(np.array(heights), least=0.1)
    order = np.argsort(heights, kind="stable")
    assert (np.diff(placed[order]) >= 0.1 - 1e-9).all()
    assert placed.min() >= -1e-9
    assert placed.max() <= 1 + 1e-9


def test_labels_that_are_apart_stay_where_they_are():
    heights = np.array([0.9, 0.1, 0.5])
    np.testing.assert_allclose(series.apart(heights, least=0.1), heights, atol=1e-12)


def test_two_labels_at_one_height_move_equally():
    placed = series.apart(np.array([0.5, 0.5]), least=0.1)
    np.testing.assert_allclose(placed, [0.45, 0.55], atol=1e-12)


def test_figures_leave_no_global_state_behind():
    before = dict(mpl.rcParams)
    for kind in KINDS:
        build(kind)
    assert dict(mpl.rcParams) == before
    assert not Gcf.get_all_fig_managers()
    sources = Path(plots.__file__).parent.glob("*.py")
    assert not any("import matplotlib.pyplot" in path.read_text() for path in sources)


def test_save_writes_the_figure_and_the_numbers_that_it_shows(tmp_path):
    rows = accuracy_rows()
    saved = plots.save(plots.accuracy_against_density(rows), rows, tmp_path / "new", "accuracy")
    assert saved == tuple(tmp_path / f"new/accuracy.{kind}" for kind in ("png", "pdf", "csv"))
    assert saved.pdf.read_bytes().startswith(b"%PDF-")
    assert saved.png.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    image = mpl.image.imread(saved.png)
    assert image.shape[0] > 600
    assert image.shape[1] > 1000
    assert len(np.unique(image[..., :3].reshape(-1, 3), axis=0)) > 50
    with saved.csv.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [(r["method"], float(r["density"]), float(r["mean"])) for r in read] == [
        (r["method"], r["density"], r["mean"]) for r in rows
    ]


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    rows = plots.curve_rows(bit_curves(), PUBLISHED)
    one, other = (plots.save(build("bits"), rows, tmp_path / name, "bits") for name in "ab")
    for here, there in zip(one, other, strict=True):
        assert here.read_bytes() == there.read_bytes()


def test_a_figure_for_a_paper_has_no_title(tmp_path):
    figure, rows = build("bits"), plots.curve_rows(bit_curves(), PUBLISHED)
    with_title = mpl.image.imread(plots.save(figure, rows, tmp_path, "a").png)
    without = mpl.image.imread(plots.save(figure, rows, tmp_path, "b", titled=False).png)
    assert without.shape[1] == with_title.shape[1]
    lost = with_title.shape[0] - without.shape[0]
    # Up to the position of a pixel.
    assert np.abs(without[50:] - with_title[lost + 50 :]).mean() < 0.01
    assert lost > 40
    assert (without[:8] == 1).all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [([], "must hold the numbers"), ([{"a": 1.0}, {"a": np.float32("nan")}], "'a' of row 1")],
)
def test_rows_that_cannot_be_saved_leave_what_was_there(rows, message, tmp_path):
    good = [{"a": 1.0, "b": None}]
    saved = plots.save(build("lines"), good, tmp_path, "figure")
    before = [path.read_bytes() for path in saved]
    with pytest.raises(ValueError, match=message):
        plots.save(build("bits"), rows, tmp_path, "figure")
    assert [path.read_bytes() for path in saved] == before
    assert saved.csv.read_text() == "a,b\n1.0,\n"
    assert {p.name for p in tmp_path.iterdir()} == {f"figure.{k}" for k in ("csv", "pdf", "png")}


def test_curve_rows_are_one_row_a_point():
    rows = plots.curve_rows({"a": {"pruned": np.array([1, 2]), "mean": [0.5, 0.7]}}, PUBLISHED)
    assert rows[1] == {"method": "a", "source": "computed", "pruned": 2, "mean": 0.7}
    assert rows[-1] == {"method": "SNIP", "source": "published", "pruned": 7, "mean": 6.48}
    assert len(rows) == 5


# --- Many panels ---------------------------------------------------------------------------------


def test_panels_share_their_axes_and_show_every_line():
    curve = {"x": [10.0, 1.0], "mean": [90.0, 70.0], "low": [89.0, 60.0], "high": [91.0, 80.0]}
    names = [f"method {i}" for i in range(6)]
    figure = plots.panels(
        {name: {"chosen": curve, "shuffled": curve} for name in names},
        title="Controls",
        x_label="weights kept, %",
        y_label="test accuracy, %",
        level=95.0,
        level_name="dense",
        y_range=(0, 100),
    )
    shown = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in shown] == names
    for axes in shown:
        drawn = [line for line in axes.lines if line.get_label() in ("chosen", "shuffled")]
        for line in drawn:
            np.testing.assert_array_equal(line.get_ydata(), [70.0, 90.0])
        assert len(drawn) == 2
        assert axes.get_xlim()[0] > axes.get_xlim()[1]
        assert axes.get_ylim() == (0, 100)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["chosen", "shuffled", "dense"]
    assert [text.get_text() for text in shown[-1].get_xticklabels()] == ["1", "10"]


def test_differences_have_a_row_per_name_and_their_intervals():
    column = {"SNIP": tables.Interval(1.5, 0.5, 5), "IMP": tables.Interval(-2.0, None, 1)}
    figure = plots.differences(
        {"chosen - shuffled": column}, title="What a control costs", x_label="points"
    )
    (axes,) = (axes for axes in figure.axes if axes.get_title(loc="left"))
    assert [text.get_text() for text in axes.get_yticklabels()] == ["SNIP", "IMP"]
    (bars,) = (c for c in axes.collections if hasattr(c, "get_segments"))
    np.testing.assert_allclose([s[:, 0] for s in bars.get_segments()], [[1, 2], [-2, -2]])
    with pytest.raises(ValueError, match="All panels must have the rows"):
        plots.differences({"a": column, "b": {}}, title="", x_label="")
