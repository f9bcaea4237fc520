"""What a script for the opponents' environment writes is what the benchmarks read."""

import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks import detectors, opponents
from benchmarks.layers import PackageRun
from detector.manifest import Channel
from stream.errors import TransientError
from training.datasets import Dataset, Series

PEERS = Path(opponents.__file__).parent / "peers"
# The newest value of each window is its score: that of the library `numpy`, which both environments have.
FAKE = f"""
import sys
sys.path.insert(0, {str(PEERS)!r})
from detector_job import run
run("numpy", {{"newest": lambda rows, seed: lambda later: later[:, -1]}}, sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def own_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opponents, "PYTHON", Path(sys.executable))


def script(tmp_path: Path, text: str) -> str:
    path = tmp_path / "fake.py"
    path.write_text(text)
    return str(path)


def test_a_detectors_scores_and_times_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, labels = np.random.default_rng(0), np.repeat(np.array([0, 1, 0], np.uint8), 100)

    def series(entity: str) -> Series:
        values = labels + generator.random(300)
        return Series(entity, np.arange(300), values[:, None].astype(np.float32), labels)

    dataset = Dataset([Channel("v", "numeric")], 1000, [series("E-1"), series("E-2")])
    monkeypatch.setattr(detectors, "_SCRIPTED", ((script(tmp_path, FAKE), "fake", "newest", ("row",), True),))
    [(figures, version)] = detectors.measure_scripted(detectors.Drawn(dataset, dataset), 3, 0)
    assert version == np.__version__
    assert figures.roc_auc > 0.9
    assert figures.rows_per_s.count == 3
    assert figures.rows_per_s.least > 0


def test_the_last_line_of_json_counts(tmp_path: Path) -> None:
    wanted = PackageRun(timings={"ours forward": [0.5]}, difference=1e-6, version="1.0")
    told = f"print('loading'); print('{{}}'); print({msgspec.json.encode(wanted).decode()!r}); print('bye')"
    assert opponents.run_script(script(tmp_path, told), [], 60, PackageRun) == wanted


def test_a_script_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(TransientError, match="no such detector"):
        opponents.run_script(script(tmp_path, "raise SystemExit('no such detector')"), [], 60, PackageRun)
