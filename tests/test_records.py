"""Looking at runs later: ls, show, diff, best, prune, and the same table from Python."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import runner
from runner.cli import select
from runner.errors import InputError
from runner.storage import records
from runner.storage.record_schema import write_record
from runner.terminal import notices

WORDS = ["dataset=fake", "dataset.train_size=40", "dataset.val_size=10", "dataset.eval_size=10", "model=mlp"]
WORDS += ["trainer.epochs=2", "quiet=true", "device.threads=1", "dataset.input_shape=[1,4,4]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("runs")
    for lr in (0.1, 0.5):
        for seed in (1, 2):
            words = [*WORDS, f"optimizer.lr={lr}", f"seed={seed}", f"tags=[{'high' if lr > 0.2 else 'low'}]"]
            runner.run(words, run_dir=base / f"lr{lr}-{seed}")
    return base


def test_ls_shows_what_varies_and_sorts_by_a_metric(folder, say):
    code, out, _ = say("ls", folder)
    assert code == 0
    header, *lines = out.splitlines()
    assert header.split()[:5] == ["run", "state", "epochs", "optimizer.lr", "seed"]
    assert len(lines) == 4 and all("done" in line for line in lines)
    _, out, _ = say("ls", folder, "--sort", "val/loss", "--json")
    losses = [row["best/val/loss"] for row in json.loads(out)]
    assert losses == sorted(losses)
    _, out, _ = say("ls", folder, "--sort", "val/accuracy", "--json")
    values = [row["best/val/accuracy"] for row in json.loads(out)]
    assert values == sorted(values, reverse=True)


def test_ls_filters_by_value_and_tag(folder, say):
    assert len(say("ls", folder, "--where", "optimizer.lr=0.5", "--where", "seed=1")[1].splitlines()) == 2
    assert len(say("ls", folder, "--tag", "low")[1].splitlines()) == 3
    assert len(say("ls", folder, "--csv")[1].splitlines()) == 5


def test_python_gives_the_same_table(folder):
    rows = runner.runs(folder)
    assert [row["config.optimizer.lr"] for row in rows] == [0.1, 0.1, 0.5, 0.5]
    record = json.loads((folder / "lr0.1-1" / "run.json").read_text())
    assert rows[0]["test/best/accuracy"] == record["test"]["best"]["accuracy"]
    assert rows[0]["best/val/accuracy"] == record["best_value"]


def test_best_goes_by_the_monitored_metric(folder, say):
    _, out, _ = say("best", folder)
    rows = runner.runs(folder)
    path = Path(out.splitlines()[0])
    assert max(row["best_value"] for row in rows) == next(r["best_value"] for r in rows if r["path"] == str(path))


def test_show_and_diff_name_what_there_is(folder, say):
    _, out, _ = say("show", folder / "lr0.1-1")
    for word in ("optimizer.lr", "state", "threads", "val/accuracy", "torch", "test (best)"):
        assert word in out
    _, out, _ = say("diff", folder / "lr0.1-1", folder / "lr0.5-1")
    assert "optimizer.lr" in out and "0.1" in out and "0.5" in out
    assert "dataset.train_size" not in out
    assert "no difference" in say("diff", folder / "lr0.1-1", folder / "lr0.1-1")[1]


def test_a_run_whose_process_is_gone_is_shown_as_killed(folder, tmp_path, say):
    record = json.loads((folder / "lr0.1-1" / "run.json").read_text())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({**record, "state": "running"}))
    assert "killed" in say("ls", tmp_path)[1]
    place = runner.storage.run_dir.RunDir(tmp_path / "run")
    place.lock()
    assert "running" in say("ls", tmp_path)[1]
    place.release()


def test_prune_keeps_the_best_of_finished_runs(folder, tmp_path, say):
    import shutil

    shutil.copytree(folder, tmp_path / "runs")
    _, out, _ = say("prune", tmp_path / "runs", "--dry-run")
    assert "would delete" in out and len(list((tmp_path / "runs").rglob("last.pt"))) == 4
    _, out, _ = say("prune", tmp_path / "runs")
    assert "MB freed" in out
    assert {p.name for p in (tmp_path / "runs").rglob("*.pt")} == {"best.pt"}
    runner.load_model(tmp_path / "runs" / "lr0.1-1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ls", "absent"], "absent: there is no such folder"),
        (["ls", "."], ".: holds no run"),
        (["ls", "FOLDER", "--where", "foo=1"], "--where foo=1: no run has the key 'foo'; nearest: "),
        (["ls", "FOLDER", "--where", "foo"], "--where foo: must be KEY, one of = != "),
        (["ls", "FOLDER", "--sort", "val/foo"], "--sort val/foo: no run has the key 'val/foo'; nearest: "),
        (["show", "absent"], "absent: holds no run"),
        (["diff", "absent", "FOLDER"], "absent: holds no run"),
        (["best", "."], ".: holds no run"),
        (["prune", "absent"], "absent: there is no such folder"),
        (["prune"], "DIR"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(folder, say, words, message):
    code, _, err = say(*[str(folder) if word == "FOLDER" else word for word in words])
    assert code == 2 and message in err and len(err.splitlines()) == 1


def test_a_thousand_runs_are_listed_in_under_a_second_without_torch(folder, tmp_path):
    record = (folder / "lr0.1-1" / "run.json").read_text()
    for number in range(1000):
        (tmp_path / "many" / str(number)).mkdir(parents=True)
        (tmp_path / "many" / str(number) / "run.json").write_text(record)
    probe = "import sys, runner; rows = runner.runs('many'); assert len(rows) == 1000\n"
    probe += "assert not {'torch', 'yaml', 'hydra', 'omegaconf', 'numpy', 'rich'} & set(sys.modules)"
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, check=True)
    listed = time.perf_counter() - began
    one_record = time.perf_counter()
    for _ in range(1000):
        json.loads(record)
    assert listed < 50 * (time.perf_counter() - one_record) + 1  # a ratio: the machine is shared


def test_conditions_compare_as_json_or_as_text():
    rows = [{"config.a": 1}, {"config.a": "x"}, {"config.a": None}]
    assert select.where(rows, ["a=1"]) == [rows[0]]
    assert select.where(rows, ["a=x"]) == [rows[1]]
    assert select.where(rows, ["a=null"]) == [rows[2]]
    with pytest.raises(InputError):
        select.where(rows, ["b=1"])


ROWS = [
    {"path": "p/a", "tags": ["x", "yz"], "state": "done", "choices.scheduler": "step", "config.optimizer.lr": 0.5},
    {"path": "p/b", "tags": [], "state": "failed", "choices.scheduler": "cosine", "config.optimizer.lr": 1},
    {"path": "p/c", "tags": ["z"], "state": "done", "config.optimizer.lr": 1e-3, "best/val/accuracy": 0.9},
]


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        *(("scheduler=step", "a"), ("scheduler!=step", "bc"), ("scheduler~^cos", "b"), ("state=done", "ac")),
        *(("status!=done", "b"), ("optimizer.lr>=0.5", "ab"), ("lr<0.5", "c"), ("lr>.4", "ab"), ("lr=1.0", "b")),
        *(("lr == 0.001", "c"), ("tags=x", "a"), ("tag!=x", "bc"), ("tags~z", "ac"), ("val/accuracy>0.5", "c")),
        *(("path~[ab]$", "ab"), ("lr<=1,state=done", "ac"), ("scheduler=null", "c"), ("optimizer.lr>0.5", "b")),
    ],
)
def test_conditions_know_groups_keys_metrics_and_labels(condition, found):
    assert "".join(row["path"][-1] for row in select.where(ROWS, [condition])) == found


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("learning_rate>1", "nearest: optimizer.lr"),
        ("sheduler=step", "nearest: scheduler"),
        ("val/acuracy>1", "nearest: val/accuracy"),
        ("lr>high", "'high' cannot be compared with the values of lr"),
        ("state~[", "'[' is no regular expression"),
        ("=1", "must be KEY, one of"),
    ],
)
def test_a_wrong_condition_names_what_is_near(condition, message):
    with pytest.raises(InputError) as raised:
        select.where(ROWS, [condition])
    assert message in str(raised.value) and len(str(raised.value)) < 250


def test_the_order_goes_either_way():
    for key, found in (("lr", "bac"), ("-lr", "cab"), ("path", "abc"), ("-path", "cba")):
        rows = [{**row, "monitor": "val/accuracy", "mode": "max", "modes": {}} for row in ROWS]
        assert "".join(row["path"][-1] for row in select.ordered(rows, key)) == found


def row(**columns):
    return {"path": "p", "monitor": "val/loss", "mode": "min", "modes": {}, "best_value": None, **columns}


def run_in(folder, **more):
    folder.mkdir(parents=True)
    record = {"state": "done", "epochs": 2, "epochs_done": 2, "config": {"seed": 1, "optimizer": {"lr": 0.5}}}
    record |= {"monitor": "loss", "mode": "min", "best_epoch": 1, "best_value": 0.25, "seconds": 3.5, "tags": ["a"]}
    record |= {"best": {"lr": 0.1, "val/loss": 0.25}, "last": {"val/loss": 0.5}, "threads": 2, "modes": {"acc": "max"}}
    record |= {"test": {"best": {"loss": 0.75}, "last": {"loss": 1.0}}, "error": None, "name": None, **more}
    write_record(folder / "run.json", record)
    return folder


def test_a_run_is_one_flat_row(tmp_path):
    expected = {"path": str(tmp_path / "r"), "name": "r", "state": "done", "tags": ["a"], "epochs_done": 2, "epochs": 2}
    expected |= {"notes": None, "archived": False, "started": ""}
    expected |= {"monitor": "loss", "mode": "min", "modes": {"acc": "max"}, "best_epoch": 1, "best_value": 0.25}
    expected |= {"seconds": 3.5, "error": None, "threads": 2, "config.seed": 1, "config.optimizer.lr": 0.5}
    expected |= {"best/lr": 0.1, "best/val/loss": 0.25, "test/best/loss": 0.75, "last/val/loss": 0.5}
    assert records.read(run_in(tmp_path / "r")) == {**expected, "test/last/loss": 1.0}
    assert records.read(run_in(tmp_path / "s", name="mine", error="odd"))["name"] == "mine"
    assert records.read(tmp_path / "s")["error"] == "odd"


def test_runs_are_found_at_any_depth_and_what_is_none_is_named(tmp_path):
    for name in ("b/deep/er", "a", "c"):
        run_in(tmp_path / name)
    run_in(tmp_path / "a" / "inside")  # of a run's own folder: not searched
    run_in(tmp_path / ".hidden" / "x")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "metrics.jsonl").touch()
    (tmp_path / "e" / "run.json").mkdir(parents=True)
    notices.take()
    assert records.find(tmp_path) == [tmp_path / "a", tmp_path / "b" / "deep" / "er", tmp_path / "c", tmp_path / "e"]
    assert notices.take() == [f"{tmp_path / 'd'}: left out, its run.json is gone"]
    assert [row["path"] for row in records.runs(tmp_path)] == [str(tmp_path / n) for n in ("a", "b/deep/er", "c")]
    assert [line for line in notices.take() if "left out: " in line] == [
        f"left out: {tmp_path / 'e' / 'run.json'}: cannot be read (is a folder, not a file)"
    ]
    assert records.find(tmp_path / "a") == [tmp_path / "a"]
    for path, said in ((tmp_path / "e", "run.json: cannot be read"), (tmp_path / "no", "there is no such folder")):
        with pytest.raises(InputError, match=said):
            records.runs(path)
    with pytest.raises(InputError) as refused:
        records.find(tmp_path / "d")
    assert str(refused.value) == f"{tmp_path / 'd'}: holds no run"


def test_which_way_a_metric_is_better_is_what_the_run_says_else_what_its_name_says():
    said = row(monitor="val/odd", mode="max", modes={"val/f1": "min", "acc": "min"})
    for key, mode in (("val/odd", "max"), ("val/f1", "min"), ("test/acc", "min"), ("macc", "max")):
        assert select.mode_of(said, key) == mode
    assert select.mode_of(said, "train/loss") == "min" and select.mode_of(said, "other") == "max"


def test_the_best_run_is_that_of_the_best_value_in_the_runs_own_direction():
    rows = [row(best_value=value) for value in (0.5, None, 0.2, 0.3)]
    assert records.best(rows) is rows[2]
    assert records.best([{**row, "mode": "max"} for row in rows])["best_value"] == 0.5
    with pytest.raises(InputError) as refused:
        records.best([row(), row(monitor="acc", mode="max")])
    assert str(refused.value) == "the runs monitor different metrics: acc, val/loss"
    with pytest.raises(InputError) as refused:
        records.best([row(), row()])
    assert str(refused.value) == "no run has completed an epoch with a value of its monitored metric"


def test_rows_of_epochs_that_are_lost_are_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nodd\n{"step": 3}\n')
    notices.take()
    assert list(records.epochs(tmp_path)) == [{"step": 1}]
    assert notices.take() == [f"{tmp_path / 'metrics.jsonl'}: line 2 is no row; it and what follows are not read"]
