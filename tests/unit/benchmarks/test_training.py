from io import StringIO

import msgspec
import pytest
from rich.console import Console

from benchmarks import training
from benchmarks.training import Load, run


def test_every_figure_of_training_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_PROBE_STEPS", 4)
    monkeypatch.setattr(training, "_HASH_STEPS", 2)
    monkeypatch.setattr(training, "_CHECKS", 2)
    monkeypatch.setattr(training, "_L1_WINDOWS", 8)
    monkeypatch.setattr(training, "_PRESET", msgspec.structs.replace(training._PRESET, batch=4))
    monkeypatch.setattr(training, "_MADE_ROWS", 700)
    report = run(Console(file=StringIO()), Load(minutes=0.02))
    assert report.same_weights
    assert report.train_steps >= 1
    assert 0 < report.l1 < 1
    assert 0 < report.waiting_share < 1
    assert (report.seconds_to_l1 is None) == (min(l1 for _, l1 in report.course) > report.target_l1)
