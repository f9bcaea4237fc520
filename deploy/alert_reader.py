"""Prints alerts for people and for pipes. Knows no detector."""

import sys
import threading

from rich.console import Console

from deploy.demo_view import print_alert
from stream.settings import Settings
from stream.subscriber import Subscriber, decode_alert
from stream.topics import ALERTS

_POLL_S = 0.5


def read_alerts(settings: Settings, console: Console, *, follow: bool, json_lines: bool, stop: threading.Event) -> None:
    """Print the alerts there are; with `follow`, those that come until `stop` is set."""
    subscriber = Subscriber(settings, ALERTS, from_beginning=True)
    try:
        while not stop.is_set():
            records = list(subscriber.poll(_POLL_S))
            for record in records:
                if json_lines:
                    sys.stdout.write((record.value or b"").decode() + "\n")
                    sys.stdout.flush()
                else:
                    print_alert(console, decode_alert(record).alert)
            if not follow and not records and subscriber.at_end():
                return
    finally:
        subscriber.close()
