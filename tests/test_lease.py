"""One owner among hosts: what another host's lease means, how it is taken over, and that only one takes it."""

import errno
import multiprocessing
import os
import re
import socket
import threading
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


@pytest.mark.slow
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


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS])
def test_on_a_disk_without_links_a_new_file_is_as_exclusive(tmp_path, monkeypatch, error):
    def no_links(source, target):
        raise OSError(error, "no links here")

    monkeypatch.setattr(lease.os, "link", no_links)
    (tmp_path / "mine").write_text("me\n")
    lease._link(tmp_path / "mine", tmp_path / "run.lease")
    assert (tmp_path / "run.lease").read_text() == "me\n"
    (tmp_path / "mine").write_text("other\n")
    with pytest.raises(FileExistsError):
        lease._link(tmp_path / "mine", tmp_path / "run.lease")
    assert (tmp_path / "run.lease").read_text() == "me\n"
    error = errno.EIO
    with pytest.raises(OSError, match="no links here"):
        lease._link(tmp_path / "mine", tmp_path / "other.lease")


def test_a_leases_age_is_by_the_disks_clock_where_it_decides_and_leaves_nothing(tmp_path):
    path = tmp_path / "run.lease"
    heard_of(path, 30)
    assert 29 < lease._age(path, by_disk=True) < 40 and 29 < lease._age(path, by_disk=False) < 40
    assert os.listdir(tmp_path) == ["run.lease"]
    assert other_holder(path) == (OTHER.strip(), pytest.approx(30, abs=5))
    heard_of(path, STALE_SECONDS + 1)
    assert other_holder(path) is None
    heard_of(path, STALE_SECONDS - 3)
    assert other_holder(path) is not None
    for nobodys in ("", "host a, pid x, abc", "host a, pid 1, XYZ", f"host {socket.gethostname()}, pid 1, abc"):
        path.write_text(nobodys)
        assert other_holder(path) is None
    assert other_holder(tmp_path / "none") is None


def test_what_a_lease_says_is_one_line_of_text_and_no_more_than_1000_bytes(tmp_path):
    (tmp_path / "run.lease").write_bytes(b"a\n b\t\xff" + b"x" * 2000)
    assert lease.text_of(tmp_path / "run.lease") == "a b \\xff" + "x" * 994


def test_a_lease_that_is_held_is_touched_and_says_whose_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.01)
    path = tmp_path / "run.lease"
    held = Lease(path)
    text = path.read_text()
    assert re.fullmatch(rf"host {socket.gethostname()}, pid {os.getpid()}, [0-9a-f]{{32}}\n", text)
    assert os.listdir(tmp_path) == ["run.lease"] and held._thread.daemon
    os.utime(path, (1, 1))
    until(lambda: path.stat().st_mtime > 1)
    path.unlink()  # a disk that does not answer for a while ends nobody
    time.sleep(0.05)
    assert held._thread.is_alive() and not held.is_mine()
    path.write_text(text)
    assert held.is_mine()
    held.release()
    held._thread.join(10)
    assert not held._thread.is_alive() and os.listdir(tmp_path) == []
    held.release()


def test_a_refusal_names_host_and_process_and_when_it_was_heard_of(tmp_path):
    heard_of(tmp_path / "run.lease", 20)
    with pytest.raises(Taken) as taken:
        Lease(tmp_path / "run.lease")
    assert re.fullmatch(r"host elsewhere, pid 7, heard of 2\d s ago", str(taken.value))
    assert os.listdir(tmp_path) == ["run.lease"]


def test_an_owner_that_lost_its_lease_says_to_whom_before_it_ends(tmp_path, monkeypatch, capsys):
    ended = threading.Event()
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(lease.os, "kill", lambda pid, signum: ended.set())
    held = Lease(tmp_path / "run.lease")
    (tmp_path / "run.lease").write_text(OTHER)
    assert ended.wait(10)
    held._ended.set()
    held._thread.join(10)
    out, err = capsys.readouterr()
    said = f"{tmp_path / 'run.lease'}: now held by host elsewhere, pid 7, abc; this process ends at once"
    assert out == "" and set(err.splitlines()) == {said}


def test_a_lease_that_cannot_be_looked_at_is_given_up_without_a_word(tmp_path, monkeypatch):
    held = Lease(tmp_path / "run.lease")

    def unreadable():
        raise PermissionError(errno.EACCES, "not yours any more")

    monkeypatch.setattr(held, "is_mine", unreadable)
    held.release()
