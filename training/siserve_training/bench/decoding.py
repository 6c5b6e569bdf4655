"""Decode a bundle's weights in eager PyTorch: one response at a time, or a batch, as research does.

    python -m siserve_training.bench.decoding '{"bundle": DIR, "threads": 1, "way": "one"}'

Prints {"ready": true}, then answers each line of standard input, {"rows", "steps", "seconds"}, with
{"seconds_per_step": ...}, the median of passes of `steps` steps that take about `seconds` together.
The ways: "one" decodes one response, looking at every token for its end as a loop over tokens does,
and a step is one of one row; "batched" takes a step of all rows at once; both draw by
torch.multinomial. "greedy" is the batch with argmax. No way does more than it must: the responses'
probabilities are not kept, no word is forbidden, and nobody leaves a batch.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from siserve.bundle.errors import BundleError, SiserveError
from siserve.bundle.manifest import Manifest
from siserve.bundle.tensors import WEIGHTS_FILE
from siserve.bundle.verify import open_bundle
from torch import Tensor, nn

__all__ = ["ResearchDecoder", "main"]

_SEED = 7
_WAYS = ("one", "batched", "greedy")


class ResearchDecoder(nn.Module):
    """A GRU that is told the last word, and an output layer over all words.

    Args:
        weights: of a bundle, by their names in its weights file.
        manifest: of the same bundle.
    """

    def __init__(self, weights: Mapping[str, Tensor], manifest: Manifest) -> None:
        """Take the weights over.

        Raises:
            BundleError: if the bundle's decoder is of another kind.
        """
        super().__init__()
        sizes = manifest.sizes
        self._start, self._end = manifest.tokens.start, manifest.tokens.end
        self._told = sizes.context + sizes.latent
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.word_embedding)
        self.init = nn.Linear(self._told, sizes.state)
        self.gru = nn.GRU(sizes.word_embedding, sizes.state, batch_first=True)
        self.out = nn.Linear(sizes.state, sizes.vocabulary)
        try:
            self.load_state_dict(_state_dict(weights))
        except (KeyError, RuntimeError):
            raise BundleError(
                f"the decoder of a {manifest.method} is no plain GRU; there is no PyTorch loop "
                "of it to compare with"
            ) from None

    def one(self, steps: int, generator: torch.Generator) -> list[int]:
        """Decode one response token by token; its end mark is seen and passed over."""
        state = self._drawn_state(1, generator)  # (1, 1, H)
        token, said = torch.tensor([[self._start]]), []
        for _ in range(steps):
            logits, state = self.step(token, state)  # (1, V)
            token = torch.multinomial(torch.softmax(logits, dim=-1), 1, generator=generator)
            word = int(token.item())
            said.append(self._start if word == self._end else word)
        return said

    def batched(self, rows: int, steps: int, generator: torch.Generator, greedy: bool) -> Tensor:
        """Decode a batch, (R, steps)."""
        state = self._drawn_state(rows, generator)
        token, said = torch.full((rows, 1), self._start), []
        for _ in range(steps):
            logits, state = self.step(token, state)  # (R, V)
            if greedy:
                token = logits.argmax(dim=-1, keepdim=True)  # (R, 1)
            else:
                token = torch.multinomial(torch.softmax(logits, dim=-1), 1, generator=generator)
            said.append(token)
        return torch.cat(said, dim=1)

    def first_state(self, told: Tensor) -> Tensor:
        """Return the state before ``<s>``, [c, z] (R, C + D) to (1, R, H)."""
        state: Tensor = self.init(told).unsqueeze(0)
        return state

    def step(self, token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take a token a row, (R, 1) and (1, R, H), to logits, (R, V), and the next state."""
        states, state = self.gru(self.embedding(token), state)  # (R, 1, H)
        return self.out(states[:, 0]), state

    def _drawn_state(self, rows: int, generator: torch.Generator) -> Tensor:
        return self.first_state(torch.randn(rows, self._told, generator=generator))


def _state_dict(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn kernels of (inputs, outputs) into torch's weights."""
    named = {
        "embedding.weight": weights["embedding.weight"],
        "init.weight": weights["decoder.init.kernel"].T,
        "init.bias": weights["decoder.init.bias"],
        "out.weight": weights["decoder.out.kernel"].T,
        "out.bias": weights["decoder.out.bias"],
    }
    for part in ("ih", "hh"):
        named[f"gru.weight_{part}_l0"] = weights[f"decoder.gru.kernel_{part}"].T
        named[f"gru.bias_{part}_l0"] = weights[f"decoder.gru.bias_{part}"]
    return {name: tensor.float().contiguous() for name, tensor in named.items()}


@torch.no_grad()
def seconds_per_step(
    decoder: ResearchDecoder, way: str, rows: int, steps: int, seconds: float
) -> float:
    """Decode again and again for a while; return the median time of a step."""
    generator = torch.Generator().manual_seed(_SEED)

    def decode(number: int) -> float:
        started = time.perf_counter()
        if way == "one":
            decoder.one(number, generator)
        else:
            decoder.batched(rows, number, generator, way == "greedy")
        return (time.perf_counter() - started) / number

    decode(min(steps, 4))  # every shape once
    times = [decode(steps)]
    while sum(times) * steps < seconds:
        times.append(decode(steps))
    return statistics.median(times)


def main() -> None:
    """Answer until nobody asks."""
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    try:
        if asked["way"] not in _WAYS:
            raise SiserveError(f"way must be one of {', '.join(_WAYS)}, got {asked['way']!r}")
        bundle = open_bundle(Path(asked["bundle"]))
        decoder = ResearchDecoder(load_file(bundle.file(WEIGHTS_FILE)), bundle.manifest)
        _tell({"ready": True})
        for line in sys.stdin:
            told = json.loads(line)
            step = seconds_per_step(
                decoder, asked["way"], told["rows"], told["steps"], told["seconds"]
            )
            _tell({"seconds_per_step": step})
    except SiserveError as error:
        _tell({"error": str(error)})


def _tell(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
