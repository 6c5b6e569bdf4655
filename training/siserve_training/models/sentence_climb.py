"""The bound of sentences that refinement climbs, with exact products of its Hessian on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from siserve_training.data.sentence_batches import SentenceBatch
from siserve_training.distributions import DiagonalNormal
from siserve_training.models.packed_texts import pack_texts
from siserve_training.nets.language import LatentDecoder
from siserve_training.nets.lstm import StepProduct, packed_states
from siserve_training.nets.lstm_tangents import Gradients, Pair, run_back, run_with_tangents
from siserve_training.nets.output import WordSample, linear_log_probs

__all__ = ["SentenceClimb"]


class SentenceClimb:
    """log p(x|z) - beta KL(q(z|lambda) || p(z)) of each sentence; a `Climb`.

    Its parameters are the decoder's weights as one run uses them: words are projected, weights
    cast, chosen and laid out once for all steps.

    Args:
        batch: B sentences.
        embedding: vectors of words.
        decoder: of the sentences.
        prior: p(z).
        beta: weight of the KL term.
        sample: words over which the softmax is estimated; None for all.
    """

    def __init__(
        self,
        batch: SentenceBatch,
        embedding: nn.Embedding,
        decoder: LatentDecoder,
        prior: DiagonalNormal,
        beta: float,
        sample: WordSample | None,
    ) -> None:
        told = pack_texts(batch.ids, batch.response_lengths, embedding, 1)
        self.index, self.targets = told.places, told.targets
        if sample is not None:
            self.targets = torch.searchsorted(sample.ids, self.targets)
        self.sizes: list[int] = told.layout.batch_sizes.tolist()
        self.prior, self.beta = prior, beta
        weights = decoder.weights(told.words, sample)
        self.parameters = weights.tensors
        self.words, self.latent, recurrent, self.init, self.out, self.out_bias = (
            tensor.detach() for tensor in weights.tensors
        )
        self.recurrent = recurrent
        rows = self.sizes[0]
        self.forth = StepProduct(recurrent, rows)
        self.back = StepProduct(recurrent.t().contiguous(), rows)

    def posterior(self, lam: Tensor) -> DiagonalNormal:
        """Return q(z|lambda), (B, 2D)."""
        return DiagonalNormal(*lam.chunk(2, dim=-1))

    def kl(self, lam: Tensor) -> Tensor:
        """Return beta KL, summed over the batch."""
        return self.beta * self.posterior(lam.unsqueeze(1)).kl(self.prior).sum()

    def gradient(self, at: Tensor, eps: Tensor) -> Tensor:
        """See `Climb`."""
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            lam = at.detach().requires_grad_()
            z = self.posterior(lam).rsample(eps).to(self.words.dtype)
            cell = z @ self.init.t()
            states, _ = packed_states(
                self.words,
                self.index,
                z @ self.latent.t(),
                (torch.tanh(cell), cell),
                self.recurrent,
                self.sizes,
                (self.forth, self.back),
            )
            log_p_x = linear_log_probs(states, self.out, self.out_bias, self.targets).sum()
            return torch.autograd.grad(log_p_x - self.kl(lam), lam)[0]

    def products(self, at: Tensor, eps: Tensor, vector: Tensor) -> tuple[Tensor, list[Tensor]]:
        """See `Climb`."""
        mu, logvar = vector.chunk(2, dim=-1)
        with torch.autocast("cpu", enabled=False):
            q = self.posterior(at)
            z, z_dot = q.rsample(eps), mu + 0.5 * torch.exp(0.5 * q.logvar) * eps * logvar
            of_z, of_parameters = self._of_latents(z, z_dot)
            with torch.enable_grad():  # what lies between lambda and z is small
                lam = at.detach().requires_grad_()
                z = self.posterior(lam).rsample(eps)
                bound = (z * of_z.value).sum() - self.kl(lam)
                (slope,) = torch.autograd.grad(bound, lam, create_graph=True)
                total = (slope * vector).sum() + (z * of_z.dot).sum()
                (product,) = torch.autograd.grad(total, lam)
        return product, of_parameters

    def _of_latents(self, z: Tensor, z_dot: Tensor) -> tuple[Pair, list[Tensor]]:
        """Return the gradient of log p(x|z) in z, moved by z_dot; dots of those in parameters."""
        wide, narrow = z.dtype, self.words.dtype
        z, z_dot = z.to(narrow), z_dot.to(narrow)
        cell = Pair(z @ self.init.t(), z_dot @ self.init.t())
        squashed = torch.tanh(cell.value)
        flat = 1 - squashed * squashed
        state = Pair(squashed, flat * cell.dot)
        constant = Pair(z @ self.latent.t(), z_dot @ self.latent.t())
        inputs = self.words.index_select(0, self.index)
        run = run_with_tangents(inputs, constant, state, cell, self.forth, self.sizes)
        errors = self._errors(run.states)
        of_states = Pair(errors.value @ self.out, errors.dot @ self.out)
        found: Gradients = run_back(run, of_states, self.back)
        of_cell = Pair(
            found.cell.value + found.state.value * flat,
            found.cell.dot + found.state.dot * flat - 2 * found.state.value * squashed * state.dot,
        )
        of_words = torch.zeros(self.words.shape, dtype=wide)
        of_parameters = [
            of_words.index_add_(0, self.index, found.inputs.to(wide)),
            found.constant.dot.t() @ z + found.constant.value.t() @ z_dot,
            found.weight,
            of_cell.dot.t() @ z + of_cell.value.t() @ z_dot,
            errors.dot.t() @ run.states.value + errors.value.t() @ run.states.dot,
            errors.dot.sum(0),
        ]
        of_z = Pair(
            *(
                (of_constant @ self.latent + of_first @ self.init).to(wide)
                for of_constant, of_first in (
                    (found.constant.value, of_cell.value),
                    (found.constant.dot, of_cell.dot),
                )
            )
        )
        return of_z, of_parameters

    def _errors(self, states: Pair) -> Pair:
        """Return the gradients of the log-probabilities in the logits, (N, S)."""
        logits = torch.addmm(self.out_bias, states.value, self.out.t())
        logits_dot = states.dot @ self.out.t()
        wide = torch.promote_types(logits.dtype, torch.float32)
        shares = torch.softmax(logits, dim=-1, dtype=wide)
        moved = logits_dot.to(wide)
        dots = shares * ((shares * moved).sum(-1, keepdim=True) - moved)
        errors = shares.neg_()
        ones = torch.ones_like(self.targets, dtype=wide).unsqueeze(1)
        errors.scatter_add_(1, self.targets.unsqueeze(1), ones)
        return Pair(errors.to(logits.dtype), dots.to(logits.dtype))
