"""The groups of the config, what other libraries call our keys and choices, and which was meant by a wrong one."""

import difflib
import re
from collections.abc import Sequence

GROUPS = (
    *("device", "precision", "dataset", "dataloader", "model", "optimizer", "scheduler", "loss", "task"),
    *("metrics", "checkpoint", "averaging", "stopping", "trainer"),
)
# What other libraries and other people say for a key or a choice of ours; difflib finds the mere slips.
ALIASES = {
    **dict.fromkeys(("learning_rate", "learningrate", "base_lr", "init_lr", "alpha"), "lr optimizer.lr"),
    **dict.fromkeys(("wd", "decay", "l2", "weightdecay"), "weight_decay optimizer.weight_decay"),
    **dict.fromkeys(("bs", "batch", "batchsize", "train_batch_size"), "batch_size dataloader.batch_size"),
    **dict.fromkeys(("test_batch_size", "eval_bs", "val_batch_size"), "eval_batch_size dataloader.eval_batch_size"),
    **dict.fromkeys(("epochs", "epoch", "max_epochs", "num_epochs", "n_epochs", "nepochs"), "epochs trainer.epochs"),
    **dict.fromkeys(("workers", "nworkers", "n_workers", "num_worker"), "num_workers dataloader.num_workers"),
    **dict.fromkeys(("gradient_clip_val", "clip", "clip_grad", "max_grad_norm"), "grad_clip trainer.grad_clip"),
    **dict.fromkeys(
        ("accumulate_grad_batches", "gradient_accumulation_steps", "accum"), "accumulate trainer.accumulate"
    ),
    **dict.fromkeys(("random_seed", "manual_seed", "rng", "seed_everything"), "seed"),
    **dict.fromkeys(("data", "datamodule"), "dataset"),
    **dict.fromkeys(("optim", "opt"), "optimizer"),
    **dict.fromkeys(("criterion", "loss_fn", "objective"), "loss"),
    **dict.fromkeys(("net", "network", "arch", "architecture"), "model"),
    **dict.fromkeys(("lr_scheduler", "sched", "schedule"), "scheduler"),
    **dict.fromkeys(("accelerator", "gpu", "gpus"), "cuda device"),
    **dict.fromkeys(("resume", "pretrained", "ckpt", "weights", "checkpoint_path"), "model_weights"),
    **dict.fromkeys(("from", "csv", "table", "grid"), "points"),
    "dropout_rate": "dropout",
    "amp": "precision",
    "classes": "num_classes dataset.num_classes",
    **dict.fromkeys(("ce", "crossentropy", "cross-entropy", "xent", "softmax"), "cross_entropy"),
    **dict.fromkeys(("nllloss", "nll_loss"), "nll"),
    "mseloss": "mse",
    **dict.fromkeys(("cosineannealinglr", "cosineannealing", "cosine_annealing"), "cosine"),
    **dict.fromkeys(("cosineannealingwarmrestarts", "warm_restarts", "sgdr"), "cosine_restarts"),
    **dict.fromkeys(("reducelronplateau", "reduce_on_plateau"), "plateau"),
    **dict.fromkeys(("onecyclelr", "1cycle"), "onecycle"),
    "none": "constant",
    **dict.fromkeys(("float16", "half", "16", "16-mixed"), "fp16"),
    **dict.fromkeys(("float32", "32", "full", "single"), "fp32"),
    **dict.fromkeys(("bfloat16", "bf16-mixed"), "bf16"),
}


AVERAGES = ("ema", "swa")  # of weights; what they are evaluated on is named val_ema, ...


def part_of(split: str) -> str:
    """The part of the data that rows of a name are of: val, of val_ema."""
    return next((split.removesuffix(f"_{kind}") for kind in AVERAGES if split.endswith(f"_{kind}")), split)


def nearest(choice: str, choices: Sequence[str]) -> str | None:
    """The choice that was meant: by another library's name, or the nearest."""
    words = ALIASES.get(choice.lower(), "").split()
    lower = re.sub(r"(lr|loss|optimizer)$", "", choice.lower())
    known = [c for c in choices if c in words or c.replace("_", "") in (lower, choice.lower().replace("_", ""))]
    return next(iter(known or difflib.get_close_matches(choice.lower(), choices, 1)), None)
