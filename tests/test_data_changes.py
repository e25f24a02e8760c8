"""Data that has changed since a run began: resume refuses it, evaluate says it; equal data elsewhere is the same."""

import json
import logging
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset, TensorDataset

import runner
from conftest import killed_after
from runner.__main__ import dispatch
from runner.batches.contents import known_of
from runner.errors import InputError
from runner.job.resuming import resume
from runner.storage.provenance import data_changes
from runner.storage.run_dir import RunDir

YAML = """
{given}
test_size: 0.25
val_size: 0.25
num_classes: 2
input_shape: [4]
augment: []
train: {{_target_: mine.Own{more}}}
"""
WORDS = ["model=mlp", "model.hidden=[4]", "trainer.epochs=1", "dataloader.batch_size=8", "scheduler=constant"]
WORDS += ["device.threads=1", "quiet=true"]
ACCEPT = "accept_data_change=true"


class Project:
    """A folder with a dataset of one's own (mine.py), and a run on it."""

    def __init__(self, folder):
        self.folder = folder

    def dataset(self, code, **given):
        (self.folder / "mine.py").write_text(
            f"import csv, os\nfrom pathlib import Path\nimport numpy as np\nimport torch\n\n{code}"
        )
        (self.folder / "conf" / "dataset").mkdir(parents=True, exist_ok=True)
        lines = "\n".join(f"{key}: {value}" for key, value in given.items())
        more = "".join(f", {key}: '${{dataset.{key}}}'" for key in given)
        (self.folder / "conf" / "dataset" / "own.yaml").write_text(YAML.format(given=lines, more=more))

    def train(self, *words, run_dir="run"):
        sys.modules.pop("mine", None)
        return runner.run(["dataset=own", *WORDS, *words], run_dir, "conf")


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Project(tmp_path)
    sys.modules.pop("mine", None)


def images(root, count, start=0):
    """Two classes of pictures; those of a dog are lighter."""
    for number, name in enumerate(("cat", "dog")):
        Path(root, name).mkdir(parents=True, exist_ok=True)
        for i in range(start, start + count):
            pixels = np.random.default_rng([number, i]).integers(0, 120, (8, 8, 3)) + 100 * number
            Image.fromarray(pixels.astype("uint8")).save(Path(root, name, f"{i:03}.png"))


FOLDER = ["dataset=image_folder", "dataset.root=data", "dataset.image_size=8", "dataset.test_size=0.25"]
FOLDER += ["dataset.val_size=0.25", *WORDS]


def exchange():
    os.rename("data/cat", "data/other")
    os.rename("data/dog", "data/cat")
    os.rename("data/other", "data/dog")


CHANGED_FOLDERS = {
    "six images more": (lambda: images("data", 3, 16), "38 examples where the run had 32"),
    "two folders exchanged": (exchange, "other files in cat (000.png has another content"),
    "deleted files": (lambda: [os.remove(f"data/dog/{i:03}.png") for i in range(4)], "12 files in dog"),
    "a class renamed": (lambda: os.rename("data/dog", "data/wolf"), "cat, wolf as classes"),
    "one picture replaced": (
        lambda: shutil.copy("data/cat/000.png", "data/dog/000.png"),
        "other files in dog (000.png has another content)",
    ),
}


@pytest.mark.parametrize("what", CHANGED_FOLDERS)
def test_a_picture_folder_that_changed_is_refused_by_resume_and_taken_where_that_is_said(
    what, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    change, said = CHANGED_FOLDERS[what]
    images("data", 16)
    runner.run(FOLDER, "run")
    before, files = RunDir(Path("run")).read_run(), sorted(Path("run/checkpoints").iterdir())
    change()
    with pytest.raises(InputError, match="dataset.train: ") as refused:
        resume(Path("run"), ["trainer.epochs=2"])
    assert said in str(refused.value) and ACCEPT in str(refused.value)
    assert RunDir(Path("run")).read_run() == before and sorted(Path("run/checkpoints").iterdir()) == files
    record = resume(Path("run"), ["trainer.epochs=2", ACCEPT])
    assert record["epochs_done"] == 2 and said in record["resumed"][0]["changes"][0]
    dispatch(["show", "run"])
    assert "changed" in (shown := " ".join(capsys.readouterr().out.split())) and said[:9] in shown
    assert "resumed" in record and resume(Path("run"), ["trainer.epochs=3"])["resumed"][1]["changes"] == []


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_run_that_takes_other_data_has_its_epochs_wherever_it_stopped(stop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images("data", 16)
    words = [*FOLDER, "checkpoint.every_batches=1", "trainer.epochs=3"]
    killed_after(stop, monkeypatch, lambda: runner.run(words, "run"))
    images("data", 16, 16)
    record = resume(Path("run"), [ACCEPT])
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3] and record["epochs_done"] == 3
    assert rows[2]["step"] - rows[1]["step"] == record["config"]["derived"]["batches_per_epoch"]
    assert resume(Path("run"), ["trainer.epochs=4"])["epochs_done"] == 4


def test_the_same_data_at_another_place_with_other_times_is_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images("data", 16)
    runner.run(FOLDER, "run")
    shutil.copytree("data", "copy", copy_function=shutil.copyfile)
    shutil.rmtree("data")
    os.rename("copy", "data")
    for path in Path("data").rglob("*.png"):
        os.utime(path, (2e9, 2e9))
    assert resume(Path("run"), ["trainer.epochs=2"])["resumed"][0]["changes"] == []
    from torchvision.datasets import ImageFolder

    one = known_of(ImageFolder("data"))
    os.rename("data", "elsewhere")
    assert known_of(ImageFolder(str(tmp_path / "elsewhere"))) == one
    json.dumps(one, allow_nan=False)


CSV = """
class Own(torch.utils.data.Dataset):
    def __init__(self, path):
        rows = [[float(cell) for cell in row] for row in csv.reader(Path(path).read_text().splitlines())]
        self.points = [([*row[:-1]], int(row[-1])) for row in rows]
    def __len__(self):
        return len(self.points)
    def __getitem__(self, index):
        values, label = self.points[index]
        return torch.tensor(values), label
"""
LAZY = """
class Own(torch.utils.data.Dataset):
    def __init__(self, path):
        self.folder, self.names = path, sorted(os.listdir(path))
    def __len__(self):
        return len(self.names)
    def __getitem__(self, index):
        values = np.load(os.path.join(self.folder, self.names[index]))
        return torch.tensor(values[:4]), int(values[4])
"""
MEMORY = """
class Own(torch.utils.data.Dataset):
    def __init__(self, path):
        table = np.stack([np.load(file) for file in sorted(Path(path).iterdir())])
        self.x, self.y = torch.from_numpy(table[:, :4]), torch.from_numpy(table[:, 4]).long()
    def __len__(self):
        return len(self.x)
    def __getitem__(self, index):
        return self.x[index], self.y[index]
"""
GLOBAL = """
TABLE = np.stack([np.load(file) for file in sorted(Path("rows").iterdir())])
class Own(torch.utils.data.Dataset):
    def __init__(self, path):
        pass
    def __len__(self):
        return len(TABLE)
    def __getitem__(self, index):
        return torch.from_numpy(TABLE[index, :4]), int(TABLE[index, 4])
"""
TABLE = np.random.default_rng(0).random((32, 5)).astype("float32").round(3)
TABLE[:, 4] = TABLE[:, 0] > 0.5


def rows(table):
    """As a CSV file, and as a file of numpy's for each row."""
    Path("rows.csv").write_text("\n".join(",".join(map(str, row)) for row in table.tolist()))
    shutil.rmtree("rows", ignore_errors=True)
    Path("rows").mkdir()
    for index, row in enumerate(table):
        np.save(f"rows/{index:03}.npy", row)


OTHER = TABLE.copy()
OTHER[0, 4] = 1 - OTHER[0, 4]  # one label, in a file of the same name and size


@pytest.mark.slow
@pytest.mark.parametrize("table", [OTHER, TABLE[:30]], ids=["another label", "rows deleted"])
@pytest.mark.parametrize("code", [CSV, LAZY, MEMORY, GLOBAL], ids=["csv", "lazy", "memory", "global"])
def test_the_data_of_a_dataset_of_ones_own_is_known_by_its_attributes_files_or_examples(project, code, table):
    rows(TABLE)
    project.dataset(code, path="rows.csv" if code is CSV else "rows")
    project.train()
    sys.modules.pop("mine", None)
    assert resume(Path("run"), ["trainer.epochs=2"])["resumed"][0]["changes"] == []
    rows(table)
    sys.modules.pop("mine", None)
    with pytest.raises(InputError, match=rf"dataset\..*: .*{ACCEPT}"):
        resume(Path("run"), ["trainer.epochs=3"])


def test_evaluate_says_which_figures_the_run_has_found_and_what_has_changed(project, caplog, capsys):
    rows(TABLE)
    project.dataset(MEMORY, path="rows")
    record = project.train("trainer.epochs=2")
    caplog.clear()
    for split in ("test", "val"):
        for which in ("best", "last"):
            sys.modules.pop("mine", None)
            assert dispatch(["evaluate", "run", "--split", split, "--which", which]) == 0
    assert caplog.records == []
    rows(1 - TABLE)
    sys.modules.pop("mine", None)
    capsys.readouterr()
    assert dispatch(["evaluate", "run"]) == 1
    said = caplog.messages[-1]
    assert f"test/loss {record['test']['best']['loss']}" in said and "dataset.train: " in said
    assert "test/loss: " in capsys.readouterr().out  # the figures of today are there all the same
    caplog.clear()
    sys.modules.pop("mine", None)
    assert dispatch(["evaluate", "run", "--split", "val", "--which", "last"]) == 1
    assert f"val/loss {record['last']['val/loss']}" in caplog.messages[-1]


def test_evaluate_of_data_that_the_model_cannot_take_any_more_says_what_has_changed(project):
    rows(TABLE)
    project.dataset(CSV, path="rows.csv")
    project.train()
    rows(np.concatenate([TABLE, TABLE[:, 4:]], axis=1))
    sys.modules.pop("mine", None)
    with pytest.raises(InputError, match="what has changed since: dataset.train: "):
        dispatch(["evaluate", "run"])


def test_evaluate_of_changed_code_says_what_the_run_had_found_and_names_the_file(project, caplog):
    rows(TABLE)
    project.dataset(MEMORY, path="rows")
    project.train()
    (project.folder / "mine.py").write_text(
        (project.folder / "mine.py").read_text().replace("return self.x[index]", "return -self.x[index]")
    )
    sys.modules.pop("mine", None)
    with caplog.at_level(logging.WARNING):
        assert dispatch(["evaluate", "run"]) == 1
    assert "own module mine: " in caplog.messages[-1] and "test/loss" in caplog.messages[-1]


def test_evaluate_names_another_thread_count_and_last_digits_are_no_failure(project, caplog):
    rows(TABLE)
    project.dataset(MEMORY, path="rows")
    project.train()
    run_dir = RunDir(Path("run"))
    record = run_dir.read_run()
    best = {key: value * (1 + 1e-6) for key, value in record["test"]["best"].items()}
    run_dir.write_run({**record, "threads": 7, "test": {**record["test"], "best": best}})
    sys.modules.pop("mine", None)
    assert dispatch(["evaluate", "run"]) == 0
    assert "threads: 7 -> 1" in caplog.messages[-1]


@pytest.mark.slow
@pytest.mark.parametrize("split", ["val", "test"])
def test_the_average_of_the_weights_is_compared_with_its_own_figures(project, caplog, split):
    rows(TABLE)
    project.dataset(MEMORY, path="rows")
    for beside, kinds in (("instead", ("best", "last", "ema", "raw")), ("beside", ("best", "last", "ema", "raw"))):
        project.train("averaging=ema", f"averaging.evaluate={beside}", run_dir=beside)
        caplog.clear()
        for which in kinds:
            sys.modules.pop("mine", None)
            assert dispatch(["evaluate", beside, "--split", split, "--which", which]) == 0
        assert caplog.messages == []


@pytest.mark.slow
def test_verify_and_replay_say_what_data_has_changed_and_go_on(project, capsys, caplog):
    rows(TABLE)
    project.dataset(LAZY, path="rows")
    project.train()
    rows(OTHER)
    sys.modules.pop("mine", None)
    assert dispatch(["verify", "run", "-o", "again"]) == 1
    assert "dataset.train: " in Path("again/runner.log").read_text()
    assert dispatch(["verify", "run", "--kills", "1", "--seed", "0"]) == 1
    assert "note: dataset.train: " in capsys.readouterr().out


@pytest.mark.slow
def test_a_sweep_trains_no_new_job_on_other_data_than_its_finished_ones(project, cli):
    rows(TABLE)
    project.dataset(LAZY, path="rows")
    words = ["--config-dir", "conf", "-m", "dataset=own", *WORDS, "sweep.name=s", "sweep.retries=0"]
    assert cli(*words, "seed=1").returncode == 0
    rows(OTHER)
    refused = cli(*words, "seed=1,2")
    assert refused.returncode == 2 and "dataset.train: " in refused.stderr and "sweep.force=true" in refused.stderr
    assert not Path("outputs/sweeps/s/seed=2/run.json").exists()
    assert cli(*words, "seed=1,2", "sweep.force=true").returncode == 0


def test_a_student_keeps_the_teacher_that_it_began_with_and_says_that_the_folder_has_changed(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    words = ["dataset=fake", "dataset.train_size=64", "dataset.eval_size=16", *WORDS]
    runner.run(words, "teacher")
    student = [*words, "task=distillation", "task.teacher=teacher"]
    runner.run(student, "student")
    assert resume(Path("student"), ["trainer.epochs=2"])["resumed"][0]["changes"] == []
    shutil.rmtree("teacher")
    runner.run([*words, "seed=5"], "teacher")
    record = resume(Path("student"), ["trainer.epochs=3"])
    assert any(change.startswith("the model of teacher: ") for change in record["resumed"][1]["changes"])
    for path in Path("student/checkpoints").iterdir():
        path.unlink()  # now the teacher of today would be the one
    with pytest.raises(InputError, match="the model of teacher: .*weights"):
        resume(Path("student"), ["trainer.epochs=4"])


class Wrapping:
    """Holds a dataset, generators and what is no data."""

    def __init__(self, inner):
        self.inner, self.transform, self.log = inner, torch.nn.ReLU(), logging.getLogger("x")

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        return self.inner[index]


def tensors(first=0):
    return TensorDataset(torch.arange(first, first + 40).view(10, 4), torch.arange(10) % 2)


@pytest.mark.parametrize(
    "make",
    [
        tensors,
        lambda first=0: Subset(tensors(first), [0, 1, 2]),
        lambda first=0: ConcatDataset([tensors(), tensors(first)]),
        lambda first=0: Wrapping(tensors(first)),
        lambda first=0: [(torch.tensor([float(first)]), 1)],
        lambda first=0: Wrapping({"a": {"b": [np.float32(first)]}}),
        lambda first=0: Wrapping([{"x": np.full(3, first)}]),
        lambda first=0: Wrapping(bytearray([first])),
    ],
    ids=["tensors", "subset", "concat", "wrapped", "list", "nested", "dicts", "bytes"],
)
def test_data_in_memory_is_told_from_other_data_wherever_it_hangs_and_nothing_is_drawn(make):
    state = torch.get_rng_state()
    once, again, other = ({"data": {"dataset.train": known_of(d)}} for d in (make(), make(), make(1)))
    assert once == again and data_changes(once, again) == ([], [])
    assert len(data_changes(once, other)[0]) == 1
    assert torch.equal(state, torch.get_rng_state())


class Drawing:
    """Each example is drawn from a generator of its own."""

    def __init__(self):
        self.generator = np.random.default_rng(0)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.generator.random()


def test_a_generator_of_a_datasets_own_is_not_drawn_from():
    dataset = Drawing()
    known_of(dataset)
    assert dataset.generator.random() == np.random.default_rng(0).random()


def test_numbers_that_another_processor_computes_are_only_said_and_files_are_not(project):
    before = {"cpu": "a", "data": {"dataset.train": {"computed": {"x": "1"}, "values": {"y": "1"}}}}
    other = {"dataset.train": {"computed": {"x": "2"}, "values": {"y": "1"}}}
    assert [len(found) for found in data_changes(before, {"cpu": "a", "data": other})] == [1, 0]
    assert [len(found) for found in data_changes(before, {"cpu": "b", "data": other})] == [0, 1]
    other["dataset.train"]["values"]["y"] = "2"
    assert [len(found) for found in data_changes(before, {"cpu": "b", "data": other})] == [1, 0]


def test_a_record_that_says_nothing_of_its_data_is_resumed_and_evaluated(project):
    rows(TABLE)
    project.dataset(MEMORY, path="rows")
    project.train()
    run_dir = RunDir(Path("run"))
    record = run_dir.read_run()
    del record["data"]
    run_dir.write_run(record)
    sys.modules.pop("mine", None)
    assert dispatch(["evaluate", "run"]) == 0
    assert resume(Path("run"), ["trainer.epochs=2"])["epochs_done"] == 2


BY_NAME = """
class Own(torch.utils.data.Dataset):
    def __init__(self, root):
        self.root = root

    def __len__(self):
        return len(os.listdir(self.root))

    def __getitem__(self, index):
        name = sorted(os.listdir(self.root))[index]
        return torch.from_numpy(np.load(os.path.join(self.root, name))).float(), int(name.split("_")[1][0])
"""


@pytest.mark.parametrize("what", ["a value", "a label", "nothing"])
def test_a_folder_that_a_dataset_reads_only_when_it_is_asked_is_known_by_its_files(what, project):
    Path("arrays").mkdir()
    for number in range(60):
        np.save(f"arrays/{number:02d}_{number % 2}.npy", np.full(4, number, dtype=np.float32))
    project.dataset(BY_NAME, root="arrays")
    project.train()
    if what == "a value":
        np.save("arrays/31_1.npy", np.full(4, -1, dtype=np.float32))
    elif what == "a label":
        Path("arrays/31_1.npy").rename("arrays/31_0.npy")
    sys.modules.pop("mine", None)
    if what == "nothing":
        assert resume(Path("run"), ["trainer.epochs=2"])["state"] == "done"
    else:
        with pytest.raises(InputError, match="dataset.train: other files.*accept_data_change=true"):
            resume(Path("run"), ["trainer.epochs=2"])
