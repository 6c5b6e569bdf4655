"""Start a run from the weights of another one, for a second stage of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from siserve.bundle.text import Text
from torch import Tensor

from siserve_training.checkpoint import pointed
from siserve_training.errors import ConfigError, RunError
from siserve_training.models.text_model import TextModel
from siserve_training.nets.heads import GaussianHead
from siserve_training.run_folder import RunFolder

__all__ = ["start_from_run"]


def start_from_run(model: TextModel, text: Text, start: Path) -> dict[str, Any]:
    """Fill a model with the weights of another run's last checkpoint.

    A head that takes noise here and took none there keeps its own first weights of the noise, so
    that a semi-implicit density may begin where a Gaussian one ended.

    Args:
        model: to be trained; of the same sizes as that run's but for such noise.
        text: its vocabulary, which must be that run's too.
        start: folder of the other run.

    Returns:
        What that run was: its configuration, its step, and what it had started from.

    Raises:
        RunError: if there is no run or no checkpoint.
        ConfigError: if vocabulary or sizes differ.
    """
    run = RunFolder(start)
    config = run.config()
    checkpoint = pointed(run.checkpoints, "last")
    if checkpoint is None:
        raise RunError(f"start_from: {start} has no checkpoint yet; train it first")
    if run.text().to_json() != text.to_json():
        raise ConfigError(
            f"start_from: {start} has another vocabulary; pass the corpus and the "
            "vocabulary_size that it was trained with"
        )
    tensors = load_file(checkpoint / "model.safetensors")
    _add_noise(model, tensors)
    here, there = (
        {name: tuple(tensor.shape) for name, tensor in of.items()}
        for of in (model.state_dict(), tensors)
    )
    for name in [*here, *there]:
        if here.get(name) != there.get(name):
            raise ConfigError(
                f"start_from: {name} is {here.get(name, 'missing')} here and "
                f"{there.get(name, 'missing')} in {start}; take that run's method and sizes"
            )
    model.load_state_dict(tensors)
    return {
        "config": run.portable_config(config),
        "step": int(checkpoint.name.rpartition("-")[2]),
        "started_from": run.started_from(),
    }


def _add_noise(model: TextModel, tensors: dict[str, Tensor]) -> None:
    """Append a head's own weights of the noise, its last columns, to weights that lack them."""
    for prefix, head in model.named_modules():
        if isinstance(head, GaussianHead) and head.noise:
            for name, weight in head.named_parameters(prefix):
                found = tensors.get(name)
                if found is not None and found.shape[-1] + head.noise == weight.shape[-1]:
                    noise = weight.detach()[..., -head.noise :].to(found)
                    tensors[name] = torch.cat([found, noise], dim=-1)
