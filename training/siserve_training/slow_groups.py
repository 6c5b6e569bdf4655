"""Parameters that learn at a share of the rate that a method gives the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["rate_factor", "slow_down"]

_FACTOR = "rate_factor"


def slow_down(
    optimizers: Mapping[str, torch.optim.Optimizer], slow: Iterable[nn.Parameter], factor: float
) -> None:
    """Move parameters into groups of their own, whichever optimisers hold them.

    Args:
        optimizers: by name, before their first step.
        slow: the parameters, pretrained ones say.
        factor: on the rate of their optimiser.
    """
    chosen = {id(parameter) for parameter in slow}
    for optimizer in optimizers.values():
        for group in list(optimizer.param_groups):
            own = [p for p in group["params"] if id(p) in chosen]
            if own:
                group["params"] = [p for p in group["params"] if id(p) not in chosen]
                rest = {key: value for key, value in group.items() if key != "params"}
                optimizer.add_param_group({**rest, "params": own, _FACTOR: factor})


def rate_factor(group: Mapping[str, Any]) -> float:
    """Return the share of the rate that a group of parameters learns at."""
    return float(group.get(_FACTOR, 1.0))
