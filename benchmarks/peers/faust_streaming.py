# mypy: ignore-errors, what it imports is in another environment
"""The job with faust-streaming: an agent on a topic of JSON. Arguments: bootstrap, topic, group, samples, seconds."""

import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import faust
from window_job import WindowJob

bootstrap, topic, group = sys.argv[1:4]
job = WindowJob(int(sys.argv[4]), float(sys.argv[5]))
app = faust.App(
    group,
    broker=f"kafka://{bootstrap}",
    store="memory://",
    value_serializer="json",
    topic_allow_declare=False,
    topic_disable_leader=True,
    consumer_auto_offset_reset="earliest",
    web_enabled=False,
)


@app.agent(app.topic(topic, value_serializer="json", key_serializer="raw"))
async def window(samples: AsyncIterator[dict[str, Any]]) -> None:
    """Take each sample."""
    async for sample in samples:
        if job.take(sample):
            job.report()
            os._exit(0)  # the worker would take a while to say goodbye


if __name__ == "__main__":
    faust.Worker(app, loglevel="error", override_logging=False).execute_from_commandline()
