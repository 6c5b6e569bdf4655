"""Pairs whose contexts go through a pretrained encoder."""

from __future__ import annotations

from dataclasses import replace

from siserve_training.data.pairs import PairSet
from siserve_training.data.sentence_folder import SentenceFolder
from siserve_training.data.told import Pieces, Told, Vectors
from siserve_training.models.pretrained import cache_folder, sentence_vectors

__all__ = ["tell_pairs"]


def tell_pairs(pairs: PairSet, encoder: SentenceFolder | None, tuned: bool) -> PairSet:
    """Say of each text of a split what the context encoder is told of it.

    Args:
        pairs: the split.
        encoder: the pretrained encoder, None to leave the pairs as they are.
        tuned: whether it is told token ids; a frozen one has its vectors computed here, once for
            all runs on these texts.
    """
    if encoder is None:
        return pairs
    told: Told
    if tuned:
        told = Pieces(encoder.text().encode_utterances(pairs.said))
    else:
        told = Vectors(sentence_vectors(encoder, pairs.said, cache_folder()))
    return replace(pairs, told=told)
