"""The trained model as parity wants it: the model's own layers in float32, arrays in and out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from siserve_training.export.reference import PosteriorDraw
from siserve_training.export.weights import FloatArray
from siserve_training.models.dialog_model import DialogModel
from siserve_training.models.draws import Encoded, Noise
from siserve_training.models.language import LanguageModel

__all__ = ["ModelReference"]

Ids = NDArray[np.int64]


class ModelReference:
    """Answers as `model` does with the given weights.

    Args:
        model: changed: its weights are replaced.
        arrays: weights by their names in the state dict.
    """

    def __init__(
        self, model: DialogModel | LanguageModel, arrays: Mapping[str, FloatArray]
    ) -> None:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        model.load_state_dict(tensors, assign=True)  # float32, whatever the model was in
        self._model = model.train(False)

    def encode_context(
        self, utterances: Ids, floor: Ids, topic: Ids, profile: FloatArray
    ) -> FloatArray:
        """Return c, (B, C)."""
        if isinstance(self._model, LanguageModel):
            return _array(self._model.no_condition(len(utterances)))
        is_real = utterances.any(axis=2)  # (B, U)
        vectors = self._encode_said(utterances[is_real])  # (Q, F)
        places = np.zeros(is_real.shape, np.int64)
        places[is_real] = np.arange(is_real.sum())
        with torch.no_grad():
            context = self._model.context_encoder(
                vectors,
                torch.from_numpy(places),
                torch.from_numpy(floor),
                torch.from_numpy(is_real.sum(1)),
            )
            return _array(self._model.condition(context, torch.from_numpy(topic), _tensor(profile)))

    def prior(self, c: FloatArray, eps_z: FloatArray) -> FloatArray:
        """Return z drawn from p(z|c), (R, D), by noise (R, P)."""
        with torch.no_grad():
            return _array(self._model.draw_prior(_tensor(c), _tensor(eps_z).unsqueeze(1))[:, 0])

    def posterior(
        self, c: FloatArray, response: Ids, eps_lam: FloatArray, eps_z: FloatArray
    ) -> PosteriorDraw:
        """Draw from q(z|x,c) through the first row of eps_lam.

        Its columns are the noise of the posterior's parameters, then that of the prior's.
        """
        widths = self._model.config.widths
        own, of_prior = eps_lam[..., : widths.lam], eps_lam[..., widths.lam :]
        noise = Noise(
            _tensor(own), _tensor(eps_z).unsqueeze(1), _tensor(of_prior[..., : widths.prior])
        )
        encodes = isinstance(self._model, LanguageModel) or self._model.encodes_responses
        vectors = self._encode(response) if encodes else torch.zeros(0)
        with torch.no_grad():
            latents = self._model.draw_posterior(Encoded(_tensor(c), vectors), noise)
        return PosteriorDraw(
            _array(latents.z[:, 0]), _array(latents.log_q_z[:, 0]), _array(latents.log_p_z[:, 0])
        )

    def first_state(self, c: FloatArray, z: FloatArray) -> FloatArray:
        """Return the decoder's state before ``<s>``, (R, H)."""
        with torch.no_grad():
            return _array(self._model.first_state(_tensor(c), _tensor(z)))

    def step(self, token: Ids, state: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Take one token a row; return logits (R, V) and the next state (R, H)."""
        with torch.no_grad():
            logits, following = self._model.step(torch.from_numpy(token), _tensor(state))
        return _array(logits), _array(following)

    def _encode_said(self, ids: Ids) -> Tensor:
        """Encode utterances of contexts, (Q, T) to (Q, F)."""
        if isinstance(self._model, LanguageModel) or not self._model.holds_sentence_encoder:
            return self._encode(ids)
        with torch.no_grad():
            vectors: Tensor = self._model.encode_told(torch.from_numpy(ids))
        return vectors

    def _encode(self, ids: Ids) -> Tensor:
        """Encode utterances in any order, (Q, T) to (Q, F); the model wants the longest first."""
        lengths = torch.from_numpy((ids != 0).sum(1))
        lengths, order = lengths.sort(descending=True, stable=True)
        with torch.no_grad():
            vectors: Tensor = self._model.encode_utterances(torch.from_numpy(ids)[order], lengths)
        return vectors[order.argsort()]


def _tensor(array: FloatArray) -> Tensor:
    return torch.from_numpy(array).float()


def _array(tensor: Tensor) -> FloatArray:
    array: FloatArray = tensor.numpy()
    return array
