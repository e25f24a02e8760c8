"""All jobs of a sweep are looked at before the first one trains."""

import logging
from pathlib import Path

import pytest
import torch
from omegaconf import open_dict

from runner.before import beforehand
from runner.config.compose import compose
from runner.errors import InputError
from runner.job import build as building

WORDS = ["dataset=fake", "dataset.train_size=64", "dataset.eval_size=16", "model=mlp", "model.hidden=[8]"]


def job(*words, here=WORDS):
    _, cfg = compose([*here, *words])
    with open_dict(cfg):
        del cfg["hydra"]
    return f"job ({' '.join(words)})", cfg


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("dataloader.batch_size=0", "dataloader.batch_size=0: must be"),
        ("trainer.epochs=-2", "trainer.epochs=-2: must be"),
        ("optimizer.lr=-1", "-1"),
        ("trainer.monitor=val/acuracy", "trainer.monitor=val/acuracy: is not logged; did you mean val/accuracy?"),
        ("trainer.limit_batches=0", "trainer.limit_batches=0"),
        ("trainer.accumulate=7", "trainer.accumulate=7: does not divide"),
        ("checkpoint.save=lst", "checkpoint.save=lst"),
        ("device.index=-1", "device.index=-1"),
        ("precision=fp64", "fp64"),
        ("dataset.val_size=2.0", "dataset.val_size=2.0"),
        ("loss.weight=[1,2]", "loss"),
        ("metrics.accuracy.top_k=0", "top_k=0"),
        ("model_weights=nowhere.pt", "nowhere.pt"),
        ("scheduler.step_size=0", "scheduler.step_size=0"),
        ("dataloader.batch_size=1000 dataloader.drop_last=true", "batch_size=1000"),
    ],
)
def test_what_is_wrong_with_the_last_job_is_said_before_the_first_trains(word, message):
    with pytest.raises(InputError) as refused:
        beforehand.check_jobs([job("seed=1"), job(*word.split())])
    said = str(refused.value)
    assert message in said and "\n" not in said


def test_the_label_says_which_job(monkeypatch):
    with pytest.raises(InputError, match=r"^job \(trainer.epochs=0\): trainer.epochs=0"):
        beforehand.check_jobs([job("seed=1"), job("trainer.epochs=0"), job("trainer.epochs=-1")])


@pytest.fixture
def made(monkeypatch):
    """How often a dataset was made, and a run was built."""
    counts = {"parts": 0, "build": 0}

    def counting(name, function):
        def counted(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        return counted

    monkeypatch.setattr(building, "make_parts", counting("parts", building.make_parts))
    monkeypatch.setattr(beforehand, "build", counting("build", beforehand.build))
    return counts


def test_a_dataset_is_made_once_and_seeds_are_one_job(made):
    jobs = [job(f"seed={seed}", f"optimizer.lr={lr}") for seed in (1, 2, 3) for lr in (0.1, 0.2)]
    beforehand.check_jobs([*jobs, job("dataset.train_size=32")])
    assert made == {"parts": 2, "build": 3}


def test_elsewhere_neither_data_nor_devices_are_asked_for(made):
    there = [*WORDS, "device=cuda", "device.index=7"]
    beforehand.check_jobs([job("seed=1", here=there)], with_data=False)
    assert made == {"parts": 0, "build": 0}
    with pytest.raises(InputError, match="trainer.epochs=0"):
        beforehand.check_jobs([job("trainer.epochs=0", here=there)], with_data=False)


def test_the_process_is_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    one = job("device.threads=1", "deterministic=true")
    text = str(one[1])
    beforehand.check_jobs([one])
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled() and str(one[1]) == text
    assert not list(Path().iterdir())
    assert not logging.getLogger("runner").handlers


def test_what_is_likely_a_mistake_is_said_once(capsys):
    words = ("scheduler=step", "scheduler.interval=batch", "trainer.epochs=40")
    said = beforehand.check_jobs([job(*words, "seed=1"), job(*words, "optimizer.lr=0.5")])
    assert len(said) == 1 and "practically 0" in said[0]
    assert capsys.readouterr().err == ""


def test_the_default_job_is_no_mistake():
    assert beforehand.check_jobs([job("seed=1", here=[])]) == []
