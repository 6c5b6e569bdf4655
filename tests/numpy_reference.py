"""An SI-CVAE in plain numpy and float64: what graphs must agree with, written a second time."""

from __future__ import annotations

import numpy as np
from siserve_training.export import PosteriorDraw


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class NumpySICVAE:
    """Follows torch's definition of the GRU; one utterance and one step at a time."""

    def __init__(self, arrays, profile=False, logvar_clamp=0.0):
        self.arrays = {name: array.astype(np.float64) for name, array in arrays.items()}
        self.profile = profile
        self.clamp = logvar_clamp

    def linear(self, name, x):
        return x @ self.arrays[f"{name}.weight"].T + self.arrays[f"{name}.bias"]

    def gru_step(self, name, x, h, suffix=""):
        a = self.arrays
        of_x = x @ a[f"{name}.weight_ih_l0{suffix}"].T + a[f"{name}.bias_ih_l0{suffix}"]
        of_h = h @ a[f"{name}.weight_hh_l0{suffix}"].T + a[f"{name}.bias_hh_l0{suffix}"]
        x_r, x_z, x_n = np.split(of_x, 3, axis=-1)
        h_r, h_z, h_n = np.split(of_h, 3, axis=-1)
        z = sigmoid(x_z + h_z)
        return (1 - z) * np.tanh(x_n + sigmoid(x_r + h_r) * h_n) + z * h

    def last_state(self, name, steps, suffix=""):
        h = np.zeros(self.arrays[f"{name}.weight_hh_l0{suffix}"].shape[1])
        for x in steps:
            h = self.gru_step(name, x, h, suffix)
        return h

    def utterance(self, ids):
        embedded = self.arrays["embedding.weight"][ids[ids != 0]]
        forward = self.last_state("utterance_encoder.gru", embedded)
        backward = self.last_state("utterance_encoder.gru", embedded[::-1], "_reverse")
        return np.concatenate([forward, backward])

    def encode_context(self, utterances, floor, topic, profile):
        rows = []
        for ids, spoke, topic_id, people in zip(utterances, floor, topic, profile, strict=True):
            used = [u for u in range(len(ids)) if ids[u].any()]
            steps = [
                np.append(self.utterance(ids[u]), [spoke[u] != 1, spoke[u] == 1]) for u in used
            ]
            parts = [self.last_state("context_encoder.gru", steps)]
            if self.profile:
                parts.insert(0, people)
            if "topic_embedding.weight" in self.arrays:
                parts.insert(0, self.arrays["topic_embedding.weight"][topic_id])
            rows.append(np.concatenate(parts))
        return np.stack(rows)

    def gaussian(self, name, x):
        if f"{name}.hidden.weight" in self.arrays:
            x = np.tanh(self.linear(f"{name}.hidden", x))
        mu, logvar = np.split(self.linear(f"{name}.out", x), 2, axis=-1)
        return mu, np.clip(logvar, -self.clamp, self.clamp) if self.clamp else logvar

    def prior(self, c, eps_z):
        mu, logvar = self.gaussian("prior_net", c)
        return mu + np.exp(logvar / 2) * eps_z

    def posterior(self, c, response, eps_lam, eps_z):
        vectors = np.stack([self.utterance(ids) for ids in response])
        features = np.concatenate([c, vectors], axis=1)[:, None].repeat(eps_lam.shape[1], axis=1)
        mu, logvar = self.gaussian("posterior_net", np.concatenate([features, eps_lam], axis=-1))
        z = mu[:, 0] + np.exp(logvar[:, 0] / 2) * eps_z
        components = log_normal(z[:, None], mu, logvar)
        log_q_z = np.logaddexp.reduce(components, axis=1) - np.log(components.shape[1])
        return PosteriorDraw(z, log_q_z, log_normal(z, *self.gaussian("prior_net", c)))

    def first_state(self, c, z):
        return self.linear("decoder.init", np.concatenate([c, z], axis=1))

    def step(self, token, state):
        state = self.gru_step("decoder.gru", self.arrays["embedding.weight"][token], state)
        return self.linear("decoder.out", state), state


def log_normal(z, mu, logvar):
    return -0.5 * (np.log(2 * np.pi) + logvar + (z - mu) ** 2 / np.exp(logvar)).sum(-1)
