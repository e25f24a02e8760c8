"""From words to one composed config."""

import random
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from runner.__main__ import main
from runner.config.compose import compose, quoted
from runner.errors import InputError

TEXTS = ["it's", "a\\'b", "a\\", "${x}", "\\${y}", "a b,c={d}[e](f)", "ünï", '"q"', "'", "a:b", "$x", "", "tab\tx"]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_can_be_quoted_as_an_overrides_value(text):
    assert read_back(quoted("name", text)) == text


def test_so_can_random_texts_of_what_the_grammar_knows():
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choice("a'\"\\${}, =") for _ in range(rng.randint(1, 8)))
        assert read_back(quoted("name", text)) == text, text


def read_back(word):
    (override,) = OverridesParser.create().parse_overrides([word])
    return OmegaConf.create({"name": override.value()}).name


def test_a_quoted_path_composes():
    path = "/x/it's/${a}"
    assert compose([quoted("hydra.run.dir", path)])[1].hydra.run.dir == path


@pytest.fixture
def answered(monkeypatch, capsys):
    """(exit code, all that is printed) of the command with a folder `mine` of YAML files."""

    def call(files, *words):
        for name, text in files.items():
            Path("mine", name).parent.mkdir(parents=True, exist_ok=True)
            Path("mine", name).write_bytes(text if isinstance(text, bytes) else text.encode())
        monkeypatch.setattr(sys, "argv", ["runner", "--config-dir", "mine", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out + said.err

    return call


def experiment(body, name="mine"):
    return {f"experiment/{name}.yaml": f"# @package _global_\n{body}"}


SEARCH = """defaults: [override /hydra/sweeper: optuna]
hydra: {sweeper: {n_trials: 3, params: {optimizer.lr: "interval(0.1, 1)"}}}
"""


def test_a_sweeper_that_an_experiment_chooses_is_the_one_that_runs(answered):
    pytest.importorskip("optuna")
    code, said = answered(experiment(SEARCH), "-m", "experiment=mine", "sweep.dry_run=true")
    assert code == 0 and "up to 3 trials" in said and "FloatDistribution" in said, said


@pytest.mark.parametrize(
    "group, default, choice, typed",
    [("launcher", "local", "submitit_local", "ray"), ("sweeper", "runner", "basic", "optuna")],
)
def test_hydras_groups_are_chosen_by_the_command_then_by_an_experiment(group, default, choice, typed):
    Path("mine/experiment").mkdir(parents=True)
    text = experiment(f"defaults: [override /hydra/{group}: {choice}]")["experiment/mine.yaml"]
    Path("mine/experiment/mine.yaml").write_text(text)
    commands = [], ["experiment=mine"], ["experiment=mine", f"hydra/{group}={typed}"]
    chosen = [compose(words, "mine")[1].hydra.runtime.choices[f"hydra/{group}"] for words in commands]
    assert chosen == [default, choice, typed]


@pytest.mark.parametrize(
    "body, named",
    [
        ("defaults: [override /hydra/sweeper: optuna]", "hydra/sweeper=optuna"),
        ("defaults: [override /hydra/launcher: basic]", "hydra/launcher=basic"),
        ("hydra: {sweeper: {params: {optimizer.lr: '1,2'}}}", "hydra.sweeper.params.optimizer.lr=1,2"),
        ("hydra: {launcher: {jobs: 7}}", "hydra.launcher.jobs=7"),
        ("sweep: {retries: 7}", "sweep.retries=7"),
    ],
)
def test_an_experiment_that_is_swept_over_cannot_say_how_the_sweep_is_run(body, named, answered):
    files = {**experiment(body), **experiment("seed: 2", "other")}
    code, said = answered(files, "-m", "experiment=other,mine", "sweep.dry_run=true")
    assert code == 2 and named in said and "experiment=mine" in said and "command line" in said, said
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    "body, named",
    [
        ("defaults: [override /hydra/job_logging: disabled]", "job_logging"),
        ("defaults: [override /hydra/job_logging: default]", "job_logging"),
        ("defaults: [override /hydra/hydra_logging: disabled]", "hydra_logging"),
        ("hydra: {job_logging: {root: {level: DEBUG}}}", "job_logging"),
        ("hydra: {verbose: true}", "verbose"),
        ("hydra: {mode: MULTIRUN}", "use -m"),
        ("hydra: {sweeper: {n_trials: 3}}", "hydra.sweeper.n_trials"),
        ("defaults: [override hydra/sweeper: optuna]", "override /hydra/sweeper"),
        ("defaults: [/optimizer: adam]", "override /optimizer"),
        ("defaults: [override /optimzer: adam]", "did you mean optimizer"),
    ],
)
def test_what_an_experiment_says_to_hydra_counts_or_is_refused_in_one_line(body, named, answered):
    code, said = answered(experiment(body), "experiment=mine", "trainer.dry_run=true")
    assert code == 2 and named in said and said.count("\n") == 1, said
    assert not Path("outputs").exists()


HEADED = b"# @package _global_\n"


@pytest.mark.parametrize(
    "content, named",
    [
        (b"\xef\xbb\xbf" + HEADED + b"seed: 3\n", ["line 1", "BOM"]),
        (b"# mine\n" + HEADED + b"seed: 3\n", ["line 2", "first"]),
        (b"# @package: _global_\nseed: 3\n", ["line 1", "# @package _global_"]),
        (b"seed: 3\n", ["line 1", "# @package _global_"]),
        (HEADED + b'notes: "caf\xe9"\n', ["line 2", "UTF-8"]),
        ((HEADED + b"seed: 3\n").decode().encode("utf-16"), ["line 1", "UTF-16"]),
        (HEADED + b"seed: 3\nseed: 4\n", ["line 3", "duplicate key seed"]),
        (HEADED + b"optimizer:\n\tlr: 4\n", ["line 3", "tab"]),
        (HEADED + b"name: 12:30\n", ["line 2", 'name: "12:30"']),
        (HEADED + b"name: 1_1_1\n", ["line 2", 'name: "1_1_1"']),
        (HEADED + b"notes: on\n", ["line 2", 'notes: "on"']),
        (HEADED + b"name: 0123\n", ["line 2", 'name: "0123"']),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_name_and_line(content, named, answered):
    code, said = answered({"experiment/mine.yaml": content}, "experiment=mine", "trainer.dry_run=true")
    assert code == 2 and "mine/experiment/mine.yaml" in said and said.count("\n") == 1, said
    assert all(part in said for part in named), said


@pytest.mark.parametrize(
    "body, named",
    [
        ("seed: '3'", ["seed=3", "text"]),
        ("optimizer: {lr: '1e-3'}", ["optimizer.lr=1e-3", "text", "optimizer.lr=0.001"]),
    ],
)
def test_a_number_in_quotes_is_said_to_be_text(body, named, answered):
    code, said = answered(experiment(body), "experiment=mine", "trainer.dry_run=true")
    assert code == 2 and all(part in said for part in named), said


@pytest.mark.parametrize(
    "word, named",
    [
        ("name=1_1_1", "'name=\"1_1_1\"'"),
        ("seed='3'", "type seed=3"),
        ("seed=0x10", "type seed=16"),
        ("optimizer.lr='1e-3'", "type optimizer.lr=0.001"),
        ("optimizer.name=Adam", "did you mean optimizer=adam"),
        ("model.type=mlp", "did you mean model=mlp"),
        ("trainer=gpu", "device=cuda"),
        ("gpus=1", "device=cuda"),
        ("lr=0.1", "optimizer.lr"),
        ("model._target_=torhc.nn.Linear", "no module torhc; did you mean torch"),
        ("model._target_=helpre.Net", "no module helpre; did you mean helper"),
    ],
)
def test_what_is_meant_by_a_wrong_word_is_said(word, named, answered, tmp_path):
    (tmp_path / "helper.py").write_text("")
    code, said = answered({"model/none.yaml": ""}, word)
    assert code == 2 and named in said and said.count("\n") == 1, said


@pytest.mark.parametrize("words", [["evaluate", "x"], ["--quiet", "evaluate", "x"], ["seed=1", "check"]])
def test_a_verb_behind_flags_is_refused_with_the_order(words, answered):
    code, said = answered({"model/none.yaml": ""}, *words)
    verb = next(word for word in words if word in ("evaluate", "check"))
    assert code == 2 and f"python -m runner {verb}" in said and "--config-dir mine" in said, said


def test_one_run_of_an_experiment_that_describes_a_search_says_so(answered):
    code, said = answered(experiment(SEARCH), "experiment=mine", "trainer.dry_run=true")
    assert code == 0 and "hydra/sweeper=optuna" in said and "add -m" in said, said


@pytest.mark.parametrize("word", ["hydra/sweeper=optuna", "hydra.launcher.jobs=2", "hydra.sweeper.n_trials=3"])
def test_a_sweeps_words_without_m_are_refused(word, answered):
    code, said = answered({"model/none.yaml": ""}, word)
    assert code == 2 and word in said and "add -m" in said, said


def test_a_number_is_worked_out_from_others(answered):
    text = """optimizer: {lr: "${eval:'max(0.1, 0.01) * ${dataloader.batch_size} / 16'}"}
trainer: {epochs: "${eval:7 // 2}"}
"""
    code, said = answered(experiment(text), "experiment=mine", "--cfg", "job", "--resolve")
    assert code == 0 and "lr: 0.1\n" in said and "epochs: 3\n" in said, said


@pytest.mark.parametrize(
    "value, named",
    [
        ("${eval:0.1 * x}", ["'x' is not defined", "${GROUP.KEY}"]),
        ("${eval:'0.1 * seed.x'}", ["0.1 * seed.x", "${GROUP.KEY}"]),
        ("${eval:'0.1 *'}", ["does not parse"]),
        ("${eval:min(1, 2)}", ["quotes", "${eval:'"]),
        ("${eval:9**9**9}", ["too large"]),
        ("${eval:'__import__(1)'}", ["__import__"]),
        ("${eval:${optimizer.nope} * 2}", ["optimizer.nope"]),
    ],
)
def test_arithmetic_that_gives_no_number_is_refused_by_its_key(value, named, answered):
    code, said = answered(experiment(f'optimizer: {{lr: "{value}"}}'), "experiment=mine", "trainer.dry_run=true")
    assert code == 2 and said.count("\n") == 1 and "optimizer.lr" in said, said
    assert all(part in said for part in named), said


EXPERIMENT = """\
# @package _global_
unfreeze_at: {conv2: 3}
dataset:
  test: {_target_: runner.data.Fake, size: 20, shape: [1, 8, 8]}
  evaluate: {other: {_target_: runner.data.Fake, size: 20, shape: [1, 8, 8]}}
  val: {_target_: runner.data.Fake, size: 20, shape: [1, 8, 8], seed: 3}
dataloader:
  collate_fn: {_target_: torch.utils.data.default_collate}
  eval_collate_fn: {_target_: torch.utils.data.default_collate}
  num_workers: 1
loss: {weight: [1, 1, 1, 1, 1, 1, 1, 1, 1, 2]}
trainer: {grad_clip: 1, mode: max, limit_batches: 3}
checkpoint: {every: 1}
"""


@pytest.mark.parametrize(
    "key",
    [
        *("dataset.test", "dataset.evaluate", "dataset.val", "dataloader.collate_fn", "dataloader.eval_collate_fn"),
        *("dataloader.num_workers", "loss.weight", "trainer.grad_clip", "trainer.mode", "trainer.limit_batches"),
        *("checkpoint.every", "unfreeze_at"),
    ],
)
def test_null_is_a_value_of_every_key_that_may_be_nothing(key, tmp_path):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/all.yaml").write_text(EXPERIMENT)
    _, cfg = compose(["experiment=all", f"{key}=null"], str(tmp_path / "mine"))
    assert OmegaConf.select(cfg, key) is None


@pytest.mark.parametrize(
    "words", [["dataset=mnist"], ["dataset=fake"], ["dataset=image_folder", "dataset.root=x"]], ids=str
)
def test_a_packaged_dataset_is_used_without_its_test_set(words):
    _, cfg = compose([*words, "dataset.test=null"])
    assert cfg.dataset.test is None


def test_an_argument_whose_constructor_takes_nothing_may_be_null():
    _, cfg = compose(["dataset=image_folder", "dataset.root=x", "dataset.train.transform=null"])
    assert cfg.dataset.train.transform is None
    with pytest.raises(InputError, match=r"optimizer\.lr=null"):
        compose(["optimizer.lr=null"])


def test_a_group_of_keys_with_another_target_stands_in_place_of_the_one_before():
    _, cfg = compose(["dataset=mnist", "dataset.train={_target_: mine.Own, shuffle: false, sub: {a: 1}}"])
    assert cfg.dataset.train == {"_target_": "mine.Own", "shuffle": False, "sub": {"a": 1}}
    _, cfg = compose(["dataset.train={_target_: runner.data.Digits, mean: [0.5]}"])
    assert (cfg.dataset.train["mean"], list(cfg.dataset.train)) == ([0.5], ["_target_", "mean", "std"])


def test_a_group_of_keys_without_a_target_names_the_key_that_is_not_there():
    with pytest.raises(
        InputError, match=r"dataset\.train: there is no key 'shuffle' in it; \+dataset\.train\.shuffle=VALUE"
    ):
        compose(["dataset.train={shuffle: false}"])
