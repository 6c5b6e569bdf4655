"""The weights of a decoder as the kernels read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from siserve.bundle.manifest import Manifest
from siserve.serving.fused.weights import (
    DecoderWeights,
    Floats,
    NotFused,
    filled,
    may_never_be_said,
)

__all__ = ["Layout"]

_TILE = 16  # rows of a tensor core's tile of weights
_SLICE = 8  # numbers that it adds up at once
_WORDS = 128  # of a block of threads
_LOWEST = -1e30  # of a word that is not there
_LARGEST_CONDITION = 1536  # numbers of [c z]; eight rows of them lie in 48 KiB of shared memory


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
    def of(cls, weights: DecoderWeights, manifest: Manifest, is_exact: bool = False) -> Layout:
        """Lay the weights of a bundle out.

        Args:
            weights: of its decoder.
            manifest: of the same bundle.
            is_exact: whether products are in float32 and not in TF32.

        Raises:
            NotFused: if c and z are too many numbers for a block of threads.
        """
        sizes, tokens = manifest.sizes, manifest.tokens
        units, condition = sizes.state, sizes.context + sizes.latent
        if condition > _LARGEST_CONDITION:
            raise NotFused(
                f"c and z have {condition} numbers, expected at most {_LARGEST_CONDITION}"
            )
        padded = -(-units // _TILE) * _TILE
        words = -(-sizes.vocabulary // _WORDS) * _WORDS
        w = weights
        of_words = np.zeros((sizes.vocabulary, 3, padded), np.float32)
        w.put_of_words(of_words)
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
            may_never_be_said=may_never_be_said(manifest),
            first_kernel=filled(w.first_kernel, condition, padded),
            first_bias=filled(w.first_bias, padded),
            of_words=of_words,
            gates=_in_tiles(filled(w.gates, 3, padded, padded).reshape(-1, padded), is_exact),
            candidate_bias=filled(w.candidate_bias, padded),
            output=_in_tiles(filled(w.output, words, padded), is_exact),
            output_bias=filled(w.output_bias, words, by=_LOWEST),
        )

    def definitions(self) -> str:
        """Return the lines that stand before the kernels."""
        lines = [f"#define {name} {value}" for name, value in self.constants.items()]
        tests = " || ".join(f"(word) == {id_}" for id_ in self.may_never_be_said)
        return "\n".join([*lines, f"#define MAY_NEVER_BE_SAID(word) ({tests})", ""])


def _in_tiles(matrix: Floats, is_exact: bool) -> Floats:
    """Order a matrix, (M, U), as the lanes of a warp hold it, tile by tile; round it to TF32."""
    rows, columns = matrix.shape
    tiles = matrix.reshape(rows // _TILE, 2, 8, columns // _SLICE, 2, 4)
    ordered = np.ascontiguousarray(tiles.transpose(0, 3, 2, 5, 4, 1))
    if is_exact:
        return ordered
    return ((ordered.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
