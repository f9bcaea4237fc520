"""Laws of the join: files fit row by row or are refused, and what there is for every channel keeps its channel."""

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from stream.errors import UsageError
from tests.unit.training.labelled_tables import ROWS, labels_table, replace_column, scores_table
from training import metrics
from training.alarms import detection_delays
from training.evaluation import Evaluation, evaluate
from training.labelled_scores import join
from training.vus import volumes


def repeat_row(table, row, **changes):
    again = table.slice(row, 1)
    for name, value in changes.items():
        at = table.column_names.index(name)
        again = again.set_column(at, table.schema.field(name), pa.array([value], table.schema.field(name).type))
    return pa.concat_tables([table, again])


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
    "row twice": (lambda s, x: (repeat_row(s, 7, score=0.123), x), r"scores.* has a-1 at 7 twice, with different"),
    "label twice": (lambda s, x: (s, repeat_row(x, 301, label=1)), r"labels.* has b-2 at 1 twice, with different"),
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


def test_a_row_that_stands_twice_counts_once(files, noisy):
    scores = scores_table(labels_table(), noisy)
    once = join(*files(scores))
    twice = join(*files(repeat_row(scores, 7), repeat_row(labels_table(), 301)))
    for one, other in zip(once, twice, strict=True):
        np.testing.assert_array_equal(one.score, other.score)
        np.testing.assert_array_equal(one.labels, other.labels)
