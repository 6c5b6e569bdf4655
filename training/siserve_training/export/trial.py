"""The trial of the 8-bit decoder: it goes into a bundle only if it is as good as the exact one.

Both decoders are told the same responses from the same latents; the perplexities must agree within
half a percent. Responses are those of a valid split, with latents of the posterior, or, where no
corpus is at hand, the model's own draws, for which the ratio is exp of the KL per word from the
exact decoder to the 8-bit one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from siserve.bundle.context_text import ContextText
from siserve.bundle.golden import GoldenGraphs
from siserve.bundle.manifest import Description, Manifest
from siserve.bundle.tensors import DECODER, DECODER_INT8, GRAPHS, SI_SAMPLER, Graph
from siserve.bundle.text import Text

from siserve_training.data.corpus import DialogCorpus
from siserve_training.data.sentences import SentenceCorpus, holds_sentences
from siserve_training.export.parity import open_graph
from siserve_training.export.random_inputs import RandomInputs
from siserve_training.export.weights import FloatArray

__all__ = ["TOLERANCE", "Example", "Trial", "int8_verdict", "try_int8", "valid_examples"]

TOLERANCE = 0.005
_EXAMPLES = 512
_OWN_ROWS, _OWN_STEPS = 96, 24

Ids = NDArray[np.int64]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Example:
    """A response after its context: turns of (speaker, text), oldest first, and who responds."""

    turns: tuple[tuple[str, str], ...]
    responder: str
    response: str


@dataclass(frozen=True)
class Trial:
    """Perplexities over the same words.

    Attributes:
        exact: of decoder.onnx.
        int8: of decoder_int8.onnx.
        num_words: end marks included.
        told: what the words are.
    """

    exact: float
    int8: float
    num_words: int
    told: str

    @property
    def passed(self) -> bool:
        """Whether the perplexities agree within TOLERANCE."""
        return abs(self.int8 / self.exact - 1) <= TOLERANCE

    def metrics(self) -> dict[str, float]:
        """Return what a manifest says of it."""
        return {"int8_perplexity_ratio": self.int8 / self.exact, "int8_trial_words": self.num_words}


def valid_examples(data: Path, window: int) -> list[Example]:
    """Take some hundred responses, spread over the valid split of a corpus.

    Args:
        data: folder of dialogs or of sentences, which have no context.
        window: most turns of a context.

    Raises:
        CorpusError: if the corpus cannot be read.
    """
    if holds_sentences(data):
        sentences, _ = SentenceCorpus(data).read("valid")
        return _spread([Example((), "", sentence) for sentence in sentences])
    dialogs, _ = DialogCorpus(data).read("valid")
    places = [(d, i) for d, dialog in enumerate(dialogs) for i in range(1, len(dialog.utterances))]
    chosen = []
    for d, place in _spread(places):
        said = dialogs[d].utterances
        turns = tuple((each.speaker, each.text) for each in said[max(0, place - window) : place])
        chosen.append(Example(turns, said[place].speaker, said[place].text))
    return chosen


def try_int8(
    folder: Path,
    about: Description,
    text: Text,
    context_text: Text | ContextText,
    examples: Sequence[Example] = (),
) -> Trial:
    """Compare the two decoders of a folder.

    Args:
        folder: holds the graphs and their weights.
        about: what the bundle will say of itself.
        text: of responses.
        context_text: of contexts.
        examples: responses to be told; none = the model's own draws.

    Raises:
        ExportError: if onnxruntime refuses a graph.
    """
    trial = _Trial(folder, about, text, context_text)
    if examples:
        c, z, said = trial.of_examples(examples)
    else:
        c, z, said = trial.own_draws()
    exact, num_words = trial.nll(DECODER, c, z, said)
    int8, _ = trial.nll(DECODER_INT8, c, z, said)
    what = "responses of the valid split" if examples else "responses of its own"
    return Trial(float(np.exp(exact)), float(np.exp(int8)), num_words, f"{len(said)} {what}")


def int8_verdict(manifest: Manifest) -> str:
    """Tell how the trial of the 8-bit decoder ended."""
    change = 100 * (manifest.metrics["int8_perplexity_ratio"] - 1)
    verdict = "is in the bundle" if DECODER_INT8.file in manifest.files else "is left out"
    return (
        f"the 8-bit decoder {verdict}: perplexity of {manifest.provenance['int8_trial']} changes "
        f"by {change:+.3f} % (at most 0.5 % is allowed)"
    )


def _spread(items: list[Item]) -> list[Item]:
    return items[:: max(1, -(-len(items) // _EXAMPLES))]


class _Trial:
    """Runs the graphs of a folder."""

    def __init__(
        self, folder: Path, about: Description, text: Text, context_text: Text | ContextText
    ) -> None:
        self._sessions = {g.file: open_graph(folder / g.file) for g in (*GRAPHS, DECODER_INT8)}
        self._about = about
        self._text = text
        self._graphs = GoldenGraphs(self._run, about, context_text)
        self._rng = np.random.default_rng(0)

    def of_examples(self, examples: Sequence[Example]) -> tuple[FloatArray, FloatArray, Ids]:
        """Return c, z of the posterior and the responses, (R, C), (R, D), (R, T)."""
        sizes = self._about.sizes
        c = np.stack([self._graphs.condition(e.turns, e.responder)[0] for e in examples])
        encoded = self._text.encode_utterances([each.response for each in examples])
        said = np.full((len(encoded), max(map(len, encoded))), self._about.tokens.pad)
        for row, ids in zip(said, encoded, strict=True):
            row[: len(ids)] = ids
        drawn = self._run(
            SI_SAMPLER,
            {
                "c": c,
                "response": said,
                "eps_lam": self._normal(len(said), 1, sizes.noise),
                "eps_z": self._normal(len(said), sizes.latent),
            },
        )
        return c, drawn[0], said

    def own_draws(self) -> tuple[FloatArray, FloatArray, Ids]:
        """Return random contexts' c, z of the prior and the responses drawn for them."""
        tokens, sizes = self._about.tokens, self._about.sizes
        random = RandomInputs(tokens, sizes.vocabulary, 0, 0, self._rng)
        turns = (("A", self._text.decode(tuple(random.utterances(1, 12)[0, 1:-1].tolist()))),)
        dialog = (turns, "B") if self._about.task == "dialog" else ((), "")
        c = np.repeat(self._graphs.condition(*dialog)[:1], _OWN_ROWS, axis=0)
        z = self._graphs.latents(c, self._normal(_OWN_ROWS, sizes.prior_noise))
        forced = np.full((_OWN_STEPS, _OWN_ROWS), -1)
        drawn = self._decode(DECODER, c, z, forced)[0].T  # (R, K)
        starts = np.full((_OWN_ROWS, 1), tokens.start)
        ended = np.cumsum(drawn == tokens.end, axis=1) > 1
        return c, z, np.concatenate([starts, np.where(ended, tokens.pad, drawn)], axis=1)

    def nll(self, graph: Graph, c: FloatArray, z: FloatArray, said: Ids) -> tuple[float, int]:
        """Return nats per word and how many words there are; padding counts for nothing."""
        forced, is_word = said[:, 1:].T, said[:, 1:].T != self._about.tokens.pad  # (K, R)
        told = np.where(is_word, forced, self._about.tokens.end)
        log_probs = self._decode(graph, c, z, told)[1]
        return -float(log_probs[is_word].sum(dtype=np.float64)) / int(is_word.sum()), int(
            is_word.sum()
        )

    def _decode(
        self, graph: Graph, c: FloatArray, z: FloatArray, forced: Ids
    ) -> Sequence[NDArray[Any]]:
        rows = len(c)
        inputs = {
            "c": c,
            "z": z,
            "state": np.zeros((rows, self._about.sizes.state), np.float32),
            "token": np.full(rows, self._about.tokens.start),
            "uniform": self._rng.random(forced.shape, np.float32),
            "forced": forced,
            "temperature": np.ones(rows, np.float32),
            "top_k": np.zeros(rows, np.int64),
            "top_p": np.ones(rows, np.float32),
        }
        return self._run(graph, inputs)

    def _normal(self, *shape: int) -> NDArray[np.float32]:
        return self._rng.standard_normal(shape, np.float32)

    def _run(self, graph: Graph, inputs: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        names = [tensor.name for tensor in graph.outputs]
        outputs: Sequence[NDArray[Any]] = self._sessions[graph.file].run(names, dict(inputs))
        return outputs
