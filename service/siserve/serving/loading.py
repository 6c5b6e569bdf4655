"""From a bundle's folder to a model that is ready to start."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from siserve.bundle.context_text import ContextText
from siserve.bundle.errors import BundleError
from siserve.bundle.golden import GoldenGraphs, check_golden
from siserve.bundle.manifest import Manifest
from siserve.bundle.tensors import CONTEXT_TOKENIZER_FILE, DECODER, TOKENIZER_FILE, Graph
from siserve.bundle.text import Text
from siserve.bundle.verify import Bundle, open_bundle
from siserve.serving.cores import usable_cores
from siserve.serving.dialog_model import DialogModel
from siserve.serving.engine import Engine, EngineOptions, Observer
from siserve.serving.requests import RequestLimits
from siserve.serving.sessions import AnyArray, Placement, Sessions, load_sessions

__all__ = ["load_model"]

_log = logging.getLogger(__name__)

#: Of the golden log-probabilities in 8-bit integers: enough to tell rounding from another model.
_INT8_TOLERANCE = 0.1
#: Workers on CUDA, if nobody says how many: one decodes while the others encode, and more than a
#: few hinder each other in Python.
_MOST_ON_CUDA = 4


def load_model(
    path: Path,
    placement: Placement,
    limits: RequestLimits,
    options: EngineOptions,
    observer: Observer,
) -> DialogModel:
    """Check a bundle, load it, and check what its graphs give; start() makes it answer.

    Raises:
        BundleError: if the bundle cannot be trusted or does not hold a dialog model.
        UsageError: if the device or the precision cannot be had.
    """
    bundle = open_bundle(path)
    manifest = bundle.manifest
    text = _load_text(bundle)
    context_text = _load_context_text(bundle) or text
    cores = usable_cores()
    sessions = _load_checked(bundle, placement, options.workers or cores, context_text)
    workers = options.workers or (min(_MOST_ON_CUDA, cores) if sessions.device == "cuda" else cores)
    engine = Engine(sessions, manifest, replace(options, workers=workers), observer)
    return DialogModel(
        bundle, text, context_text, engine, limits, sessions.device, sessions.precision
    )


def _load_checked(
    bundle: Bundle, placement: Placement, workers: int, context_text: Text | ContextText
) -> Sessions:
    """Load the graphs, without siserve's kernels if by them the golden request comes out wrong."""
    how = (bundle, placement.device, placement.threads_beside(workers), placement.precision)
    sessions = load_sessions(*how, placement.kernels, workers)
    try:
        _check_golden(sessions, bundle.manifest, context_text)
    except BundleError as error:
        if placement.kernels == "off":
            raise
        sessions = load_sessions(*how, "off")
        _check_golden(sessions, bundle.manifest, context_text)
        _log.warning("onnxruntime does all, not siserve's kernels: by them %s", error)
    return sessions


def _check_golden(sessions: Sessions, manifest: Manifest, context_text: Text | ContextText) -> None:
    """Run the golden request, and once more by the decoder that draws, if that is another one."""
    check_golden(GoldenGraphs(sessions.run, manifest, context_text))
    if sessions.decoder is sessions.exact_decoder:
        return

    def run(graph: Graph, inputs: Mapping[str, AnyArray]) -> Sequence[AnyArray]:
        return sessions.decoder.run(inputs) if graph is DECODER else sessions.run(graph, inputs)

    check_golden(GoldenGraphs(run, manifest, context_text), _INT8_TOLERANCE)


def _load_text(bundle: Bundle) -> Text:
    manifest = bundle.manifest
    try:
        text = Text.from_file(bundle.file(TOKENIZER_FILE), manifest.limits.utterance_tokens)
    except Exception as error:  # tokenizers raises plain Exception
        raise BundleError(
            f"{TOKENIZER_FILE} cannot be read ({error}); export the model again", TOKENIZER_FILE
        ) from None
    found = (text.size, text.tokens.start, text.tokens.end)
    expected = (manifest.sizes.vocabulary, manifest.tokens.start, manifest.tokens.end)
    if found != expected:
        raise BundleError(
            f"{TOKENIZER_FILE} has size, <s> and </s> {found}, the manifest says {expected}; "
            "export the model again",
            TOKENIZER_FILE,
        )
    return text


def _load_context_text(bundle: Bundle) -> ContextText | None:
    """Load the tokenizer of the bundle's pretrained context encoder, if it has one."""
    if not bundle.has(CONTEXT_TOKENIZER_FILE):
        return None
    try:
        return ContextText.from_file(bundle.file(CONTEXT_TOKENIZER_FILE))
    except Exception as error:  # tokenizers raises plain Exception
        raise BundleError(
            f"{CONTEXT_TOKENIZER_FILE} cannot be read ({error}); export the model again",
            CONTEXT_TOKENIZER_FILE,
        ) from None
