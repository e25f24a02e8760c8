"""Small changes of the code by hand, each with the tests that must notice it: (file, what stands there, what instead)."""

TRAINER, STATE, STEPS = "train/trainer.py", "train/state.py", "train/steps.py"
IDENTITY = "storage/identity.py"
CHECKPOINT, FILES, ROWS = "storage/checkpoint.py", "storage/files.py", "storage/rows.py"
LEASE, LOCK, RUN_DIR = "storage/lease.py", "storage/lock.py", "storage/run_dir.py"
RECOVERY, PLAN, RUN = "job/recovery.py", "sweep/plan.py", "sweep/run.py"

HERE, DURABLE = ("test_mutations.py",), ("test_durability.py",)

# name: (file, old, new, the test files that must fail)
MUTATIONS = {
    "no fsync of a directory": (FILES, "        os.fsync(descriptor)\n", "        pass\n", DURABLE),
    "no fsync of run.json": (FILES, "            os.fsync(file.fileno())\n", "", DURABLE),
    "no fsync of a row": (
        ROWS,
        "            if durable:\n                os.fsync",
        "            if False:\n                os.fsync",
        DURABLE,
    ),
    "no fsync of the steps": (
        ROWS,
        'rb") as file:\n                os.fsync(file.fileno())',
        'rb") as file:\n                pass',
        DURABLE,
    ),
    "no fsync of a new file's name": (ROWS, "            fsync_directory(self.path.parent)\n", "", DURABLE),
    "no fsync of a new folder's name": (
        FILES,
        "        fsync_directory(path.parent)\n\n\ndef",
        "        pass\n\n\ndef",
        HERE,
    ),
    "no fsync of a checkpoint": (
        CHECKPOINT,
        "            file.flush()\n            os.fsync(file.fileno())\n    except",
        "            file.flush()\n    except",
        DURABLE,
    ),
    "no fsync of a checkpoint's name": (CHECKPOINT, "        fsync_directory(self.directory)\n", "", DURABLE),
    "steps are not synced before a save": (
        "job/run.py",
        "        told.saving.append(run_dir.steps.sync)\n",
        "",
        DURABLE,
    ),
    "the checkpoint before its row": (
        TRAINER,
        "        self.notify(metrics, is_best, examples)\n        self.save_checkpoint(is_evaluated=True, is_best=is_best)",
        "        self.save_checkpoint(is_evaluated=True, is_best=is_best)\n        self.notify(metrics, is_best, examples)",
        DURABLE,
    ),
    ">= for best": (TRAINER, "value > best if", "value >= best if", HERE),
    "<= for best": (TRAINER, "else value < best", "else value <= best", HERE),
    "the loss's state is not loaded": (
        "train/weights.py",
        '    for owner in ("model", "criterion"):\n        if isinstance(module := getattr(task, owner, None), nn.Module) and',
        '    for owner in ("model",):\n        if isinstance(module := getattr(task, owner, None), nn.Module) and',
        HERE,
    ),
    "no finite parameters before a save inside an epoch": (
        TRAINER,
        "            self.state.finite_loss()\n            self.state.check_finite()\n",
        "            self.state.finite_loss()\n",
        HERE,
    ),
    "no finite loss before a save inside an epoch": (
        TRAINER,
        "            self.state.finite_loss()\n            self.state.check_finite()\n",
        "            self.state.check_finite()\n",
        HERE,
    ),
    "the optimizer's state may be anything": (
        STATE,
        "            tensors |= {key: value for key",
        "            tensors |= {} and {key: value for key",
        HERE,
    ),
    "the first checkpoint is not read back": (
        CHECKPOINT,
        "            load(temporary)  # once",
        "            pass  # once",
        HERE,
    ),
    "every checkpoint is read back": (CHECKPOINT, "            self.is_tried = True\n", "", HERE),
    "the last weights are not put back": (
        "train/weights.py",
        "    finally:\n        load_weights(task, own)\n",
        "    finally:\n        pass\n",
        HERE,
    ),
    "the last weights are put back only after success": (
        "train/weights.py",
        "    try:\n        yield\n    finally:\n        load_weights(task, own)\n",
        "    yield\n    load_weights(task, own)\n",
        HERE,
    ),
    "the best weights are not copied": (
        "train/averaging.py",
        "            return copy.deepcopy(weights_of(self.task))",
        "            return weights_of(self.task)",
        HERE,
    ),
    "evaluation is not isolated": (
        STEPS,
        'with isolated(derive(seed, "evaluate"), device), torch.no_grad()',
        "with torch.no_grad()",
        HERE,
    ),
    "evaluation's generators are not put back": (
        "seeding.py",
        "    finally:\n        set_rng_state(before, device)",
        "    finally:\n        pass",
        HERE,
    ),
    "evaluation is not seeded": (
        "seeding.py",
        "    before = rng_state(device)\n    seed_everything(value)\n",
        "    before = rng_state(device)\n",
        HERE,
    ),
    "evaluation's seed is not the run's": (STEPS, 'derive(seed, "evaluate")', 'derive(0, "evaluate")', HERE),
    "minutes are counted from the start": (
        CHECKPOINT,
        "        self.written = time.monotonic()\n        if self.directory is None or not names:",
        "        if self.directory is None or not names:",
        HERE,
    ),
    "an owner without a lease does not end": (
        LEASE,
        "                os.kill(os.getpid(), signal.SIGKILL)\n",
        "",
        HERE,
    ),
    "an owner ends for its own lease": (LEASE, "if text and text != self.text:", "if text:", HERE),
    "a stolen lease is not restored": (
        LEASE,
        "                    os.link(aside, self.path)\n",
        "                    pass\n",
        HERE,
    ),
    "a lease that is another's is removed": (LEASE, "            if self.is_mine():\n", "            if True:\n", HERE),
    "a lock of a removed file": (
        LOCK,
        "if not path.exists() or os.fstat(descriptor).st_ino != path.stat().st_ino:",
        "if False:",
        HERE,
    ),
    "a lock of a file made again": (
        LOCK,
        "if not path.exists() or os.fstat(descriptor).st_ino != path.stat().st_ino:",
        "if not path.exists():",
        HERE,
    ),
    "no second look after the claim": (
        RUN_DIR,
        "        try:\n            self.check_free()\n        except InputError:",
        "        try:\n            pass\n        except InputError:",
        HERE,
    ),
    "a claim that is refused keeps the folder": (
        RUN_DIR,
        "        except InputError:\n            self.release()\n",
        "        except InputError:\n",
        HERE,
    ),
    "writes into what is there": (
        FILES,
        '    temporary.unlink(missing_ok=True)  # never write into a file that may have a second name\n    try:\n        with open(temporary, "xb")',
        '    try:\n        with open(temporary, "wb")',
        HERE,
    ),
    "a failed write leaves its temporary": (
        FILES,
        "    except OSError:\n        temporary.unlink(missing_ok=True)\n",
        "    except OSError:\n",
        HERE,
    ),
    "an equal epoch makes up for the best": (
        RECOVERY,
        "sign * value > sign * best.best_value",
        "sign * value >= sign * best.best_value",
        HERE,
    ),
    "an earlier epoch makes up for the best": (
        RECOVERY,
        "if step > best.step and value",
        "if step >= best.step and value",
        HERE,
    ),
    "an identity ignores the precision": (
        IDENTITY,
        '("sweep.", "derived.",',
        '("sweep.", "derived.", "precision.",',
        HERE,
    ),
    "an identity ignores accumulate": (
        IDENTITY,
        '("sweep.", "derived.",',
        '("sweep.", "derived.", "trainer.accumulate",',
        HERE,
    ),
    "an identity ignores the seed": (IDENTITY, '("sweep.", "derived.",', '("sweep.", "derived.", "seed",', HERE),
    "an identity is of the workers": (IDENTITY, '("dataloader.num_workers", "d', '("d', HERE),
    "diverged jobs never run again": (
        RUN,
        "if diverged and not provenance.code_changes(latest_code(record), code):",
        "if diverged:",
        HERE,
    ),
    "diverged jobs always run again": (RUN, "if diverged and not provenance", "if diverged and provenance", HERE),
    "diverged with the code it began with": (
        RUN,
        "code_changes(latest_code(record), code)",
        'code_changes(record.get("code"), code)',
        HERE,
    ),
    "every failure is final": (
        RUN,
        'record["state"] == "failed" and record.get("failure") == "diverged"',
        'record["state"] == "failed"',
        HERE,
    ),
    "deaths are forgotten": (PLAN, 'record = {**before, "identity"', 'record = {"deaths": [], "identity"', HERE),
    "a new job in a run's folder": (
        PLAN,
        'if name in taken or (place / name / "run.json").exists():',
        "if name in taken:",
        HERE,
    ),
    "null is as missing": (
        PLAN,
        "old.get(key, missing) != base.get(key, missing)",
        "old.get(key) != base.get(key)",
        HERE,
    ),
    "other code is the same sweep": (PLAN, "if changes := code_changes(old_code, code):", "if changes := []:", HERE),
}
