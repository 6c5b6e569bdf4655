"""From a trained model to a bundle: graphs, parity, manifest; the whole of it or nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import onnx
from pydantic import JsonValue, ValidationError
from siserve.bundle.context_text import ContextText
from siserve.bundle.manifest import Description, Limits, Manifest, Sampling, Sizes
from siserve.bundle.tensors import (
    CONTEXT_TOKENIZER_FILE,
    DECODER_INT8,
    MODEL_CARD_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
)
from siserve.bundle.text import Text
from siserve.bundle.writing import write_bundle

from siserve_training.export.card import plain_card
from siserve_training.export.errors import ExportError
from siserve_training.export.golden import make_golden
from siserve_training.export.graph import place_weights
from siserve_training.export.model import GraphSet, TrainedModel
from siserve_training.export.parity import check_parity
from siserve_training.export.reference import Answers, Reference
from siserve_training.export.trial import Example, try_int8
from siserve_training.export.weights import (
    DType,
    FloatArray,
    WeightStore,
    read_places,
    round_weights,
)
from siserve_training.methods import load_graphs

__all__ = ["MakeReference", "Release", "export_bundle"]

#: Makes the model that the graphs must agree with, from weights rounded as they are stored.
MakeReference = Callable[[Mapping[str, FloatArray]], Reference | Answers]

_LARGEST = "parity_largest_difference"


@dataclass(frozen=True)
class Release:
    """What a bundle says of itself beside its graphs.

    Attributes:
        name: of the model, as requests name it.
        version: of the model.
        task: "dialog" or "lm".
        model_card: Markdown; "" writes a plain card from the facts.
        sampling: options where a request gives none.
        limits: the longest input that the model was trained on.
        provenance: corpus, command, seeds, versions and so on.
        metrics: what was measured, by name.
        created: ISO time; "" is now.
        trial: responses that the 8-bit decoder is tried on; none = the model's own.
    """

    name: str
    version: str
    task: Literal["dialog", "lm"] = "dialog"
    model_card: str = ""
    sampling: Sampling = Sampling()
    limits: Limits = Limits()
    provenance: Mapping[str, JsonValue] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    created: str = ""
    trial: Sequence[Example] = ()


def export_bundle(
    target: Path,
    model: TrainedModel,
    tokenizer: str,
    make_reference: MakeReference,
    release: Release,
    dtype: DType = "float32",
) -> Manifest:
    """Emit a model's graphs, check them against the model and write the bundle.

    Args:
        target: folder to make.
        model: method, weights, special tokens and features.
        tokenizer: content of tokenizer.json.
        make_reference: called with the weights as they are stored.
        release: what the bundle says of itself.
        dtype: of the stored weights; the graphs compute in float32 either way.

    Returns:
        The manifest that was written; its metrics hold the largest difference found, and the
        perplexity of the 8-bit decoder as a ratio, which is left out if that is off.

    Raises:
        ExportError: if the weights do not fit the method, or the graphs differ from the model.
        UsageError: if `target` is there already.
    """
    text = _read_tokenizer(tokenizer, model, release.limits)
    context_text = ContextText.from_json(model.context_tokenizer) if model.sentence else text
    weights = WeightStore(dtype)
    built = load_graphs(model.method)(model, weights)
    described = _describe(model, built.sizes, release)
    with tempfile.TemporaryDirectory(prefix="siserve-export-") as scratch:
        folder = Path(scratch)
        _write_graphs(folder, built, weights)
        reference = make_reference(round_weights(model.arrays, dtype))
        num_topics = len(model.features.topics)
        context_ids = model.sentence.vocabulary if model.sentence else 0
        parity = check_parity(folder, reference, model.tokens, built.sizes, num_topics, context_ids)
        # of a bundle that is exported again: those of both exports add up at worst
        before = release.metrics.get(_LARGEST, 0.0)
        largest = {_LARGEST: before + max(parity.differences.values())}
        trial = try_int8(folder, described, text, context_text, release.trial)
        described = described.model_copy(
            update={
                "metrics": {**described.metrics, **largest, **trial.metrics()},
                "golden": make_golden(folder, described, context_text),
                "provenance": {**described.provenance, "int8_trial": trial.told},
            }
        )
        left_out = set() if trial.passed else {DECODER_INT8.file}
        card = release.model_card or plain_card(described, dtype)
        files: dict[str, bytes | Path] = {
            TOKENIZER_FILE: tokenizer.encode(),
            MODEL_CARD_FILE: card.encode(),
            WEIGHTS_FILE: folder / WEIGHTS_FILE,
            **{name: folder / name for name in built.graphs if name not in left_out},
        }
        if model.sentence:
            files[CONTEXT_TOKENIZER_FILE] = model.context_tokenizer.encode()
        return write_bundle(target, files, described)


def _read_tokenizer(tokenizer: str, model: TrainedModel, limits: Limits) -> Text:
    try:
        text = Text.from_json(tokenizer, limits.utterance_tokens)
    except Exception as error:  # the tokenizers package raises bare Exception
        raise ExportError(f"tokenizer.json cannot be read: {error}") from error
    words = model.arrays["embedding.weight"].shape[0] if "embedding.weight" in model.arrays else 0
    if text.size != words:
        raise ExportError(
            f"the tokenizer has {text.size} words, the model's embedding {words} rows; export "
            "with the tokenizer that the model was trained with"
        )
    ids = {name: getattr(text.tokens, name) for name in type(model.tokens).model_fields}
    if ids != model.tokens.model_dump():
        raise ExportError(f"the tokenizer's special tokens are {ids}, the model's {model.tokens}")
    return text


def _write_graphs(folder: Path, built: GraphSet, weights: WeightStore) -> None:
    serialized = weights.to_bytes()
    (folder / WEIGHTS_FILE).write_bytes(serialized)
    places = read_places(serialized)
    for name, graph in built.graphs.items():
        place_weights(graph, places)
        (folder / name).write_bytes(graph.SerializeToString(deterministic=True))
        try:
            onnx.checker.check_model(folder / name, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ExportError(f"{name} is no valid ONNX graph: {error}") from error


def _describe(model: TrainedModel, sizes: Sizes, release: Release) -> Description:
    try:
        return Description(
            name=release.name,
            version=release.version,
            task=release.task,
            method=model.method,
            created=release.created or datetime.now(UTC).isoformat(timespec="seconds"),
            tokens=model.tokens,
            sizes=sizes,
            limits=release.limits,
            features=model.features,
            sampling=release.sampling,
            provenance=dict(release.provenance),
            metrics=dict(release.metrics),
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ExportError(
            f"{where} of the bundle cannot be {first['input']!r}: {first['msg']}"
        ) from None
