"""The names of Hydra's that are not public: each has a test that fails by its name when Hydra moves it."""

import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf, open_dict

from runner.config import hydra_adapter
from runner.config.compose import compose, make_hydra, own_hydra, set_up
from runner.config.conf_dir import conf_dir
from runner.errors import InputError

WRONG = ["optimizer.lr=[1]", "optimizer.learning_rate=1"]  # Hydra alone takes the first one


@pytest.mark.parametrize("word", WRONG)
def test_apply_overrides_to_config_is_really_called_for_a_run(word):
    with pytest.raises(InputError, match=r"optimizer\.l"):
        compose([word])


@pytest.mark.parametrize("word", WRONG)
def test_apply_overrides_to_config_is_really_called_for_each_job_of_a_sweep(word):
    """Also where the wrong value is swept over: by load_sweep_config, which no caller of ours stands in front of."""
    set_up()
    with pytest.raises(InputError, match=r"optimizer\.l"), own_hydra():
        hydra = make_hydra()
        master = hydra_adapter.composed(hydra, "config", [])
        hydra.config_loader.load_sweep_config(master, [word])


@pytest.mark.parametrize("word", WRONG)
def test_apply_overrides_to_config_is_really_called_by_cfg_job(word, monkeypatch, capsys):
    from runner.__main__ import main

    monkeypatch.setattr(sys, "argv", ["runner", "--cfg", "job", word])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "optimizer.l" in capsys.readouterr().err


def test_apply_overrides_to_config_is_called_once_a_composition():
    calls = []

    def counted(overrides, cfg):
        calls.append(overrides)
        hydra_adapter.apply_overrides(overrides, cfg)

    set_up()
    with hydra_adapter.own_hydra(counted):
        hydra_adapter.composed(make_hydra(), "config", ["seed=3"])
    assert len(calls) == 1 and [o.key_or_group for o in calls[0]][-1] == "seed"


def test_get_gh_backup_puts_a_callers_hydra_back():
    import hydra

    with hydra.initialize_config_dir(conf_dir(), version_base="1.3"):
        compose(["seed=3"])
        assert GlobalHydra.instance().is_initialized()
        hydra.compose("config")
    GlobalHydra.instance().clear()
    compose(["seed=3"])
    assert not GlobalHydra.instance().is_initialized()


def test_create_config_search_path_takes_folders_in_their_order(tmp_path):
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "step.yaml").write_text((Path(conf_dir()) / "scheduler/cosine.yaml").read_text())
    _, cfg = compose(["scheduler=step"], str(tmp_path))
    assert cfg.scheduler._target_.endswith("CosineAnnealingLR")


def test_config_store_repo_gives_way_to_a_file_of_ours(tmp_path):
    """A plugin stores hydra/launcher/local under that name; ours must be taken whole, not as a change of its."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(group="hydra/launcher", name="local", node={"_target_": "theirs", "other": 1}, provider="theirs")
    _, cfg = compose([])
    assert cfg.hydra.launcher._target_.endswith("LocalLauncher") and "other" not in cfg.hydra.launcher


def test_run_job_with_callbacks_leaves_hydras_files_and_tells_the_callbacks(tmp_path):
    hydra, cfg = compose([f"hydra.run.dir={tmp_path / 'run'}"])
    with open_dict(cfg):  # the command line and YAML files are refused it
        cfg.hydra.callbacks = {"mine": {"_target_": "test_callback.Told"}}
    (tmp_path / "test_callback.py").write_text(
        "from hydra.experimental.callback import Callback\n\n"
        "class Told(Callback):\n    told = []\n    def on_run_start(self, config, **_): self.told.append('start')\n"
        "    def on_run_end(self, config, **_): self.told.append('end')\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        import test_callback

        job = hydra_adapter.run_single(hydra, "config", cfg, lambda task: task.seed)
    finally:
        sys.path.remove(str(tmp_path))
    assert hydra_adapter.value_of(job) == cfg.seed
    assert test_callback.Told.told == ["start", "end"]
    assert {path.name for path in (tmp_path / "run" / ".hydra").iterdir()} == {
        *("config.yaml", "hydra.yaml", "overrides.yaml")
    }


def test_return_value_raises_what_the_task_raised_and_says_nothing(capsys):
    job = JobReturn(overrides=["a=1"], status=JobStatus.FAILED)
    job.return_value = KeyError("mine")
    with pytest.raises(KeyError, match="mine"):
        hydra_adapter.value_of(job)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--cfg", "job", "-p", "optimizer"], "torch.optim.Adadelta"),
        (["--info", "searchpath"], "Config search path"),
        (["--hydra-help"], "Hydra"),
        (["-sc", "install=bash"], "complete"),
    ],
)
def test_show_finds_hydras_own_looks(words, shown, monkeypatch, capsys):
    from runner.__main__ import main

    monkeypatch.setattr(sys, "argv", ["runner", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    out = capsys.readouterr().out
    assert not ended.value.code and shown in out


def test_a_configs_dump_is_the_same_through_our_door_and_hydras(capsys):
    _, cfg = compose(["seed=3"])
    cfg = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    from runner.cli import overrides

    parser = overrides.parser()
    assert overrides.main(["--cfg", "job", "seed=3"], parser) == 0
    assert OmegaConf.create(capsys.readouterr().out) == OmegaConf.create(OmegaConf.to_yaml(cfg))


def test_yaml_is_read_by_libyaml_with_the_same_values():
    import importlib.util

    import yaml
    from omegaconf import _utils

    spec = importlib.util.find_spec("omegaconf._utils")
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)
    loaders = (_utils.get_yaml_loader(), plain.get_yaml_loader())
    assert hydra_adapter.__name__ in loaders[0].__module__
    texts = [path.read_text() for path in Path(conf_dir()).rglob("*.yaml")]
    texts += [
        "a: 1e-3",
        "a: 1_000",
        "a: .inf",
        "a: 010",
        "a: 1:30",
        "a: yes",
        "a: &x [1]\nb: *x",
        "",
        "5",
        "a: 2020-01-01",
    ]
    for text in texts:
        one, two = (yaml.load(text, Loader=loader) for loader in loaders)
        assert repr(one) == repr(two), text
    for text in ("a: 1\na: 2\n", "a: [", "a: !!python/name:os.system ''", "x: y: z"):
        for loader in loaders:
            with pytest.raises(yaml.YAMLError):
                yaml.load(text, Loader=loader)


def test_file_is_a_local_name_of_omegaconf_load(tmp_path):
    path = tmp_path / "five.yaml"
    path.write_text("5\n")
    with pytest.raises(OSError) as caught:
        OmegaConf.load(path)
    assert hydra_adapter.file_of(caught.value) == path.name
