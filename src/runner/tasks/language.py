"""Language modelling: the next token after every token."""

from typing import Any

import torch
from torch import Tensor, nn

from runner.errors import InputError
from runner.tasks.step import Step
from runner.tasks.supervised import Supervised


class NextToken(Supervised):
    """criterion(scores of every position, the token that follows it); the mean is over tokens.

    A batch is (tokens, following), both int64 (N, T); `following` holds -100 where nothing is to be predicted. The
    model gives scores (N, T, C); criterion and metrics get (N x T, C) and (N x T,).

    Args:
        dataset: the training set; where it has `classes`, the text of each token, sample() can write.
        sample_length: tokens that sample() writes after the first one; 0: it writes nothing.
        temperature: of the distribution that it draws from.
    """

    def __init__(
        self, model: nn.Module, criterion: Any, dataset: Any = None, sample_length: int = 200, temperature: float = 1.0
    ) -> None:
        super().__init__(model, criterion)
        if sample_length < 0:
            raise ValueError(f"sample_length={sample_length}: must not be negative")
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}: must be above 0")
        given = getattr(dataset, "classes", None)
        self.tokens = [str(token) for token in given] if isinstance(given, (list, tuple, str)) else []
        self.sample_length, self.temperature = sample_length, temperature

    def forward(self, batch: tuple[Any, Any]) -> Step:
        tokens = batch[0]
        if tokens.dim() != 2 or tokens.is_floating_point():
            raise InputError(
                f"task: NextToken (task=next_token) takes tokens (N, T) of integers, got {tokens.dtype}"
                f" {list(tokens.shape)}; choose dataset=text, or another task"
            )
        return super().forward(batch)

    def judged(self, output: Tensor, target: Tensor) -> Step:
        return super().judged(output.flatten(0, -2), target.flatten())

    @torch.no_grad()
    def sample(self) -> str | None:
        """Text that the model writes, token after token; None where it cannot or is not to."""
        if not self.tokens or not self.sample_length:
            return None
        device = next(self.parameters()).device
        written = torch.randint(len(self.tokens), (1, 1), device=device)
        context = getattr(self.model, "context", None)
        for _ in range(self.sample_length):
            seen = written if context is None else written[:, -context:]
            scores = self.model(seen)[0, -1].float() / self.temperature
            written = torch.cat([written, torch.multinomial(scores.softmax(0), 1)[None]], dim=1)
        return "".join(self.tokens[token] for token in written[0].tolist())
