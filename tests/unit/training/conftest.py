"""Files of labels and scores that an evaluation can join."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.training.labelled_tables import labels_table, lists_of, scores_table


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
