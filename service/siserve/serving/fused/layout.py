"""The weights of a decoder as the kernels read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siserve.bundle.manifest import Manifest

__all__ = ["Layout", "NotFused"]

Floats = NDArray[np.float32]

_TILE = 16  # rows of a tensor core's tile of weights
_SLICE = 8  # numbers that it adds up at once
_WORDS = 128  # of a block of threads
_LOWEST = np.float32(-1e30)  # of a word that is not there
_LARGEST_CONDITION = 1536  # numbers of [c z]; eight rows of them lie in 48 KiB of shared memory


class NotFused(Exception):
    """The kernels are not for this model; the message says why."""


@dataclass(frozen=True)
class Layout:
    """What the kernels are compiled for and what they read.

    U stands for the units, padded to a multiple of 16, and W for the words, padded to a multiple of
    128.

    Attributes:
        constants: by their names in kernels.cu.
        may_never_be_said: ids of words that no response holds.
        first_kernel: the matrix that makes the first state of [c z], (C + D, U).
        first_bias: (U,).
        of_words: what each word adds to the gates r, z and n, (V, 3, U).
        gates: the matrix by which the last state enters the gates, (3 U, U), in tiles.
        candidate_bias: of that product, (U,).
        output: the output layer's matrix, (W, U), in tiles.
        output_bias: (W,), very negative where there is no word.
    """

    constants: Mapping[str, int]
    may_never_be_said: tuple[int, ...]
    first_kernel: Floats
    first_bias: Floats
    of_words: Floats
    gates: Floats
    candidate_bias: Floats
    output: Floats
    output_bias: Floats

    @classmethod
    def of(
        cls,
        weights: Mapping[str, NDArray[np.floating[Any]]],
        manifest: Manifest,
        is_exact: bool = False,
    ) -> Layout:
        """Lay the weights of a bundle out.

        Args:
            weights: the content of weights.safetensors.
            manifest: of the same bundle.
            is_exact: whether products are in float32 and not in TF32.

        Raises:
            NotFused: if the decoder is no GRU that is told the last word and nothing else, or its
                first state is no linear function of c and z.
        """
        sizes, tokens = manifest.sizes, manifest.tokens
        units, condition = sizes.state, sizes.context + sizes.latent
        _check(weights, manifest)
        w = {name: weights[name].astype(np.float32) for name in weights if _is_read(name)}
        padded = -(-units // _TILE) * _TILE
        words = -(-sizes.vocabulary // _WORDS) * _WORDS
        of_words = w["embedding.weight"] @ w["decoder.gru.kernel_ih"] + w["decoder.gru.bias_ih"]
        of_words[:, : 2 * units] += w["decoder.gru.bias_hh"][: 2 * units]
        recurrent = w["decoder.gru.kernel_hh"].T.reshape(3, units, units)
        return cls(
            constants={
                "EXACT": int(is_exact),
                "UNITS": padded,
                "MODEL_UNITS": units,
                "WORDS": words,
                "VOCABULARY": sizes.vocabulary,
                "CONTEXT": sizes.context,
                "LATENT": sizes.latent,
                "START": tokens.start,
                "END": tokens.end,
            },
            may_never_be_said=tuple(
                sorted({tokens.pad, tokens.unk, tokens.start, tokens.dialog_start})
            ),
            first_kernel=_filled(_first_kernel(w, manifest), condition, padded),
            first_bias=_filled(w.get("decoder.init.bias", np.zeros(units, np.float32)), padded),
            of_words=_filled(of_words.reshape(-1, 3, units), len(of_words), 3, padded),
            gates=_in_tiles(_filled(recurrent, 3, padded, padded).reshape(-1, padded), is_exact),
            candidate_bias=_filled(w["decoder.gru.bias_hh"][2 * units :], padded),
            output=_in_tiles(_filled(w["decoder.out.kernel"].T, words, padded), is_exact),
            output_bias=np.pad(
                w["decoder.out.bias"], (0, words - sizes.vocabulary), constant_values=_LOWEST
            ),
        )

    def definitions(self) -> str:
        """Return the lines that stand before the kernels."""
        lines = [f"#define {name} {value}" for name, value in self.constants.items()]
        tests = " || ".join(f"(word) == {id_}" for id_ in self.may_never_be_said)
        return "\n".join([*lines, f"#define MAY_NEVER_BE_SAID(word) ({tests})", ""])


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
    if condition > _LARGEST_CONDITION:
        raise NotFused(f"c and z have {condition} numbers, expected at most {_LARGEST_CONDITION}")


def _first_kernel(w: Mapping[str, Floats], manifest: Manifest) -> Floats:
    """Return what makes the first state of [c z]; without weights of its own it is [z c]."""
    sizes = manifest.sizes
    if "decoder.init.kernel" in w:
        return w["decoder.init.kernel"]
    return np.roll(np.eye(sizes.context + sizes.latent, dtype=np.float32), sizes.latent, axis=1)


def _filled(values: Floats, *shape: int) -> Floats:
    """Fill up with zeros."""
    filled = np.zeros(shape, np.float32)
    filled[tuple(slice(size) for size in values.shape)] = values
    return filled


def _in_tiles(matrix: Floats, is_exact: bool) -> Floats:
    """Order a matrix, (M, U), as the lanes of a warp hold it, tile by tile; round it to TF32."""
    rows, columns = matrix.shape
    tiles = matrix.reshape(rows // _TILE, 2, 8, columns // _SLICE, 2, 4)
    ordered = np.ascontiguousarray(tiles.transpose(0, 3, 2, 5, 4, 1))
    if is_exact:
        return ordered
    return ((ordered.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
