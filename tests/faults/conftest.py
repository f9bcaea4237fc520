"""A published model and a pipeline's settings for each fault test."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from detector.models import Model
from stream.settings import Settings
from tests.builders import untrained
from tests.faults.live import forked
from tests.faults.recorded import GEOMETRY
from tests.pipeline import make_settings, publish


@pytest.fixture(autouse=True, scope="module")
def _ready_to_run() -> Iterator[None]:
    """Have processes to start, and score with one thread: on a busy machine two wait for each other all the time."""
    forked()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """Publish a model with random weights as the champion."""
    manifest, weights = untrained(geometry=GEOMETRY)
    return publish(tmp_path / "registry", manifest, weights)


@pytest.fixture
def settings(model: Model, tmp_path: Path, kafka_bootstrap: str, redis_url: str, topic_prefix: str) -> Settings:
    """Declare the model's family on the shared servers."""
    return make_settings(
        model.manifest, tmp_path / "registry", kafka_bootstrap, redis_url, topic_prefix, **small_batches()
    )


def small_batches() -> dict[str, Any]:
    """Return settings with which the worker works in many small batches, so that a kill hits one."""
    return {"worker": {"model_poll_s": 0.1, "batch_windows": 4, "threads": 1}}
