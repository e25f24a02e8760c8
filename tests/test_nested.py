"""Batches of any nesting are moved, cut and put together as they are."""

import dataclasses
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from runner.batches import nested
from runner.errors import InputError

Pair = namedtuple("Pair", "left right")


@dataclasses.dataclass(frozen=True)
class Sample:
    image: torch.Tensor
    about: dict[str, Any]
    kind: str = "cat"


def batch(n=6):
    return {
        "pair": Pair(torch.arange(n * 2).view(n, 2), (torch.arange(n).float(), [torch.ones(n, 3), "text"])),
        "sample": Sample(torch.zeros(n, 1, 4, 4), OrderedDict(b=torch.arange(n), a=None)),
        "names": [f"name {i}" for i in range(n)],
        "temperature": torch.tensor(2.0),
        "step": 7,
    }


def test_what_is_moved_keeps_its_kind_and_its_values():
    given = batch()
    made = nested.moved(given, torch.device("meta"))
    assert {tensor.device.type for _, tensor in nested.tensors_in(made)} == {"meta"}
    assert isinstance(made["pair"], Pair) and isinstance(made["pair"].right, tuple)
    assert isinstance(made["sample"], Sample) and isinstance(made["sample"].about, OrderedDict)
    assert list(made["sample"].about) == ["b", "a"] and made["sample"].kind == "cat"
    assert made["names"] == given["names"] and made["step"] == 7
    assert given["sample"].image.device.type == "cpu"  # the one that was given is left as it is


def test_what_moves_itself_is_asked_to():
    packed = pack_sequence([torch.ones(3), torch.ones(2)])
    assert nested.moved({"words": packed}, torch.device("cpu"))["words"].is_cuda is False


def test_only_images_are_laid_out_as_nhwc():
    made = nested.moved(
        {"x": torch.zeros(2, 3, 4, 5), "mask": torch.zeros(2, 3, 4, 5).long()}, torch.device("cpu"), True
    )
    assert made["x"].is_contiguous(memory_format=torch.channels_last) and made["mask"].is_contiguous()


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_pieces_put_together_are_the_batch(count):
    given = batch()
    pieces = nested.pieces(given, count)
    assert [nested.length(piece) for piece in pieces] == {1: [6], 2: [3, 3], 3: [2, 2, 2], 4: [2, 2, 2]}[count]
    assert all(piece["step"] == 7 and float(piece["temperature"]) == 2 for piece in pieces)
    assert [name for piece in pieces for name in piece["names"]] == given["names"]
    whole = nested.joined([{key: piece[key] for key in ("pair", "sample", "names")} for piece in pieces])
    wanted = dict(nested.tensors_in({key: given[key] for key in ("pair", "sample", "names")}))
    found = dict(nested.tensors_in(whole))
    assert wanted.keys() == found.keys() and all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert whole["names"] == given["names"]


def test_sizes_differ_by_one_at_most_and_the_pieces_of_a_pair_are_views():
    data = torch.arange(7)
    pieces = nested.pieces((data, data), 3)
    assert [len(piece[0]) for piece in pieces] == [3, 2, 2]
    assert pieces[0][0].data_ptr() == data.data_ptr()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"a": torch.ones(4), "b": torch.ones(5)}, "4 (a) and 5 (b)"),
        ({"a": "text", "b": torch.tensor(1)}, "no tensor with a dimension"),
    ],
)
def test_a_batch_that_cannot_be_cut_is_said(given, words):
    with pytest.raises(InputError, match=words.replace("(", r"\(").replace(")", r"\)")):
        nested.pieces(given, 2)


def test_outputs_that_do_not_go_together_are_said():
    with pytest.raises(InputError, match="do not go together"):
        nested.joined([torch.ones(2, 3), torch.ones(2, 4)])
    assert nested.joined([None, None]) is None
    assert torch.equal(nested.joined([torch.tensor(1.0), torch.tensor(2.0)]), torch.tensor([1.0, 2.0]))
