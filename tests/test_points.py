"""sweep.points: a list or a CSV file as the jobs of a plain sweep, with cells that are values and nothing else."""

import json
import os

import pytest

from runner.errors import InputError
from runner.search.space import as_value
from runner.storage.record_schema import RunRecord, SweepRecord, read_record
from runner.sweep import points
from runner.sweep.multirun import check_words, multirun
from runner.sweep.points import read_points, written
from runner.terminal import notices
from test_sweep_run import WORDS

WORDS = [word for word in WORDS if not word.startswith("sweep.name=")]


def of(text, tmp_path, encoding="utf-8"):
    (tmp_path / "points.csv").write_bytes(text.encode(encoding))
    return read_points("points.csv")


def test_a_file_is_a_point_a_row(tmp_path):
    text = 'optimizer.lr, scheduler,model.hidden,notes\n1e-3,step,"[64, 32]","a, b = {c} 1,2"\n\n1,cosine,[8],"""7"""\n'
    one, two = of(text, tmp_path)
    assert one.settings == {
        "optimizer.lr": 0.001,
        "scheduler": "step",
        "model.hidden": [64, 32],
        "notes": "a, b = {c} 1,2",
    }
    assert two.settings == {"optimizer.lr": 1, "scheduler": "cosine", "model.hidden": [8], "notes": "7"}
    assert (one.where, two.where) == ("points.csv: line 2", "points.csv: line 4")
    assert one.words == ["optimizer.lr=0.001", "scheduler=step", "model.hidden=[64,32]", "notes='a, b = {c} 1,2'"]
    assert two.words[-1] == "notes='7'"
    assert of("\ufeffa,b\r\nTrue,null\r\n", tmp_path)[0].settings == {"a": True, "b": None}  # as spreadsheets write it


@pytest.mark.parametrize(
    "value",
    ["a b", "it's", "x\\", "\\'", "null", "TRUE", "1", "1,2", "a=b", "~a", "[1", "-", "\u00e9", "x y\\\\", "nan", ""],
)
def test_what_is_written_is_read_by_hydra_as_the_same_value(value):
    for same in (value, [value, 1, None, True, 1e-05, [value]]):
        assert as_value(written(same)) == same
        assert type(as_value(written(same))) in (type(same), str)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("optimizer.lr,scheduler\n0.1\n", ["line 2", "1 cells", "2 columns: optimizer.lr, scheduler"]),
        ("optimizer.lr,scheduler\n0.1,step\n0.1,\n", ["line 3", "scheduler: is empty"]),
        ("optimizer.lr,optimizer.lr\n1,2\n", ["line 1", "optimizer.lr is there twice"]),
        ("optimizer.lr;scheduler\n0.1;step\n", ["line 1", "separated by commas"]),
        ("optimizer.lr,\n0.1,1\n", ["line 1", "an empty column"]),
        ("optimizer.lr\n", ["points.csv", "no rows"]),
        ("", ["points.csv", "no rows"]),
        ("sweep.name\nx\n", ["line 1", "sweep.name", "belongs to the command"]),
        ("trust\n[evil]\n", ["line 1", "trust", "belongs to the command"]),
        ("+hydra.run.dir\nx\n", ["line 1", "+hydra.run.dir"]),
        ("~model\nx\n", ["line 1", "~model", "must be a key"]),
        ("a=1 b\nx\n", ["line 1", "must be a key"]),
        ("notes\n${oc.env:HOME}\n", ["line 2", "notes=", "no interpolation"]),
        ('notes\n"a\nb"\n', ["line 3", "notes", "no line break"]),
        ('model.hidden\n"[64, x]"\n', ["line 2", "model.hidden=[64, x]", "JSON"]),
        ('model\n"{""_target_"": ""os.system""}"\n', ["line 2", "model=", "must be a number"]),
        ('a\n"x\n', ["line 2", "unexpected end"]),
        ("a\n" + "[" * 9999, ["line 2", "JSON"]),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_wrong_file_is_one_line_with_its_place(text, parts, tmp_path):
    with pytest.raises(InputError) as refused:
        of(text, tmp_path)
    assert all(part in str(refused.value) for part in parts) and "\n" not in str(refused.value), refused.value


def test_what_is_no_file_or_no_list_is_one_line(tmp_path):
    (tmp_path / "latin.csv").write_bytes("a\n\u00e9\n".encode("latin-1"))
    os.mkfifo(tmp_path / "fifo.csv")
    for given, part in (
        ("nowhere.csv", "sweep.points=nowhere.csv: cannot be read: No such file"),
        (".", "cannot be read"),
        ("latin.csv", "no text in UTF-8"),
        ("fifo.csv", "cannot be read"),
        (3, "must be a CSV file, or a list"),
        ([], "must be a CSV file, or a list"),
        ([3], "sweep.points[0]: must be keys and values"),
        ([{"a": {"b": 1}}], "sweep.points[0]: a="),
        ([{"a": 1}, {"a": ["${b}"]}], "sweep.points[1]: a="),
    ):
        with pytest.raises(InputError) as refused:
            read_points(given)
        assert part in str(refused.value), refused.value


def line_of(*words):
    with pytest.raises(InputError) as refused:
        multirun([*WORDS, "sweep.name=some", *words], None)
    return str(refused.value)


def test_a_wrong_key_or_value_of_a_row_is_named_with_its_line(tmp_path):
    (tmp_path / "a.csv").write_text("optimizer.lr,scheduler\n0.1,step\nfast,step\n")
    assert line_of("sweep.points=a.csv").startswith("a.csv: line 3: optimizer.lr=fast: must be a number, got text")
    (tmp_path / "a.csv").write_text("optimizer.learning\n0.1\n")
    assert "a.csv: line 2: optimizer.learning=0.1" in (line := line_of("sweep.points=a.csv")) and "lr" in line
    (tmp_path / "a.csv").write_text("optimizer.lr\n0.1 seed=3\n")
    assert "a.csv: line 2: optimizer.lr='0.1 seed=3': must be a number" in line_of("sweep.points=a.csv")
    assert "sweep.points[0]: scheduler=cosin" in line_of("sweep.points=[{scheduler: cosin}]")
    both = line_of("sweep.points=[{optimizer.lr: 1}]", "optimizer.lr=0.1,0.2")
    assert both == "sweep.points[0]: optimizer.lr: is given in the command too; give it in one place"
    assert "cannot be swept over" in line_of("sweep.points=a.csv,b.csv")
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_rows_times_seeds_are_the_jobs_and_a_lost_file_stops_nothing(tmp_path):
    (tmp_path / "a.csv").write_text('optimizer.lr,scheduler,notes\n0.1,step,"x, y"\n0.5,cosine,z\n')
    words = [*WORDS, "hydra/launcher=basic", "sweep.points=a.csv", "seed=1,2", "sweep.name=some"]
    multirun(words, None)
    place = tmp_path / "outputs" / "sweeps" / "some"
    found = sorted(path.parent.name for path in place.glob("*/run.json"))
    assert len(found) == 4 and "notes=z,optimizer.lr=0.5,scheduler=cosine,seed=2" in found
    record = read_record(place / found[0] / "run.json", RunRecord)
    assert record["config"]["notes"] == "x, y" and record["config"]["sweep"]["points"] is None
    summed = json.loads((place / "summary.json").read_text())
    assert [row["n"] for row in summed["settings"]] == [2, 2]
    sweep = read_record(place / "sweep.json", SweepRecord)
    assert (
        sweep["swept"] == ["optimizer.lr", "scheduler", "notes", "seed"] and "sweep.points=a.csv" in sweep["arguments"]
    )
    (tmp_path / "a.csv").unlink()
    assert points.from_copy(sweep["arguments"], place) != sweep["arguments"]
    from runner.cli.resume import resume_sweep

    resume_sweep(place, [])
    assert (place / "points.csv").read_text().startswith("optimizer.lr,scheduler,notes\n")
    assert sorted(path.parent.name for path in place.glob("*/run.json")) == found
    notices.take()


def test_a_strangers_points_are_those_in_its_folder(tmp_path):
    place = tmp_path / "sweep"
    place.mkdir()
    record = {
        "arguments": ["sweep.points=/etc/passwd", "seed=1"],
        "hydra": [],
        "base": {},
        "config_dir": None,
        "working_directory": "/",
    }
    with pytest.raises(InputError, match="sweep.points=/etc/passwd: is not taken from a record"):
        check_words(place / "sweep.json", record)
    (place / "points.csv").write_text("seed\n1\n")
    check_words(place / "sweep.json", record)
    assert points.from_copy(record["arguments"], place)[0] == f"sweep.points='{place / 'points.csv'}'"
    (place / "points.csv").unlink()
    (place / "points.csv").symlink_to("/etc/passwd")
    with pytest.raises(InputError, match="is a link"):
        check_words(place / "sweep.json", record)
