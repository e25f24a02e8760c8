"""A `_target_` is judged by its place; a stranger's folder is only data."""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import runner
from conftest import CONF
from runner.cli import evaluate, prune, resume, verify
from runner.config import admission
from runner.config.admissible import PLACES
from runner.config.admission import Policy, Refused, admitted, admitting
from runner.errors import InputError
from runner.groups.instantiate import instantiate, with_partials
from runner.job import own_code
from runner.storage.run_dir import RunDir
from runner.sweep.plan import known_jobs

HARM_TEXT = """
torch.load torch.save torch.hub.load torch.jit.load torch.package.PackageImporter torch.utils.cpp_extension.load
torch.utils.collect_env.run torch.utils.model_zoo.load_url torch.hub.load_state_dict_from_url torch.os.system
torch.hub.download_url_to_file torch.multiprocessing.spawn torch.nn.Module.__init__
torch.nn.modules.module.torch.load torch.optim.optimizer.torch.save torch.nn.functional.torch.load
torch.nn.Module.load_state_dict torch.nn.Linear.to_empty torch.optim.lr_scheduler.warnings.warn
torch.utils.tensorboard.SummaryWriter torch.serialization.load runner.models.torch.hub.load runner.data.np.load
runner.data.torch.load runner.metrics.re.compile runner.losses.torch.save runner.storage.files.write_atomically
runner.models.layer_table.__globals__ runner.run runner.load_model runner.storage.run_dir.RunDir
runner.config.admission.grant runner.models.Net.load_state_dict torchvision.datasets.DatasetFolder
torchvision.datasets.LSUN torchvision.datasets.utils.download_url torchvision.models.get_model
torchvision.models.get_weight torchvision.io.write_file torchvision.utils.save_image
torchvision.transforms.functional.np.load torchvision.transforms.transforms.torch.load numpy.load numpy.save
builtins.open builtins.eval builtins.exec builtins.__import__ os.system os.popen os.remove subprocess.run
subprocess.Popen shutil.copyfile shutil.rmtree pathlib.Path pathlib.Path.unlink io.open codecs.open pickle.load
pickle.loads yaml.unsafe_load importlib.import_module hydra.utils.instantiate hydra.utils.call
hydra.utils.get_method functools.partial operator.methodcaller logging.FileHandler socket.socket ctypes.CDLL
multiprocessing.Process threading.Thread code.interact runpy.run_path webbrowser.open pty.spawn zipfile.ZipFile
sqlite3.connect site.addsitedir atexit.register signal.raise_signal urllib.request.urlretrieve joblib.load
sklearn.datasets.fetch_openml scipy.io.loadmat optuna.samplers._tpe.sampler.os.system antigravity tempfile.mkdtemp
"""
HARM = HARM_TEXT.split()
IN_THE_CONFIG_TEXT = """
model model.part model.parts.0 optimizer optimizer.inner scheduler scheduler.lr_lambda scheduler.lr_lambda.1 loss
loss.weight metrics.accuracy metrics.accuracy.inner dataset.train dataset.val dataset.test dataset.train.loader
dataset.transform dataset.transform_train dataset.augment.0 dataset.train.transform.transforms.1 dataset.mean
dataloader.collate_fn
"""
IN_THE_CONFIG = IN_THE_CONFIG_TEXT.split()
NOWHERE_TEXT = """
device precision trainer checkpoint seed notes name tags.0 derived sweep dataloader dataloader.sampler
hydra.callbacks.mine hydra.job_logging hydra.run hydra.job.config metrics trust init_from
"""
NOWHERE = NOWHERE_TEXT.split()
HYDRAS = ["hydra.launcher", "hydra.sweeper", "hydra.sweeper.sampler"]


@pytest.mark.slow
@pytest.mark.parametrize("beside", [False, True], ids=["a stranger's", "one's own"])
def test_no_harm_is_admitted_anywhere_nor_imported(beside, tmp_path):
    assert len(set(HARM)) >= 60
    with admitting(Policy(beside=(tmp_path,) if beside else ())):
        for name in HARM:
            for place in (*IN_THE_CONFIG, *NOWHERE, *HYDRAS):
                with pytest.raises((Refused, AttributeError)):
                    admitted(name, place)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("name", ["runner.models.Net", "torch.nn.Linear", "mine.Net", "torch.optim.SGD"])
def test_some_places_take_nothing_whatever_is_trusted(name, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("class Net: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with admitting(Policy(beside=(tmp_path,), trusted=frozenset({"mine", "torch"}))):
        for place in NOWHERE:
            with pytest.raises(Refused):
                admitted(name, place)
    with admitting(Policy(everything=True)), pytest.raises(Refused):
        admitted("mine.Net", "hydra.launcher")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("torch.nn.Linear", "model.head"),
        ("torchvision.models.resnet18", "model"),
        ("torch.nn.CrossEntropyLoss", "loss"),
        ("torch.nn.functional.cross_entropy", "loss"),
        ("torch.nn.functional.huber_loss", "loss"),
        ("torch.optim.RAdam", "optimizer"),
        ("torch.optim.swa_utils.SWALR", "scheduler"),
        ("torchmetrics.Accuracy", "metrics.f1"),
        ("torchmetrics.classification.MulticlassF1Score", "metrics.f1"),
        ("torchvision.transforms.v2.RandAugment", "dataset.train.transform"),
        ("torch.utils.data.default_collate", "dataloader.collate_fn"),
    ],
)
def test_what_everybody_may_name_needs_no_trust(name, place):
    with admitting(Policy()):
        assert admitted(name, place)[0]
    wrong = next(other for other in ("optimizer", "metrics.a", "dataset.train") if not place.startswith(other))
    with admitting(Policy()), pytest.raises(Refused, match="choices: "):
        admitted(name, wrong)


def test_every_target_of_conf_is_admitted_to_a_stranger():
    from omegaconf import OmegaConf

    count = 0
    with admitting(Policy()):
        for path in CONF.rglob("*.yaml"):
            place = ".".join(path.relative_to(CONF).with_suffix("").parts[:-1])
            if path.name == "submitit_local.yaml":
                continue
            node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
            for at, name in admission.targets_below(node, place):
                if not name.startswith("optuna"):
                    assert admitted(name, at.replace("experiment.", ""))[0], path
                    count += 1
    assert count > 50


MINE = """
import os
from os import system
from torch.nn import Linear
import functools

class Net(Linear):
    pass

def build():
    return Net(1, 1)

half = functools.partial(build)
worse = functools.partial(os.system, "true")
"""


def test_in_ones_own_module_only_what_is_its_own(tmp_path, monkeypatch):
    (tmp_path / "mine_of_admission.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    with admitting(Policy(beside=(tmp_path,))):
        for name in ("Net", "build", "half", "Linear"):
            assert admitted(f"mine_of_admission.{name}", "model")[0]
        for name in ("os.system", "system", "worse", "functools.partial", "__builtins__", "_x"):
            with pytest.raises(Refused):
                admitted(f"mine_of_admission.{name}", "model")
    del sys.modules["mine_of_admission"]
    with admitting(Policy()), pytest.raises(Refused, match=r"trust=\[mine_of_admission\]"):
        admitted("mine_of_admission.Net", "model")
    assert "mine_of_admission" not in sys.modules
    with admitting(Policy(trusted=frozenset({"mine_of_admission"}))):
        assert admitted("mine_of_admission.Net", "model")[0]


def test_an_installed_package_is_not_beside_the_command_though_its_environment_lies_there():
    with admitting(Policy(beside=(Path("/"),))), pytest.raises(Refused):
        admitted("sklearn.base.BaseEstimator", "model")


def test_the_page_on_security_has_the_table():
    page = (CONF.parent / "docs" / "security.md").read_text()
    for pattern, rules in PLACES:
        assert f"| `{pattern}` | {'; '.join(rule.says for rule in rules) or 'only code that you trust'} |" in page


# ---- a folder that somebody else has made

WORDS = ["dataset=fake", "dataset.train_size=32", "dataset.eval_size=16", "model=mlp", "model.hidden=[4]"]
WORDS += ["trainer.epochs=2", "quiet=true", "device.threads=1", "dataloader.batch_size=16"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "run"
    before = os.getcwd()
    os.chdir(folder.parent)
    try:
        runner.run(WORDS, run_dir=folder)
    finally:
        os.chdir(before)
    return folder


def edited(source: Path, folder: Path, change) -> Path:
    """A copy of a run whose record somebody has edited."""
    import yaml

    shutil.copytree(source, folder)
    record = json.loads((folder / "run.json").read_text())
    config = yaml.safe_load(record["config_yaml"])
    change(config, record)
    record["config_yaml"], record["config"] = yaml.safe_dump(config), config
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def every_verb(folder: Path):
    """What opens a run, each as a function that raises InputError or goes through."""
    yield lambda: runner.load_model(folder)
    yield lambda: evaluate.main(evaluate.parser().parse_args([str(folder)]))
    yield lambda: evaluate.main(evaluate.parser().parse_args([str(folder), "--confusion"]))
    yield lambda: resume.main(resume.parser().parse_args([str(folder), "trainer.epochs=3"]))


def replayed(folder: Path):
    verify.main(verify.parser().parse_args([str(folder), "-o", f"{folder}-again"]))


def verified(folder: Path):
    verify.main(verify.parser().parse_args([str(folder), "--kills", "0"]))


ATTACKS = {
    "torch.load": ("model", {"_target_": "torch.load", "f": "evil.pt", "weights_only": False}),
    "torch.hub.load": ("model", {"_target_": "torch.hub.load", "repo_or_dir": ".", "model": "m", "source": "local"}),
    "numpy.load": ("loss", {"_target_": "numpy.load", "file": "evil.npy", "allow_pickle": True}),
    "collect_env": ("optimizer", {"_target_": "torch.utils.collect_env.run", "command": "touch PWNED"}),
    "open": ("metrics.accuracy", {"_target_": "builtins.open", "file": "PWNED", "mode": "w"}),
    "FileHandler": ("dataset.train", {"_target_": "logging.FileHandler", "filename": "PWNED"}),
    "nested": ("model.hidden", [{"_target_": "os.system", "command": "touch PWNED"}]),
    "transform": ("dataset.augment", [{"_target_": "os.system", "command": "touch PWNED"}]),
    "module": ("model._target_", "evil_beside.Net"),
}


def put(config, key, value):
    *path, last = key.split(".")
    for part in path:
        config = config[part]
    config[last] = value


@pytest.fixture
def evil(tmp_path):
    """A folder in the working directory that a stranger has sent, with what an attack would run or unpickle."""
    import pickle

    tmp_path = tmp_path / "theirs"
    tmp_path.mkdir()

    class Bomb:
        def __reduce__(self):
            return (os.system, ("touch PWNED",))

    for name in ("evil.pt", "evil.npy"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "evil_beside.py").write_text("import os\nos.system('touch PWNED')\nfrom runner.models import Net\n")
    (tmp_path / "hubconf.py").write_text("import os\nos.system('touch PWNED')\n")
    return tmp_path


@pytest.mark.parametrize("name", ATTACKS)
def test_a_strangers_targets_are_refused_by_every_verb(name, made, evil, no_owner, capsys):
    key, value = ATTACKS[name]

    def change(config, record):
        put(config, key, value)
        record["working_directory"] = str(evil)
        record["own_code"] = {"evil_beside": {"file": str(evil / "evil_beside.py"), "sha256": "0"}}
        record["config"]["trust"] = config["trust"] = ["evil_beside", "os", "torch"]

    folder = edited(made, evil / "run", change)
    opens = [*every_verb(folder), lambda: verified(folder), lambda: replayed(folder)]
    for verb in opens[0 if key.startswith("model") else 1 :]:  # load_model makes nothing but the model
        with pytest.raises(InputError) as refused:
            verb()
        assert "\n" not in str(refused.value)
        assert not list(evil.rglob("PWNED")) and "evil_beside" not in sys.modules
    assert not Path("PWNED").exists()


def test_a_strangers_run_of_the_tables_parts_opens(made, tmp_path, capsys):
    folder = edited(made, tmp_path / "run", lambda config, record: record.update(working_directory="/nowhere"))
    for verb in (lambda: verified(folder), *every_verb(folder)):
        verb()
    record = RunDir(folder).read_run()
    assert record["state"] == "done" and record["epochs_done"] == 3


def test_a_strangers_finished_run_is_not_trusted_for_a_label(made, tmp_path, capsys):
    folder = edited(made, tmp_path / "run", lambda config, record: put(config, "model._target_", "os.system"))
    resume.main(resume.parser().parse_args([str(folder), "tags=[seen]"]))
    assert RunDir(folder).read_run()["tags"] == ["seen"]
    with pytest.raises(InputError, match="os.system"):
        runner.load_model(folder)


OWN_NET = "from runner.models import MLP\n\nclass Mine(MLP):\n    pass\n"


@contextlib.contextmanager
def started_in(folder):
    """As a command that is started in a folder."""
    before, path = os.getcwd(), list(sys.path)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.modules.pop("own_net", None)
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(admission, "beside", lambda: (Path.cwd().resolve(),))
            yield
    finally:
        admission.grant()
        os.chdir(before)
        sys.path[:] = path
        sys.modules.pop("own_net", None)


@pytest.fixture(scope="module")
def with_own_code(tmp_path_factory):
    """A project with a run of its own model, to be copied."""
    project = tmp_path_factory.mktemp("with_own_code") / "project"
    project.mkdir()
    (project / "own_net.py").write_text(OWN_NET)
    with started_in(project):
        runner.run([*WORDS, "model._target_=own_net.Mine"], run_dir="outputs/run")
    return project


def refusal(cwd, verb, *words):
    """What a verb says that refuses; None where it goes through."""
    with started_in(cwd):
        try:
            assert verb.main(verb.parser().parse_args(list(map(str, words)))) == 0
        except InputError as error:
            return str(error)
    return None


def test_ones_own_run_opens_from_its_projects_folder_without_a_flag(with_own_code, tmp_path, caplog, capsys):
    """Moved, as in a container or under another HOME, and after notes were written into its record by hand."""
    project = tmp_path / "moved"
    shutil.copytree(with_own_code, project)
    path = project / "outputs" / "run" / "run.json"
    config = json.loads(path.read_text())["config"]
    for change in ({}, {"notes": "by hand"}, {"config": {**config, "notes": "by hand"}}):
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}, indent=4))
        assert refusal(project, evaluate, "outputs/run") is None
    (project / "own_net.py").write_text(OWN_NET + "# edited\n")
    with_own_code.rename(with_own_code.with_name("away"))  # it has moved, and is no copy
    try:
        assert refusal(project, evaluate, "outputs/run") is None
    finally:
        with_own_code.with_name("away").rename(with_own_code)
    assert f"{project / 'own_net.py'} has changed since" in caplog.text


def test_a_run_that_is_opened_from_elsewhere_names_the_one_flag(with_own_code, tmp_path, capsys):
    shutil.copytree(with_own_code, project := tmp_path / "project")
    for cwd in (tmp_path, project / "outputs", project / "outputs" / "run"):
        run = os.path.relpath(project / "outputs" / "run", cwd)
        for verb in (evaluate, resume):
            said = refusal(cwd, verb, run, *(["trainer.epochs=3"] if verb is resume else []))
            assert "--trust own_net" in said and "\n" not in said
        for flag in (["--trust", "own_net"], ["--trust-all"]):
            assert refusal(cwd, evaluate, run, *flag) is None


@pytest.mark.parametrize("name", ["run.json", "sweep.json"])
@pytest.mark.parametrize("flags", [[], ["--trust", "own_net"]])
def test_a_module_inside_the_opened_run_or_its_sweep_is_not_beside_the_command(
    name, flags, with_own_code, tmp_path, no_owner, capsys
):
    """Though the command is started there."""
    shutil.copytree(with_own_code / "outputs" / "run", folder := tmp_path / "place" / "job")
    place = folder if name == "run.json" else folder.parent
    (folder.parent / "sweep.json").write_text("{}")
    (place / "own_net.py").write_text(f"open({str(tmp_path / 'PWNED')!r}, 'w')\n" + OWN_NET)
    record = json.loads((folder / "run.json").read_text())
    record["own_code"] = {"own_net": {"file": str(place / "own_net.py"), "sha256": "0"}}
    (folder / "run.json").write_text(json.dumps(record))
    for verb, more in ((evaluate, []), (resume, ["trainer.epochs=3"]), (verify, []), (verify, ["-o", "again"])):
        for cwd in (place, folder / "checkpoints"):
            assert refusal(cwd, verb, folder, *more, *flags) is not None
            assert not (tmp_path / "PWNED").exists(), (verb, cwd)


@pytest.mark.slow
def test_a_library_is_not_imported_from_the_folder_of_a_run(made, tmp_path):
    shutil.copytree(made, folder := tmp_path / "theirs")
    for name in ("numpy", "torch", "omegaconf", "sklearn", "torchvision", "tqdm"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'PWNED')!r}, 'w')\n")
    words = [sys.executable, "-m", "runner", "evaluate", "."]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and not (tmp_path / "PWNED").exists(), done.stderr


def test_a_record_does_not_say_where_an_installed_package_lies_that_is_trusted(with_own_code, evil, no_owner):
    (evil / "sklearn.py").write_text("open('PWNED', 'w')\n" + OWN_NET)

    def change(config, record):
        config["model"]["_target_"] = "sklearn.Mine"
        record["own_code"] = {"sklearn": {"file": str(evil / "sklearn.py"), "sha256": "0"}}

    folder = edited(with_own_code / "outputs" / "run", evil / "run", change)
    with pytest.raises(InputError, match="sklearn"):
        runner.load_model(folder, trust=["sklearn"])
    assert not Path("PWNED").exists()


def test_another_file_of_the_name_is_not_taken_for_a_runs_own(with_own_code, tmp_path, capsys):
    (tmp_path / "own_net.py").write_text("open('PWNED', 'w')\n" + OWN_NET)
    said = refusal(tmp_path, evaluate, with_own_code / "outputs" / "run")
    assert str(tmp_path / "own_net.py") in said and "--trust own_net" in said and not (tmp_path / "PWNED").exists()
    (tmp_path / "own_net.py").write_text(OWN_NET)
    assert refusal(tmp_path, evaluate, with_own_code / "outputs" / "run") is None, "the same file, somewhere else"


def test_a_new_run_may_name_what_is_importable_and_its_record_asks_for_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "lib").mkdir(), (tmp_path / "here").mkdir()
    (tmp_path / "lib" / "own_net.py").write_text(OWN_NET)
    monkeypatch.syspath_prepend(tmp_path / "lib")  # as PYTHONPATH does
    with started_in(tmp_path / "here"):
        runner.run([*WORDS, "model._target_=own_net.Mine"], run_dir="run")
    assert "--trust own_net" in refusal(tmp_path / "here", evaluate, "run")
    assert refusal(tmp_path / "here", evaluate, "run", "--trust", "own_net") is None
    assert refusal(tmp_path, evaluate, "here/run") is None, "beside the command"


def test_the_environment_stays_where_it_is(made, no_owner, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("A_SECRET", "hunter2")
    folder = edited(made, tmp_path / "run", lambda config, record: config.update(notes="${oc.env:A_SECRET}"))
    with pytest.raises(InputError, match="notes"):
        resume.main(resume.parser().parse_args([str(folder), "trainer.epochs=3"]))
    assert "hunter2" not in "".join(
        p.read_text(errors="ignore") for p in folder.rglob("*") if p.suffix in (".json", ".log")
    )


def test_a_strangers_dataset_is_not_downloaded(made, no_owner, tmp_path):
    def change(config, record):
        config["dataset"]["train"] = {"_target_": "torchvision.datasets.MNIST", "root": "there", "download": True}

    folder = edited(made, tmp_path / "run", change)
    with pytest.raises(InputError, match="dataset"):
        evaluate.main(evaluate.parser().parse_args([str(folder)]))
    assert not Path("there").exists() and not (tmp_path / "there").exists()


LINKED = ["checkpoints", "run.lock", "runner.log", ".hydra", "metrics.jsonl", "run.lease"]


@pytest.mark.parametrize("name", LINKED)
@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_what_leads_out_of_a_folder_is_not_followed(name, kind, made, tmp_path, capsys):
    folder, outside = tmp_path / "runs" / "run", tmp_path / "outside"
    shutil.copytree(made, folder)
    outside.mkdir()
    for file in ("best.pt", "last.pt", "last-1.pt", "notes.txt", "target"):
        (outside / file).write_text("precious")
    found = folder / name
    shutil.rmtree(found) if found.is_dir() else found.unlink(missing_ok=True)
    if kind == "link":
        found.symlink_to(outside if name in ("checkpoints", ".hydra") else outside / "target")
    else:
        os.mkfifo(found)
    for verb in (*every_verb(folder), lambda: verified(folder), lambda: replayed(folder)):
        with pytest.raises(InputError, match="is a link|no regular file|not a regular file|must be a folder"):
            verb()
    assert prune.main(prune.parser().parse_args([str(folder.parent)])) in (0, 1)
    assert {file.name: file.read_text() for file in outside.iterdir()} == dict.fromkeys(
        ("best.pt", "last.pt", "last-1.pt", "notes.txt", "target"), "precious"
    )


def test_a_run_that_is_itself_reached_by_a_link_is_fine(made, tmp_path, capsys):
    shutil.copytree(made, tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for verb in every_verb(tmp_path / "link"):
        verb()


# ---- a sweep that somebody else has made

SWEEP_ATTACKS = {
    "callbacks": {"hydra": ["+hydra.callbacks.mine={_target_: evil_beside.Net}"]},
    "logging": {"hydra": ["hydra.job_logging.handlers.x={class: logging.FileHandler, filename: PWNED}"]},
    "searchpath": {"hydra": ["hydra.searchpath=[file:///tmp]"]},
    "config_dir": {"config_dir": "/tmp/evil"},
    "trust": {"arguments": ["trust=[evil_beside]", "model._target_=evil_beside.Net"]},
    "environment": {"arguments": ["notes=${oc.env:HOME}"]},
    "environment in the base": {"base": {"notes": ["${oc.env:HOME}"]}},
    "target": {"arguments": ["model._target_=evil_beside.Net"]},
    "system": {"arguments": ["model={_target_: os.system, command: touch PWNED}"]},
    "launcher": {"hydra": ["hydra.launcher._target_=evil_beside.Net"]},
    "sampler": {"hydra": ["hydra/sweeper=optuna", "hydra.sweeper.sampler={_target_: os.system}"]},
}


@pytest.mark.parametrize("name", SWEEP_ATTACKS)
def test_a_strangers_sweep_runs_nothing_of_its_own(name, evil, capsys):
    place = evil / "sweep"
    place.mkdir()
    record = {"arguments": [*WORDS, "seed=1,2"], "hydra": [], "config_dir": None, "swept": ["seed"], "base": {}}
    record |= {"working_directory": str(evil), "own_code": {}, "code": None}
    record["own_code"] = {"evil_beside": {"file": str(evil / "evil_beside.py"), "sha256": "0"}}
    attack = SWEEP_ATTACKS[name]
    record |= {key: [*record[key], *value] if isinstance(value, list) else value for key, value in attack.items()}
    (place / "sweep.json").write_text(json.dumps(record))
    with pytest.raises(InputError) as refused:
        resume.main(resume.parser().parse_args([str(place)]))
    assert "\n" not in str(refused.value)
    assert not list(evil.rglob("PWNED")) and "evil_beside" not in sys.modules and not Path("PWNED").exists()
    assert [path.name for path in place.iterdir()] == ["sweep.json"]


def test_a_sweeps_job_that_is_a_link_is_not_followed(made, tmp_path, capsys):
    shutil.copytree(made, tmp_path / "victim")
    (tmp_path / "victim" / "job.json").write_text("{}")
    before = {path: path.read_bytes() for path in (tmp_path / "victim").rglob("*") if path.is_file()}
    place = tmp_path / "sweep"
    place.mkdir()
    (place / "seed=1").symlink_to(tmp_path / "victim")
    with pytest.raises(InputError, match="is a link"):
        known_jobs(place)
    assert before == {path: path.read_bytes() for path in (tmp_path / "victim").rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_script_elsewhere_may_name_the_modules_beside_it(tmp_path):
    folder, here = tmp_path / "scripts", tmp_path / "here"
    folder.mkdir(), here.mkdir()
    (folder / "scripts_own.py").write_text("from runner.models import MLP\n\nclass Mine(MLP):\n    pass\n")
    words = [*WORDS, "model._target_=scripts_own.Mine", "trainer.dry_run=true"]
    (folder / "start.py").write_text(f"import runner\nrunner.run({words!r}, run_dir='run')\n")
    done = subprocess.run([sys.executable, folder / "start.py"], cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    other = (folder / "start.py").read_text().replace("run_dir='run'", "run_dir='other'")
    (here / "start.py").write_text(f"import sys; sys.path.append({str(folder)!r})\n{other}")
    done = subprocess.run([sys.executable, "start.py"], cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- names of admissible modules that lead elsewhere, and what is of another kind than its place

ASIDE_TEXT = """
torchvision.models.os.system torchvision.models._api.load_state_dict_from_url torchvision.models._api.sys.exit
torchvision.models.get_model_builder torchvision.models.list_models torchvision.models.resnet.ResNet
torchvision.models.ResNet18_Weights torchvision.models.resnet._resnet torchvision.models.WeightsEnum
torchvision.models.detection.FasterRCNN torchvision.models._utils.IntermediateLayerGetter runner.models.nn.Linear
runner.models.F.relu runner.models.Net.__init__ runner.models.Net.__class__ runner.models.Net.to runner.models.Any
runner.models.Net.register_forward_hook torch.nn.Module.__class__.__call__ torch.nn.Module.__subclasses__
torch.nn.Linear.__reduce__ torch.nn.Module.apply torch.nn.Sequential.__init_subclass__ torch.nn.init.torch.load
torch.nn.utils.parametrize.register_parametrization torch.nn.utils.stateless.functional_call
torch.nn.parallel.data_parallel torch.nn.Parameter torch.nn.backends torch.nn.functional.importlib.import_module
torch.nn.functional.handle_torch_function torch.nn.functional.cross_entropy.__globals__ torch.nn.functional.relu
torch.nn.functional.cross_entropy.__wrapped__ torch._C.import_ir_module torch._C._jit_set_profiling_mode
torch.optim.lr_scheduler.partial torch.optim.LBFGS.load_state_dict torch.optim.optimizer.cast
torch.optim.swa_utils.update_bn torch.optim.swa_utils.AveragedModel torch.optim.sgd.sgd torch.optim.optimizer.Path
runner.schedulers.ast.parse runner.schedulers.math.exp runner.schedulers.FUNCTIONS runner.schedulers.Callable
runner.schedulers.lambda_lr.__globals__ runner.losses.nn.CrossEntropyLoss runner.losses.Focal.forward
runner.metrics.InputError runner.data.Path runner.data.gzip.open runner.data.io.open runner.data.importlib.import_module
runner.data._read_digits runner.data.derive runner.data.np.loadtxt runner.augment.torch.load
torchvision.datasets.mnist.os.system torchvision.datasets.folder.default_loader torchvision.datasets.MNIST.download
torchvision.datasets.utils.extract_archive torchvision.datasets.imagenet.parse_train_archive
torchvision.datasets.cifar.pickle.loads torchvision.datasets.Caltech101 torchvision.datasets.ImageNet
torchvision.datasets.CocoDetection torchvision.datasets.PCAM torchvision.datasets.VisionDataset
torchvision.transforms.functional_pil.Image.open torchvision.transforms.functional.to_pil_image
torchvision.transforms.v2.functional.np.load torch.utils.data.DataLoader torch.utils.data.get_worker_info
torch.utils.data.datapipes.iter.FileOpener torch.utils.data._utils.worker.os.kill torch.utils.data.Subset
torchmetrics.image.fid.NoTrainInceptionV3 torchmetrics.image.fid.FrechetInceptionDistance torchmetrics.text.BERTScore
torchmetrics.text.rouge.ROUGEScore torchmetrics.multimodal.CLIPScore torchmetrics.functional.text.bert.bert_score
torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity torchmetrics.Metric.load_state_dict
torchmetrics.utilities.imports.RequirementCache torchmetrics.metric.functools.partial torchmetrics.functional.accuracy
torchmetrics.audio.dnsmos.DeepNoiseSuppressionMeanOpinionScore optuna.samplers._cmaes.pickle.loads
optuna.storages.RDBStorage optuna.create_study hydra_plugins.runner_sweep.tempfile.mkdtemp
hydra_plugins.runner_sweep.need hydra_plugins.runner_sweep.Plugins.instance hydra.core.plugins.Plugins.instance
hydra._internal.core_plugins.bash_completion.BashCompletion omegaconf.OmegaConf.save omegaconf.OmegaConf.load
omegaconf.OmegaConf.register_new_resolver runner.config.compose.set_up runner.storage.lock.take runner.cli.prune.main
runner.__main__.main runner.search.sampler_state.pickle.loads simpleeval.SimpleEval torch torch.nn runner runner.models
"""


@pytest.mark.slow
def test_a_name_in_an_admissible_module_is_not_admissible_for_that(tmp_path):
    aside = ASIDE_TEXT.split()
    assert len(set(aside) - set(HARM)) >= 60
    let_through = []
    with admitting(Policy(beside=(tmp_path,))):  # which admits more than the table
        for name in aside:
            for place in (*IN_THE_CONFIG, *NOWHERE, *HYDRAS, "callbacks", "listeners.x", "trainer.callbacks.0"):
                with contextlib.suppress(Refused, AttributeError, ImportError):
                    let_through.append((name, place, admitted(name, place)[1]))
    assert not let_through


# ---- arguments of what may be made


def records(**more):
    return Policy(record=Path("/theirs"), **more)


@pytest.mark.parametrize("said", [True, 1, "yes", ["x"], None])
def test_a_records_dataset_is_built_without_a_download(said):
    node = {"_target_": "torchvision.datasets.MNIST", "root": "x", **({} if said is None else {"download": said})}
    with admitting(records()):
        assert with_partials(node, "dataset.train") == {**node, "download": False}
        with pytest.raises(InputError, match="_args_"):
            with_partials({"_target_": node["_target_"], "_args_": ["x", True, None, None, True]}, "dataset.train")
    with admitting(Policy()):
        assert with_partials(node, "dataset.train") == node, "a command of one's own downloads what it says"


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "torchvision.models.resnet18", "weights": "DEFAULT", "progress": False},
        {"_target_": "torchvision.models.segmentation.lraspp_mobilenet_v3_large"},  # its default downloads
        {"_target_": "runner.models.resnet18", "weights": "DEFAULT", "input_shape": [3, 32, 32], "num_classes": 10},
        {
            "_target_": "torch.nn.Sequential",
            "_args_": [{"_target_": "torchvision.models.alexnet", "weights": "DEFAULT"}],
        },
    ],
)
def test_a_records_model_is_built_without_a_download_and_not_begun_without_its_weights(node, tmp_path, monkeypatch):
    import torch.hub

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("downloads"))
    with admitting(records()):
        assert isinstance(instantiate(node, "model"), torch.nn.Module)
    with admitting(records(starts=True)), pytest.raises(InputError, match=r"https://.*\.pth"):
        instantiate(node, "model")
    assert not (tmp_path / "home").exists()


def test_a_records_model_takes_weights_that_are_on_this_machine(tmp_path, monkeypatch):
    import torch
    from torchvision.models import resnet18

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    kept = resnet18().state_dict()
    torch.save(kept, tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    with admitting(records(starts=True)):
        made = instantiate({"_target_": "runner.models.resnet18", "weights": "DEFAULT", "small_images": False}, "model")
    assert torch.equal(made.state_dict()["conv1.weight"], kept["conv1.weight"])


SYSTEM = {"_target_": "os.system", "command": "touch PWNED"}


@pytest.mark.parametrize("more", [{}, {"_partial_": False}, {"_partial_": True}, {"_recursive_": False}])
@pytest.mark.parametrize(
    ("place", "around"),
    [
        ("model", lambda node: node),
        ("model", lambda node: {"_target_": "torch.nn.Sequential", "_args_": [node]}),
        ("model", lambda node: {"_target_": "torch.nn.Identity", "_convert_": "object", "x": {"y": [[node]]}}),
        ("loss", lambda node: {"_target_": "torch.nn.CrossEntropyLoss", "_partial_": False, "weight": node}),
        ("optimizer", lambda node: {"_target_": "torch.optim.SGD", "_partial_": True, "lr": node}),
        ("dataset.train.transform", lambda node: {"_target_": "torchvision.transforms.Lambda", "lambd": node}),
        ("metrics.x", lambda node: {"_target_": "torchmetrics.MetricCollection", "metrics": [node]}),
        (
            "hydra.sweeper.sampler",
            lambda node: {"_target_": "optuna.samplers.PartialFixedSampler", "base_sampler": node},
        ),
    ],
)
def test_every_target_is_judged_once_more_where_it_is_made(place, around, more):
    """What a resolver makes (oc.decode, oc.create) stands nowhere in the config that was checked."""
    with admitting(Policy(beside=(Path.cwd(),))), pytest.raises(InputError, match=r"os\.system"):
        instantiate(around({**SYSTEM, **more}), place)
    assert not Path("PWNED").exists()


def test_a_resolver_brings_no_target_into_a_command(tmp_path, monkeypatch):
    monkeypatch.setenv("NODE", "{_target_: os.system, _partial_: false, command: touch PWNED}")
    word = "model.hidden=${oc.decode:${oc.env:NODE}}"
    with pytest.raises(InputError):
        runner.run([*WORDS, word], run_dir=tmp_path / "run")
    assert not Path("PWNED").exists() and not (tmp_path / "run" / "run.json").exists()


TEXTS = {
    "a tag of Python's": "model: !!python/object/apply:os.system ['touch PWNED']\n",
    "a tag of Python's name": "model: {_target_: !!python/name:os.system ''}\n",
    "a list": "- 1\n",
    "an interpolation of the environment": "notes: ${oc.env:A_SECRET}\n",
    "an interpolated target": "model: {_target_: '${notes}'}\nnotes: os.system\n",
    "a resolver of a node": "model: '${oc.decode:\"{_target_: os.system, command: touch PWNED}\"}'\n",
    "hydra's": "notes: ${hydra:runtime.cwd}\n",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_strangers_text_is_no_more_than_a_config(name, made, no_owner, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("A_SECRET", "hunter2")
    folder = tmp_path / "run"
    shutil.copytree(made, folder)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "config_yaml": TEXTS[name]}))
    for verb in (*every_verb(folder), lambda: verified(folder), lambda: replayed(folder)):
        with pytest.raises(InputError) as refused:
            verb()
        assert "\n" not in str(refused.value) and "hunter2" not in str(refused.value)
    assert not (tmp_path / "run-again").exists()
    assert not Path("PWNED").exists() and not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("length", [None, {}, "x", 10**30, -1, {"batch": "x"}, {"batch": 1e400}])
def test_a_length_that_is_none_is_one_line(length, made, tmp_path):
    folder = edited(made, tmp_path / "run", lambda config, record: config["derived"].update(run_length=length))
    record = RunDir(folder).read_run()
    with pytest.raises(InputError, match=r"derived\.run_length\.batch"):
        verify.train_again(record, RunDir(tmp_path / "again"), 0, random.Random(1))


@pytest.mark.parametrize("own", [{"x": {}}, {"x": {"file": "/dev/zero", "sha256": "0"}}, {"x": {"file": "\0"}}])
def test_a_strangers_own_modules_are_only_words(own, made, no_owner, tmp_path):
    def change(config, record):
        record.update(own_code=own, working_directory="\0")
        config["trust"] = 5
        put(config, "model._target_", "x.Net")

    folder = edited(made, tmp_path / "run", change)
    for verb in (*every_verb(folder), lambda: verified(folder), lambda: replayed(folder)):
        with pytest.raises(InputError, match="--trust x|trust=5"):
            verb()


def test_a_sweeps_record_trusts_nothing_but_the_command_does(tmp_path):
    sweep = {"base": {"trust": ["sklearn"]}, "own_code": {}, "working_directory": "."}
    assert not own_code.policy_of(sweep, tmp_path).admits("sklearn.base")
    with admission.granting(["sklearn"]):
        assert own_code.policy_of(sweep, tmp_path).admits("sklearn.base")
    assert own_code.to_be_named(sweep, tmp_path) == ["sklearn"]
