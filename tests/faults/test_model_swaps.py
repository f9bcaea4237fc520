"""New champions while the pipeline runs: the good ones take over between two batches, the bad ones never."""

import shutil
from pathlib import Path

import pytest

from deploy.processes import free_port
from detector.worker import run_worker
from stream.settings import MetricsSettings
from stream.windower import run_windower
from tests.builders import untrained
from tests.faults.live import metric, sending
from tests.faults.recorded import (
    GEOMETRY,
    TOLERANCE,
    answer_of,
    assert_is_offline,
    live_rows,
    recordings,
    telemetry,
    wait_for_rows,
)
from tests.pipeline import blocks, publish, running, wait_for

REFUSED = 'telltale_model_swaps_total{result="refused"}'
DONE = 'telltale_model_swaps_total{result="done"}'


@pytest.fixture
def observed(settings):
    """Return settings with which a service shows its metrics at a port that is known."""
    return settings.model_copy(update={"metrics": MetricsSettings(port=free_port())})


def damaged(folder):
    manifest, weights = untrained(geometry=GEOMETRY, seed=1)
    publish(folder, manifest, weights)
    (file,) = folder.glob("*/*/weights.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def made_for_other_channels(folder):
    manifest, weights = untrained(geometry=GEOMETRY, numeric=3)
    publish(folder, manifest, weights)


def damaged_in_a_golden_score(folder):
    """Its files are intact, yet it does not score as it did where it was made: another manifest, say."""
    manifest, weights = untrained(geometry=GEOMETRY, seed=1)
    publish(folder, manifest, weights)
    (file,) = folder.glob("*/*/manifest.json")
    changed = file.read_text().replace('"noise_seed": 0', '"noise_seed": 1')
    assert changed != file.read_text()
    file.write_text(changed)


def bring(folder: Path, registry: Path) -> None:
    """Copy a registry's version into another one and make it the champion there, unseen by any check."""
    (version,) = (path.parent for path in folder.glob("*/*/manifest.json"))
    shutil.copytree(version, registry / version.parent.name / version.name)
    shutil.copy(version.parent / "champion.json", registry / "champion.json")
    (registry / "champion.json").replace(registry / version.parent.name / "champion.json")


def test_bad_champions_are_refused_one_after_another_and_the_old_model_goes_on(model, settings, observed, tmp_path):
    bad = (damaged, made_for_other_channels, damaged_in_a_golden_score)
    for make in bad:
        make(tmp_path / make.__name__)
    series = recordings(model, 400)
    answer = answer_of(model, settings, series)
    with running(settings, run_windower), running(observed, run_worker):
        with sending(settings, telemetry(model, series), rows_per_s=300):
            wait_for(lambda: len(blocks(settings)) >= 20, "20 blocks")
            for refused, make in enumerate(bad, start=1):
                bring(tmp_path / make.__name__, tmp_path / "registry")
                wait_for(lambda n=refused: metric(observed.metrics.port, REFUSED) == n, f"refusal {refused}")
        wait_for_rows(settings, answer.final_rows())
        assert metric(observed.metrics.port, REFUSED) == len(bad)
    assert_is_offline(settings, answer)
    assert {block.model.version for block in blocks(settings)} == {model.manifest.version}


def test_a_good_champion_takes_over_once_and_every_score_is_its_models(model, settings, observed, tmp_path):
    series = recordings(model, 400)
    answer = answer_of(model, settings, series)
    with running(settings, run_windower), running(observed, run_worker):
        with sending(settings, telemetry(model, series), rows_per_s=300):
            wait_for(lambda: len(blocks(settings)) >= 20, "20 blocks")
            new = publish(tmp_path / "registry", *untrained(geometry=GEOMETRY, seed=1))
            wait_for(lambda: metric(observed.metrics.port, DONE) == 2, "the swap")
        wait_for_rows(settings, answer.final_rows())
    found = blocks(settings)
    wanted = {one.manifest.version: answer_of(one, settings, series).rows for one in (model, new)}
    assert live_rows(found).keys() == answer.rows.keys()
    for block in found:
        rows = wanted[block.model.version]
        for key, judgement in live_rows([block]).items():
            assert judgement.score == pytest.approx(rows[key].score, rel=TOLERANCE, abs=TOLERANCE)
    for one in series:
        versions = [block.model.version for block in found if block.entity == one.entity]
        assert sorted(versions, key=[model.manifest.version, new.manifest.version].index) == versions
        assert set(versions) == wanted.keys()
