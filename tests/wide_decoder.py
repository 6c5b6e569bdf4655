"""A decoder with more words and units than one block of the kernels takes, and what is right."""

import numpy as np
import safetensors.numpy
from siserve.bundle.tensors import WEIGHTS_FILE
from siserve.serving.fused.weights import DecoderWeights


def weights_of(bundle):
    return safetensors.numpy.load_file(bundle / WEIGHTS_FILE)


class Wide:
    """Its weights under a bundle's names, and what decoder.onnx would give, by NumPy."""

    VOCABULARY, UNITS = 300, 24
    FAVOURITE = 1  # <unk>, which no response may hold

    def __init__(self, manifest, rng, has_integers=False):
        """In 8-bit integers as decoder_int8.onnx has them, or not."""
        self.has_integers = has_integers

        def draw(*shape, scale):
            return (scale * rng.standard_normal(shape)).astype(np.float32)

        sizes = manifest.sizes.model_copy(
            update={"vocabulary": self.VOCABULARY, "state": self.UNITS}
        )
        self.manifest = manifest.model_copy(update={"sizes": sizes})
        width, units = sizes.word_embedding, self.UNITS
        self.weights = {
            "embedding.weight": draw(self.VOCABULARY, width, scale=1),
            "decoder.gru.kernel_ih": draw(width, 3 * units, scale=0.3),
            "decoder.gru.kernel_hh": draw(units, 3 * units, scale=0.3),
            "decoder.gru.bias_ih": draw(3 * units, scale=0.3),
            "decoder.gru.bias_hh": draw(3 * units, scale=0.3),
            "decoder.init.kernel": draw(sizes.context + sizes.latent, units, scale=0.2),
            "decoder.init.bias": draw(units, scale=0.2),
            "decoder.out.kernel": draw(units, self.VOCABULARY, scale=1),
            "decoder.out.bias": draw(self.VOCABULARY, scale=1),
        }
        self.weights["decoder.out.bias"][self.FAVOURITE] = 14.0

    @property
    def decoder_weights(self):
        return DecoderWeights.of(self.weights, self.manifest)

    def run(self, inputs):
        w, tokens = self.weights, self.manifest.tokens
        first = np.concatenate([inputs["c"], inputs["z"]], 1) @ w["decoder.init.kernel"]
        is_start = inputs["token"] == tokens.start
        state = np.where(is_start[:, None], first + w["decoder.init.bias"], inputs["state"])
        token, said, told = inputs["token"], [], []
        for uniform in inputs["uniform"]:
            x = w["embedding.weight"][token] @ w["decoder.gru.kernel_ih"] + w["decoder.gru.bias_ih"]
            h = self._product(state, "decoder.gru.kernel_hh") + w["decoder.gru.bias_hh"]
            (x_r, x_z, x_n), (h_r, h_z, h_n) = np.split(x, 3, 1), np.split(h, 3, 1)
            r, z = 1 / (1 + np.exp(-x_r - h_r)), 1 / (1 + np.exp(-x_z - h_z))
            n = np.tanh(x_n + r * h_n)
            state = n + z * (state - n)
            logits = self._product(state, "decoder.out.kernel") + w["decoder.out.bias"]
            logits = logits.astype(np.float64)
            chosen = self._choose(logits, token, uniform, inputs["temperature"])
            top = logits.max(1, keepdims=True)
            log_total = top[:, 0] + np.log(np.exp(logits - top).sum(1))
            has_ended = token == tokens.end
            log_prob = logits[np.arange(len(token)), chosen] - log_total
            token = np.where(has_ended, tokens.end, chosen)
            said.append(token)
            told.append(np.where(has_ended, 0, log_prob))
        return np.stack(said), np.stack(told), state

    def _product(self, rows, name):
        kernel = self.weights[name]
        if not self.has_integers:
            return rows @ kernel
        of_columns = np.abs(kernel).max(axis=0) / np.float32(63)
        of_rows = np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1) / np.float32(127)
        return np.rint(rows / of_rows) @ np.rint(kernel / of_columns) * of_rows * of_columns

    def _choose(self, logits, last, uniform, temperature):
        tokens, open_logits = self.manifest.tokens, logits.copy()
        open_logits[:, [tokens.pad, tokens.unk, tokens.start, tokens.dialog_start]] = -np.inf
        open_logits[last == tokens.start, tokens.end] = -np.inf
        greedy = open_logits.argmax(1)
        stretched = open_logits / np.where(temperature > 0, temperature, 1)[:, None]
        masses = np.exp(stretched - stretched.max(1, keepdims=True)).cumsum(1)
        drawn = (masses <= uniform[:, None] * masses[:, -1:]).sum(1)
        return np.where(temperature > 0, drawn, greedy)
