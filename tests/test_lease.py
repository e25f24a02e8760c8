"""One owner among hosts: what another host's lease means, how it is taken over, and that only one takes it."""

import multiprocessing
import os
import time

import pytest

import runner
from conftest import until
from runner.errors import InputError
from runner.storage import lease
from runner.storage.lease import STALE_SECONDS, Lease, Taken, other_holder
from runner.storage.run_dir import RunDir, is_locked

OTHER = "host elsewhere, pid 7, abc\n"


def heard_of(path, seconds):
    path.write_text(OTHER)
    when = time.time() - seconds
    os.utime(path, (when, when))


def test_a_lease_is_there_while_it_is_held_and_its_own_host_does_not_mind_it(tmp_path):
    path = tmp_path / "run.lease"
    held = Lease(path)
    assert held.is_mine() and other_holder(path) is None
    again = Lease(path)  # the same host: its kernel lock has said by now that the first owner is dead
    assert again.is_mine() and not held.is_mine()
    held.release()
    assert path.exists()
    again.release()
    assert list(tmp_path.iterdir()) == []


def test_another_hosts_lease_keeps_us_out_until_it_was_not_heard_of_for_long(tmp_path):
    path = tmp_path / "run.lease"
    heard_of(path, 5)
    with pytest.raises(Taken, match=r"host elsewhere, pid 7, heard of \d s ago"):
        Lease(path)
    assert path.read_text() == OTHER
    heard_of(path, STALE_SECONDS + 5)
    held = Lease(path)
    assert held.is_mine()
    held.release()
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_another_host_is_running_and_is_refused(tmp_path):
    words = ["dataset=digits", "trainer.dry_run=true", "quiet=true"]
    runner.run(words, run_dir=tmp_path / "run")
    run_dir = RunDir(tmp_path / "run")
    assert not (tmp_path / "run" / "run.lease").exists() and not is_locked(run_dir)
    heard_of(tmp_path / "run" / "run.lease", 5)
    assert is_locked(run_dir)
    with pytest.raises(InputError, match="another host is running it .host elsewhere, pid 7"):
        run_dir.lock()
    heard_of(tmp_path / "run" / "run.lease", STALE_SECONDS + 5)
    assert not is_locked(run_dir)
    run_dir.lock()
    run_dir.release()


def test_the_owner_touches_its_lease(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    path = tmp_path / "run.lease"
    held = Lease(path)
    os.utime(path, (1, 1))
    until(lambda: path.stat().st_mtime > 2, 10)
    held.release()


def contend(path, name, barrier, wins):
    """A host of its own name, without any kernel lock."""
    lease.host = lambda: name
    barrier.wait()
    try:
        Lease(path)
        wins.put(name)
    except Taken:
        pass
    barrier.wait()  # nobody leaves before all have tried


@pytest.mark.parametrize("left", ["nothing", "a dead host's lease"])
def test_of_many_hosts_at_once_one_gets_it(tmp_path, left):
    context = multiprocessing.get_context("fork")
    for number in range(5):
        path = tmp_path / str(number) / "run.lease"
        path.parent.mkdir()
        if left != "nothing":
            heard_of(path, STALE_SECONDS + 5)
        barrier, wins = context.Barrier(8), context.Queue()
        hosts = [context.Process(target=contend, args=(path, f"host{i}", barrier, wins)) for i in range(8)]
        for host in hosts:
            host.start()
        for host in hosts:
            host.join()
        assert wins.qsize() == 1
        assert path.read_text().split(",")[0] == f"host {wins.get()}"
