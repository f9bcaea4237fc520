# mypy: ignore-errors, what it imports is in another environment
"""The job with quixstreams: a dataframe on a topic of JSON. Arguments: bootstrap, topic, group, samples, seconds."""

import sys
from typing import Any

from quixstreams import Application
from window_job import WindowJob

bootstrap, topic, group = sys.argv[1:4]
job = WindowJob(int(sys.argv[4]), float(sys.argv[5]))
app = Application(
    broker_address=bootstrap,
    consumer_group=group,
    auto_offset_reset="earliest",
    auto_create_topics=False,
    use_changelog_topics=False,
    loglevel="ERROR",
    # The settings that the windower's own consumer has.
    consumer_extra_config={
        "fetch.queue.backoff.ms": 10,
        "fetch.message.max.bytes": 4 * 2**20,
        "queued.max.messages.kbytes": 64 * 1024,
        "fetch.wait.max.ms": 20,
    },
)


def window(sample: dict[str, Any]) -> None:
    """Take a sample."""
    if job.take(sample):
        job.report()
        app.stop()


app.dataframe(app.topic(topic, value_deserializer="json", key_deserializer="bytes")).update(window)
app.run()
