"""Word vectors in GloVe's text format, as a start for the word embedding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from siserve.bundle.text import Text
from torch import Tensor

from siserve_training.data.glove import read_vectors
from siserve_training.errors import ConfigError

__all__ = ["start_from_vectors"]

_RMS = 0.1  # of the loaded components; Zhao et al. draw words without a vector from N(0, 0.1^2)


def start_from_vectors(weight: Tensor, text: Text, path: Path) -> int:
    """Write known vectors, scaled to a root mean square of 0.1, over an embedding's first columns.

    Args:
        weight: the embedding, changed in place, (V, W).
        text: whose ids are the rows.
        path: ``word v1 v2 ...`` a line.

    Returns:
        Number of words found.

    Raises:
        ConfigError: if the file is missing or its vectors are wider than the embedding.
        CorpusError: if a line of it is malformed.
    """
    if not path.is_file():
        raise ConfigError(f"word_vectors: no file {path}; expected GloVe's text format")
    vocabulary = text.tokenizer.get_vocab()
    found = read_vectors(path, vocabulary)
    if not found:
        return 0
    rows = [vocabulary[word] for word in found]
    table = torch.from_numpy(np.stack(list(found.values())).astype(np.float32))  # (words, width)
    width = table.shape[1]
    if width > weight.shape[1]:
        raise ConfigError(
            f"word_vectors: {path} has vectors of {width}, wider than word_embedding "
            f"{weight.shape[1]}; raise word_embedding or take narrower vectors"
        )
    with torch.no_grad():
        weight[torch.tensor(rows), :width] = table * (_RMS / table.square().mean().sqrt())
    return len(rows)
