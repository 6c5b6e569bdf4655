"""An SI-CVAE out of plain torch layers: what graphs must agree with, in torch's own arithmetic."""

from __future__ import annotations

import math

import numpy as np
import torch
from siserve_training.export import PosteriorDraw
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence


def layer(kind, arrays, name, *sizes, **options):
    made = kind(*sizes, **options)
    own = {key: torch.from_numpy(arrays[f"{name}.{key}"]) for key in made.state_dict()}
    made.load_state_dict(own)
    return made.eval()


class TorchSICVAE:
    """Takes and gives numpy arrays; layers are torch's, loaded from arrays of the same names."""

    def __init__(self, arrays, profile=False, logvar_clamp=0.0):
        self.profile, self.clamp = profile, logvar_clamp
        vocabulary, word = arrays["embedding.weight"].shape

        def gru(name, **options):
            inputs = arrays[f"{name}.weight_ih_l0"].shape[1]
            hidden = arrays[f"{name}.weight_hh_l0"].shape[1]
            return layer(nn.GRU, arrays, name, inputs, hidden, batch_first=True, **options)

        def linear(name):
            if f"{name}.weight" not in arrays:
                return None
            outputs, inputs = arrays[f"{name}.weight"].shape
            return layer(nn.Linear, arrays, name, inputs, outputs)

        self.embedding = layer(nn.Embedding, arrays, "embedding", vocabulary, word)
        self.topics = None
        if "topic_embedding.weight" in arrays:
            shape = arrays["topic_embedding.weight"].shape
            self.topics = layer(nn.Embedding, arrays, "topic_embedding", *shape)
        self.utterance_encoder = gru("utterance_encoder.gru", bidirectional=True)
        self.context_encoder = gru("context_encoder.gru")
        self.heads = {
            name: (linear(f"{name}.hidden"), linear(f"{name}.out"))
            for name in ("prior_net", "posterior_net")
        }
        self.init, self.out = linear("decoder.init"), linear("decoder.out")
        self.decoder = gru("decoder.gru")

    def utterances(self, ids):
        ids = torch.from_numpy(ids)
        lengths = (ids != 0).sum(1)
        packed = pack_padded_sequence(
            self.embedding(ids), lengths, batch_first=True, enforce_sorted=False
        )
        _, state = self.utterance_encoder(packed)
        return torch.cat([state[0], state[1]], dim=-1)

    @torch.no_grad()
    def encode_context(self, utterances, floor, topic, profile):
        states = []
        for ids, spoke in zip(utterances, floor, strict=True):
            real = ids.any(axis=1)
            vectors = self.utterances(ids[real])
            flags = nn.functional.one_hot(torch.from_numpy(spoke[real]), 2).float()
            _, state = self.context_encoder(torch.cat([vectors, flags], dim=-1).unsqueeze(0))
            states.append(state[0, 0])
        parts = [torch.stack(states)]
        if self.profile:
            parts.insert(0, torch.from_numpy(profile))
        if self.topics is not None:
            parts.insert(0, self.topics(torch.from_numpy(topic)))
        return torch.cat(parts, dim=-1).numpy()

    def gaussian(self, name, x):
        hidden, out = self.heads[name]
        mu, logvar = out(x if hidden is None else torch.tanh(hidden(x))).chunk(2, dim=-1)
        return mu, logvar.clamp(-self.clamp, self.clamp) if self.clamp else logvar

    @torch.no_grad()
    def prior(self, c, eps_z):
        mu, logvar = self.gaussian("prior_net", torch.from_numpy(c))
        return (mu + torch.exp(logvar / 2) * torch.from_numpy(eps_z)).numpy()

    @torch.no_grad()
    def posterior(self, c, response, eps_lam, eps_z):
        c, draws = torch.from_numpy(c), eps_lam.shape[1]
        features = torch.cat([c, self.utterances(response)], dim=-1)
        features = features.unsqueeze(1).expand(-1, draws, -1)
        mu, logvar = self.gaussian(
            "posterior_net", torch.cat([features, torch.from_numpy(eps_lam)], dim=-1)
        )
        z = mu[:, 0] + torch.exp(logvar[:, 0] / 2) * torch.from_numpy(eps_z)
        components = log_normal(z.unsqueeze(1), mu, logvar)
        log_q_z = torch.logsumexp(components, dim=-1) - math.log(draws)
        log_p_z = log_normal(z, *self.gaussian("prior_net", c))
        return PosteriorDraw(z.numpy(), log_q_z.numpy(), log_p_z.numpy())

    @torch.no_grad()
    def first_state(self, c, z):
        return self.init(torch.from_numpy(np.concatenate([c, z], axis=1))).numpy()

    @torch.no_grad()
    def step(self, token, state):
        embedded = self.embedding(torch.from_numpy(token)).unsqueeze(1)
        _, state = self.decoder(embedded, torch.from_numpy(state).unsqueeze(0))
        return self.out(state[0]).numpy(), state[0].numpy()


def log_normal(z, mu, logvar):
    return torch.distributions.Normal(mu, torch.exp(logvar / 2)).log_prob(z).sum(-1)
