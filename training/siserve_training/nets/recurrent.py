"""Recurrent encoders and the decoder of Zhao et al. 2017 (section 5.2 and their code's sizes)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from siserve_training.nets.dropout import Dropout
from siserve_training.nets.gru import PackedLayout, packed_gru

__all__ = ["ContextEncoder", "ResponseDecoder", "UtteranceEncoder"]


class UtteranceEncoder(nn.Module):
    """Bidirectional GRU; an utterance's vector joins both directions' final states."""

    def __init__(self, word_embedding: int, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRU(word_embedding, hidden, batch_first=True, bidirectional=True)

    def forward(self, words: Tensor, places: Tensor, lengths: Tensor) -> Tensor:
        """Encode utterances that are sorted by length, longest first.

        Args:
            words: vectors of the distinct words, (M, W).
            places: index into `words` of each token, (Q, T).
            lengths: tokens of each utterance, on the CPU, (Q,).

        Returns:
            [final forward state, final backward state], (Q, 2H).
        """
        layout = PackedLayout.of(lengths, places.device)
        ahead = places[layout.rows, layout.steps]
        back = places[layout.rows, layout.reversed(lengths)]
        _, forward = packed_gru(self.gru, words, ahead, layout)
        _, backward = packed_gru(self.gru, words, back, layout, reverse=True)
        return torch.cat([forward, backward], dim=-1)  # (Q, 2H)


class ContextEncoder(nn.Module):
    """GRU over utterance vectors, each with the floor as a 2-way one-hot."""

    def __init__(self, utterance: int, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRU(utterance + 2, hidden, batch_first=True)

    def forward(
        self,
        vectors: Tensor,
        places: Tensor,
        floor: Tensor,
        lengths: Tensor,
        dropout: Dropout | None = None,
    ) -> Tensor:
        """Return the state after the last utterance of each context.

        Args:
            vectors: vectors of the distinct utterances, (Q, F).
            places: index into `vectors`, oldest first, (B, U).
            floor: 1 where the responder spoke, 0 elsewhere, (B, U).
            lengths: utterances of each context, on the CPU, (B,).
            dropout: on utterance and floor, a mask of its own for each place.

        Returns:
            (B, H).
        """
        lengths, order = lengths.sort(descending=True, stable=True)
        order = order.to(places.device)
        layout = PackedLayout.of(lengths, places.device)
        rows = order[layout.rows]
        one_hot = nn.functional.one_hot(floor[rows, layout.steps], 2)  # (N, 2)
        place = places[rows, layout.steps]  # (N,)
        if dropout is None:
            _, state = packed_gru(self.gru, vectors, place, layout, shift=one_hot)
        else:
            said = dropout(torch.cat([vectors[place], one_hot.to(vectors.dtype)], dim=-1))
            _, state = packed_gru(
                self.gru, said, torch.arange(len(said), device=said.device), layout
            )
        return state[order.argsort()]  # (B, H)


class ResponseDecoder(nn.Module):
    """GRU language model whose first state is a linear map of [c, z]; z enters only there.

    Args:
        condition: size of [c, z]; 0 for a model that makes the first state itself.
        word_embedding: size of a word vector.
        hidden: size of the state.
        vocabulary: number of word ids.
    """

    def __init__(self, condition: int, word_embedding: int, hidden: int, vocabulary: int) -> None:
        super().__init__()
        if condition:
            self.init = nn.Linear(condition, hidden)
        self.gru = nn.GRU(word_embedding, hidden, batch_first=True)
        self.out = nn.Linear(hidden, vocabulary)

    def first_state(self, c: Tensor, z: Tensor) -> Tensor:
        """Return the state before ``<s>``; leading axes of c and z agree, (..., H)."""
        return cast(Tensor, self.init(torch.cat([c, z], dim=-1)))

    def forward(self, words: Tensor, places: Tensor, layout: PackedLayout, state: Tensor) -> Tensor:
        """Run over given tokens; real tokens only come out.

        Args:
            words: vectors of the distinct words, (M, W).
            places: index into `words` of each packed input token, (N,).
            layout: of the packed tokens, R rows.
            state: first states, (R, H).

        Returns:
            States that predict the token after each place, (N, H).
        """
        states, _ = packed_gru(self.gru, words, places, layout, state)
        return states

    def step(self, embedded: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take one token a row; return logits (R, V) and the next state (R, H)."""
        _, following = self.gru(embedded.unsqueeze(1), state.unsqueeze(0))
        return self.out(following[0]), following[0]
