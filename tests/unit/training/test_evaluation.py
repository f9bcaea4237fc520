"""Laws of the evaluation: adjusted figures never stand without random ones, and nothing is gained by a trick."""

import io

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from tests.unit.training.labelled_tables import ROWS, labels_table, replace_column, scores_table
from training import metrics
from training.evaluation import Evaluation, evaluate
from training.evaluation_table import render, spoken


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


def test_the_report_survives_json(files, noisy):
    evaluation = evaluate(*files(scores_table(labels_table(), noisy)))
    assert msgspec.json.decode(msgspec.json.encode(evaluation), type=Evaluation) == evaluation


def test_the_table_shows_every_figure_with_the_honest_ones_first(files, noisy):
    evaluation = evaluate(*files(scores_table(labels_table(), noisy)))
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(render(evaluation))
    lines = [line for line in console.export_text().splitlines() if "│" in line]
    adjusted = [i for i, line in enumerate(lines) if "point-adjusted" in line]
    names = [spoken(name) for name in present(evaluation.entity_mean.honest)]
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
