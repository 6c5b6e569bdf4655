"""The files of a bundle and the tensors of its graphs: the one place where their names stand.

Axes: B contexts, U context utterances, N utterances, T tokens, R rows (one response each), K steps
of a chunk, A1 = A + 1 own and auxiliary parameters of the sampler. Numbers are fixed, other names
are sizes of the model: C encoded context, D latent, E noise, F encoded utterance, H decoder state,
P noise of the prior, S components of an explicit mixture. The first D of P numbers make z; what
follows is for priors that are no Gaussian (which component or lambda).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "CONTEXT_ENCODER",
    "CONTEXT_TOKENIZER_FILE",
    "DECODER",
    "DECODER_INT8",
    "DECODER_UNROLLED",
    "DIALOG_ENCODER",
    "FILES",
    "GRAPHS",
    "MANIFEST_FILE",
    "MODEL_CARD_FILE",
    "OPTIONAL_FILES",
    "OPTIONAL_GRAPHS",
    "POSTERIOR",
    "PRIOR",
    "SI_SAMPLER",
    "TOKENIZER_FILE",
    "UNROLLED_STEPS",
    "UTTERANCE_ENCODER",
    "WEIGHTS_FILE",
    "Graph",
    "Tensor",
]

MANIFEST_FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"
CONTEXT_TOKENIZER_FILE = "context_tokenizer.json"
WEIGHTS_FILE = "weights.safetensors"
MODEL_CARD_FILE = "README.md"


@dataclass(frozen=True)
class Tensor:
    """One input or output of a graph."""

    name: str
    dtype: Literal["int64", "float32"]
    axes: tuple[str | int, ...]


@dataclass(frozen=True)
class Graph:
    """One graph of a bundle: its file and its tensors, in order."""

    file: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


CONTEXT_ENCODER = Graph(
    "context_encoder.onnx",
    inputs=(
        Tensor("utterances", "int64", ("B", "U", "T")),
        Tensor("floor", "int64", ("B", "U")),
        Tensor("topic", "int64", ("B",)),
        Tensor("profile", "float32", ("B", 8)),
    ),
    outputs=(Tensor("c", "float32", ("B", "C")),),
)

#: With DIALOG_ENCODER the same function as CONTEXT_ENCODER, in two steps: each utterance is encoded
#: by itself, so that a server can keep its vector. Rows of `ids` are padded by 0.
UTTERANCE_ENCODER = Graph(
    "utterance_encoder.onnx",
    inputs=(Tensor("ids", "int64", ("N", "T")),),
    outputs=(Tensor("vectors", "float32", ("N", "F")),),
)

#: Of `vectors` and `floor` the first `num_utterances` of a context count, at least 1.
DIALOG_ENCODER = Graph(
    "dialog_encoder.onnx",
    inputs=(
        Tensor("vectors", "float32", ("B", "U", "F")),
        Tensor("floor", "int64", ("B", "U")),
        Tensor("num_utterances", "int64", ("B",)),
        Tensor("topic", "int64", ("B",)),
        Tensor("profile", "float32", ("B", 8)),
    ),
    outputs=(Tensor("c", "float32", ("B", "C")),),
)

PRIOR = Graph(
    "prior.onnx",
    inputs=(
        Tensor("c", "float32", ("R", "C")),
        Tensor("eps_z", "float32", ("R", "P")),
    ),
    outputs=(Tensor("z", "float32", ("R", "D")),),
)

SI_SAMPLER = Graph(
    "si_sampler.onnx",
    inputs=(
        Tensor("c", "float32", ("R", "C")),
        Tensor("response", "int64", ("R", "T")),
        Tensor("eps_lam", "float32", ("R", "A1", "E")),
        Tensor("eps_z", "float32", ("R", "D")),
    ),
    outputs=(
        Tensor("z", "float32", ("R", "D")),
        Tensor("log_q_z", "float32", ("R",)),
        Tensor("log_p_z", "float32", ("R",)),
    ),
)

DECODER = Graph(
    "decoder.onnx",
    inputs=(
        Tensor("c", "float32", ("R", "C")),
        Tensor("z", "float32", ("R", "D")),
        Tensor("state", "float32", ("R", "H")),
        Tensor("token", "int64", ("R",)),
        Tensor("uniform", "float32", ("K", "R")),
        Tensor("forced", "int64", ("K", "R")),
        Tensor("temperature", "float32", ("R",)),
        Tensor("top_k", "int64", ("R",)),
        Tensor("top_p", "float32", ("R",)),
    ),
    outputs=(
        Tensor("tokens", "int64", ("K", "R")),
        Tensor("log_probs", "float32", ("K", "R")),
        Tensor("state_out", "float32", ("R", "H")),
    ),
)

#: The decoder with products in 8-bit integers.
DECODER_INT8 = Graph("decoder_int8.onnx", DECODER.inputs, DECODER.outputs)

#: Steps of a run of the unrolled decoder.
UNROLLED_STEPS = 8

#: The decoder as devices want it that record a run and replay it: a fixed number of steps, no loop,
#: no branch. Rows that are forced or ask for top-k or top-p are for the other decoders.
DECODER_UNROLLED = Graph(
    "decoder_unrolled.onnx",
    inputs=(
        Tensor("c", "float32", ("R", "C")),
        Tensor("z", "float32", ("R", "D")),
        Tensor("state", "float32", ("R", "H")),
        Tensor("token", "int64", ("R",)),
        Tensor("uniform", "float32", (UNROLLED_STEPS, "R")),
        Tensor("temperature", "float32", ("R",)),
    ),
    outputs=(
        Tensor("tokens", "int64", (UNROLLED_STEPS, "R")),
        Tensor("log_probs", "float32", (UNROLLED_STEPS, "R")),
        Tensor("state_out", "float32", ("R", "H")),
    ),
)

#: q(z|x,c) itself, of methods whose posterior is an explicit mixture: what SI_SAMPLER draws from,
#: which its draws and densities do not tell.
POSTERIOR = Graph(
    "posterior.onnx",
    inputs=(
        Tensor("c", "float32", ("R", "C")),
        Tensor("response", "int64", ("R", "T")),
    ),
    outputs=(
        Tensor("mu", "float32", ("R", "S", "D")),
        Tensor("logvar", "float32", ("R", "S", "D")),
        Tensor("log_weights", "float32", ("R", "S")),
    ),
)

GRAPHS = (CONTEXT_ENCODER, PRIOR, SI_SAMPLER, DECODER)

#: Graphs that only some bundles have, of whichever method.
OPTIONAL_GRAPHS = (DECODER_INT8, DECODER_UNROLLED, UTTERANCE_ENCODER, DIALOG_ENCODER)

#: Every file of a bundle but its manifest and those that only some bundles have.
FILES = (
    TOKENIZER_FILE,
    *(graph.file for graph in GRAPHS),
    WEIGHTS_FILE,
    MODEL_CARD_FILE,
)

#: Where the tokenizer is present, utterances of a context are its ids, padded by 0.
#: A siserve that does not know a file refuses the bundle by name, so the format is still 1.
OPTIONAL_FILES = (
    CONTEXT_TOKENIZER_FILE,
    POSTERIOR.file,
    *(graph.file for graph in OPTIONAL_GRAPHS),
)
