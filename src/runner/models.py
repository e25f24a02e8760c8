"""Networks for images (N, C, H, W) that return raw scores (N, num_classes); an autoencoder, and one for tokens."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    """The network of the official PyTorch MNIST example, for any input of at least 6x6 pixels.

    Source: github.com/pytorch/examples, mnist/main.py. The same layers, names and order of random numbers; its final
    log_softmax belongs to the loss here (`loss=nll`). For 1x28x28 and 10 classes it has the 1,199,882 parameters.
    """

    def __init__(self, input_shape: Sequence[int] = (1, 28, 28), num_classes: int = 10) -> None:
        super().__init__()
        channels, height, width = input_shape
        if min(height, width) < 6:
            raise ValueError(f"input_shape={list(input_shape)}: two 3x3 convolutions and a pool need at least 6x6")
        self.conv1 = nn.Conv2d(channels, 32, 3, 1)
        self.conv2 = nn.Conv2d(32, 64, 3, 1)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(64 * ((height - 4) // 2) * ((width - 4) // 2), 128)
        self.fc2 = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # the same bits as relu before the pool, on a quarter of the numbers
        x = self.dropout1(x)
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        return self.fc2(self.dropout2(x))  # type: ignore[no-any-return]


class MLP(nn.Sequential):
    """Dense layers of the `hidden` widths on the flattened input, with ReLU, and batch norm and dropout if asked."""

    def __init__(
        self,
        input_shape: Sequence[int] = (1, 28, 28),
        num_classes: int = 10,
        hidden: Sequence[int] = (256, 128),
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        if any(out < 1 for out in hidden):
            raise ValueError(f"hidden={list(hidden)}: each width must be at least 1")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout={dropout}: must be between 0 and 1")
        width = 1
        for size in input_shape:
            width *= size
        layers: list[nn.Module] = [nn.Flatten()]
        for out in hidden:
            layers.append(nn.Linear(width, out))
            if batch_norm:
                layers.append(nn.BatchNorm1d(out))
            layers.append(nn.ReLU())
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = out
        super().__init__(*layers, nn.Linear(width, num_classes))


class StridedNet(nn.Sequential):
    """Convolutions of stride 2 without padding, then a dense layer, each with batch norm and ReLU."""

    def __init__(
        self,
        input_shape: Sequence[int] = (1, 28, 28),
        num_classes: int = 10,
        widths: Sequence[int] = (12, 48),
        kernel_size: int = 5,
        hidden: int = 256,
    ) -> None:
        for name, sizes in (("widths", list(widths)), ("kernel_size", kernel_size), ("hidden", hidden)):
            if any(size < 1 for size in (sizes if isinstance(sizes, list) else [sizes])):
                raise ValueError(f"{name}={sizes}: must be at least 1")
        channels, height, width = input_shape
        layers: list[nn.Module] = []
        for out in widths:
            height, width = (height - kernel_size) // 2 + 1, (width - kernel_size) // 2 + 1
            if min(height, width) < 1:
                raise ValueError(
                    f"input_shape={list(input_shape)}: too small for {len(widths)} convolutions of"
                    f" {kernel_size}x{kernel_size} with stride 2"
                )
            layers += [nn.Conv2d(channels, out, kernel_size, 2, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        dense = [nn.Linear(channels * height * width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
        super().__init__(*layers, nn.Flatten(), *dense, nn.Linear(hidden, num_classes))


def resnet18(
    input_shape: Sequence[int] = (3, 32, 32),
    num_classes: int = 10,
    small_images: bool = True,
    weights: str | None = None,
) -> nn.Module:
    """torchvision's ResNet-18 for any number of channels and classes.

    Args:
        small_images: a 3x3 stem of stride 1 and no max-pool, for images of about 32x32.
        weights: a name of torchvision's ResNet18_Weights; layers whose shape differs keep their random weights.
    """
    from torchvision.models import ResNet18_Weights
    from torchvision.models import resnet18 as torchvision_resnet18

    trained: dict[str, Any] = {}
    if weights is not None:
        if weights not in ("DEFAULT", *ResNet18_Weights.__members__):
            raise ValueError(f"weights={weights}: unknown; choices: DEFAULT, {', '.join(ResNet18_Weights.__members__)}")
        trained = ResNet18_Weights[weights].get_state_dict(progress=False)
    model: nn.Module = torchvision_resnet18(num_classes=num_classes)
    channels = input_shape[0]
    if small_images:
        model.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
        model.maxpool = nn.Identity()
    elif channels != 3:
        model.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    model.load_state_dict({k: v for k, v in trained.items() if shapes.get(k) == v.shape}, strict=False)
    return model


class Autoencoder(nn.Sequential):
    """Dense layers down to `code` numbers and up again, with ReLU between them; out comes the input's shape."""

    def __init__(
        self, input_shape: Sequence[int] = (1, 28, 28), hidden: Sequence[int] = (128,), code: int = 16
    ) -> None:
        if code < 1 or any(width < 1 for width in hidden):
            raise ValueError(f"hidden={list(hidden)}, code={code}: each width must be at least 1")
        widths = [math.prod(input_shape), *hidden, code, *reversed(hidden), math.prod(input_shape)]
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        super().__init__(*layers[:-1], nn.Unflatten(1, tuple(input_shape)))


class GPT(nn.Module):
    """A small decoder of the Transformer: tokens int64 (N, T) to scores (N, T, num_classes), each of what follows.

    Learned positions, layer norm before each part, no bias in the attention; the scores share the tokens' embedding.

    Args:
        num_classes: distinct tokens.
        context: T at most.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
    """

    def __init__(
        self,
        num_classes: int,
        context: int = 64,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in (("context", context), ("width", width), ("depth", depth), ("heads", heads)):
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if width % heads:
            raise ValueError(f"heads={heads}: must divide width={width}")
        self.context = context
        self.tokens, self.positions = nn.Embedding(num_classes, width), nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.shape[1] > self.context:
            raise ValueError(f"{tokens.shape[1]} tokens are more than the model's context={self.context}")
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


class Block(nn.Module):
    """Attention to what came before, then two dense layers, each added to what came in: (N, T, width)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.dense = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = self.queries_keys_values(self.norm1(x)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        dropout = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.dense(self.norm2(x))  # type: ignore[no-any-return]


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def layer_table(model: nn.Module) -> list[dict[str, Any]]:
    """One row a layer that holds parameters or has no layers inside: name, type and number of parameters."""
    rows = []
    for name, module in model.named_modules():
        own = sum(p.numel() for p in module.parameters(recurse=False))
        if own or not list(module.children()):
            rows.append({"name": name or "(model)", "type": type(module).__name__, "parameters": own})
    return rows
