import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import quality
from tests.unit.training.made_up import waves


def write(path, rows, labels=None):
    columns = {"entity": [], "t": [], "wave": [], "on": [], "other": []}
    for series in rows.series:
        columns["entity"] += [series.entity] * len(series.slots)
        columns["t"] += list(range(len(series.slots)))
        for name, values in zip(("wave", "on", "other"), series.values.T, strict=True):
            columns[name] += values.tolist()
    table = pa.table(columns)
    table = table.set_column(3, "on", pa.array(columns["on"]).cast(pa.uint8()))
    if labels is not None:
        table = table.append_column("label", pa.array(labels, pa.uint8()))
    pq.write_table(table, path)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "made_train.parquet", waves((900, 900), gap=False))
    test = waves((900, 900), seed=1, gap=False)
    labels = []
    for series in test.series:
        series.values[700:760, 2] += 15
        labels += [0] * 700 + [1] * 60 + [0] * 140
    write(tmp_path / "made_test.parquet", test, labels)
    return tmp_path


def test_detector_and_opponents_are_measured_by_the_same_figures(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "OPPONENTS", ("random", "median-deviation"))
    monkeypatch.setattr(quality, "SIZES", (1, 25))
    arguments = ["--data", str(folder), "--families", "made", "--seeds", "0", "--minutes", "0.05"]
    quality.main([*arguments, "--out", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())["families"]["made"]
    (run,) = found["detector"]
    assert run["average_precision"] > 0.5 > quality.best_width(found["opponents"], "random")["average_precision"]
    assert set(found["opponents"][0]) - {"name", "smoothing_size"} <= set(run)
    assert len(found["opponents"]) == 4
    assert 0 < run["paper_point_adjusted_f1"] <= 1


def test_the_best_width_is_the_lowest_where_low_is_good():
    rows = [
        {"name": "random", "smoothing_size": size, "roc_auc": size / 100, "nominal_in_alarm": size / 1000}
        for size in (25, 101)
    ]
    assert quality.best_width(rows, "random") == {"roc_auc": 1.01, "nominal_in_alarm": 0.025}
