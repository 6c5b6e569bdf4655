"""A pretrained BERT that turns token ids into one vector a sentence."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

__all__ = ["SentenceEncoder"]

_LEAST_LENGTH = 1e-12  # as torch.nn.functional.normalize has


class SentenceEncoder(nn.Module):
    """BERT (Devlin et al. 2019), then the mean over tokens or the first one (Reimers 2019).

    It drops nothing while it trains: a mask would have to be an argument, as all randomness is.

    Args:
        vocabulary, hidden, layers, heads, intermediate, positions, token_types, epsilon: sizes.
        pooling: "mean" or "first".
        normalize: whether vectors are scaled to length sqrt(P).
    """

    def __init__(
        self,
        vocabulary: int,
        hidden: int,
        layers: int,
        heads: int,
        intermediate: int,
        positions: int,
        token_types: int,
        epsilon: float,
        pooling: str = "mean",
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.normalize = normalize
        sizes: dict[str, Any] = {
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": intermediate,
            "max_position_embeddings": positions,
            "type_vocab_size": token_types,
            "layer_norm_eps": epsilon,
        }
        still: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        self.bert = BertModel(BertConfig(**sizes, **still), add_pooling_layer=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Encode sentences, ids padded by 0 at their ends, (Q, T) to (Q, P)."""
        is_token = ids != 0  # (Q, T)
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        states: Tensor = self.bert(
            input_ids=ids,
            attention_mask=is_token.long(),
            position_ids=places,
            token_type_ids=torch.zeros_like(ids),
        ).last_hidden_state  # (Q, T, P)
        if self.pooling == "first":
            vectors = states[:, 0]
        else:
            share = is_token.unsqueeze(2) / is_token.sum(1).view(-1, 1, 1)  # (Q, T, 1)
            vectors = (states * share).sum(1)
        if self.normalize:
            length = vectors.norm(dim=1, keepdim=True).clamp(min=_LEAST_LENGTH)
            vectors = vectors * (math.sqrt(vectors.shape[1]) / length)
        return vectors
