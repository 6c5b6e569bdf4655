"""SI-CVAE's training loss the way research code computes it: our loss's second opinion and rival.

Plain PyTorch layers over padded tensors, as in the code that the paper builds on (Zhao et al.
2017): every window encodes its context utterances anew, each padded to 40 tokens, the padding
computed and the state gathered at the utterance's length; the response is encoded apart; the
decoder runs over padding to the batch's longest response, and so does the output layer, whose
logits are all kept for a masked cross-entropy. The densities are torch.distributions'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from siserve_training.data.pairs import Ints, PairSet
from siserve_training.models.cvae import CVAE

__all__ = ["PaddedBatch", "ResearchSICVAE", "twin_name"]


@dataclass(frozen=True)
class PaddedBatch:
    """B windows, each with its own copy of its utterances.

    Attributes:
        context: ids, 0-padded, all 0 where a context is shorter, (B, U, T).
        context_tokens: tokens of each utterance, 0 where there is none, (B, U).
        context_lengths: utterances of each context, (B,).
        floor: 1 where the responder spoke, (B, U).
        response: ids, 0-padded to the longest response, (B, R).
        response_tokens: tokens of each response, (B,).
        topic: topic id, (B,).
        profile: both speakers' numbers, (B, 8).
    """

    context: Tensor
    context_tokens: Tensor
    context_lengths: Tensor
    floor: Tensor
    response: Tensor
    response_tokens: Tensor
    topic: Tensor
    profile: Tensor

    @classmethod
    def of(cls, pairs: PairSet, responses: Ints, width: int = 40) -> PaddedBatch:
        """Copy out the windows of the responses at some positions, utterance by utterance."""
        windows = [pairs.context_of(int(response)) for response in responses]
        most = max(map(len, windows))
        context, tokens, floor = [], [], []
        for window, response in zip(windows, responses, strict=True):
            said = [pairs.texts[pairs.text_of[place]] for place in window]
            said += [()] * (most - len(said))
            context.append([[*ids, *[0] * (width - len(ids))] for ids in said])
            tokens.append([len(ids) for ids in said])
            is_own = [int(pairs.speaker_of[at] == pairs.speaker_of[response]) for at in window]
            floor.append(is_own + [0] * (most - len(is_own)))
        answers = [pairs.texts[pairs.text_of[response]] for response in responses]
        longest = max(map(len, answers))
        dialogs, speakers = pairs.dialog_of[responses], pairs.speaker_of[responses]
        profiles = [pairs.profile_of[dialogs, who] for who in (speakers, 1 - speakers)]
        return cls(
            context=torch.tensor(context),
            context_tokens=torch.tensor(tokens),
            context_lengths=torch.tensor([len(window) for window in windows]),
            floor=torch.tensor(floor),
            response=torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in answers]),
            response_tokens=torch.tensor([len(ids) for ids in answers]),
            topic=torch.from_numpy(pairs.topic_of[dialogs]),
            profile=torch.from_numpy(np.concatenate(profiles, axis=1)),
        )


def twin_name(name: str) -> str:
    """Return what one of CVAE's parameters is called here.

    A padded bidirectional nn.GRU would begin its way back in the padding, so each direction is a
    GRU of its own here.
    """
    if name.endswith("_reverse"):
        return name.removesuffix("_reverse").replace(".gru.", ".back.")
    return name


class ResearchSICVAE(nn.Module):
    """An SI-CVAE out of plain layers, with the sizes and a copy of the weights of ours."""

    def __init__(self, ours: CVAE) -> None:
        super().__init__()
        sizes = self.sizes = ours.config
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.word_embedding, padding_idx=0)
        if sizes.topics:
            self.topic_embedding = nn.Embedding(sizes.topics + 1, sizes.topic_embedding)
        self.utterance_encoder = nn.ModuleDict(
            {way: _gru(sizes.word_embedding, sizes.utterance_hidden) for way in ("gru", "back")}
        )
        self.context_encoder = nn.ModuleDict(
            {"gru": _gru(sizes.response + 2, sizes.context_hidden)}
        )
        latent = 2 * sizes.latent
        self.prior_net = _perceptron(sizes.condition, sizes.prior_hidden, latent)
        features = sizes.condition + sizes.response + sizes.noise
        self.posterior_net = _perceptron(features, sizes.post_hidden, latent)
        self.decoder = nn.ModuleDict(
            {
                "init": nn.Linear(sizes.condition + sizes.latent, sizes.decoder_hidden),
                "gru": _gru(sizes.word_embedding, sizes.decoder_hidden),
                "out": nn.Linear(sizes.decoder_hidden, sizes.vocabulary),
            }
        )
        weights = ours.state_dict()
        self.load_state_dict({twin_name(name): weights[name] for name in weights})

    def encode_utterances(self, ids: Tensor, tokens: Tensor) -> Tensor:
        """Encode padded utterances, padding included, (R, T) and (R,) to (R, F)."""
        places = torch.arange(ids.shape[1])
        left = (tokens.unsqueeze(1) - 1 - places).clamp(min=0)  # (R, T)
        backwards = ids.gather(1, left)  # from the last token to the first, then the first again
        states = [
            _last(self.utterance_encoder[way](self.embedding(read))[0], tokens)
            for way, read in (("gru", ids), ("back", backwards))
        ]
        return torch.cat(states, dim=-1)  # (R, F)

    def encode_context(self, batch: PaddedBatch) -> Tensor:
        """Encode every utterance of every window, then the windows; return c, (B, C)."""
        windows, utterances, width = batch.context.shape  # B, U, T
        vectors = self.encode_utterances(
            batch.context.view(-1, width), batch.context_tokens.view(-1)
        ).view(windows, utterances, -1)  # (B, U, F)
        one_hot = nn.functional.one_hot(batch.floor, 2).to(vectors.dtype)
        states, _ = self.context_encoder["gru"](torch.cat([vectors, one_hot], dim=-1))
        parts = [_last(states, batch.context_lengths)]
        if self.sizes.profile:
            parts.insert(0, batch.profile)
        if self.sizes.topics:
            parts.insert(0, self.topic_embedding(batch.topic))
        return torch.cat(parts, dim=-1)

    def gaussian(self, net: nn.ModuleDict, features: Tensor) -> Normal:
        """Apply a network to features that hold the noise already; return the Gaussian."""
        if "hidden" in net:
            features = torch.tanh(net["hidden"](features))
        mu, logvar = net["out"](features).chunk(2, dim=-1)
        if self.sizes.logvar_clamp:
            logvar = logvar.clamp(-self.sizes.logvar_clamp, self.sizes.logvar_clamp)
        return Normal(mu, torch.exp(0.5 * logvar))

    def log_p_x(self, response: Tensor, c: Tensor, z: Tensor) -> Tensor:
        """Decode J copies of each padded response, (B, R), (B, J, C) and (B, J, D) to (B, J)."""
        pairs, draws, _ = z.shape
        copies = response.repeat_interleave(draws, dim=0)  # (B*J, R)
        state = self.decoder["init"](torch.cat([c, z], dim=-1)).flatten(0, 1)  # (B*J, H)
        embedded = self.embedding(copies[:, :-1])
        states, _ = self.decoder["gru"](embedded, state.unsqueeze(0))  # (B*J, R-1, H)
        logits = self.decoder["out"](states)  # (B*J, R-1, V)
        losses = nn.functional.cross_entropy(
            logits.flatten(0, 1), copies[:, 1:].flatten(), ignore_index=0, reduction="none"
        )
        return -losses.view(pairs, draws, -1).sum(-1)

    def forward(
        self, batch: PaddedBatch, eps_lam: Tensor, eps_z: Tensor, beta: float = 1.0
    ) -> Tensor:
        """Return the loss -L_{beta,K}, the mean over the batch in nats.

        Args:
            batch: B windows.
            eps_lam: noise of J own and K auxiliary lambdas, own first, (B, J+K, E).
            eps_z: noise of the latents, (B, J, D).
            beta: weight of the KL term.
        """
        draws = eps_z.shape[1]  # J
        c = self.encode_context(batch)  # (B, C)
        answer = self.encode_utterances(batch.response, batch.response_tokens)
        known = torch.cat([c, answer], dim=-1).unsqueeze(1).expand(-1, eps_lam.shape[1], -1)
        components = self.gaussian(self.posterior_net, torch.cat([known, eps_lam], dim=-1))
        mu, sigma = components.loc, components.scale  # (B, J+K, D)
        z = mu[:, :draws] + sigma[:, :draws] * eps_z  # (B, J, D)

        log_own = Normal(mu[:, :draws], sigma[:, :draws]).log_prob(z).sum(-1)  # (B, J)
        aux = Normal(mu[:, None, draws:], sigma[:, None, draws:])
        log_aux = aux.log_prob(z.unsqueeze(2)).sum(-1)  # (B, J, K)
        mixture = torch.cat([log_own.unsqueeze(-1), log_aux], dim=-1)  # (B, J, K+1)
        log_q_z = torch.logsumexp(mixture, dim=-1) - math.log(mixture.shape[-1])
        log_p_z = self.gaussian(self.prior_net, c.unsqueeze(1)).log_prob(z).sum(-1)
        log_p_x = self.log_p_x(batch.response, c.unsqueeze(1).expand(-1, draws, -1), z)
        loss: Tensor = -(log_p_x - beta * (log_q_z - log_p_z)).mean(-1).mean()
        return loss


def _gru(inputs: int, hidden: int) -> nn.GRU:
    return nn.GRU(inputs, hidden, batch_first=True)


def _perceptron(inputs: int, hidden: int, outputs: int) -> nn.ModuleDict:
    layers = {"hidden": nn.Linear(inputs, hidden)} if hidden else {}
    return nn.ModuleDict({**layers, "out": nn.Linear(hidden or inputs, outputs)})


def _last(states: Tensor, lengths: Tensor) -> Tensor:
    """Take each row's state at its last real place, (R, T, H) and (R,) to (R, H)."""
    return states[torch.arange(len(states)), (lengths - 1).clamp(min=0)]
