"""Initial weights as in Zhao et al. 2017's code."""

from __future__ import annotations

import torch
from torch import nn

from siserve_training.nets.recurrent import ResponseDecoder

__all__ = ["initialise_as_zhao"]

_BOUND = 0.08


def initialise_as_zhao(module: nn.Module) -> None:
    """Initialise one module: U(-0.08, 0.08), Glorot for dense layers, GRU gates at 1."""
    if isinstance(module, nn.Embedding):
        nn.init.uniform_(module.weight, -_BOUND, _BOUND)
        if module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.GRU):
        for name, parameter in module.named_parameters():
            if "weight" in name:
                nn.init.uniform_(parameter, -_BOUND, _BOUND)
            else:
                nn.init.zeros_(parameter)
                if "bias_ih" in name:  # gate order r, z, n; the candidate's bias stays 0
                    nn.init.ones_(parameter[: 2 * module.hidden_size])
    if isinstance(module, ResponseDecoder):
        nn.init.uniform_(module.out.weight, -_BOUND, _BOUND)
