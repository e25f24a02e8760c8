"""A power cut at any moment, as SQLite tests it: what was not fsynced is dropped, and what is left must be enough.

A recorded run is a list of moments: the folder as the program sees it, and what it asked the disk to keep. Replayed, it
gives the folders that a cut at each moment may leave: of a file any part of what was not fsynced, of a directory any of
the names that were changed since it was fsynced. Taking one fsync out of the record must be noticed, each of them.
"""

import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import runner
from runner.errors import InputError
from runner.job.recovery import recover
from runner.job.resuming import resume
from runner.storage.checkpoint import Checkpoints, Damaged, load
from runner.storage.rows import Rows
from runner.storage.run_dir import RunDir
from test_resume import Crash, assert_equal_runs, crash_at, damage

# 15 batches in two epochs, saved inside them too.
WORDS = ["dataset=fake", "dataset.train_size=60", "dataset.val_size=15", "dataset.eval_size=20", "device.threads=1"]
WORDS += ["dataset.input_shape=[1,4,4]", "dataloader.batch_size=8", "model=mlp", "model.hidden=[4]", "quiet=true"]
WORDS += ["trainer.epochs=2", "trainer.log_every=2", "checkpoint.every_batches=4", "checkpoint.every=2", "seed=0"]

Names = dict[str, dict[str, int]]  # directory -> name -> file; a directory's own number is 0


@dataclass
class Moment:
    """What there is, what is asked of the disk (a file, by number, or a directory, by path) and what was promised."""

    names: Names
    contents: dict[int, bytes]
    fsync: int | str | None = None
    site: str = ""
    promised: dict[str, object] = field(default_factory=dict)


class Recorder:
    """Watches a folder while a run writes there."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.moments, self.promised = root, [], {}
        self.numbers: dict[int, int] = {}  # inode -> a number that no later file gets again
        self.fresh = itertools.count(1)
        self.look()
        real = os.fsync

        def fsync(descriptor):
            self.look(descriptor, caller())
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        for owner, name in ((os, "replace"), (os, "rename"), (os, "link"), (os, "unlink"), (Path, "unlink")):
            monkeypatch.setattr(owner, name, self.watched(getattr(owner, name)))
        self.promise_after(monkeypatch, Checkpoints, "write", self.saved)
        self.promise_after(monkeypatch, RunDir, "write_run", lambda _, record: {"done": record["epochs_done"]})
        self.promise_after(monkeypatch, Rows, "append", self.appended)

    def watched(self, act):
        def watched(*args, **kwargs):
            self.look()
            try:
                return act(*args, **kwargs)
            finally:
                self.look()

        return watched

    def promise_after(self, monkeypatch, owner, name, promise):
        act = getattr(owner, name)

        def and_promise(this, *args, **kwargs):
            act(this, *args, **kwargs)
            self.promised = {**self.promised, **promise(this, *args, **kwargs)}
            self.look()

        monkeypatch.setattr(owner, name, and_promise)

    def saved(self, checkpoints, state, is_evaluated, is_best):
        progress = state["progress"]
        return {"position": (progress["epoch"], progress["batch"])}

    def appended(self, rows, row, durable=True):
        return {"row": row["epoch"]} if rows.key == "epoch" and durable else {}

    def look(self, descriptor: int | None = None, site: str = "") -> None:
        names: Names = {}
        contents, inodes = {}, set()
        for folder, _, files in os.walk(self.root):
            here = names[os.path.relpath(folder, self.root)] = {}
            for entry in os.scandir(folder):
                here[entry.name] = 0
                if entry.name in files:
                    inode = entry.inode()
                    inodes.add(inode)
                    number = here[entry.name] = self.numbers.setdefault(inode, next(self.fresh))
                    contents[number] = Path(entry.path).read_bytes()
        self.numbers = {inode: number for inode, number in self.numbers.items() if inode in inodes}
        target: int | str | None = None
        if descriptor is not None:
            inode = os.fstat(descriptor).st_ino
            inside = [d for d in names if (self.root / d).stat().st_ino == inode]
            target = inside[0] if inside else self.numbers.get(inode)
        self.moments.append(Moment(names, contents, target, site, self.promised))


def caller() -> str:
    """The function of ours that asks for an fsync, and who asks it where it serves all."""
    frame, site = sys._getframe(2), []
    while frame is not None and len(site) < 3:
        if "/runner/" in frame.f_code.co_filename:
            site.append(frame.f_code.co_name)
            if site[-1] != "fsync_directory":
                break
        frame = frame.f_back
    return "/".join(reversed(site)) or "beside the digest"


@dataclass(frozen=True)
class Image:
    """A folder that a power cut may leave."""

    files: tuple[tuple[str, bytes], ...]
    folders: tuple[str, ...]

    def write(self, root: Path) -> None:
        shutil.rmtree(root, ignore_errors=True)
        for folder in self.folders:
            (root / folder).mkdir(parents=True, exist_ok=True)
        for path, content in self.files:
            (root / path).write_bytes(content)


def images(moments: list[Moment], without: str = "") -> Iterator[tuple[Moment, Image]]:
    """What a cut at each moment may leave, each once; `without`: as if one of the program's fsyncs were not there."""
    first = moments[0]
    names: Names = {folder: dict(entries) for folder, entries in first.names.items()}  # durable
    contents = dict(first.contents)
    seen = set()
    for moment in moments:
        if moment.fsync is not None and moment.site != without:
            if isinstance(moment.fsync, str):
                names[moment.fsync] = dict(moment.names[moment.fsync])
            else:
                contents[moment.fsync] = moment.contents[moment.fsync]
        for image in left_by(moment, names, contents):
            key = hash((image, tuple(moment.promised.items())))
            if key not in seen:
                seen.add(key)
                yield moment, image


def left_by(moment: Moment, names: Names, durable: dict[int, bytes]) -> Iterator[Image]:
    def part(number: int, how: str) -> bytes:
        now, kept = moment.contents.get(number, durable.get(number, b"")), durable.get(number, b"")
        if how == "all":
            return now
        rest = now[len(kept) :] if now.startswith(kept) else now
        return kept + rest[: len(rest) // 2] if how == "half" else kept

    changed = [
        (folder, name)
        for folder, entries in moment.names.items()
        for name in {**entries, **names.get(folder, {})}
        if entries.get(name) != names.get(folder, {}).get(name)
    ]
    one_old = [[item for item in changed if item != old] for old in changed]
    for taken in [[], changed, *one_old, *([item] for item in changed)]:
        now = {folder: dict(names.get(folder, {})) for folder in moment.names}
        for folder, name in taken:
            if name in moment.names[folder]:
                now[folder][name] = moment.names[folder][name]
            else:
                now[folder].pop(name, None)
        for how in ("none", "half", "all"):
            files, folders = [], []
            for folder, entries in now.items():
                above, _, own = folder.rpartition("/")
                if folder == "." or (own in now.get(above or ".", {}) and (above or ".") in [*folders, "."]):
                    folders.append(folder)
                    for name, number in entries.items():
                        if number:
                            files.append((f"{folder}/{name}", part(number, how)))
            yield Image(tuple(files), tuple(folders))


def check(image: Image, moment: Moment, place: Path) -> str | None:
    """What is wrong with what a cut left, measured by what was promised before it."""
    promised = moment.promised
    if not promised:
        return None
    image.write(place)
    run_dir = RunDir(place / "run")
    if not run_dir.path.exists():
        return "the run's folder is gone"
    try:
        record = json.loads(run_dir.run_json.read_text())
    except (OSError, ValueError) as error:
        return f"run.json: {error}"
    if record["epochs_done"] < promised["done"]:
        return f"run.json: {record['epochs_done']} epochs instead of {promised['done']}"
    rows = run_dir.metrics.read()
    if len(rows) < promised.get("row", 0):
        return f"{len(rows)} rows instead of {promised['row']}"
    if not run_dir.checkpoints.exists():
        return "checkpoints/ is gone"
    try:
        resumed = recover(run_dir, {"known_steps": {}, **record})
    except InputError as error:
        return str(error)
    progress = resumed.state["progress"] if resumed.state else {"epoch": 0, "batch": 0, "step": 0}
    position = progress["epoch"], progress["batch"]
    if position < promised.get("position", (0, 0)):
        return f"the newest checkpoint is of {position}, not of {promised['position']}"
    if len(rows) < progress["epoch"]:
        return f"{len(rows)} rows beside a checkpoint of epoch {progress['epoch']}"
    if (steps := len(run_dir.steps.read())) < progress["step"] // 2:
        return f"{steps} rows of steps beside a checkpoint of step {progress['step']}"
    return None


def first_fault(moments: list[Moment], place: Path, without: str = "", every: int = 1) -> str | None:
    found = itertools.islice(images(moments, without), 0, None, every)
    return next((fault for moment, image in found if (fault := check(image, moment, place))), None)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run of two epochs, moment by moment."""
    root = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as monkeypatch:
        recorder = Recorder(root, monkeypatch)
        runner.run(WORDS, run_dir=root / "run")
    return recorder.moments


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 23])
def test_a_power_cut_at_any_moment_loses_nothing_that_was_said_to_be_durable(recorded, tmp_path, every):
    assert len(list(images(recorded))) > 1000
    assert first_fault(recorded, tmp_path / "cut", every=every) is None


# The whole file is fsynced once more after its digest; this one only spares time.
SPARE = "beside the digest"


def test_each_fsync_of_a_run_is_missed_when_it_is_taken_out(recorded, tmp_path):
    sites = {moment.site for moment in recorded if moment.site}
    assert sites >= {"write_temporary", "write/fsync_directory", "append", "write_atomically", "sync", SPARE}
    missed = {site: first_fault(recorded, tmp_path / "cut", site) for site in sites - {SPARE}}
    assert [site for site, fault in missed.items() if fault is None] == []


@pytest.mark.slow
def test_a_run_goes_on_to_the_same_bits_from_what_a_power_cut_left(recorded, tmp_path):
    runner.run(WORDS, run_dir=tmp_path / "whole")
    found = [image for moment, image in images(recorded) if moment.promised and len(image.folders) > 2]
    for image in found[7 :: len(found) // 4]:
        image.write(tmp_path / "cut")
        resume(tmp_path / "cut" / "run", [])
        assert_equal_runs(tmp_path / "whole", tmp_path / "cut" / "run")


@pytest.mark.slow
def test_a_power_cut_while_a_run_is_put_back_loses_nothing(tmp_path, monkeypatch):
    """Its newest file is damaged, so an older one becomes last.pt, and best.pt is made again."""
    root = tmp_path / "root"
    root.mkdir()
    crash_at(11, root / "run", [*WORDS, "trainer.monitor=train/loss"])
    damage(root / "run" / "checkpoints" / "last.pt", "flipped")
    (root / "run" / "checkpoints" / "best.pt").unlink()
    run_dir = RunDir(root / "run")
    before = recover(run_dir, run_dir.read_run())
    assert before.state is not None and before.best is not None

    def stop(progress, num_batches):
        raise Crash

    with pytest.MonkeyPatch.context() as patched:
        recorder = Recorder(root, patched)
        progress = before.state["progress"]
        recorder.promised = {"position": (progress["epoch"], progress["batch"]), "done": 0, "row": progress["epoch"]}
        with pytest.raises(Crash):
            resume(root / "run", [], on_batch=stop)
    assert first_fault(recorder.moments, tmp_path / "cut") is None
    sites = {moment.site for moment in recorder.moments if moment.site}
    assert sites >= {"put_back/fsync_directory", "save/fsync_directory", "write_temporary"}
    names = recorder.moments[-1].names["run/checkpoints"]
    assert names["best.pt"] and names["last.pt"]


def test_what_a_cut_leaves_of_a_checkpoint_is_known_for_what_it_is(recorded, tmp_path):
    """The stand-in really drops: among what it leaves are files of nothing, and halves, under their last names."""
    kinds = set()
    for moment in recorded:
        for image in left_by(moment, moment.names, {}):
            for path, content in image.files:
                if path.endswith("last.pt"):
                    kinds.add("whole" if content in moment.contents.values() else "nothing" if not content else "half")
    (tmp_path / "half.pt").write_bytes(next(c for m in recorded for c in m.contents.values() if len(c) > 5000)[:4000])
    with pytest.raises(Damaged):
        load(tmp_path / "half.pt")
    assert kinds == {"whole", "nothing", "half"}
