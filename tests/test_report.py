import base64
import html.parser
import itertools
import math
import re

import numpy as np
import pytest
import scipy.stats
from matplotlib.figure import Figure as Canvas

from nopr.lab import page, records, report, tables
from nopr.lab.tables import Column, Interval, Missing

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(html.parser.HTMLParser):
    """Reads a page: every tag with its attributes, the text, and whether tags close in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def text(self):
        return "".join(self.words)


COLUMNS = [
    Column("method", "method"),
    Column("kept", "weights\nkept"),
    Column("accuracy", "test accuracy\n%"),
    Column("repaired", "with OrthP", 3),
]
ROWS = [
    {"method": "dense", "density": 1.0, "kept": 50200, "accuracy": Interval(97.61, 0.32, 5)},
    {
        "method": "SNIP",
        "density": 0.2,
        "kept": 10040,
        "accuracy": Interval(96.5, 10.25, 5),
        "repaired": Missing("OrthP needs whole units"),
    },
    {
        "method": "units",
        "density": 0.2,
        "kept": 5020,
        "accuracy": Interval(90.0, None, 1),
        "repaired": Interval(0.98, 0.01, 5),
    },
]


@pytest.fixture
def png(tmp_path):
    figure = Canvas(figsize=(2, 1))
    figure.savefig(tmp_path / "figure.png", dpi=100)
    return tmp_path / "figure.png"


def sections(png):
    return [
        report.Section("Result", ["Five seeds.", report.Table(ROWS, COLUMNS, "Kept", "density")]),
        report.Section("Figures", [report.Figure(png, "How to read it.", "A chart")]),
        report.Section("Words", [report.Terms({"density": "Share of weights kept."})]),
        report.Section(
            "Again", [report.Command("make demo"), report.Details("Configuration", '{"a": 1}')]
        ),
    ]


def test_the_interval_of_one_to_five_is_known_in_closed_form():
    # s = sqrt(2.5) and t_4 = 2.776445..., from the tables of Student's distribution
    mean, half_width, n = tables.mean_interval([1, 2, 3, 4, 5])
    assert (mean, n) == (3.0, 5)
    np.testing.assert_allclose(half_width, 2.7764451052 * math.sqrt(2.5 / 5), rtol=1e-9)


def test_the_interval_agrees_with_scipy_along_any_axis(rng):
    values = rng.normal(size=(4, 5, 3))
    mean, half_width, n = tables.mean_interval(values, axis=1)
    error = scipy.stats.sem(values, axis=1)
    low, high = scipy.stats.t.interval(0.95, n - 1, loc=values.mean(1), scale=error)
    assert n == 5
    np.testing.assert_allclose(mean - half_width, low, rtol=1e-10)
    np.testing.assert_allclose(mean + half_width, high, rtol=1e-10)


def test_the_interval_covers_the_truth_95_times_in_100(rng):
    mean, half_width, _ = tables.mean_interval(rng.normal(3.0, 2.0, (3, 20_000)))
    covered = (np.abs(mean - 3.0) <= half_width).mean()
    np.testing.assert_allclose(covered, 0.95, atol=0.006)


def test_a_single_seed_has_no_interval_and_is_marked_so():
    interval = tables.mean_interval([97.25])
    assert interval == Interval(97.25, None, 1)
    assert tables.interval_text(interval, 2) == "97.25 (n=1)"


@pytest.mark.parametrize(
    ("values", "message"),
    [([], "must have a seed"), ([1.0, math.nan], "finite, got nan"), (3.0, r"got shape \(\)")],
)
def test_values_without_an_interval_are_errors(values, message):
    with pytest.raises(ValueError, match=message):
        tables.mean_interval(values)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (97.349, 1, "97.3"),
        (50200, 1, "50,200"),
        (np.int32(7), 3, "7"),
        (-0.04, 0, "-4.0e-02"),
        (0.0, 2, "0.00"),
        (-0.0, 2, "0.00"),
        (-10.0, 2, "-10.00"),
        (0.00004, 3, "4.0e-05"),
        (0.004, 3, "0.004"),
        (np.float32(0.5), 1, "0.5"),
    ],
)
def test_numbers_read_as_expected(value, digits, text):
    assert tables.number_text(value, digits) == text


@pytest.mark.parametrize(
    ("interval", "digits", "text"),
    [
        (Interval(97.3, 0.42, 5), 1, "97.3 ± 0.4"),
        (Interval(4.5, 0.0003, 5), 2, "4.50 ± 0.00"),
        (Interval(4e-5, 1e-5, 5), 3, "4.0e-05 ± 1.0e-05"),
        (Interval(np.float64(0), 0.0, 5), 1, "0.0 ± 0.0"),
    ],
)
def test_intervals_read_as_expected(interval, digits, text):
    assert tables.interval_text(interval, digits) == text


def test_a_text_table_is_aligned_and_states_why_cells_are_empty():
    expected = """\
The result
        weights  test accuracy
method     kept              %     with OrthP
─────────────────────────────────────────────
dense    50,200    97.6 ±  0.3            n/a
─────────────────────────────────────────────
SNIP     10,040    96.5 ± 10.2        n/a [1]
units     5,020     90.0 (n=1)  0.980 ± 0.010
─────────────────────────────────────────────
[1] OrthP needs whole units"""
    assert tables.aligned(ROWS, COLUMNS, title="The result", group_by="density") == expected


def test_no_line_is_drawn_between_single_rows():
    rows = [{"a": "x", "n": 1}, {"a": "y", "n": 2}]
    text = tables.aligned(rows, [Column("a", "a"), Column("n", "n")], group_by="a")
    assert text.count("─" * 4) == 2  # below the head and at the end


def test_published_numbers_of_no_method_are_refused_and_of_no_density_reported(tmp_path):
    numbers = {("SNIP", 0.9): 90.0, ("SNP", 0.05): 90.0}
    words = {"title": "", "lead": "", "about": "", "published": numbers}
    said = []
    with records.open_run(tmp_path, config={}, experiment="x", say=said.append) as run:  # noqa: SIM117
        with pytest.raises(ValueError, match=r"a method of 'SNIP', got \('SNP', 0\.05\)\."):
            page.compare(run, None, {("SNIP", 0.05): {}}, **words)
    assert said == ["published: no case has the key ('SNIP', 0.9); its number is not shown."]


def test_a_single_seed_has_a_caption_without_interval():
    many = "n = 2 seeds: mean and 95% interval"
    assert page.statistic(2, many) == many
    assert page.statistic(1, many) == "n = 1 seed, no interval"


def test_equal_reasons_share_a_footnote():
    rows = [{"a": Missing("x"), "b": Missing("y")}, {"a": Missing("y"), "b": 1.0}]
    table = tables.lay_out(rows, [Column("a", "a"), Column("b", "b")])
    assert table.footnotes == ("x", "y")
    assert table.lines == (("n/a [1]", "n/a [2]"), ("n/a [2]", "1.0"))
    assert table.numeric == (False, True)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([], COLUMNS, "got 0 and 4"),
        (ROWS, [], "got 3 and 0"),
        ([{"kept": math.nan}], COLUMNS, "finite numbers, got nan"),
        ([{"kept": Interval(1.0, math.inf, 2)}], COLUMNS, "finite numbers, got inf"),
    ],
)
def test_tables_without_content_are_errors(rows, columns, message):
    with pytest.raises(ValueError, match=message):
        tables.lay_out(rows, columns)


def build(png, path, **changes):
    arguments = {"title": "Pruning digits", "lead": "What was done."}
    return report.build(path, **{**arguments, "sections": sections(png), **changes})


def test_a_report_holds_everything_it_was_given(png, tmp_path):
    text = build(png, tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    words = ("Pruning digits", "What was done.", "97.6 ±  0.3", "n/a [1]", "How to read it.")
    words += ("OrthP needs whole units", "Share of weights kept.", "make demo", '{"a": 1}')
    for word in words:
        assert word in page.text
    assert [tag for tag, _ in page.tags].count("tbody") == 2
    assert [tag for tag, _ in page.tags].count("tr") == 4


def test_a_report_holds_its_figures_and_asks_the_network_for_nothing(png, tmp_path):
    text = build(png, tmp_path / "report.html").read_text(encoding="utf-8")
    (image,) = Page(text).all("img")
    kind, _, data = image["src"].partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == png.read_bytes()
    assert (image["width"], image["height"]) == ("200", "100")
    assert not re.search(r"https?:|@import|url\(|<script|<link|<iframe", text)
    sources = [
        value
        for _, attrs in Page(text).tags
        for key, value in attrs.items()
        if key in ("src", "href", "srcset")
    ]
    assert all(value.startswith("data:") for value in sources)


def test_a_report_can_be_read_without_seeing_it(png, tmp_path):
    page = Page(build(png, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.all("html") == [{"lang": "en"}]
    assert [image["alt"] for image in page.all("img")] == ["A chart"]
    captions = [p for p in page.all("p") if p.get("class") == "caption"]
    assert len(captions) == len(page.all("table")) == 1
    scopes = [head["scope"] for head in page.all("th")]
    assert scopes == ["col"] * 4 + ["row"] * 3
    assert len(page.all("details")) == len(page.all("summary")) == 1


def test_a_report_is_made_for_light_dark_and_paper(png):
    text = report.page(title="t", lead="l", sections=sections(png))
    for rule in ("prefers-color-scheme: dark", "@media print", "size: A4 landscape"):
        assert rule in text


def test_a_wide_table_scrolls_in_its_box_and_its_caption_wraps_outside_of_it(png):
    text = report.page(title="t", lead="l", sections=sections(png))
    box = text[text.index('<div class="wide"') : text.index("</table>")]
    assert ".wide { overflow-x: auto" in text
    assert '<p class="caption">Kept</p>' in text
    assert "<caption" not in box


def test_the_note_of_a_table_stands_below_it():
    table = report.Table(ROWS, COLUMNS, "Kept", note="What a row took.")
    text = report.page(title="t", lead="l", sections=[report.Section("s", [table])])
    assert text.index("</table>") < text.index("<p>What a row took.</p>")


def test_every_text_is_escaped(png, tmp_path):
    evil = "</style><script>alert('\"&')</script>"
    blocks = [
        evil,
        report.Table([{"a": evil, "b": Missing(evil)}], [Column("a", evil), Column("b", "")], evil),
        report.Figure(png, evil, evil),
        report.Terms({evil: evil}),
        report.Details(evil, evil),
        report.Command(evil),
    ]
    page = Page(
        build(
            png,
            tmp_path / "report.html",
            title=evil,
            lead=evil,
            sections=[report.Section(evil, blocks)],
        ).read_text(encoding="utf-8")
    )
    assert not page.all("script")
    assert page.all("img")[0]["alt"] == evil
    assert page.text.count(evil) == 15


def test_the_same_arguments_give_the_same_bytes(png, tmp_path):
    one, other = (build(png, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert one == other


def test_sections_that_cannot_be_shown_leave_the_old_page(png, tmp_path):
    path = build(png, tmp_path / "report.html")
    before = path.read_bytes()
    (tmp_path / "broken.png").write_bytes(b"not a picture at all, but long enough")
    cases = {
        "must have a block, got none": [],
        "must be a str, Command, Details, .* got int": [3],
        "cannot be read: No such file": [report.Figure(tmp_path / "no.png", "c", "a")],
        "must be a PNG": [report.Figure(tmp_path / "broken.png", "c", "a")],
        "must have an `alt` text": [report.Figure(png, "c", " ")],
    }
    for message, blocks in cases.items():
        with pytest.raises(ValueError, match=message):
            build(png, path, sections=[report.Section("s", blocks)])
    assert path.read_bytes() == before
    assert len(list(itertools.chain(tmp_path.glob(".*"), tmp_path.glob("*.tmp")))) == 0
