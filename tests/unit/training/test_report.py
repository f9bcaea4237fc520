"""Laws of the report: it needs nothing but itself, hides no figure, no miss and no peak, and trusts no name."""

import re
from html.parser import HTMLParser

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from telltale import app
from training import metrics
from training.attribution import Segment, attribute
from training.comparison import MERGE_GAP
from training.evaluation import evaluate_series
from training.evaluation_table import cell, spoken
from training.labelled_scores import LabelledSeries, join
from training.report import render_page
from training.report_excerpts import deviating_channel, false_alarms, misses
from training.report_plots import thin

HOSTILE = '<script>alert("1")</script> & $\\frac{x}$'


class Elements(HTMLParser):
    """Collects the tags with their attributes, and the text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += f"{data} "

    def values(self, *names):
        return [attrs[name] for _, attrs in self.tags for name in names if name in attrs]


def series_of(labels, pred, **more):
    score = np.linspace(0, 1, len(labels))
    return LabelledSeries("e", labels, score, pred, None, 0, np.arange(len(labels)), **more)


@pytest.fixture(scope="module")
def evaluated():
    """Series with everything there can be, their evaluation and its page."""
    rng = np.random.default_rng(0)
    labels = np.isin(np.arange(600) // 60, (2, 5))
    series = []
    for entity in ("a", "b"):
        score = rng.random(600) + 0.5 * labels * (np.arange(600) < 300)
        wide = {name: rng.random((600, 2), np.float32) for name in ("residual", "expected", "observed")}
        series.append(
            LabelledSeries(
                entity,
                labels,
                score,
                score > 1,
                rng.random(600),
                3,
                1_790_000_000_000 + 1000 * np.arange(600),
                interval_s=1.0,
                provisional=rng.random(600),
                provisional_pred=rng.random(600) > 0.9,
                threshold=np.ones(600),
                channels=("x", "y"),
                **wide,
            )
        )
    evaluation = evaluate_series(series)
    attribution = attribute(series, {"a": [Segment(120, 179, [1])]}, ("x", "y"))
    evaluation = msgspec.structs.replace(evaluation, attribution=attribution)
    return evaluation, render_page(evaluation, series)


@pytest.fixture(scope="module")
def page(evaluated):
    """The page of everything there can be."""
    return evaluated[1]


def test_the_page_needs_nothing_but_itself(page):
    elements = Elements(page)
    assert {tag for tag, _ in elements.tags} & {"script", "link", "img", "iframe", "object", "embed"} == set()
    assert all(target.startswith("#") for target in elements.values("href", "xlink:href", "src"))
    assert re.findall(r"https?:|//|@import|url\((?!#)", page) == []


def test_plots_use_their_own_ids(page):
    ids = Elements(page).values("id")
    assert len(ids) == len(set(ids)) > 0
    used = set(re.findall(r'(?:href="|url\()#([\w-]+)', page))
    assert used
    assert used <= set(ids)


def test_the_colours_are_the_pages_in_light_and_dark(page):
    used = set(re.findall(r"var\(--(\w+)\)", page))
    light, dark = page.split("prefers-color-scheme: dark", 1)
    declared = [set(re.findall(r"--(\w+):", part)) for part in (light, dark)]
    assert used <= declared[0]
    assert declared[0] == declared[1]
    plots = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert set(re.findall(r"(?:fill|stroke): (#\w+)", plots)) <= {"#ffffff", "#000000"}


def test_every_figure_stands_beside_that_of_a_random_score(evaluated):
    evaluation, page = evaluated
    text = " ".join(Elements(page).text.split())
    assert None not in msgspec.to_builtins(evaluation.entity_mean.honest).values()
    for part, prefix in (("honest", ""), ("point_adjusted", "point-adjusted ")):
        ours = getattr(evaluation.entity_mean, part)
        random = getattr(evaluation.entity_mean, f"{part}_random")
        for name in ours.__struct_fields__:
            assert f"{prefix}{spoken(name)} {cell(getattr(ours, name))} {cell(getattr(random, name))} " in text


def test_names_are_text(channelled, tmp_path):
    scores, labels = channelled()
    for path in (scores, labels):
        table = pq.read_table(path)
        names = [HOSTILE if name == "a-1" else name for name in table["entity"].to_pylist()]
        pq.write_table(table.set_column(0, "entity", pa.array(names)), path)
    series = join(scores, labels)
    page = render_page(evaluate_series(series), series)
    assert "<script" not in page
    assert HOSTILE in Elements(page).text


@pytest.mark.parametrize("labelled", [False, True])
def test_a_page_can_do_without_everything_that_is_optional(labelled):
    labels = np.full(50, labelled)
    series = [series_of(labels, np.zeros(50, bool))]
    text = Elements(render_page(evaluate_series(series), series)).text
    assert "no p-values" in text
    assert ("The longest 1 of 1" in text) == labelled


def test_the_command_writes_the_page(channelled, tmp_path):
    scores, labels = channelled()
    options = ["--scores", scores, "--labels", labels, "--html", tmp_path / "page.html", "--json", tmp_path / "f.json"]
    result = CliRunner().invoke(app, ["evaluate", *map(str, options)])
    assert result.exit_code == 0, result.output
    assert "</html>" in (tmp_path / "page.html").read_text()


@st.composite
def predicted(draw):
    rows = draw(st.integers(1, 120))
    flags = st.lists(st.booleans(), min_size=rows, max_size=rows)
    return np.array(draw(flags)), np.array(draw(flags))


@given(predicted())
def test_every_missed_event_and_every_false_alarm_is_there_longest_first(data):
    labels, pred = data
    counts = metrics.event_counts(labels, pred, MERGE_GAP)
    found = {"missed": misses([series_of(labels, pred)]), "false_alarms": false_alarms([series_of(labels, pred)])}
    for name, excerpts in found.items():
        assert len(excerpts) == getattr(counts, name)
        assert [e.rows for e in excerpts] == sorted((e.rows for e in excerpts), reverse=True)
        assert all(0 <= e.shown.start <= e.start < e.end <= e.shown.stop <= len(labels) for e in excerpts)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(1, 20))
def test_thinning_loses_no_peak(values, buckets):
    values = np.array(values)
    rows, kept = thin(values, buckets)
    assert (kept.max(), kept.min()) == (values.max(), values.min())
    np.testing.assert_array_equal(kept, values[rows])
    assert (np.diff(rows) >= 0).all()
    assert len(rows) <= 2 * buckets


def test_missing_values_hide_no_peak():
    values = np.full(1000, np.nan)
    values[[333, 777]] = 5.0, -5.0
    rows, kept = thin(values, 10)
    assert {333, 777} <= set(rows.tolist())
    assert np.nanmax(kept) == 5.0


def test_the_channel_shown_is_the_one_that_deviates():
    labels = np.arange(300) // 100 == 1
    observed = np.zeros((300, 3), np.float32)
    observed[:, 0] = 1000 * np.sin(np.arange(300))  # wild, but as expected
    expected = observed.copy()
    observed[100:200, 2] = 1.0
    wide = {"channels": ("x", "y", "z"), "observed": observed}
    (miss,) = misses([series_of(labels, np.zeros(300, bool), expected=expected, **wide)])
    assert deviating_channel(miss) == 2
    share = np.tile(np.array([0.1, 0.7, 0.2], np.float32), (300, 1))
    share[150] = np.nan
    (miss,) = misses([series_of(labels, np.zeros(300, bool), expected=expected, residual=share, **wide)])
    assert deviating_channel(miss) == 1
    (miss,) = misses([series_of(labels, np.zeros(300, bool))])
    assert deviating_channel(miss) is None
