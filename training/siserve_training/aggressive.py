"""Aggressive training of the inference network: the paper's Algorithm 1 and the adaptive rule.

``fixed:T`` takes T encoder-only steps on fresh batches before each update of both sides.
``adaptive`` follows He et al. 2019 (the lagging-encoder paper's code): encoder-only steps, the
first on the outer batch, at most 99 and checked every 15, until the loss per token no longer
falls; then the decoder alone is updated. After each pass the mutual information on the valid split
decides: once it is lower than the pass before, aggressive mode ends for good.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["InnerLoop"]

_MAX_STEPS = 99
_CHECK_EVERY = 15
_NO_LOSS_YET = 1e4


@dataclass
class InnerLoop:
    """Decides after each encoder-only step whether another follows.

    Args:
        steps: T of ``fixed:T``; None for the adaptive rule.
    """

    steps: int | None
    done: int = 0
    loss: float = 0.0
    tokens: int = 0
    previous: float = _NO_LOSS_YET

    @property
    def wants_step(self) -> bool:
        """Whether an encoder-only step should be taken now."""
        return self.done < (_MAX_STEPS if self.steps is None else self.steps)

    def took(self, loss_sum: float, tokens: int) -> bool:
        """Note a step; return whether the adaptive rule has just ended the loop.

        Args:
            loss_sum: rec + beta KL of the batch, summed over its pairs, in nats.
            tokens: predicted tokens of the batch.
        """
        self.done += 1
        if self.steps is not None:
            return False
        self.loss += loss_sum
        self.tokens += tokens
        if self.done % _CHECK_EVERY:
            return False
        average = self.loss / self.tokens
        if average > self.previous:
            return True
        self.previous, self.loss, self.tokens = average, 0.0, 0
        return False
