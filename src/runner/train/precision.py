"""In which floating-point format the model computes. Parameters, loss and metrics are always fp32."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from runner.errors import InputError

CPU = torch.device("cpu")
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
HALF = frozenset(AUTOCAST.values())
TYPES = ("fp32", "tf32", "bf16", "fp16")


class Precision:
    """A format by name: fp32, tf32 (fp32 with shorter products), or bf16 and fp16 by torch.autocast.

    fp16 scales the loss (torch.amp.GradScaler), so that small gradients do not vanish; a step whose gradients
    overflow is left out, and the scale halved.

    Its `autocast` is the context that a task is called in, entered again for each batch.
    """

    def __init__(self, type: str = "fp32", device: torch.device = CPU) -> None:
        if type not in TYPES:
            raise InputError(f"precision.type={type}: unknown; choices: {', '.join(TYPES)}")
        self.type, self.device = type, device
        self.scaler = torch.amp.GradScaler(device.type) if type == "fp16" else None
        is_mixed = type in AUTOCAST
        self.autocast: AbstractContextManager[Any] = (
            torch.autocast(device.type, AUTOCAST[type]) if is_mixed else nullcontext()
        )

    def prepare(self, optimizer: Optimizer, unfrozen_later: Iterable[nn.Parameter] = ()) -> None:
        """Gives a fused SGD its momentum at once: torch leaves it uninitialised where fp16 leaves out the first step,
        and fails where only some of a group's parameters have one, as when the others are unfrozen later.

        Raises:
            InputError: a dampening, with which a momentum of zero is another beginning.
        """
        if not isinstance(optimizer, torch.optim.SGD):
            return
        later, why = {id(parameter) for parameter in unfrozen_later}, "unfreeze_at" if self.scaler is None else "fp16"
        for group in optimizer.param_groups:
            wanted = [p for p in group["params"] if self.scaler is not None or id(p) in later]
            if group["fused"] and group["momentum"] != 0 and wanted:
                if group["dampening"] != 0:
                    given = f"optimizer.dampening={group['dampening']}"
                    raise InputError(f"{given}: with {why} needs optimizer.fused=false")
                for parameter in wanted:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def scaled(self, loss: Tensor) -> Tensor:
        """What backward() is called on."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def unscale(self, optimizer: Optimizer) -> None:
        """Gives the gradients their true size, to be clipped."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer) -> None:
        """Of fp16: a step of the scaled gradients, left out where they overflowed."""
        assert self.scaler is not None
        self.scaler.step(optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.scaler is not None:
            self.scaler.load_state_dict(state)


def as_fp32(output: Any) -> Any:
    """A tensor of bf16 or fp16 in fp32; anything else as it is."""
    return output.float() if isinstance(output, Tensor) and output.dtype in HALF else output


def resolve(type: str = "fp32", device: torch.device = CPU) -> Precision:
    """The Precision on a device; says to CUDA whether fp32 may be computed as tf32.

    Raises:
        InputError: an unknown type, or one that the device does not compute.
    """
    precision = Precision(type, device)
    if type in ("tf32", "fp16") and device.type != "cuda":
        choices = "fp32, bf16"
        raise InputError(f"precision={type}: needs a CUDA GPU, and the device is {device}; choices: {choices}")
    if device.type == "cuda":
        allow_tf32(type == "tf32")
        capability = torch.cuda.get_device_capability(device)
        if type in ("tf32", "bf16") and capability < (8, 0):
            name = torch.cuda.get_device_name(device)
            raise InputError(f"precision={type}: {name} has no {type}, which came with compute capability 8.0")
    return precision


def allow_tf32(is_allowed: bool) -> None:
    """Says for the whole process whether CUDA may compute products and convolutions of fp32 as tf32."""
    cuda: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    cuda.fp32_precision = cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "tf32" if is_allowed else "ieee"
