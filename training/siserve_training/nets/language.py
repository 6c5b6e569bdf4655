"""Encoder and decoder of a sentence VAE (Bowman et al. 2016) as He et al. 2019 build them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from siserve_training.nets.gru import PackedLayout
from siserve_training.nets.lstm import packed_lstm
from siserve_training.nets.output import WordSample

__all__ = ["DecoderWeights", "LatentDecoder", "SentenceReader", "initialise_uniform"]


class SentenceReader(nn.Module):
    """LSTM over the words of a sentence, which it has vectors of its own for."""

    def __init__(self, vocabulary: int, word_embedding: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, word_embedding, padding_idx=0)
        self.lstm = nn.LSTM(word_embedding, hidden, batch_first=True)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Return the state after ``</s>`` of sentences sorted by length, longest first.

        Args:
            ids: with ``<s>`` and ``</s>``, 0-padded, (B, T).
            lengths: on the CPU, (B,).

        Returns:
            (B, H).
        """
        layout = PackedLayout.of(lengths, ids.device)
        words, places = torch.unique(ids[layout.rows, layout.steps], return_inverse=True)
        _, last = packed_lstm(self.lstm, self.embedding(words), places, layout)
        return last


@dataclass(frozen=True)
class DecoderWeights:
    """A decoder's weights in the type of its arithmetic, what words tell it projected already.

    Attributes:
        words: what each of M words adds to the gates, biases in it, (M, 4H).
        latent: (4H, D).
        recurrent: (4H, H).
        init: (H, D).
        out: of S words, (S, H).
        out_bias: (S,).
    """

    words: Tensor
    latent: Tensor
    recurrent: Tensor
    init: Tensor
    out: Tensor
    out_bias: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """In the order of the attributes."""
        return self.words, self.latent, self.recurrent, self.init, self.out, self.out_bias


class LatentDecoder(nn.Module):
    """LSTM language model that is told the latent at every step and starts from it.

    The first cell is a linear map of z, the first state its tanh (He et al. 2019). What is carried
    from step to step is [state, cell, z].

    Args:
        latent: D.
        word_embedding: size of a word vector.
        hidden: size of the state.
        vocabulary: number of word ids.
    """

    def __init__(self, latent: int, word_embedding: int, hidden: int, vocabulary: int) -> None:
        super().__init__()
        self.init = nn.Linear(latent, hidden, bias=False)
        self.lstm = nn.LSTM(word_embedding + latent, hidden, batch_first=True)
        self.out = nn.Linear(hidden, vocabulary)

    def first_state(self, z: Tensor) -> Tensor:
        """Return what is carried into the first step, (..., D) to (..., 2H+D)."""
        cell = self.init(z)
        return torch.cat([torch.tanh(cell), cell, z.to(cell.dtype)], dim=-1)

    def weights(self, words: Tensor, sample: WordSample | None = None) -> DecoderWeights:
        """Return the weights, differentiable, for many runs over the same words.

        Args:
            words: vectors of the distinct words, (M, W).
            sample: words over which the softmax is estimated; None for all.
        """
        width = words.shape[1]
        lstm = self.lstm
        biases = cast(Tensor, lstm.bias_ih_l0) + cast(Tensor, lstm.bias_hh_l0)
        inputs = cast(Tensor, lstm.weight_ih_l0)
        projected = nn.functional.linear(words, inputs[:, :width], biases)
        out: Tensor = self.out.weight
        out_bias: Tensor = self.out.bias
        if sample is not None:
            out = out.index_select(0, sample.ids)
            out_bias = out_bias.index_select(0, sample.ids) + sample.log_weight
        others = (inputs[:, width:], cast(Tensor, lstm.weight_hh_l0), self.init.weight)
        return DecoderWeights(projected, *(w.to(projected.dtype) for w in (*others, out, out_bias)))

    def forward(
        self, words: Tensor, places: Tensor, layout: PackedLayout, carried: Tensor
    ) -> Tensor:
        """Run over given tokens.

        Args:
            words: vectors of the distinct words, (M, W).
            places: index into `words` of each packed input token, (N,).
            layout: of the packed tokens, R rows.
            carried: into the first step, (R, 2H+D).

        Returns:
            States that predict the token after each place, (N, H).
        """
        state, cell, z = self._parts(carried)
        states, _ = packed_lstm(self.lstm, words, places, layout, z, (state, cell))
        return states

    def step(self, embedded: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
        """Take one token a row; return logits (R, V) and what is carried on, (R, 2H+D)."""
        state, cell, z = self._parts(carried)
        told = torch.cat([embedded, z], dim=-1).unsqueeze(1)  # (R, 1, W+D)
        first = (state.unsqueeze(0).contiguous(), cell.unsqueeze(0).contiguous())
        _, (state, cell) = self.lstm(told, first)
        logits = cast(Tensor, self.out(state[0]))
        return logits, torch.cat([state[0], cell[0], z], dim=-1)

    def _parts(self, carried: Tensor) -> tuple[Tensor, ...]:
        hidden = self.lstm.hidden_size
        sizes = [hidden, hidden, carried.shape[-1] - 2 * hidden]
        parts: tuple[Tensor, ...] = carried.split(sizes, dim=-1)
        return parts


def initialise_uniform(module: nn.Module, bound: float) -> None:
    """Initialise one module: U(-bound, bound) throughout, as Kim et al. 2018's code does (0.1)."""
    if isinstance(module, (nn.Embedding, nn.Linear, nn.LSTM)):
        for parameter in module.parameters(recurse=False):
            nn.init.uniform_(parameter, -bound, bound)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()
