"""Tables of labels and scores, made up, as the files that an evaluation joins have them."""

import numpy as np
import pyarrow as pa

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


def replace_column(table, name, values):
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def lists_of(values):
    return pa.array([None if np.isnan(row).any() else row.tolist() for row in values], pa.list_(pa.float32()))
