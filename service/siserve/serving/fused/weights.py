"""The weights of a decoder that the kernels are for: a GRU that is told the last word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from siserve.bundle.manifest import Manifest
from siserve.bundle.tensors import WEIGHTS_FILE
from siserve.bundle.verify import Bundle

__all__ = ["DecoderWeights", "Floats", "NotFused", "filled", "may_never_be_said", "read_weights"]

Floats = NDArray[np.float32]
_Number = TypeVar("_Number", bound=np.generic)
_WORDS_AT_ONCE = 512  # whose additions to gates stay in a cache


class NotFused(Exception):
    """The kernels are not for this model, device or installation; the message says why."""


@dataclass(frozen=True)
class DecoderWeights:
    """What a step multiplies and adds, (outputs, inputs) where it is a matrix.

    Attributes:
        first_kernel: the matrix that makes the first state of [c z], (C + D, H).
        first_bias: (H,).
        words: their embeddings, (V, E).
        word_kernel: the matrix by which they enter the gates r, z and n, (E, 3 H).
        word_bias: biases of both products, but for that of the candidate's, (3 H,).
        gates: the matrix by which the last state enters the gates, (3, H, H).
        candidate_bias: of that product, (H,).
        output: the output layer's matrix, (V, H).
        output_bias: (V,).
    """

    first_kernel: Floats
    first_bias: Floats
    words: Floats
    word_kernel: Floats
    word_bias: Floats
    gates: Floats
    candidate_bias: Floats
    output: Floats
    output_bias: Floats

    @classmethod
    def read(cls, bundle: Bundle) -> DecoderWeights:
        """Read those of a bundle.

        Raises:
            NotFused: as `of` and `read_weights` do.
        """
        return cls.of(read_weights(bundle, "decoder.", "embedding."), bundle.manifest)

    @classmethod
    def of(
        cls, weights: Mapping[str, NDArray[np.floating[Any]]], manifest: Manifest
    ) -> DecoderWeights:
        """Take them out of all weights of a bundle.

        Args:
            weights: the content of weights.safetensors.
            manifest: of the same bundle.

        Raises:
            NotFused: if the decoder is no GRU that is told the last word and nothing else, or its
                first state is no linear function of c and z.
        """
        units = manifest.sizes.state
        _check(weights, manifest)
        w = {
            name: weights[name].astype(np.float32, copy=False) for name in weights if _is_read(name)
        }
        word_bias = w["decoder.gru.bias_ih"].copy()
        word_bias[: 2 * units] += w["decoder.gru.bias_hh"][: 2 * units]
        return cls(
            first_kernel=_first_kernel(w, manifest),
            first_bias=w.get("decoder.init.bias", np.zeros(units, np.float32)),
            words=w["embedding.weight"],
            word_kernel=w["decoder.gru.kernel_ih"],
            word_bias=word_bias,
            gates=w["decoder.gru.kernel_hh"].T.reshape(3, units, units),
            candidate_bias=w["decoder.gru.bias_hh"][2 * units :],
            output=w["decoder.out.kernel"].T,
            output_bias=w["decoder.out.bias"],
        )

    def put_of_words(self, table: Floats) -> None:
        """Write what each word adds to the gates, biases included, to (V, 3, H or more).

        It is made in its place: the table is by far the largest of what a decoder has.
        """
        size, width = self.words.shape[1], table.shape[2]
        kernel = filled(self.word_kernel.reshape(size, 3, -1), size, 3, width).reshape(size, -1)
        bias = filled(self.word_bias.reshape(3, -1), 3, width).ravel()
        flat = table.reshape(len(table), -1)
        for first in range(0, len(self.words), _WORDS_AT_ONCE):
            some = flat[first : first + _WORDS_AT_ONCE]
            np.matmul(self.words[first : first + _WORDS_AT_ONCE], kernel, out=some)
            some += bias


def read_weights(bundle: Bundle, *beginnings: str) -> dict[str, NDArray[Any]]:
    """Read those weights of a bundle whose names begin so.

    Raises:
        NotFused: if what reads the file is not installed.
    """
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise NotFused(f"{error}; siserve[cpu] and siserve[gpu] bring it") from None
    with safe_open(bundle.file(WEIGHTS_FILE), framework="numpy") as stored:
        names = [name for name in stored.keys() if name.startswith(beginnings)]
        return {name: stored.get_tensor(name) for name in names}


def may_never_be_said(manifest: Manifest) -> tuple[int, ...]:
    """Return the ids of words that no response holds."""
    tokens = manifest.tokens
    return tuple(sorted({tokens.pad, tokens.unk, tokens.start, tokens.dialog_start}))


def filled(values: NDArray[_Number], *shape: int, by: float = 0.0) -> NDArray[_Number]:
    """Fill an array up to a shape; one that has it is returned as it is."""
    if values.shape == shape:
        return values
    whole = np.full(shape, by, values.dtype)
    whole[tuple(slice(size) for size in values.shape)] = values
    return whole


def _is_read(name: str) -> bool:
    return name.startswith("decoder.") or name == "embedding.weight"


def _check(weights: Mapping[str, NDArray[np.floating[Any]]], manifest: Manifest) -> None:
    sizes = manifest.sizes
    units, condition = sizes.state, sizes.context + sizes.latent
    expected = {
        "embedding.weight": (sizes.vocabulary, sizes.word_embedding),
        "decoder.gru.kernel_ih": (sizes.word_embedding, 3 * units),
        "decoder.gru.kernel_hh": (units, 3 * units),
        "decoder.gru.bias_ih": (3 * units,),
        "decoder.gru.bias_hh": (3 * units,),
        "decoder.out.kernel": (units, sizes.vocabulary),
        "decoder.out.bias": (sizes.vocabulary,),
    }
    if "decoder.init.kernel" in weights:
        rows = condition if len(weights["decoder.init.kernel"]) == condition else sizes.context
        expected |= {"decoder.init.kernel": (rows, units), "decoder.init.bias": (units,)}
    for name, shape in expected.items():
        if name not in weights:
            raise NotFused(f"the decoder has no {name}")
        if weights[name].shape != shape:
            raise NotFused(f"{name} has shape {weights[name].shape}, expected {shape}")
    unknown = sorted(
        name for name in weights if name.startswith("decoder.") and name not in expected
    )
    if unknown:
        raise NotFused(f"the decoder has {unknown[0]} too")
    if "decoder.init.kernel" not in weights and units != condition:
        raise NotFused(f"nothing makes its first state, of {units} numbers, of c and z")


def _first_kernel(w: Mapping[str, Floats], manifest: Manifest) -> Floats:
    """Return what makes the first state of [c z]; without weights of its own it is [z c]."""
    sizes = manifest.sizes
    if "decoder.init.kernel" in w:
        return w["decoder.init.kernel"]
    return np.roll(np.eye(sizes.context + sizes.latent, dtype=np.float32), sizes.latent, axis=1)
