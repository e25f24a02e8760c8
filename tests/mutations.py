"""Small changes of the code by hand, each with the tests that must notice it: (file, what stands there, what instead)."""

TRAINER, RUN = "train/trainer.py", "sweep/run.py"
CHECKPOINT, FILES, ROWS = "storage/checkpoint.py", "storage/files.py", "storage/rows.py"

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
}
