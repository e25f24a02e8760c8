"""The checkpoint protocol: whole or not at all, and never trusted without its digest."""

import datetime
import enum
import os
import pickle
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from runner.errors import InputError
from runner.storage import checkpoint
from runner.storage.checkpoint import MAGIC, TRAILER_LENGTH, Checkpoints, Damaged, load, save
from runner.storage.plain import restored
from runner.storage.weights import read_weights


def state(epoch=1, **more):
    return {"format_version": 1, "epoch": epoch, "model_state_dict": {"w": torch.full((64,), float(epoch))}, **more}


def test_what_is_saved_is_loaded_and_torch_reads_it_too(tmp_path):
    save(tmp_path / "a.pt", state(3))
    assert load(tmp_path / "a.pt")["epoch"] == 3
    assert torch.load(tmp_path / "a.pt", weights_only=True)["epoch"] == 3
    assert os.listdir(tmp_path) == ["a.pt"]


def test_a_flipped_byte_anywhere_is_detected(tmp_path):
    save(tmp_path / "a.pt", state())
    content = (tmp_path / "a.pt").read_bytes()
    for i in range(256):
        place = i * (len(content) - 1) // 255
        (tmp_path / "b.pt").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(Damaged, match=r"b\.pt"):
            load(tmp_path / "b.pt")


def test_truncation_anywhere_is_detected(tmp_path):
    save(tmp_path / "a.pt", state())
    content = (tmp_path / "a.pt").read_bytes()
    for i in range(64):
        (tmp_path / "b.pt").write_bytes(content[: i * len(content) // 64])
        with pytest.raises(Damaged, match=r"b\.pt"):
            load(tmp_path / "b.pt")


def test_foreign_files_and_directories_are_named(tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    torch.save(state(), tmp_path / "no_digest.pt")
    (tmp_path / "folder.pt").mkdir()
    for name in ("text", "no_digest", "folder", "absent"):
        with pytest.raises(Damaged, match=rf"{name}\.pt"):
            load(tmp_path / f"{name}.pt")


def test_an_unknown_format_version_is_refused(tmp_path):
    save(tmp_path / "a.pt", {**state(), "format_version": 99})
    with pytest.raises(Damaged, match="format version 99, this runner reads version 1"):
        load(tmp_path / "a.pt")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_hostile_pickle_is_refused_and_does_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "plain", lambda state: state)  # we write none: somebody else does
    save(tmp_path / "a.pt", state(payload=Payload(tmp_path / "pwned")))
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"model_state_dict": Payload(tmp_path / "pwned")}))
    with pytest.raises(Damaged, match="more than tensors and plain values"):
        load(tmp_path / "a.pt")
    for name in ("a.pt", "plain.pt"):
        with pytest.raises(InputError, match=name):
            read_weights(tmp_path / name)
    assert not (tmp_path / "pwned").exists()


def test_weights_come_from_our_checkpoint_or_a_plain_state_dict(tmp_path):
    save(tmp_path / "a.pt", state(2))
    torch.save({"w": torch.ones(3)}, tmp_path / "b.pt")
    torch.save({"w": 3}, tmp_path / "c.pt")
    assert read_weights(tmp_path / "a.pt")["w"][0] == 2
    assert read_weights(tmp_path / "b.pt")["w"].tolist() == [1, 1, 1]
    with pytest.raises(InputError, match="neither a checkpoint of the runner nor a state_dict"):
        read_weights(tmp_path / "c.pt")


def written(tmp_path, is_best=(True, False, True, False), **settings):
    checkpoints = Checkpoints(**settings)
    checkpoints.open(tmp_path / "c")
    for epoch, best in enumerate(is_best, 1):
        checkpoints.write(state(epoch), is_evaluated=True, is_best=best)
    return {p.stem: load(p)["epoch"] for p in (tmp_path / "c").iterdir()}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"last": 4, "last-1": 3, "best": 3}),
        ({"keep": 1}, {"last": 4, "best": 3}),
        ({"keep": 3}, {"last": 4, "last-1": 3, "last-2": 2, "best": 3}),
        ({"save": "best"}, {"best": 3}),
        ({"save": "last"}, {"last": 4, "last-1": 3}),
        ({"save": "none"}, {}),
        ({"every": 2}, {"last": 4, "last-1": 3, "best": 3, "epoch_0002": 2, "epoch_0004": 4}),
    ],
)
def test_the_policy_says_which_files_there_are(tmp_path, settings, expected):
    assert written(tmp_path, **settings) == expected


def test_leftovers_of_a_killed_write_are_swept_up(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "last.pt.tmp").write_text("half")
    assert written(tmp_path)["last"] == 4


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "link"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, call):
    checkpoints = Checkpoints()
    checkpoints.open(tmp_path / "c")
    checkpoints.write(state(1), is_evaluated=True, is_best=True)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    target = checkpoint._Writing if call == "write" else os
    monkeypatch.setattr(target, call, fail)
    monkeypatch.setattr(checkpoint.shutil, "copyfile", fail)
    with pytest.raises((OSError, RuntimeError)):
        checkpoints.write(state(2), is_evaluated=True, is_best=True)
    monkeypatch.undo()
    assert load(tmp_path / "c" / "last.pt")["epoch"] == 1


@pytest.mark.parametrize(
    "settings", [{"save": "some"}, {"every": 0}, {"keep": 0}, {"every_batches": -1}, {"every_minutes": 0}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))}="):
        Checkpoints(**settings)


def test_the_trailer_has_a_fixed_length(tmp_path):
    save(tmp_path / "a.pt", state())
    assert (tmp_path / "a.pt").read_bytes()[-TRAILER_LENGTH:].startswith(MAGIC)


def test_a_file_that_has_two_names_is_never_written_into(tmp_path):
    checkpoints = Checkpoints()
    checkpoints.open(tmp_path / "c")
    checkpoints.write(state(1), is_evaluated=True, is_best=True)
    checkpoints.adopt(checkpoints.path("best"))  # one file of two names, renamed onto itself
    assert not list((tmp_path / "c").glob("*.tmp"))
    os.link(checkpoints.path("best"), tmp_path / "c" / "last.pt.tmp")
    checkpoints.write(state(2), is_evaluated=True, is_best=False)
    assert {p.stem: load(p)["epoch"] for p in (tmp_path / "c").iterdir()} == {"best": 1, "last": 2, "last-1": 1}


def refusal(call, *arguments, kind=Damaged, **options):
    with pytest.raises(kind) as refused:
        call(*arguments, **options)
    return str(refused.value)


def test_what_is_wrong_with_a_file_is_said_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    assert refusal(load, path) == f"{path}: cannot be read (No such file or directory)"
    path.write_bytes(b"x" * 100)
    assert refusal(load, path) == f"{path}: not a whole checkpoint of the runner (100 bytes, without its digest)"
    save(path, state())
    path.write_bytes(b"x" + path.read_bytes()[1:])
    assert refusal(load, path) == f"{path}: damaged, its SHA-256 is not the one that was written"
    for content in ({"epoch": 1}, [1]):
        save(path, content)
        assert refusal(load, path) == f"{path}: not a checkpoint of the runner"
    save(path, state(format_version=2))
    assert refusal(load, path) == f"{path}: has format version 2, this runner reads version 1"
    monkeypatch.setattr(checkpoint, "plain", lambda state: state)
    save(path, state(odd=Payload(tmp_path / "pwned")))
    assert refusal(load, path) == f"{path}: refused, it holds more than tensors and plain values"
    path.write_text("text")
    assert refusal(checkpoint.torch_load, path).startswith(f"{path}: ")


def test_weights_that_are_none_are_said_whole_with_the_key_that_named_them(tmp_path):
    path = tmp_path / "a.pt"
    for key in ("model_weights", "init_from"):
        options = {"key": key, "kind": InputError} if key != "model_weights" else {"kind": InputError}
        said = refusal(read_weights, tmp_path, **options)
        assert said == f"{key}: is a folder; a run's last weights are init_from={tmp_path}"
        assert refusal(read_weights, path, **options) == f"{key}: {path} cannot be read (No such file or directory)"
        os.mkfifo(path)
        assert refusal(read_weights, path, **options) == f"{key}: {path} is not a regular file"
        path.unlink()
        path.write_bytes(b"")
        assert refusal(read_weights, path, **options) == f"{key}: {path}: cannot be read as a torch file"
        for content in ({}, [torch.ones(1)], {"w": 1}, {"w": torch.ones(1), "v": "x"}, {"model_state_dict": {}}):
            torch.save(content, path)
            assert refusal(read_weights, path, **options) == (
                f"{key}: {path} holds neither a checkpoint of the runner nor a state_dict"
            )
        save(path, state())
        path.write_bytes(b"x" + path.read_bytes()[1:])
        said = refusal(read_weights, path, **options)
        assert said == f"{key}: {path}: damaged, its SHA-256 is not the one that was written"
        path.unlink()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"save": "some"}, "save=some: unknown; choices: all, best, last, none"),
        ({"save": "none", "every": 1}, "every=1: saves nothing with checkpoint.save=none"),
        ({"save": "none", "every_minutes": 2.0}, "every_minutes=2.0: saves nothing with checkpoint.save=none"),
        ({"save": "best", "every_batches": 3}, "every_batches=3: saves nothing with checkpoint.save=best"),
        ({"save": "best", "every_minutes": 3}, "every_minutes=3: saves nothing with checkpoint.save=best"),
    ],
)
def test_settings_that_save_nothing_are_refused_whole(settings, said):
    assert refusal(Checkpoints, kind=ValueError, **settings) == said


def test_the_defaults_save_all_and_keep_two():
    made = Checkpoints()
    assert (made.save, made.every, made.keep, made.state_dict, made.whole_model) == ("all", None, 2, False, False)
    assert (made.every_batches, made.every_minutes, made.directory, made.is_tried) == (None, None, None, False)
    Checkpoints(save="best", every=2), Checkpoints(save="last", every_batches=1, every_minutes=0.1), Checkpoints(keep=1)


@pytest.mark.parametrize("save", ["all", "best", "last", "none"])
def test_what_is_saved_follows_from_the_choice_and_needs_a_folder(tmp_path, save):
    inside = {"every_batches": 2} if save in ("all", "last") else {}
    made = Checkpoints(save=save, **inside)
    assert not (made.saves_last or made.saves_best)
    made.write(state(), is_evaluated=True, is_best=True)  # without a folder nothing is written
    made.open(tmp_path / "c")
    assert made.saves_last == made.saves_between(6, 6) == (save in ("all", "last"))
    assert made.saves_best == (save in ("all", "best"))
    if inside:
        minutes = Checkpoints(save=save, every_minutes=1)
        minutes.open(tmp_path / "c")
        assert minutes.saves_between(6, 6)
    plain = Checkpoints(save=save)
    plain.open(tmp_path / "c")
    assert not plain.saves_between(4, 6) and not Checkpoints(every=2).saves_between(4, 6)
    assert Checkpoints(every=1).saves_between(4, 6) and Checkpoints(every=1).saves_between(12, 6)


def test_inside_an_epoch_only_last_is_written(tmp_path):
    made = Checkpoints(every=1)
    made.open(tmp_path / "c")
    made.write({**state(1), "progress": {"batch": 1}}, is_evaluated=False, is_best=True)
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"last.pt"}


def test_the_newest_three_are_kept_in_order_and_an_adopted_file_is_the_newest(tmp_path):
    made = Checkpoints(keep=4)
    made.open(tmp_path / "c")
    for epoch in range(1, 7):
        made.write(state(epoch), is_evaluated=True, is_best=epoch == 2)
    epochs = {path.stem: load(path)["epoch"] for path in (tmp_path / "c").iterdir()}
    assert epochs == {"last": 6, "last-1": 5, "last-2": 4, "last-3": 3, "best": 2}
    made.adopt(made.path("best"))
    epochs = {path.stem: load(path)["epoch"] for path in (tmp_path / "c").iterdir()}
    assert epochs == {"last": 2, "last-1": 6, "last-2": 5, "last-3": 4, "best": 2}
    made.adopt(made.path("last"))
    assert load(made.path("last-1"))["epoch"] == 6
    one = Checkpoints(keep=1)
    one.open(tmp_path / "c")
    one.adopt(made.path("last-1"))
    assert load(made.path("last"))["epoch"] == 6 and load(made.path("last-1"))["epoch"] == 6


def test_the_bytes_are_synced_before_they_have_a_name_and_the_names_after(tmp_path, monkeypatch):
    told = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (told.append(name), real(*a))[1])
    save(tmp_path / "a.pt", state())
    assert told == ["fsync", "fsync", "replace", "fsync"]  # one of them beside the digest, to spare time
    (tmp_path / "b.pt.tmp").symlink_to(tmp_path / "a.pt")
    before = (tmp_path / "a.pt").read_bytes()
    assert checkpoint.write_temporary(tmp_path / "b.pt", state(9)) == tmp_path / "b.pt.tmp"
    assert (tmp_path / "a.pt").read_bytes() == before and load(tmp_path / "b.pt.tmp")["epoch"] == 9


def test_a_disk_that_is_full_is_said_as_the_disk_says_it_and_leaves_nothing(tmp_path, monkeypatch):
    def full(self, content):
        self.error = OSError(28, "No space left on device")
        raise self.error

    monkeypatch.setattr(checkpoint._Writing, "write", full)
    said = refusal(checkpoint.write_temporary, tmp_path / "a.pt", state(), kind=OSError)
    assert said == "[Errno 28] No space left on device" and os.listdir(tmp_path) == []


def test_without_hard_links_a_second_name_is_a_durable_copy(tmp_path, monkeypatch):
    synced = []

    def no_links(source, target):
        raise OSError(1, "no links here")

    save(tmp_path / "a.pt", state(5))
    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    checkpoint._link(tmp_path / "a.pt", tmp_path / "b.pt")
    assert load(tmp_path / "b.pt")["epoch"] == 5 and synced == [(tmp_path / "b.pt").stat().st_ino]
    assert sorted(os.listdir(tmp_path)) == ["a.pt", "b.pt"]


class Mode(enum.Enum):
    LINEAR = "linear"


class Flag(enum.IntFlag):
    A = 1
    B = 2


class Point(NamedTuple):
    x: float
    y: float


class Table(dict):
    pass


class Half(float):
    pass


UNUSUAL = {
    "rates": [np.float64(-0.0), np.float32(0.1), np.float16(0.1), np.complex64(1 + 2j), float("nan")],
    "counts": [np.int64(3), np.uint64(2**64 - 1), np.bool_(True), 2**130, np.str_("a"), np.bytes_(b"b")],
    "times": [np.datetime64("2020-01-01T00:00:00"), np.timedelta64(3, "s"), datetime.timedelta(seconds=3.5)],
    "dates": [datetime.datetime(2020, 1, 2, 3), datetime.date(2020, 1, 2), datetime.time(1, 2)],
    "arrays": [np.ones((2, 3), np.float32), np.array(3.5), np.zeros((0, 3)), np.arange(3, dtype=">f4")],
    "more": [np.array([["ab", "c"]]), np.array(["2020-01-01"], "M8[D]"), np.arange(3, dtype=np.uint64)],
    "generator": np.random.default_rng(0).bit_generator.state,
    "ordered": OrderedDict(a=np.float32(1)),
    "default": defaultdict(int, {np.int64(3): 5}),
    "counter": Counter({np.int64(3): 5, 4: 1}),
    "queue": deque([(1, np.int32(2)), {"a": deque([np.float32(1)])}], maxlen=4),
    "tuples": (1, (2, np.float32(3)), Point(1.0, np.float64(2))),
    "sets": [{1, 2}, {np.int64(1)}, frozenset([1]), {frozenset([2])}],
    "keys": {Mode.LINEAR: [np.float32(2)], (1, 2): np.float32(3), (np.int64(1), 2): 3},
    "subclasses": [Table(a=np.float32(1)), Half(-0.0), Mode.LINEAR, Flag.A | Flag.B],
    "words": [Path("a/b"), range(1, 9, 2), slice(1, None), Decimal("1.1"), Fraction(1, 3), b"\xff", bytearray(b"x")],
    "torch": [torch.float32, torch.device("cpu"), torch.Size([2, 3]), torch.ones(1).expand(4), torch.ones(2).half()],
}


def is_equal(one, two):
    if type(one) is not type(two):
        return False
    if isinstance(one, dict):
        pairs = zip(one.items(), two.items(), strict=True)
        return len(one) == len(two) and all(map(is_equal, *zip(*pairs, strict=True)))
    if isinstance(one, (list, tuple, deque)):
        return len(one) == len(two) and all(map(is_equal, one, two))
    if isinstance(one, (torch.Tensor, np.ndarray)):
        return (one.dtype, one.shape) == (two.dtype, two.shape) and bool((one == two).all())
    return repr(one) == repr(two)


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_not_plain_is_written_plain_and_comes_back_as_it_was(tmp_path, name):
    save(tmp_path / "a.pt", state(**{name: UNUSUAL[name]}))
    assert torch.load(tmp_path / "a.pt", weights_only=True)["epoch"] == 1
    assert is_equal(load(tmp_path / "a.pt")[name], UNUSUAL[name])


def test_a_state_that_is_plain_is_written_as_it_is(tmp_path):
    save(tmp_path / "a.pt", given := state(rows=[{"lr": 0.1}], ordered=OrderedDict(a=torch.ones(1))))
    assert torch.load(tmp_path / "a.pt", weights_only=True).keys() == given.keys()


@pytest.mark.parametrize(
    "odd", [len, object(), np.array([object()]), np.longdouble(1), torch.Generator(), defaultdict(lambda: 0)]
)
def test_what_cannot_be_made_again_is_refused_by_its_place_and_nothing_is_written(tmp_path, odd):
    with pytest.raises(InputError, match=r"deep\.0\.x.*no checkpoint can hold"):
        save(tmp_path / "a.pt", state(deep=[{"x": odd}]))
    assert os.listdir(tmp_path) == []


def test_a_file_makes_nothing_but_what_is_one_of_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "plain", lambda state: state)
    popen = ("subprocess", "Popen")
    for note in (["enum", popen], ["subclass", popen], ["array", ("O", [1])], [1, 2]):
        save(tmp_path / "a.pt", state(x=["touch", "pwned"], kinds=[(("x",), *note)]))
        with pytest.raises(Damaged, match=r"a\.pt"):
            load(tmp_path / "a.pt")


def test_a_class_that_is_imported_later_is_made_then(tmp_path, monkeypatch):
    save(tmp_path / "a.pt", state(mode=deque([Mode.LINEAR]), rate=np.float32(1)))
    with monkeypatch.context() as patched:
        patched.delitem(sys.modules, Mode.__module__)
        loaded = load(tmp_path / "a.pt")
    assert is_equal(restored(loaded)["mode"], deque([Mode.LINEAR])) and is_equal(loaded["rate"], np.float32(1))
