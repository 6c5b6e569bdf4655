"""The golden request: a dialog of the bundle's own, and what its graphs gave for it at export.

Digests say that a file is the one that was exported; this says that the graphs still compute what
they did, on this processor, with this onnxruntime, from text to log-probability. Its noise is a
fixed pattern instead of drawn, its response is told instead of chosen: no near tie can flip a word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siserve.bundle.context_text import ContextText
from siserve.bundle.errors import BundleError
from siserve.bundle.manifest import Description
from siserve.bundle.tensors import CONTEXT_ENCODER, DECODER, PRIOR, SI_SAMPLER, Graph
from siserve.bundle.text import Text

__all__ = ["ROWS", "GoldenGraphs", "check_golden", "pattern"]

#: Rows of the request: two, so that what mixes rows up is seen.
ROWS = 2
#: Into how many sums a tensor goes; a manifest shall not hold thousands of numbers.
_SUMS = 8

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Graph, Arrays], Sequence[NDArray[Any]]]


@dataclass(frozen=True)
class GoldenGraphs:
    """The graphs of a bundle as the golden request runs them.

    Attributes:
        run: runs one graph.
        about: what the bundle says of itself.
        context_text: of contexts.
    """

    run: Run
    about: Description
    context_text: Text | ContextText

    def condition(self, turns: Sequence[tuple[str, str]], responder: str) -> NDArray[np.float32]:
        """Return c of a dialog for each row, (ROWS, C)."""
        window = self.about.limits.context_utterances
        encoded = self.context_text.encode_utterances([text for _, text in turns])
        context = self.context_text.context_window(
            [(speaker, ids) for (speaker, _), ids in zip(turns, encoded, strict=True)],
            responder,
            window,
        )
        shape = (1, len(context.utterances), max(map(len, context.utterances)))
        utterances = np.full(shape, self.about.tokens.pad)  # (1, U, T)
        for row, ids in zip(utterances[0], context.utterances, strict=True):
            row[: len(ids)] = ids
        inputs = {
            "utterances": utterances,
            "floor": np.array([context.floors]),
            "topic": np.zeros(1, np.int64),
            "profile": np.zeros((1, 8), np.float32),
        }
        return np.repeat(self.run(CONTEXT_ENCODER, inputs)[0], ROWS, axis=0)  # (ROWS, C)

    def latents(
        self, c: NDArray[np.float32], eps_z: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Return z of the prior, (R, D), by noise (R, P) or, for ROWS rows, by a fixed pattern."""
        if eps_z is None:
            eps_z = pattern(ROWS, self.about.sizes.prior_noise)
        z: NDArray[np.float32] = self.run(PRIOR, {"c": c, "eps_z": eps_z})[0]
        return z

    def decode(
        self, c: NDArray[np.float32], z: NDArray[np.float32], forced: NDArray[np.int64]
    ) -> Sequence[NDArray[Any]]:
        """Run the decoder over told words, (K, ROWS), or -1 for the likeliest."""
        return self.run(
            DECODER,
            {
                "c": c,
                "z": z,
                "state": np.zeros((ROWS, self.about.sizes.state), np.float32),
                "token": np.full(ROWS, self.about.tokens.start),
                "uniform": np.zeros(forced.shape, np.float32),
                "forced": forced,
                "temperature": np.zeros(ROWS, np.float32),
                "top_k": np.zeros(ROWS, np.int64),
                "top_p": np.ones(ROWS, np.float32),
            },
        )

    def numbers(
        self, turns: Sequence[tuple[str, str]], responder: str, response: Sequence[int]
    ) -> dict[str, tuple[float, ...]]:
        """Answer a golden request.

        Args:
            turns: (speaker, text), oldest first.
            responder: who responds.
            response: ids from ``<s>`` to ``</s>``.

        Returns:
            Sums of the encoded context, of the prior's and of the posterior's latents, and each
            row's log densities and log-probability of the response in nats. A sampler without
            densities has none.
        """
        sizes = self.about.sizes
        c = self.condition(turns, responder)
        z = self.latents(c)
        posterior_z, log_q_z, log_p_z = self.run(
            SI_SAMPLER,
            {
                "c": c,
                "response": np.tile(np.array(response), (ROWS, 1)),  # (ROWS, T)
                "eps_lam": pattern(ROWS, 2, sizes.noise),
                "eps_z": pattern(ROWS, sizes.latent),
            },
        )
        forced = np.tile(np.array(response[1:])[:, None], (1, ROWS))  # (T-1, ROWS)
        log_probs = self.decode(c, z, forced)[1]
        found = {"c": _sums(c), "z": _sums(z), "posterior_z": _sums(posterior_z)}
        if not np.isnan(log_q_z).any():
            found |= {"log_p_z": log_p_z, "log_q_z": log_q_z}
        found["log_prob"] = log_probs.sum(0, dtype=np.float64)
        return {name: tuple(float(f"{x:.7g}") for x in each) for name, each in found.items()}


def check_golden(graphs: GoldenGraphs, tolerance: float | None = None) -> None:
    """Run the golden request of a bundle, if it has one.

    Args:
        graphs: of the bundle.
        tolerance: largest |found - expected| / max(1, |expected|); None = the bundle's own, which
            is for graphs that compute in float32.

    Raises:
        BundleError: naming the first number that is off.
    """
    golden = graphs.about.golden
    if golden is None:
        return
    try:
        found = graphs.numbers(golden.context, golden.responder, golden.response)
    except Exception as error:  # whatever a graph raises
        raise _failed(graphs.about, f"ends in an error ({error})") from None
    if found.keys() != golden.expected.keys():
        raise _failed(graphs.about, f"gives {sorted(found)}, not {sorted(golden.expected)}")
    allowed = golden.tolerance if tolerance is None else tolerance
    for name, numbers in found.items():  # in the order in which they depend on each other
        expected = golden.expected[name]
        if len(numbers) != len(expected):
            raise _failed(graphs.about, f"gives {len(numbers)} of {name}, not {len(expected)}")
        for got, wanted in zip(numbers, expected, strict=True):
            if not abs(got - wanted) <= allowed * max(1, abs(wanted)):
                raise _failed(graphs.about, f"gives {name} {got:.6g}, expected {wanted:.6g}")


def pattern(*shape: int) -> NDArray[np.float32]:
    """Return numbers spread evenly over [-2, 2), the same on every machine to the last bit."""
    count = np.arange(math.prod(shape))
    return ((7919 * count % 2048 - 1024) / 512).astype(np.float32).reshape(shape)


def _sums(values: NDArray[Any]) -> NDArray[np.float64]:
    """Add a tensor up into a few sums of the size of its own numbers, each weighed by a pattern."""
    weighed = values.ravel().astype(np.float64) * pattern(values.size)
    groups = np.zeros(-(-values.size // _SUMS) * _SUMS)
    groups[: values.size] = weighed
    sums: NDArray[np.float64] = groups.reshape(-1, _SUMS).sum(0)  # (_SUMS,)
    return sums / math.sqrt(len(groups) / _SUMS)


def _failed(about: Description, what: str) -> BundleError:
    return BundleError(
        f"{about.full_name} fails its golden request: it {what}; export the model again, or look "
        "for what this machine computes otherwise"
    )
