"""The way of a batch between two calls of the user's forward: how many functions of ours, in how many files."""

import sys
from pathlib import Path

import pytest

import runner
import runner.models

SRC = str(Path(runner.__file__).parent)
WORDS = ["device=cpu", "trainer.epochs=2", "trainer.log_every=0", "quiet=true", "dataset.val_size=0.6"]


def ways(*words):
    """(calls of ours between two calls of the model in epoch 2, own frames between fit and the model), per batch."""
    found, calls = [], []

    def hook(frame, event, arg):
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(SRC):
            return
        if code is runner.models.Net.forward.__code__:
            found.append((tuple(calls), frames_above(frame)))
            calls.clear()
        else:
            calls.append((code.co_filename, code.co_name))

    before = sys.getprofile()
    sys.setprofile(hook)
    try:
        runner.run([*WORDS, *words])
    finally:
        sys.setprofile(before)
    training = [way for way in found if "train_step" in way[1]]
    return training[len(training) // 2 + 2 : -1]  # of epoch 2, without its first batch


def frames_above(frame):
    names = []
    while (frame := frame.f_back) is not None and frame.f_code.co_name != "fit":
        if frame.f_code.co_filename.startswith(SRC):
            names.append(frame.f_code.co_name)
    return tuple(names)


def test_between_two_forwards_there_are_few_calls_in_few_files():
    found = ways()
    assert found
    for calls, frames in found:
        assert len(calls) <= 12 and len({file for file, _ in calls}) <= 6, calls
        assert frames == ("forward", "train_step", "train_interval")


@pytest.mark.slow
def test_what_is_switched_on_adds_only_its_own():
    off = ways()[0][0]
    added = set(ways("trainer.grad_clip=1.0")[0][0]) - set(off)
    assert {name for _, name in added} == {"clip_gradient", "unscale"}
