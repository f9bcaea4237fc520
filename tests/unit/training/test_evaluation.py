"""Laws of the evaluation: files join row by row or not at all, and adjusted figures never stand without random ones."""

import io

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from stream.errors import UsageError
from training import metrics
from training.alarms import detection_delays
from training.evaluation import Evaluation, evaluate
from training.evaluation_table import render
from training.labelled_scores import join
from training.vus import volumes

ENTITIES = ("a-1", "b-2", "calm")
ROWS = 300


def labels_table():
    """Make entities with two events each; the calm one has none."""
    label = np.zeros((len(ENTITIES), ROWS), np.uint8)
    label[:2, 40:80] = label[:2, 200:230] = 1
    entity = pa.array(np.repeat(ENTITIES, ROWS)).dictionary_encode()
    return pa.table({"entity": entity, "t": np.tile(np.arange(ROWS, dtype=np.int32), 3), "label": label.ravel()})


def scores_table(labels, score, pred=None):
    pred = score > 0.5 if pred is None else pred
    return pa.table(
        {
            "entity": labels["entity"],
            "t": labels["t"],
            "score": score,
            "p_value": 1 - np.clip(score, 0, 1),
            "pred": pred,
        }
    )


@pytest.fixture
def noisy():
    """A useful but imperfect score."""
    label = labels_table()["label"].to_numpy()
    return np.random.default_rng(1).random(len(label)) * 0.6 + 0.3 * label


@pytest.fixture
def files(tmp_path):
    """Writes the two tables and returns their paths."""

    def write(scores, labels=None):
        pq.write_table(scores, tmp_path / "scores.parquet")
        pq.write_table(labels_table() if labels is None else labels, tmp_path / "labels.parquet")
        return tmp_path / "scores.parquet", tmp_path / "labels.parquet"

    return write


def present(figures):
    return {name: figure for name, figure in msgspec.to_builtins(figures).items() if figure is not None}


def test_a_perfect_score_is_perfect_and_the_random_one_beside_it_is_not(files):
    perfect = labels_table()["label"].to_numpy().astype(float)
    evaluation = evaluate(*files(scores_table(labels_table(), perfect)))
    for comparison in (evaluation.entity_mean, evaluation.concatenated):
        honest = present(comparison.honest)
        assert honest.pop("nominal_in_alarm") == honest.pop("median_delay_rows") == 0.0
        assert honest.pop("alarms_per_day") > 0
        assert set(honest.values()) == {1.0}
        assert set(msgspec.to_builtins(comparison.point_adjusted).values()) == {1.0}
        assert comparison.honest_random.roc_auc == pytest.approx(0.5, abs=0.1)
        assert comparison.honest_random.best_f1 < 0.6


def test_figures_are_those_of_the_metrics(files, noisy):
    evaluation = evaluate(*files(scores_table(labels_table(), noisy)))
    labels = labels_table()["label"].to_numpy() == 1
    first = slice(0, ROWS)
    got = evaluation.per_entity[0].comparison
    assert got.honest.roc_auc == metrics.roc_auc(labels[first], noisy[first])
    assert got.honest.average_precision == metrics.average_precision(labels[first], noisy[first])
    assert got.honest.f1 == metrics.detection(labels[first], noisy[first] > 0.5).f1
    adjusted = metrics.point_adjust_score(labels[first], noisy[first])
    assert got.point_adjusted.best_f1 == metrics.best_f1(labels[first], adjusted).f1
    each = [e.comparison.honest.roc_auc for e in evaluation.per_entity]
    assert evaluation.entity_mean.honest.roc_auc == pytest.approx(np.mean(each[:2]))
    assert evaluation.concatenated.honest.roc_auc == metrics.roc_auc(labels, noisy)


def test_an_entity_of_one_class_is_left_out_of_ranking_means_and_counted(files, noisy):
    evaluation = evaluate(*files(scores_table(labels_table(), noisy)))
    assert (evaluation.entities, evaluation.ranked_entities) == (3, 2)
    calm = evaluation.per_entity[2].comparison
    assert calm.honest.roc_auc is calm.point_adjusted.best_f1 is None
    assert calm.honest.nominal_in_alarm == np.mean(noisy[2 * ROWS :] > 0.5)


def test_a_random_score_gains_nothing_over_the_random_score_beside_it(files):
    score = np.random.default_rng(5).random(3 * ROWS)
    evaluation = evaluate(*files(scores_table(labels_table(), score, pred=score > 0.9)))
    comparison = evaluation.concatenated
    assert comparison.honest.roc_auc == pytest.approx(comparison.honest_random.roc_auc, abs=0.1)
    assert comparison.point_adjusted.best_f1 == pytest.approx(comparison.point_adjusted_random.best_f1, abs=0.1)
    assert comparison.point_adjusted.f1 == pytest.approx(comparison.point_adjusted_random.f1, abs=0.15)
    assert comparison.honest.nominal_in_alarm == pytest.approx(comparison.honest_random.nominal_in_alarm, abs=0.02)


def test_adjusted_figures_always_have_random_ones_beside_them_and_come_after_honest_ones(files, noisy):
    evaluation = evaluate(*files(scores_table(labels_table(), noisy)))
    comparisons = [evaluation.entity_mean, evaluation.concatenated, *(e.comparison for e in evaluation.per_entity)]
    for comparison in map(msgspec.to_builtins, comparisons):
        assert list(comparison) == ["honest", "honest_random", "point_adjusted", "point_adjusted_random"]
        for part in ("honest", "point_adjusted"):
            for name, figure in comparison[part].items():
                assert (comparison[f"{part}_random"][name] is None) == (figure is None)


def test_the_seed_moves_only_the_random_figures(files, noisy):
    paths = files(scores_table(labels_table(), noisy))
    one, again, other = evaluate(*paths, seed=1), evaluate(*paths, seed=1), evaluate(*paths, seed=2)
    assert one == again
    assert one.concatenated.honest == other.concatenated.honest
    assert one.concatenated.point_adjusted == other.concatenated.point_adjusted
    assert one.concatenated.honest_random != other.concatenated.honest_random


def test_the_order_of_rows_does_not_matter(files, noisy):
    scores, labels = scores_table(labels_table(), noisy), labels_table()
    sorted_rows = evaluate(*files(scores, labels))
    shuffle = np.random.default_rng(0).permutation(len(noisy))
    assert evaluate(*files(scores.take(shuffle), labels.take(shuffle[::-1]))) == sorted_rows


def test_time_stamps_and_milliseconds_are_the_same_time(files, noisy):
    scores, labels = scores_table(labels_table(), noisy), labels_table()
    by_row = evaluate(*files(scores, labels))
    ms = 1_790_000_000_000 + 1000 * labels["t"].to_numpy().astype(np.int64)
    scores = scores.drop_columns("t").append_column("ts", pa.array(ms))
    labels = labels.append_column("ts", pa.array(ms * 1000).cast(pa.timestamp("us", "UTC")))
    by_time = evaluate(*files(scores, labels))
    assert (by_row.day, by_time.day) == ("86,400 rows", "24 h")
    assert by_row.concatenated.honest.median_delay_s is None
    assert by_time.concatenated.honest.median_delay_s == by_time.concatenated.honest.median_delay_rows
    without = {name: figure for name, figure in present(by_time.concatenated.honest).items() if name[-2:] != "_s"}
    assert without == present(by_row.concatenated.honest)


def test_a_file_without_entities_is_one_entity(files, noisy):
    scores = scores_table(labels_table(), noisy).slice(0, ROWS).drop_columns("entity")
    evaluation = evaluate(*files(scores, labels_table().slice(0, ROWS).drop_columns("entity")))
    assert [e.entity for e in evaluation.per_entity] == ["all"]


def test_rows_without_a_score_count_as_least_anomalous_and_are_counted(files, noisy):
    """So leaving rows unscored can't help: a missed anomaly stays missed."""
    hidden = np.arange(40, 80)
    score = pa.array([None if row in hidden else s for row, s in enumerate(noisy)])
    scores = scores_table(labels_table(), noisy).set_column(2, "score", score)
    evaluation = evaluate(*files(scores))
    lowest = noisy.copy()
    lowest[hidden] = np.delete(noisy[:ROWS], hidden).min()
    wanted = evaluate(*files(scores_table(labels_table(), lowest)))
    assert evaluation.unscored_rows == evaluation.per_entity[0].unscored_rows == 40
    assert evaluation.concatenated == wanted.concatenated
    assert evaluation.rows == wanted.rows == 3 * ROWS


def test_an_entity_without_any_score_is_measured_as_saying_nothing(files, noisy):
    score = pa.array([None] * ROWS + list(noisy[ROWS:]), pa.float64())
    evaluation = evaluate(*files(scores_table(labels_table(), noisy).set_column(2, "score", score)))
    honest = evaluation.per_entity[0].comparison.honest
    assert (honest.roc_auc, honest.recall, honest.nominal_in_alarm) == (0.5, 0.0, 0.0)


def test_the_share_of_nominal_p_values_is_about_the_level_where_they_are_uniform(files):
    score = np.random.default_rng(5).random(3 * ROWS)
    evaluation = evaluate(*files(scores_table(labels_table(), score)))
    for share in evaluation.p_values[:2]:
        assert share.nominal_share == pytest.approx(share.level, abs=0.03)
    without = scores_table(labels_table(), score).drop_columns("p_value")
    assert evaluate(*files(without)).p_values == []


def replace_column(table, name, values):
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def repeat_row(table, row):
    return pa.concat_tables([table, table.slice(row, 1)])


def without_row(table, row):
    return pa.concat_tables([table.slice(0, row), table.slice(row + 1)])


def rename_entity(table, entity, name):
    return replace_column(table, "entity", [name if e == entity else e for e in table["entity"].to_pylist()])


def first_value(table, name, value):
    return replace_column(table, name, [value, *table[name].to_pylist()[1:]])


MISMATCHES = {
    "row missing": (lambda s, x: (without_row(s, 310), x), r"scores.* lacks a row of .*labels.*: b-2 at 10"),
    "last row missing": (lambda s, x: (without_row(s, 899), x), r"scores.* lacks a row of .*labels.*: calm at 299"),
    "row too many": (lambda s, x: (s, without_row(x, 310)), r"labels.* lacks a row of .*scores.*: b-2 at 10"),
    "row twice": (lambda s, x: (repeat_row(s, 7), x), r"scores.* has a-1 at 7 twice"),
    "label twice": (lambda s, x: (s, repeat_row(x, 301)), r"labels.* has b-2 at 1 twice"),
    "entity missing": (lambda s, x: (s.slice(0, 2 * ROWS), x), r"scores.* lacks 1 entities of .*labels.*, first calm"),
    "entity foreign": (lambda s, x: (rename_entity(s, "b-2", "z"), x), r"scores.* lacks 1 entities .* first b-2"),
    "labels of fewer entities": (lambda s, x: (s, x.slice(0, ROWS)), r"labels.* lacks 2 entities .* first b-2"),
    "no label": (lambda s, x: (s, x.drop_columns("label")), r"labels.* wants a column label, it has: entity, t"),
    "no score": (lambda s, x: (s.drop_columns("score"), x), r"scores.* wants a column score"),
    "no common time": (
        lambda s, x: (s.rename_columns({"t": "ts"}), x),
        r"want a time column in common: ts or t",
    ),
    "no rows": (lambda s, x: (s.slice(0, 0), x), r"scores.* has no rows"),
    "NaN score": (lambda s, x: (first_value(s, "score", np.nan), x), r"score finite or null, got nan for a-1 at 0"),
    "infinite score": (lambda s, x: (first_value(s, "score", np.inf), x), r"score finite or null, got inf"),
    "score a text": (lambda s, x: (replace_column(s, "score", ["x"] * 900), x), r"score as numbers, got string"),
    "label 2": (lambda s, x: (s, first_value(x, "label", 2)), r"label as 0 and 1, got 2.* for a-1 at 0"),
    "label null": (lambda s, x: (s, first_value(x, "label", None)), r"labels.* has a row without label"),
    "pred a number": (lambda s, x: (replace_column(s, "pred", [0.5] * 900), x), r"pred as 0 and 1, got double"),
    "time null": (lambda s, x: (first_value(s, "t", None), x), r"scores.* has a row without a time"),
    "time a float": (lambda s, x: (replace_column(s, "t", [0.5] * 900), x), r"times as integers or time stamps"),
    "entity null": (lambda s, x: (first_value(s, "entity", None), x), r"scores.* has a row without an entity"),
}


@pytest.mark.parametrize("mismatch", MISMATCHES)
def test_files_that_do_not_fit_are_refused_with_the_first_mismatch(files, noisy, mismatch):
    break_it, cause = MISMATCHES[mismatch]
    paths = files(scores_table(labels_table(), noisy))
    join(*paths)
    with pytest.raises(UsageError, match=cause):
        join(*files(*break_it(scores_table(labels_table(), noisy), labels_table())))


def test_a_file_that_is_not_there_or_no_parquet_is_refused(files, noisy, tmp_path):
    scores, _ = files(scores_table(labels_table(), noisy))
    (tmp_path / "text").write_text("entity,t,label")
    for path in (tmp_path / "absent", tmp_path / "text"):
        with pytest.raises(UsageError, match=f"{path.name} can't be read as Parquet"):
            evaluate(scores, path)


def test_the_report_survives_json(files, noisy):
    evaluation = evaluate(*files(scores_table(labels_table(), noisy)))
    assert msgspec.json.decode(msgspec.json.encode(evaluation), type=Evaluation) == evaluation


def test_the_table_shows_every_figure_with_the_honest_ones_first(files, noisy):
    evaluation = evaluate(*files(scores_table(labels_table(), noisy)))
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(render(evaluation))
    lines = [line for line in console.export_text().splitlines() if "│" in line]
    adjusted = [i for i, line in enumerate(lines) if "point-adjusted" in line]
    names = [name.replace("_", " ") for name in present(evaluation.entity_mean.honest)]
    honest = [next(i for i, line in enumerate(lines) if line.startswith(f"│ {name} ")) for name in names]
    assert len(adjusted) == 4
    assert max(honest) < min(adjusted)
    got = lines[adjusted[0]].split("│")[2:6]
    wanted = [
        evaluation.entity_mean.point_adjusted.best_f1,
        evaluation.entity_mean.point_adjusted_random.best_f1,
        evaluation.concatenated.point_adjusted.best_f1,
        evaluation.concatenated.point_adjusted_random.best_f1,
    ]
    assert [cell.strip() for cell in got] == [f"{figure:.3f}" for figure in wanted]


def lists_of(values):
    return pa.array([None if np.isnan(row).any() else row.tolist() for row in values], pa.list_(pa.float32()))


@pytest.fixture
def channelled(files, noisy):
    """Writes scores with everything they may have, data with two channels `b` and `a`; event rows blame `a`."""

    def write(metadata='["a", "b"]', **columns):
        labels = labels_table()
        label = labels["label"].to_numpy()
        rng = np.random.default_rng(3)
        share = np.stack([0.2 + 0.7 * label, 0.8 - 0.7 * label], 1).astype(np.float32)
        share[7] = np.nan
        wide = {"residual": share, "expected": rng.random((len(label), 2), np.float32)} | columns
        scores = scores_table(labels, noisy).append_column("provisional", pa.array(noisy[::-1].copy()))
        scores = scores.append_column("provisional_pred", pa.array(np.roll(noisy > 0.5, 2)))
        for name, values in wide.items():
            scores = scores.append_column(name, lists_of(values))
        if metadata:
            scores = scores.replace_schema_metadata({"channels": metadata, "final_delay": "100"})
        for name in ("b", "a"):
            labels = labels.append_column(name, pa.array(np.arange(len(label)) + (name == "a") * 0.5))
        return files(scores, labels)

    return write


def test_the_score_known_at_once_has_figures_of_its_own(channelled, noisy):
    evaluation = evaluate(*channelled())
    labels = labels_table()["label"].to_numpy() == 1
    own, at_once = labels[:ROWS], noisy[::-1][:ROWS]
    honest = evaluation.per_entity[0].comparison.honest
    assert honest.provisional_roc_auc == metrics.roc_auc(own, at_once)
    assert honest.provisional_average_precision == metrics.average_precision(own, at_once)
    assert (honest.provisional_vus_roc, honest.provisional_vus_pr) == volumes(own, at_once)
    assert (honest.vus_roc, honest.vus_pr) == volumes(own, noisy[:ROWS])
    delays = detection_delays(own, np.roll(noisy > 0.5, 2)[:ROWS])
    assert honest.provisional_median_delay_rows == np.median(delays)
    assert evaluation.final_delay_rows == 100


def test_channels_are_told_by_the_metadata_or_the_data(channelled):
    told, untold = join(*channelled())[1], join(*channelled(metadata=None))[1]
    assert (told.channels, untold.channels) == (("a", "b"), ("b", "a"))
    assert told.observed[3].tolist() == [ROWS + 3.5, ROWS + 3.0]
    np.testing.assert_array_equal(untold.observed, told.observed[:, ::-1])
    first = join(*channelled())[0]
    assert np.isnan(first.residual[7]).all()
    assert np.isnan(first.residual).sum() == 2


def test_channels_that_caused_an_event_are_found_by_their_number_in_the_data(channelled, tmp_path):
    path = tmp_path / "interpretation.json"
    for number, wanted in ((2, 1.0), (1, 0.0)):
        path.write_text(f'{{"a-1": [[40, 80, [{number}]]], "b-2": [[200, 229, [{number}]]]}}')
        evaluation = evaluate(*channelled(), interpretation_path=path)
        assert evaluation.attribution.entity_mean.rows.hit_rate_100 == wanted
        assert evaluation.attribution.entity_mean.rows_random.hit_rate_100 == 0.5
        assert [e.rows for e in evaluation.attribution.per_entity] == [40, 30]
        assert msgspec.json.decode(msgspec.json.encode(evaluation), type=Evaluation) == evaluation


@pytest.mark.parametrize(
    ("broken", "cause"),
    [
        ({"metadata": '["a"]'}, "residual with a number for each of 1 channels, got 2|expected with"),
        ({"metadata": '{"a": 1}'}, "metadata `channels` as a JSON list"),
        ({"residual": np.zeros((3 * ROWS, 3))}, "residual with a number for each of 2 channels, got 3"),
    ],
)
def test_lists_that_do_not_fit_the_channels_are_refused(channelled, broken, cause):
    with pytest.raises(UsageError, match=cause):
        join(*channelled(**broken))


def test_rows_of_another_entity_change_no_figure_of_an_entity(files, noisy):
    whole = evaluate(*files(scores_table(labels_table(), noisy)))
    less = evaluate(*files(scores_table(labels_table(), noisy).slice(0, 2 * ROWS), labels_table().slice(0, 2 * ROWS)))
    for one, other in zip(whole.per_entity[:2], less.per_entity, strict=True):
        assert one.comparison.honest == other.comparison.honest
        assert one.comparison.point_adjusted == other.comparison.point_adjusted
    assert (less.rows, whole.rows) == (2 * ROWS, 3 * ROWS)


def test_events_of_all_entities_are_pooled_beside_their_mean(files):
    """One entity finds both events without a false alarm; the other finds one of two and raises three false alarms."""
    pred = np.zeros(3 * ROWS)
    pred[[50, 210, ROWS + 45, ROWS + 100, ROWS + 155, ROWS + 299]] = 1
    evaluation = evaluate(*files(scores_table(labels_table(), pred)))
    assert evaluation.events == 4
    pooled, mean = evaluation.concatenated.honest, evaluation.entity_mean.honest
    assert (pooled.event_precision, pooled.event_recall) == (3 / 6, 3 / 4)
    assert (mean.event_precision, mean.event_recall) == ((1 + 1 / 4) / 2, (1 + 1 / 2) / 2)
    assert pooled.median_delay_rows == np.median([10, 10, 5])
    assert mean.median_delay_rows == (10 + 5) / 2
    assert pooled.alarms_per_day == pytest.approx(6 / (3 * ROWS / 86_400))
    assert pooled.corrected_event_f05 == pytest.approx(
        1.25 * 0.5 * (1 - 3 / 760) * 0.75 / (0.25 * 0.5 * (1 - 3 / 760) + 0.75)
    )


def test_nothing_flagged_is_a_figure_and_no_delay(files, noisy):
    evaluation = evaluate(*files(scores_table(labels_table(), noisy, pred=noisy > 9)))
    for honest in (evaluation.concatenated.honest, evaluation.per_entity[0].comparison.honest):
        assert (honest.f1, honest.event_f1, honest.corrected_event_f05, honest.frame_iou) == (0, 0, 0, 0)
        assert (honest.alarms_per_day, honest.nominal_in_alarm, honest.median_delay_rows) == (0, 0, None)


@pytest.mark.parametrize("labelled", [0, 1])
def test_a_data_set_of_one_class_has_no_curves_and_still_counts_alarms(files, noisy, labelled):
    labels = replace_column(labels_table(), "label", np.full(3 * ROWS, labelled, np.uint8))
    evaluation = evaluate(*files(scores_table(labels, noisy), labels))
    assert evaluation.curves is None
    assert evaluation.ranked_entities == 0
    assert evaluation.concatenated.honest.roc_auc is None
    assert evaluation.concatenated.honest.alarms_per_day > 0
