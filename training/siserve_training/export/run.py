"""From a run folder to a bundle: `siserve export RUN --out DIR`."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
import transformers
from pydantic import JsonValue
from siserve import __version__
from siserve.bundle.manifest import Features, Limits, Manifest, Sampling, Tokens

from siserve_training.config import TrainConfig
from siserve_training.export.bundle import Release, export_bundle
from siserve_training.export.model import TrainedModel
from siserve_training.export.torch_reference import ModelReference
from siserve_training.export.trial import valid_examples
from siserve_training.export.weights import DType, FloatArray
from siserve_training.methods import load_method
from siserve_training.models.pretrained import load_sentence_encoder
from siserve_training.run_folder import RunFolder

__all__ = ["export_run"]


def export_run(
    run_dir: Path,
    out: Path,
    *,
    name: str = "",
    version: str = "1",
    dtype: DType = "float32",
    checkpoint: str = "best",
    sampling: Sampling | None = None,
    model_card: str = "",
    metrics: Mapping[str, float] | None = None,
    provenance: Mapping[str, JsonValue] | None = None,
    data: Path | None = None,
) -> Manifest:
    """Export a checkpoint of a run.

    Args:
        run_dir: folder that `siserve train` wrote.
        out: folder to make.
        name: of the model; "" is task and method, such as dialog-si-cvae.
        version: of the model.
        dtype: of the stored weights; float16 halves the bundle, graphs compute in float32.
        checkpoint: "best" or "last".
        sampling: default sampling options; None for temperature 1.
        model_card: Markdown; "" writes a plain card from the facts.
        metrics: added to those of the run's last validation at or before the checkpoint.
        provenance: added to what the run knows of itself.
        data: folder of the corpus, whose valid split the 8-bit decoder is tried on; None to try
            it on the model's own responses.

    Returns:
        The manifest that was written.

    Raises:
        RunError: if the folder holds no run or no checkpoint.
        ExportError: if the graphs differ from the model; nothing is written then.
        UsageError: if `out` is there already.
    """
    run = RunFolder(run_dir)
    config = run.config()
    folder = run.checkpoint(checkpoint)
    text, found = run.text(), run.features()
    transformers.utils.logging.disable_progress_bar()  # it is over before it can be read
    model = load_method(config.method).model_class.from_pretrained(folder)
    encoder = run.sentence_folder()
    if encoder is not None and not model.holds_sentence_encoder:
        model.sentence_encoder = load_sentence_encoder(encoder)  # a bundle holds all it needs
    arrays = {
        name: tensor.detach().float().cpu().numpy().copy()
        for name, tensor in model.state_dict().items()
    }
    trained = TrainedModel(
        method=config.method,
        arrays=arrays,
        tokens=Tokens.model_validate(dataclasses.asdict(text.tokens)),
        features=Features(topics=found.topics, profile=found.profile),
        logvar_clamp=config.logvar_clamp,
        noise_multiplies=config.noise_entry == "multiplied",
        keep_start_mark=getattr(model.config, "keep_start_mark", True),
        sentence=encoder.shape if encoder else None,
        context_tokenizer=encoder.text().to_json() if encoder else "",
    )
    longest = config.max_utterance_tokens
    release = Release(
        name=name or f"{config.task}-{config.method}",
        version=version,
        task="lm" if config.task == "lm" else "dialog",
        model_card=model_card,
        sampling=_within(sampling or Sampling(), longest),
        limits=Limits(
            context_utterances=config.context_utterances,
            utterance_tokens=longest,
            response_tokens=longest,
        ),
        provenance={**_provenance(run, config, folder), **(provenance or {})},
        metrics={**_valid_metrics(run, folder), **(metrics or {})},
        trial=valid_examples(data, config.context_utterances) if data else (),
    )

    def reference(rounded: Mapping[str, FloatArray]) -> ModelReference:
        return ModelReference(model, rounded)

    return export_bundle(out, trained, text.to_json(), reference, release, dtype)


def _within(sampling: Sampling, longest: int) -> Sampling:
    """Keep default responses within the longest that the model has seen."""
    return sampling.model_copy(update={"max_tokens": min(sampling.max_tokens, longest)})


def _provenance(run: RunFolder, config: TrainConfig, folder: Path) -> dict[str, JsonValue]:
    """Tell corpus, configuration, checkpoint and versions; paths are cut to their last part."""
    corpus = {key: value for key, value in run.corpus().items() if key != "topics"}
    started_from = run.started_from()
    return {
        "corpus": corpus,
        "config": run.portable_config(config),
        **({"started_from": started_from} if started_from else {}),
        "seed": config.seed,
        "step": _step(folder),
        "versions": {
            "siserve": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "numpy": np.__version__,
        },
    }


def _step(folder: Path) -> int:
    """Read a checkpoint's step from its name, step-N."""
    return int(folder.name.rpartition("-")[2])


def _valid_metrics(run: RunFolder, folder: Path) -> dict[str, float]:
    """Return the last validation at or before the checkpoint, as valid_NAME."""
    latest: dict[str, float] = {}
    if not run.metrics.is_file():
        return latest
    for line in run.metrics.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the torn last line of a killed run
        if entry.get("kind") == "valid" and entry["step"] <= _step(folder):
            latest = {
                f"valid_{name}": float(value)
                for name, value in entry.items()
                if name not in ("step", "kind", "time") and math.isfinite(value)
            }
    return latest
