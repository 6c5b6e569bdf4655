"""Small random models and bundles for every room's tests; written as real ones are, without torch.

The weights are random but shaped: responses differ with z, words follow one another in a fixed
loose order, and ``</s>`` comes after some five to fifteen tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy_reference import NumpySICVAE
from siserve.bundle.manifest import Features, Tokens
from siserve.bundle.text import DIALOG_START, END, PAD, START, UNK, Text
from siserve_training.export import Release, TrainedModel, export_bundle

WORDS = (
    "i you he she it we they a the my your this that and or but so if when because in on at to for "
    "with about from is was are have had do did can will would go went like think know want need "
    "see say said get got make made work live play read cook drive watch not never really just "
    "very too also well yeah no oh uh huh right sure okay good great nice bad old new big little "
    "lot time day year home house car dog cat kids school job money music movie garden weather "
    "summer winter dinner people friend family what why how where . , ? ! ' s t re"
).split()

#: The corpus lists words by frequency, the marks of an utterance among them.
VOCABULARY = (PAD, UNK, START, END, ".", ",", DIALOG_START, *dict.fromkeys(WORDS))


@dataclass(frozen=True)
class TinySizes:
    """Sizes of a tiny SI-CVAE; no two are equal, so that no axis is mistaken for another."""

    word_embedding: int = 12
    utterance_hidden: int = 9
    context_hidden: int = 17
    latent: int = 6
    noise: int = 4
    prior_hidden: int = 10
    post_hidden: int = 11
    state: int = 16
    topics: tuple[str, ...] = ("MUSIC", "PETS", "WEATHER CLIMATE")
    topic_embedding: int = 3
    profile: bool = True
    logvar_clamp: float = 0.0
    logit_gain: float = 8.0

    @property
    def condition(self) -> int:
        """C, the size of the condition vector."""
        topic = self.topic_embedding if self.topics else 0
        return topic + 8 * self.profile + self.context_hidden


def tiny_text() -> Text:
    """Return the tokenizer of the tiny bundles."""
    return Text.from_words(list(dict.fromkeys(VOCABULARY)))


def tiny_arrays(
    seed: int = 0, sizes: TinySizes = TinySizes(), length: float = 8.0
) -> dict[str, np.ndarray]:
    """Draw the weights of a tiny SI-CVAE, by the names of its state dict."""
    rng = np.random.default_rng(seed)
    vocabulary, condition = tiny_text().size, sizes.condition
    arrays: dict[str, np.ndarray] = {}

    def draw(name: str, *shape: int, scale: float) -> None:
        arrays[name] = rng.normal(0, scale, shape).astype(np.float32)

    def linear(name: str, inputs: int, outputs: int, gain: float = 1.0) -> None:
        draw(f"{name}.weight", outputs, inputs, scale=gain / np.sqrt(inputs))
        draw(f"{name}.bias", outputs, scale=0.1)

    def gru(name: str, inputs: int, hidden: int, suffixes: tuple[str, ...] = ("",)) -> None:
        for suffix in suffixes:
            draw(f"{name}.weight_ih_l0{suffix}", 3 * hidden, inputs, scale=1.5 / np.sqrt(inputs))
            draw(f"{name}.weight_hh_l0{suffix}", 3 * hidden, hidden, scale=1.2 / np.sqrt(hidden))
            draw(f"{name}.bias_ih_l0{suffix}", 3 * hidden, scale=0.1)
            draw(f"{name}.bias_hh_l0{suffix}", 3 * hidden, scale=0.1)

    draw("embedding.weight", vocabulary, sizes.word_embedding, scale=1.0)
    arrays["embedding.weight"][0] = 0
    if sizes.topics:
        draw("topic_embedding.weight", len(sizes.topics) + 1, sizes.topic_embedding, scale=1.0)
    gru("utterance_encoder.gru", sizes.word_embedding, sizes.utterance_hidden, ("", "_reverse"))
    gru("context_encoder.gru", 2 * sizes.utterance_hidden + 2, sizes.context_hidden)
    linear("prior_net.hidden", condition, sizes.prior_hidden)
    linear("prior_net.out", sizes.prior_hidden, 2 * sizes.latent)
    posterior = condition + 2 * sizes.utterance_hidden + sizes.noise
    if sizes.post_hidden:
        linear("posterior_net.hidden", posterior, sizes.post_hidden, gain=1.5)
    linear("posterior_net.out", sizes.post_hidden or posterior, 2 * sizes.latent)
    linear("decoder.init", condition + sizes.latent, sizes.state, gain=1.5)
    gru("decoder.gru", sizes.word_embedding, sizes.state)
    linear("decoder.out", sizes.state, vocabulary, gain=sizes.logit_gain)
    _wind_clock(arrays, tiny_text().tokens.end, length)
    return arrays


def _wind_clock(arrays: dict[str, np.ndarray], end: int, length: float) -> None:
    """Make the first unit of the decoder's state rise step by step, and ``</s>`` likelier with it.

    The unit is 1 - 0.25 ** (t / length) after t steps, give or take where it started.
    """
    hidden = arrays["decoder.gru.weight_hh_l0"].shape[1]
    update, candidate = hidden, 2 * hidden  # rows of unit 0 in torch's gate order r, z, n
    keep = 0.25 ** (1 / length)
    for part in ("ih", "hh"):
        arrays[f"decoder.gru.weight_{part}_l0"][[update, candidate]] = 0
        arrays[f"decoder.gru.bias_{part}_l0"][[update, candidate]] = 0
    arrays["decoder.gru.bias_ih_l0"][update] = np.log(keep / (1 - keep))
    arrays["decoder.gru.bias_ih_l0"][candidate] = 4.0
    arrays["decoder.init.weight"][0] *= 0.1
    arrays["decoder.out.weight"][end, 0] = 50.0
    arrays["decoder.out.bias"][end] = -22.0


def tiny_model(seed: int = 0, sizes: TinySizes = TinySizes(), length: float = 8.0) -> TrainedModel:
    """Return a tiny SI-CVAE as the export takes it."""
    tokens = tiny_text().tokens
    return TrainedModel(
        method="si-cvae",
        arrays=tiny_arrays(seed, sizes, length),
        tokens=Tokens(
            pad=tokens.pad,
            unk=tokens.unk,
            start=tokens.start,
            end=tokens.end,
            dialog_start=tokens.dialog_start,
        ),
        features=Features(topics=sizes.topics, profile=sizes.profile),
        logvar_clamp=sizes.logvar_clamp,
    )


def tiny_bundle(
    path: Path,
    seed: int = 0,
    name: str = "tiny",
    version: str = "1",
    dtype: str = "float32",
    length: float = 8.0,
    **sizes: object,
) -> Path:
    """Write a complete valid bundle with small random weights and return its folder.

    Args:
        path: the folder to make; it may be there if it is empty.
        seed: of the weights; another seed is another model.
        name: of the model.
        version: of the model.
        dtype: of the stored weights, "float32" or "float16".
        length: of responses, very roughly, in tokens.
        **sizes: fields of TinySizes.
    """
    tiny_sizes = TinySizes(**sizes)  # type: ignore[arg-type]
    export_bundle(
        path,
        tiny_model(seed, tiny_sizes, length),
        tiny_text().to_json(),
        partial(NumpySICVAE, profile=tiny_sizes.profile, logvar_clamp=tiny_sizes.logvar_clamp),
        Release(name=name, version=version, provenance={"seed": seed, "corpus": "none: random"}),
        dtype=dtype,  # type: ignore[arg-type]
    )
    return path
