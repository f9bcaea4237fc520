import signal
import threading

import pytest
from structlog.testing import capture_logs

from stream.service import stop_on_signals


def listener():
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "signals")
    return thread


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_two_signals_ask_to_stop_and_no_other(number):
    before, heard = signal.getsignal(number), []
    other = signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
    with capture_logs() as logs, stop_on_signals() as stop:
        thread = listener()
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(number)
        assert stop.wait(30)
        thread.join(30)
    signal.signal(signal.SIGUSR1, other)
    assert (heard, [line["signal"] for line in logs]) == ([1], [number.name])
    assert signal.getsignal(number) is before


def test_without_a_signal_nothing_stays_behind():
    with stop_on_signals() as stop:
        thread = listener()
    thread.join(30)
    assert (thread.is_alive(), stop.is_set(), signal.set_wakeup_fd(-1)) == (False, False, -1)
