"""Services as child processes: seen when they end, ended when they don't, shown only what they are given."""

import os
import signal
import time

import psutil
import pytest

from deploy import services as module
from deploy.processes import free_port
from deploy.services import Services
from stream.errors import TransientError


@pytest.fixture
def services(tmp_path):
    """Give services that see no setting but one: a Redis that never answers, for which they wait."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TELLTALE_")}
    nowhere = {"TELLTALE_REDIS__URL": f"redis://127.0.0.1:{free_port()}/0", "TELLTALE_KAFKA__BOOTSTRAP": "127.0.0.1:1"}
    (tmp_path / "telltale.toml").write_text('[[families]]\nname = "rover"\nnumeric = ["a"]\n')
    running = Services(tmp_path, {**kept, **nowhere, "TELLTALE_CONFIG": str(tmp_path / "telltale.toml")})
    yield running
    running.stop()


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def start_waiting(services, folder, name="windower"):
    """Start a service and return its process once it handles signals."""
    services.start(name, "windower")
    wait_for(lambda: '"waiting"' in (folder / f"{name}.log").read_text())
    return psutil.Process(services.pid(name))


def test_a_service_that_ends_by_itself_is_told_with_its_last_words(services):
    services.start("wrong", "models", "promote", "nobody")
    with pytest.raises(TransientError, match=r"(?s)wrong stopped with exit code 2.*wrong\.log.*no challenger") as told:
        wait_for(lambda: services.check())
    assert len(str(told.value).splitlines()) <= module._TAIL_LINES + 1


def test_services_that_run_are_no_reason_to_complain(services, tmp_path):
    start_waiting(services, tmp_path)
    services.check()


def test_stopping_ends_all_and_forgets_them(services, tmp_path):
    processes = [start_waiting(services, tmp_path, name) for name in ("one", "two")]
    assert set(services.memory_mib()) == {"one", "two"}
    services.stop()
    assert not any(process.is_running() for process in processes)
    assert services.memory_mib() == {}
    services.check()
    assert "asked to stop" in (tmp_path / "one.log").read_text()


def test_a_service_that_does_not_end_in_time_is_killed(services, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_GRACE_S", 0.2)
    process = start_waiting(services, tmp_path)
    process.send_signal(signal.SIGSTOP)  # it can't react to anything but a kill
    services.stop()
    assert not process.is_running()


def test_a_killed_service_is_gone_and_may_be_started_again(services, tmp_path):
    process = start_waiting(services, tmp_path)
    assert services.memory_mib()["windower"] > 1
    services.kill("windower")
    assert not process.is_running()
    services.check()
    before = (tmp_path / "windower.log").read_text()
    services.start("windower", "config", "show")
    wait_for(lambda: services.memory_mib() == {})
    assert (tmp_path / "windower.log").read_text().startswith(before)


def test_a_service_sees_the_environment_it_is_given_and_no_other(services, tmp_path, monkeypatch):
    monkeypatch.setenv("TELLTALE_DEPLOYMENT", "of-the-tests")
    services.start("shown", "config", "show", instance="7")
    wait_for(lambda: services.memory_mib() == {})
    shown = (tmp_path / "shown.log").read_text()
    assert '"rover"' in shown
    assert '"instance": "7"' in shown
    assert "of-the-tests" not in shown


def test_ctrl_c_in_the_terminal_reaches_services_through_stop_alone(services, tmp_path):
    process = start_waiting(services, tmp_path)
    assert os.getsid(process.pid) == process.pid
    assert os.getpgid(process.pid) != os.getpgrp()
