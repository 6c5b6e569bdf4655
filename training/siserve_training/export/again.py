"""From a bundle to a bundle with the graphs of today: `siserve export BUNDLE --out DIR`.

A bundle outlives the run that it came from. Its weights are all that a model is, so graphs that
later versions emit can be emitted for it; they must answer as the graphs that it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import JsonValue
from siserve.bundle.manifest import Manifest
from siserve.bundle.tensors import (
    CONTEXT_TOKENIZER_FILE,
    MODEL_CARD_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
)
from siserve.bundle.verify import Bundle, open_bundle

from siserve_training.export.bundle import Release, export_bundle
from siserve_training.export.graph_answers import GraphAnswers
from siserve_training.export.model import TrainedModel
from siserve_training.export.stored import read_stored_weights
from siserve_training.export.traits import read_sentence_shape, read_traits
from siserve_training.export.trial import valid_examples
from siserve_training.export.weights import FloatArray

__all__ = ["export_again"]

_TOKEN_TYPES = "sentence_encoder.bert.embeddings.token_type_embeddings.weight"


def export_again(
    path: Path,
    out: Path,
    *,
    name: str = "",
    version: str = "",
    sampling: Mapping[str, float | int] | None = None,
    model_card: str = "",
    data: Path | None = None,
) -> Manifest:
    """Emit the graphs of a bundle again, from its own weights, and check them against it.

    Args:
        path: folder of the bundle.
        out: folder to make.
        name: of the model; "" keeps it, as the other options do.
        version: of the model.
        sampling: default options to change, by their names in the manifest.
        model_card: Markdown.
        data: corpus whose valid split the 8-bit decoder is tried on; None for its own responses.

    Returns:
        The manifest that was written. Weights, their type and all that the bundle says of itself
        are kept; where it came from is added to its provenance.

    Raises:
        BundleError: if the bundle is none, or was changed.
        ExportError: if a graph does not answer as the bundle's; nothing is written then.
        UsageError: if `out` is there already.
    """
    bundle = open_bundle(path)
    old = bundle.manifest
    arrays, dtype = read_stored_weights(bundle.file(WEIGHTS_FILE))
    release = Release(
        name=name or old.name,
        version=version or old.version,
        task=old.task,
        sampling=old.sampling.model_copy(update=dict(sampling or {})),
        limits=old.limits,
        provenance={**old.provenance, "exported_from": _origin(old)},
        metrics=old.metrics,
        model_card=model_card or _card(bundle, f"{name or old.name}@{version or old.version}"),
        trial=valid_examples(data, old.limits.context_utterances) if data else (),
    )

    def as_before(_: Mapping[str, FloatArray]) -> GraphAnswers:
        return GraphAnswers(bundle.path, old.tokens, old.sizes)

    return export_bundle(
        out,
        _model(bundle, arrays),
        _read(bundle, TOKENIZER_FILE),
        as_before,
        release,
        dtype,
    )


def _model(bundle: Bundle, arrays: dict[str, FloatArray]) -> TrainedModel:
    manifest, traits = bundle.manifest, read_traits(bundle)
    has_own_tokenizer = bundle.has(CONTEXT_TOKENIZER_FILE)
    if has_own_tokenizer:
        arrays = {**arrays, _TOKEN_TYPES: _token_types(manifest, arrays)}
    return TrainedModel(
        method=manifest.method,
        arrays=arrays,
        tokens=manifest.tokens,
        features=manifest.features,
        logvar_clamp=traits.logvar_clamp,
        noise_multiplies=traits.noise_multiplies,
        keep_start_mark=traits.keep_start_mark,
        sentence=read_sentence_shape(bundle, arrays) if has_own_tokenizer else None,
        context_tokenizer=_read(bundle, CONTEXT_TOKENIZER_FILE) if has_own_tokenizer else "",
    )


def _token_types(manifest: Manifest, arrays: Mapping[str, FloatArray]) -> FloatArray:
    """Fill the table of token types up to the rows that the manifest counts; one is ever used."""
    first = arrays[_TOKEN_TYPES]  # (1, P)
    missing = manifest.sizes.num_parameters - sum(array.size for array in arrays.values())
    return np.pad(first, ((0, missing // first.shape[1]), (0, 0)))


def _card(bundle: Bundle, full_name: str) -> str:
    """Return the bundle's card, the name in its heading brought up to date."""
    old, card = f"# {bundle.manifest.full_name}\n", _read(bundle, MODEL_CARD_FILE)
    return f"# {full_name}\n{card.removeprefix(old)}" if card.startswith(old) else card


def _origin(manifest: Manifest) -> dict[str, JsonValue]:
    return {
        "name": manifest.name,
        "version": manifest.version,
        "created": manifest.created,
        "sha256": manifest.sha256,
    }


def _read(bundle: Bundle, name: str) -> str:
    return bundle.file(name).read_text(encoding="utf-8")
