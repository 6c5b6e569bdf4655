"""Initial weights as in the code of Zhao et al. 2017 and of Gu et al. 2019."""

from __future__ import annotations

import torch
from torch import nn

from siserve_training.nets.adversary import NoiseNet
from siserve_training.nets.recurrent import ResponseDecoder

__all__ = ["initialise_as_gu", "initialise_as_zhao"]

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


def initialise_as_gu(module: nn.Module) -> None:
    """Initialise one module: dense U(-0.02, 0.02), GRUs orthogonal, output layer U(-0.1, 0.1).

    A mixture's network starts from U(-0.05, 0.05). Words that no vector file knows start from
    N(0, 0.1^2), with them all words if there is no file.
    """
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, 0, 0.1)
        if module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()
    elif isinstance(module, nn.Linear):
        _uniform_dense(module, 0.02)
    elif isinstance(module, nn.GRU):
        for name, parameter in module.named_parameters():
            if "weight" in name:
                nn.init.orthogonal_(parameter)
            else:  # the default of torch, which the authors leave
                nn.init.uniform_(parameter, -(module.hidden_size**-0.5), module.hidden_size**-0.5)
    elif isinstance(module, ResponseDecoder):
        _uniform_dense(module.out, 0.1)
    elif isinstance(module, NoiseNet) and module.components > 1:
        for part in module.modules():
            if isinstance(part, nn.Linear):
                _uniform_dense(part, 0.05)


def _uniform_dense(layer: nn.Linear, bound: float) -> None:
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
