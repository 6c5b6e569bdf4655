"""Checkpoints: safetensors and JSON, whole or absent.

A checkpoint is a folder ``checkpoints/step-N`` with the model as `save_pretrained` writes it, the
optimisers' tensors and the loop's counters. It is written under another name, synced and renamed;
then ``last.json`` or ``best.json`` is replaced to point at it. A crash at any moment leaves the old
one in place. Random numbers need no state: they are functions of the seed and the counters.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from siserve_training.errors import RunError

__all__ = ["LoopState", "load_optimizers", "pointed", "save_checkpoint", "write_atomically"]


@dataclass(frozen=True)
class LoopState:
    """What the loop needs to go on as if it had never stopped.

    Attributes:
        step: updates done.
        inner_batches: batches that Algorithm 1's inner steps have used.
        aggressive: whether the adaptive aggressive mode is still on.
        last_mutual_information: of the pass before, in nats (adaptive mode).
        best_score: best valid score so far, the ELBO where there is one.
    """

    step: int = 0
    inner_batches: int = 0
    aggressive: bool = True
    last_mutual_information: float = 0.0
    best_score: float = -1e30


def write_atomically(path: Path, content: str) -> None:
    """Replace a file by temp, fsync, rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(path.parent)


def save_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    optimizers: dict[str, torch.optim.Optimizer],
    state: LoopState,
    names: tuple[str, ...],
) -> Path:
    """Write a checkpoint and point `names` (last, best) at it; drop what nothing points at.

    Args:
        folder: the run's folder of checkpoints.
        model: saved by `save_pretrained`.
        optimizers: by name.
        state: counters.
        names: pointers to move.

    Returns:
        The checkpoint's folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{state.step:07d}"
    if not target.exists():
        temporary = folder / f".tmp-{target.name}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        model.save_pretrained(temporary)
        tensors, scalars = _flatten(optimizers)
        save_file(tensors, temporary / "optimizers.safetensors")
        content = {"state": asdict(state), "optimizers": scalars}
        (temporary / "trainer_state.json").write_text(json.dumps(content, indent=2) + "\n")
        for file in temporary.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        os.replace(temporary, target)
        _sync_folder(folder)
    for name in names:
        write_atomically(folder / f"{name}.json", json.dumps({"checkpoint": target.name}) + "\n")
    kept = {pointed(folder, name) for name in ("last", "best")}
    for old in folder.glob("step-*"):
        if old not in kept:
            shutil.rmtree(old)
    return target


def pointed(folder: Path, name: str) -> Path | None:
    """Return the checkpoint that `name` points at, None if there is none."""
    pointer = folder / f"{name}.json"
    if not pointer.is_file():
        return None
    return folder / str(json.loads(pointer.read_text())["checkpoint"])


def load_optimizers(checkpoint: Path, optimizers: dict[str, torch.optim.Optimizer]) -> LoopState:
    """Fill the optimisers from a checkpoint and return the counters.

    Raises:
        RunError: if the checkpoint was made with other optimisers.
    """
    content = json.loads((checkpoint / "trainer_state.json").read_text())
    tensors = load_file(checkpoint / "optimizers.safetensors")
    if set(content["optimizers"]) != set(optimizers):
        raise RunError(
            f"{checkpoint} holds optimisers {sorted(content['optimizers'])}, this run has "
            f"{sorted(optimizers)}; resume with the configuration that the run was started with"
        )
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(_unflatten(name, tensors, content["optimizers"][name]))
    return LoopState(**content["state"])


def _flatten(
    optimizers: dict[str, torch.optim.Optimizer],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for name, optimizer in optimizers.items():
        state = optimizer.state_dict()
        for index, entries in state["state"].items():
            for key, value in entries.items():
                tensors[f"{name}/{index}/{key}"] = value.detach().cpu().contiguous()
        scalars[name] = state["param_groups"]
    return tensors, scalars


def _unflatten(name: str, tensors: dict[str, Tensor], groups: Any) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        owner, index, entry = key.split("/")
        if owner == name:
            state.setdefault(int(index), {})[entry] = value
    return {"state": state, "param_groups": groups}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
