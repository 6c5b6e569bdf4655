"""What an export takes and what a method makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx
from siserve.bundle.manifest import Features, Sizes, Tokens

from siserve_training.data.sentence_folder import SentenceShape
from siserve_training.export.weights import FloatArray, WeightStore

__all__ = ["GraphEmitter", "GraphSet", "TrainedModel"]


@dataclass(frozen=True)
class TrainedModel:
    """A trained model as its export sees it; neither torch nor a model class is needed.

    Attributes:
        method: key of METHODS.
        arrays: weights by their names in the model's state dict.
        tokens: ids of the special tokens.
        features: what the condition vector holds beside the context.
        logvar_clamp: bound on the absolute log-variances of all heads, 0 for none.
        noise_multiplies: whether the posterior's noise multiplies what its features give.
        keep_start_mark: whether ``<s>`` is encoded with an utterance.
        sentence: shape of the pretrained encoder that contexts go through, its weights under
            ``sentence_encoder.``; None for the GRU over words.
        context_tokenizer: content of that encoder's tokenizer.json.
    """

    method: str
    arrays: Mapping[str, FloatArray]
    tokens: Tokens
    features: Features
    logvar_clamp: float = 0.0
    noise_multiplies: bool = False
    keep_start_mark: bool = True
    sentence: SentenceShape | None = None
    context_tokenizer: str = ""


@dataclass(frozen=True)
class GraphSet:
    """The graphs of a bundle by file name, and the sizes that they have in common."""

    graphs: Mapping[str, onnx.ModelProto]
    sizes: Sizes


#: Emits the graphs of a model; the store receives every weight once.
GraphEmitter = Callable[[TrainedModel, WeightStore], GraphSet]
