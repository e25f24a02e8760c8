"""Runs and sweeps as their records are on disk, without training: for what only reads them."""

import json
import math
import random

from runner.storage.record_schema import with_checksum, write_record
from runner.storage.rows import strict_json
from runner.sweep import plan

HOSTILE = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=1">\u202e'
CHOICES = {"scheduler": "step", "model": "net", "optimizer": "sgd"}


def config_of(seed=1, epochs=3, monitor="val/accuracy", **keys):
    """A config; keys with __ for dots: optimizer__lr=0.1."""
    config = {
        "seed": seed,
        "name": None,
        "device": {"type": "auto", "threads": 1},
        "dataset": {"val_size": 0.2, "train": {"_target_": "runner.data.Digits"}},
        "dataloader": {"eval_batch_size": 1000, "batch_size": 16},
        "model": {"_target_": "runner.models.Net", "width": 64},
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1},
        "scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR", "gamma": 0.7},
        "loss": {"_target_": "runner.losses.NLL"},
        "metrics": {"accuracy": {"_target_": "runner.metrics.Accuracy"}},
        "trainer": {"epochs": epochs, "monitor": monitor, "mode": "max", "dry_run": False, "limit_batches": None},
    }
    for key, value in keys.items():
        node, (*path, last) = config, key.split("__")
        for name in path:
            node = node[name]
        node[last] = value
    return config


def put(path, record):
    """Writes a record as write_record does, but for the fsync: a thousand of them take a minute."""
    body = json.dumps(record, indent=2).encode() + b"\n"
    path.write_bytes(with_checksum(body))


def rows_of(epochs, best, noise, lossy=True):
    """Epochs that rise to about `best`."""
    rows = []
    for epoch in range(1, epochs + 1):
        value = best * (1 - math.exp(-epoch / 2)) + noise.uniform(-0.01, 0.01)
        row = {"epoch": epoch, "step": epoch * 10, "lr": 0.1 * 0.7**epoch, "train/loss": 1 / epoch}
        row |= {"train/accuracy": value + 0.01} if lossy else {}
        row |= {"val/loss": 1.2 / epoch, "val/accuracy": value}
        rows.append({**row, "seconds": 0.5, "examples_per_second": 100.0})
    return rows


def write_run(path, config, rows, *, state="done", steps=(), **changed):
    """A run's run.json and its rows, signed as this user's."""
    path.mkdir(parents=True, exist_ok=True)
    monitor, mode = config["trainer"]["monitor"], config["trainer"]["mode"]
    known = [row for row in rows if row.get(monitor) is not None and math.isfinite(row[monitor])]
    best = max(known, key=lambda row: row[monitor] * (1 if mode == "max" else -1), default=None)
    metric = monitor.rpartition("/")[2]

    def figures(row):
        return {key: value for key, value in row.items() if "/" in key}

    record = {
        "id": "0123456789abcdef",
        "state": state,
        "started": "2026-11-26T10:00:00.000+00:00",
        "ended": "2026-11-26T10:05:00.000+00:00",
        "error": None,
        "failure": None,
        "command": ["/usr/bin/python3", "-m", "runner", "optimizer.lr=0.1"],
        "resumed": [],
        "name": config["name"],
        "tags": [],
        "seed": config["seed"],
        "epochs": config["trainer"]["epochs"],
        "epochs_done": len(rows),
        "monitor": monitor,
        "mode": mode,
        "modes": {"loss": "min"},
        "chosen_on": "val",
        "seconds": 0.5 * len(rows),
        "best_epoch": best["epoch"] if best else None,
        "best_value": best[monitor] if best else None,
        "best": figures(best) if best else {},
        "last": figures(rows[-1]) if rows else {},
        "test": {"best": {metric: best[monitor]}} if best and state == "done" else {},
        "device": "cpu",
        "threads": 1,
        "examples": {"train": 1000, "val": 500, "test": 400},
        "parameters": 1234,
        "packages": {"torch": "2.15.0"},
        "working_directory": "/somewhere",
        "config": config,
        "config_yaml": json.dumps(config),
        "config_source": config,
    }
    put(path / "run.json", strict_json({**record, **changed}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(strict_json(row)) + "\n" for row in rows))
    (path / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))


def write_sweep(place, settings, seeds=(1, 2, 3), epochs=3, arguments=(), bad=None):
    """A sweep of dicts of keys (with __ for dots) and seeds. `bad`: job number -> what is changed of its record."""
    noise, names = random.Random(0), []
    for number, (keys, seed) in enumerate((keys, seed) for keys in settings for seed in seeds):
        config = config_of(seed=seed, epochs=epochs, **keys)
        words = [f"{key.replace('__', '.')}={value}" for key, value in keys.items()]
        name = plan.safe_name({**dict(word.split("=", 1) for word in words), "seed": str(seed)})
        names.append(name)
        changed = dict((bad or {}).get(number, {}))
        quality = keys.get("optimizer__lr", 0.1)
        rows = rows_of(epochs, 0.95 - 0.05 * abs(math.log10(quality * 10)), noise)
        write_run(place / name, config, rows[: changed.pop("rows", epochs)], **changed)
        job = {"identity": f"{number:016x}", "overrides": [*words, f"seed={seed}"], "settings": {}, "deaths": []}
        setting = plan.setting_of(config, config)
        put(place / name / "job.json", {**job, "seed": seed, "setting": setting, "choices": CHOICES})
    facts = {"arguments": list(arguments), "config_dir": None, "swept": ["seed"], "base": {}, "jobs": []}
    command = ["/usr/bin/python3", "-m", "runner", "-m", *arguments, "seed=1,2,3"]
    write_record(place / "sweep.json", {**facts, "command": command})
    return names


def write_big_sweep(place, runs=200, epochs=30):
    """A sweep of many runs: ten values of one key, four of another, five seeds."""
    settings = [
        {"optimizer__lr": lr, "model__width": width}
        for lr in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
        for width in (16, 32, 64, 128)
    ]
    seeds = range(1, runs // len(settings) + 1)
    bad = {7: {"state": "failed", "failure": "diverged", "error": "the loss is not finite", "rows": 4}}
    return write_sweep(place, settings, seeds=seeds, epochs=epochs, bad=bad)
