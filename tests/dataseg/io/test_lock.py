"""Locks between real processes."""

import multiprocessing
import os
import signal
import time

import pytest

from dataseg.io import lock
from dataseg.io.lock import alone, reserved
from dataseg.structures import UserError

CONTEXT = multiprocessing.get_context("fork")


def _hold(path, ready, seconds):
    with reserved(path, "it", "wait"):
        ready.set()
        time.sleep(seconds)


@pytest.fixture
def holder(tmp_path):
    ready = CONTEXT.Event()
    process = CONTEXT.Process(target=_hold, args=(tmp_path / "x.lock", ready, 60))
    process.start()
    assert ready.wait(30)
    yield process
    process.kill()
    process.join()


def test_a_living_holder_is_named(tmp_path, holder):
    with pytest.raises(UserError, match=rf"it is in use by process {holder.pid} on \S+: wait"):
        with reserved(tmp_path / "x.lock", "it", "wait"):
            pytest.fail("it is held")
    assert (tmp_path / "x.lock").exists()


def test_the_lock_of_a_dead_process_is_taken_over_at_once(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert (tmp_path / "x.lock").exists()
    begun = time.monotonic()
    with reserved(tmp_path / "x.lock", "it", "wait") as lease:
        assert lease.compromise is None
    assert time.monotonic() - begun < 5
    assert not (tmp_path / "x.lock").exists()


def test_an_empty_file_that_an_earlier_version_left_is_nobody_s(tmp_path):
    (tmp_path / "x.lock").touch()
    long_ago = time.time() - 2 * lock.LEASE
    os.utime(tmp_path / "x.lock", (long_ago, long_ago))
    begun = time.monotonic()
    with alone(tmp_path / "x.lock", "it"):
        assert (tmp_path / "x.lock").stat().st_size
    assert time.monotonic() - begun < 5


def test_the_lock_of_another_machine_is_taken_over_when_it_is_not_touched(tmp_path, monkeypatch):
    """A job that is started again on another node, after its first node died."""
    monkeypatch.setattr(lock, "LEASE", 2.0)
    monkeypatch.setattr(lock, "BEAT", 0.5)
    marker = f"filelock/2\npid=1\nhost=elsewhere\nmode=lease\ntoken={'a' * 32}\nduration=2.0\nstart=1\n"
    (tmp_path / "x.lock").write_text(marker)
    begun = time.monotonic()
    with reserved(tmp_path / "x.lock", "it", "wait"):
        assert 1.5 < time.monotonic() - begun < 20
        assert "elsewhere" not in (tmp_path / "x.lock").read_text()


def test_a_holder_that_lost_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.1)
    with reserved(tmp_path / "x.lock", "it", "wait") as lease:
        (tmp_path / "x.lock").unlink()
        ready = CONTEXT.Event()
        other = CONTEXT.Process(target=_hold, args=(tmp_path / "x.lock", ready, 60))
        other.start()
        assert ready.wait(30)
        end = time.monotonic() + 20
        while lease.compromise is None and time.monotonic() < end:
            time.sleep(0.05)
        assert lease.compromise.reason in ("owner-changed", "marker-missing")
    assert (tmp_path / "x.lock").exists(), "it is the other's"
    other.kill()
    other.join()


def _count(path, counter):
    for _ in range(20):
        with alone(path / "x.lock", "counting"):
            number = int(counter.read_text())
            time.sleep(0.001)
            counter.write_text(str(number + 1))


def test_one_at_a_time(tmp_path):
    counter = tmp_path / "count"
    counter.write_text("0")
    processes = [CONTEXT.Process(target=_count, args=(tmp_path, counter)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert counter.read_text() == "40"
