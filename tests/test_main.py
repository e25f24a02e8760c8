"""The real command, in a subprocess."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import runner
from conftest import until
from runner.errors import InputError

SMALL = ["device.threads=1", "trainer.epochs=2"]


def run_dirs(folder):
    return sorted(p.parent for p in folder.glob("outputs/*/*/run.json"))


def test_the_default_run_leaves_a_readable_folder(cli):
    done = cli(*SMALL, "scheduler=cosine", "optimizer.lr=0.5", "name=first", "tags=[a,b]", "notes=hello")
    assert done.returncode == 0, done.stderr
    (folder,) = run_dirs(cli.cwd)
    assert done.stdout.strip().endswith(str(folder.relative_to(cli.cwd)))
    assert sorted(p.name for p in folder.iterdir()) == [
        *(".hydra", "checkpoints", "metrics.jsonl", "run.json", "run.lock", "runner.log", "steps.jsonl"),
    ]
    assert sorted(p.name for p in (folder / ".hydra").iterdir()) == ["config.yaml", "hydra.yaml", "overrides.yaml"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    expected = ["epoch", "step", "lr", "train/loss", "train/accuracy", "val/loss", "val/accuracy"]
    assert list(rows[0]) == [*expected, "seconds", "examples_per_second"]
    assert [row["epoch"] for row in rows] == [1, 2]
    steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert list(steps[0]) == ["step", "epoch", "lr", "train/loss"]
    record = json.loads((folder / "run.json").read_text())
    assert (record["state"], record["epochs_done"], record["threads"]) == ("done", 2, 1)
    assert (record["name"], record["tags"], record["notes"]) == ("first", ["a", "b"], "hello")
    assert record["best_value"] == max(row["val/accuracy"] for row in rows)
    assert record["test"].keys() == {"best", "last"} and record["test"]["best"].keys() == {"loss", "accuracy"}
    assert record["parameters"] == sum(layer["parameters"] for layer in record["layers"]) == 53002
    assert record["config"]["optimizer"]["lr"] == 0.5
    assert record["config"]["scheduler"]["T_max"] == 2
    state = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    for key in ("epoch", "model_state_dict", "optimizer_state_dict", "loss", "scheduler_state_dict", "step", "metrics"):
        assert key in state
    assert "T_max: 2" in state["config"]
    for which in ("best", "last"):  # the same numbers again, to the last digit
        again = cli("evaluate", str(folder), "--which", which)
        assert again.stdout.splitlines() == [f"test/{k}: {v!r}" for k, v in record["test"][which].items()]
    val = cli("evaluate", str(folder), "--split", "val").stdout.splitlines()
    best_row = rows[record["best_epoch"] - 1]
    assert val == [f"val/{k}: {best_row[f'val/{k}']!r}" for k in ("loss", "accuracy")]
    shown = cli("evaluate", str(folder), "--confusion").stdout
    assert "confusion matrix" in shown and "worst mistakes" in shown and "accuracy per class" in shown
    assert (
        sum(
            int(line.split("of ")[1].rstrip(")"))
            for line in shown.splitlines()
            if " of " in line and "%" not in line and not line.startswith("worst")
        )
        == 359
    )


@pytest.mark.slow
def test_the_same_command_twice_gives_equal_files(cli):
    folders = [cli.cwd / name for name in "ab"]
    for folder in folders:
        assert cli(*SMALL, f"hydra.run.dir={folder}").returncode == 0
    states = [torch.load(f / "checkpoints" / "last.pt", weights_only=True) for f in folders]
    for key, tensor in states[0]["model_state_dict"].items():
        assert torch.equal(tensor, states[1]["model_state_dict"][key])
    timeless = [
        [
            {k: v for k, v in json.loads(line).items() if "second" not in k}
            for line in (f / "metrics.jsonl").read_text().splitlines()
        ]
        for f in folders
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.slow
def test_a_used_folder_is_refused_and_every_file_keeps_its_bytes(cli):
    folder = cli.cwd / "run"
    assert cli(*SMALL, f"hydra.run.dir={folder}").returncode == 0
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "run.lock"}
    again = cli("optimizer.lr=0.3", f"hydra.run.dir={folder}")
    assert again.returncode == 2
    assert "already holds a run" in again.stderr
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "run.lock"}


@pytest.mark.slow
def test_20_starts_by_10_at_an_instant_get_20_folders(cli):
    words = ["dataset=fake", "model=mlp", "trainer.dry_run=true", "--quiet", "device.threads=1"]
    with ThreadPoolExecutor(10) as pool:
        done = list(pool.map(lambda _: cli(*words, timeout=900), range(20)))
    assert [d.returncode for d in done] == [0] * 20
    assert len(run_dirs(cli.cwd)) == 20


def test_help_shows_groups_choices_and_verbs_without_torch(cli):
    probe = "import sys; sys.argv=['runner', '--help']\nfrom runner.__main__ import main\n"
    probe += "try: main()\nexcept SystemExit: pass\n"
    probe += "assert not {'torch', 'torchvision', 'sklearn', 'numpy', 'hydra'} & set(sys.modules), sys.modules.keys()"
    (cli.cwd / "probe.py").write_text(probe)
    shown = subprocess.run([sys.executable, "probe.py"], cwd=cli.cwd, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    for word in ("warmup_cosine", "mnist_example", "evaluate", "adadelta*", "--config-dir"):
        assert word in shown.stdout
    verb = cli("evaluate", "--help")
    assert verb.returncode == 0 and "--confusion" in verb.stdout


@pytest.mark.parametrize("words", [["--cfg", "job"], ["optimizer.lr=abc"], ["scheduler=foo"]])
def test_config_and_wrong_overrides_answer_without_torch(tmp_path, words):
    probe = f"import sys; sys.argv=['runner', *{words!r}]\nfrom runner.__main__ import main\ntry: main()\n"
    probe += (
        "except SystemExit: pass\nassert not {'torch', 'torchvision', 'sklearn', 'numpy', 'rich'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr


def test_ls_and_the_other_readers_of_json_import_nothing_heavy(cli):
    assert cli("trainer.dry_run=true", "hydra.run.dir=outputs/one").returncode == 0
    for words in (["ls"], ["show", "outputs/one"], ["best", "outputs"]):
        probe = f"import sys; sys.argv=['runner', *{words!r}]\nfrom runner.__main__ import main\n"
        probe += "try: main()\nexcept SystemExit as end: assert not end.code\n"
        probe += "heavy = {'torch', 'torchvision', 'sklearn', 'scipy', 'numpy', 'hydra', 'omegaconf', 'psutil'}\n"
        probe += "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
        shown = subprocess.run([sys.executable, "-c", probe], cwd=cli.cwd, capture_output=True, text=True)
        assert shown.returncode == 0, shown.stderr


def test_the_default_run_imports_neither_torchvision_nor_sklearn(tmp_path):
    probe = "import sys, runner; runner.run(['trainer.dry_run=true'], run_dir='run')\n"
    probe += "unused = {'torchvision', 'sklearn', 'scipy', 'pandas', 'matplotlib', 'simpleeval', 'rich'}\n"
    probe += "assert not unused & set(sys.modules), unused & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_quiet_shows_only_the_result(cli):
    loud, quiet = cli(*SMALL, "trainer.dry_run=true"), cli(*SMALL, "trainer.dry_run=true", "--quiet")
    assert "parameters" in loud.stdout and "val/accuracy" in loud.stdout
    assert len(quiet.stdout.splitlines()) == 4
    assert "parameters" in (run_dirs(cli.cwd)[-1] / "runner.log").read_text()


@pytest.mark.parametrize("shell", ["bash"])
def test_shell_completion_knows_groups_and_choices(cli, shell):
    script = cli("-sc", f"install={shell}")
    assert script.returncode == 0 and "complete" in script.stdout
    env = {"COMP_LINE": "runner scheduler=co", "COMP_POINT": "19"}
    assert set(cli("-sc", f"query={shell}", **env).stdout.split()) == {
        "scheduler=constant",
        "scheduler=cosine",
        "scheduler=cosine_restarts",
    }


def test_run_and_load_model_from_python(tmp_path):
    record = runner.run([*SMALL, "scheduler=cosine"], run_dir=tmp_path / "run")
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    assert written.pop("crc32") and record == written
    model = runner.load_model(tmp_path / "run")
    assert not model.training
    best = torch.load(tmp_path / "run" / "checkpoints" / "best.pt", weights_only=True)["model_state_dict"]
    assert all(torch.equal(best[k], v) for k, v in model.state_dict().items())
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(InputError, match="best, last"):
        runner.load_model(tmp_path / "run", "first")
    (tmp_path / "run" / "checkpoints" / "last.pt").write_bytes(b"junk")
    with pytest.raises(InputError, match=r"last\.pt: not a whole checkpoint"):
        runner.load_model(tmp_path / "run", "last")


def test_the_tutorials_other_two_ways_of_saving(tmp_path):
    runner.run([*SMALL, "checkpoint.state_dict=true", "checkpoint.whole_model=true"], run_dir=tmp_path / "run")
    last = runner.load_model(tmp_path / "run", "last")
    weights = torch.load(tmp_path / "run" / "checkpoints" / "model_state_dict.pt", weights_only=True)
    whole = torch.load(tmp_path / "run" / "checkpoints" / "model.pt", weights_only=False)
    for key, tensor in last.state_dict().items():
        assert torch.equal(weights[key], tensor) and torch.equal(whole.state_dict()[key], tensor)


@pytest.mark.slow
def test_a_run_starts_from_given_weights_and_reports_what_does_not_fit(cli):
    runner.run([*SMALL], run_dir="first")
    weights = "model_weights=first/checkpoints/last.pt"
    fits = cli(weights, *SMALL, "trainer.dry_run=true")
    assert "8 of 8 tensors" in fits.stdout
    other = cli(weights, "model=mlp", "--quiet")
    assert other.returncode == 2 and "missing: 1.weight" in other.stderr and "unexpected: conv1" in other.stderr
    shaped = cli(weights, "dataset=fake", "dataset.num_classes=7", "trainer.dry_run=true", "strict=false")
    assert shaped.returncode == 0, shaped.stderr
    assert "mis-shaped: fc1.weight" in shaped.stdout


def test_without_a_validation_part_the_test_set_chooses_and_it_is_said(tmp_path, cli):
    done = cli(*SMALL, "dataset.val_size=0", "hydra.run.dir=run")
    assert "chosen on the test set" in done.stderr
    record = json.loads((cli.cwd / "run" / "run.json").read_text())
    assert (record["monitor"], record["chosen_on"]) == ("test/accuracy", "test")
    row = json.loads((cli.cwd / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert "test/loss" in row and not any(key.startswith("val/") for key in row)


def test_a_diverging_run_fails_with_exit_1_and_says_where(cli):
    done = cli(*SMALL, "optimizer=sgd", "optimizer.lr=1e20", "hydra.run.dir=run")
    assert done.returncode == 1
    assert "not finite" in done.stderr and "epoch 1, batch" in done.stderr
    record = json.loads((cli.cwd / "run" / "run.json").read_text())
    assert record["state"] == "failed" and "not finite" in record["error"]
    assert not list((cli.cwd / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("signum", "code"),
    [
        (signal.SIGTERM, 143),
        *(pytest.param(*given, marks=pytest.mark.slow) for given in ((signal.SIGINT, 130), (signal.SIGUSR1, 138))),
    ],
)
def test_a_signal_saves_and_says_so(cli, signum, code):
    process = cli.start("device.threads=1", "trainer.epochs=500", "hydra.run.dir=run")
    rows = cli.cwd / "run" / "metrics.jsonl"
    until(rows.exists)
    process.send_signal(signum)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    record = json.loads((cli.cwd / "run" / "run.json").read_text())
    assert record["state"] == "interrupted"
    state = torch.load(cli.cwd / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert state["epoch"] == len(rows.read_text().splitlines())


def test_deterministic_switches_torchs_algorithms(tmp_path):
    seen = []

    class Spy(torch.nn.Flatten):
        def forward(self, x):
            seen.append(torch.are_deterministic_algorithms_enabled())
            return super().forward(x)

    sys.modules["spy"] = type(sys)("spy")
    sys.modules["spy"].make = lambda width, classes: torch.nn.Sequential(Spy(), torch.nn.Linear(width, classes))
    words = [
        "model._target_=spy.make",
        "~model.input_shape",
        "~model.num_classes",
        "+model.width=64",
        "+model.classes=10",
    ]
    for value in ("true", "false"):
        runner.run([*words, f"deterministic={value}", "trainer.dry_run=true"], run_dir=tmp_path / value)
        assert set(seen) == {value == "true"}
        seen.clear()


@pytest.mark.slow
def test_augmented_runs_are_equal_with_any_number_of_workers(tmp_path):
    augment = "dataset.augment=[{_target_: runner.augment.RandomAffine, degrees: 10.0},"
    augment += "{_target_: torchvision.transforms.RandomErasing}]"
    states = []
    for workers in (0, 1, 3):
        runner.run([*SMALL, augment, f"dataloader.num_workers={workers}"], run_dir=tmp_path / str(workers))
        states.append(torch.load(tmp_path / str(workers) / "checkpoints" / "last.pt", weights_only=True))
    for state in states[1:]:
        for key, tensor in states[0]["model_state_dict"].items():
            assert torch.equal(tensor, state["model_state_dict"][key]), key


@pytest.mark.slow
def test_git_commit_and_diff_are_kept(cli):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (cli.cwd / "mine.py").write_text("x = 1\n")
    for words in (["init", "-q"], ["add", "mine.py"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], cwd=cli.cwd, check=True)
    (cli.cwd / "mine.py").write_text("x = 2\n")
    assert cli(*SMALL, "trainer.dry_run=true", "hydra.run.dir=run").returncode == 0
    record = json.loads((cli.cwd / "run" / "run.json").read_text())
    assert len(record["git"]["commit"]) == 40 and record["git"]["dirty"]
    assert "+x = 2" in (cli.cwd / "run" / "git.diff").read_text()


@pytest.mark.slow
def test_hydras_own_sweep_gives_each_job_a_run_directory(cli):
    done = cli("-m", "seed=0,1", *SMALL, "trainer.dry_run=true", "--quiet", "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr
    records = [json.loads(Path(cli.cwd, "sweep", f"seed={job}", "run.json").read_text()) for job in "01"]
    assert [(r["state"], r["seed"]) for r in records] == [("done", 0), ("done", 1)]


@pytest.mark.slow
def test_user_modules_in_the_working_directory_are_found_by_the_console_script(cli):
    (cli.cwd / "mine.py").write_text(
        "import torch\ndef make(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    script = Path(sys.executable).with_name("runner")
    if not script.exists():
        pytest.skip("the console script is not installed beside this python")
    words = ["model._target_=mine.make", "~model.input_shape", "~model.num_classes", "trainer.dry_run=true"]
    done = subprocess.run([script, *words], cwd=cli.cwd, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
