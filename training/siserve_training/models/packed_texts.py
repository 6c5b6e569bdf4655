"""Texts as a decoder takes them: packed, several draws of a latent for each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from siserve_training.nets.dropout import Dropout
from siserve_training.nets.gru import PackedLayout

__all__ = ["PackedTexts", "pack_texts"]


@dataclass(frozen=True)
class PackedTexts:
    """What a decoder is told and what it is to say, J rows for each of B texts.

    Attributes:
        layout: of the packed tokens, R = B J rows.
        words: vectors of the distinct words, (M, W).
        places: index into `words` of each packed input token, (N,).
        targets: id of the token that follows each place, (N,).
        draws: J.
    """

    layout: PackedLayout
    words: Tensor
    places: Tensor
    targets: Tensor
    draws: int

    def sums(self, of_tokens: Tensor) -> Tensor:
        """Sum what was found of each packed token over its row, (N,) to (B, J)."""
        rows = int(self.layout.batch_sizes[0])
        return (
            of_tokens.new_zeros(rows).index_add(0, self.layout.rows, of_tokens).view(-1, self.draws)
        )


def pack_texts(
    ids: Tensor,
    lengths: Tensor,
    embedding: nn.Embedding,
    draws: int,
    dropout: Dropout | None = None,
    share_masks: bool = False,
) -> PackedTexts:
    """Lay out texts, longest first.

    Args:
        ids: with ``<s>`` and ``</s>``, 0-padded, (B, T).
        lengths: predicted tokens of each, on the CPU, (B,).
        embedding: vectors of words.
        draws: J.
        dropout: on the words that the decoder is told; every token has a mask of its own.
        share_masks: whether the J rows of a text share its masks.
    """
    layout = PackedLayout.of(lengths.repeat_interleave(draws), ids.device)
    texts = layout.rows // draws
    given, targets = ids[texts, layout.steps], ids[texts, layout.steps + 1]  # (N,)
    distinct, places = torch.unique(given, return_inverse=True)
    words = embedding(distinct)  # (M, W)
    if dropout is not None and share_masks:
        of_text = PackedLayout.of(lengths, ids.device)
        number = torch.zeros_like(ids)
        number[of_text.rows, of_text.steps] = torch.arange(len(of_text.rows), device=ids.device)
        words = dropout(embedding(ids[of_text.rows, of_text.steps]))
        places = number[texts, layout.steps]
    elif dropout is not None:
        words, places = dropout(words[places]), torch.arange(len(given), device=ids.device)
    return PackedTexts(layout, words, places, targets, draws)
