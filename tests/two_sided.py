"""A method for tests: its prior takes more noise than z has numbers, and it has no densities.

z is the tiny SI-CVAE's, moved to one of two sides by the sign of one further noise number.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
from bundle_factory import TinySizes, tiny_model, tiny_text
from numpy_reference import NumpySICVAE
from onnx import helper, numpy_helper
from siserve.bundle.tensors import PRIOR, SI_SAMPLER
from siserve_training.export import PosteriorDraw, Release, export_bundle
from siserve_training.export.cvae import graphs as si_cvae_graphs
from siserve_training.export.model import GraphSet, TrainedModel
from siserve_training.export.weights import WeightStore
from siserve_training.methods import METHODS, Place

NAME = "two-sided"
EXTRA = 2
SIDE = 1.5


class TwoSided(NumpySICVAE):  # type: ignore[misc]
    """The method in numpy, as parity compares it with the graphs."""

    def prior(self, c, eps_z):
        latent = eps_z.shape[1] - EXTRA
        return super().prior(c, eps_z[:, :latent]) + SIDE * np.sign(eps_z[:, latent, None])

    def posterior(self, c, response, eps_lam, eps_z):
        drawn = super().posterior(c, response, eps_lam, eps_z)
        none = np.full(len(c), np.nan)
        return PosteriorDraw(drawn.z, none, none)


def graphs(model: TrainedModel, weights: WeightStore) -> GraphSet:
    """The tiny SI-CVAE's graphs with another prior, and NaN for both densities."""
    built = si_cvae_graphs(model, weights)
    sizes = built.sizes.model_copy(update={"prior_noise": built.sizes.latent + EXTRA})
    _widen(built.graphs[PRIOR.file], sizes.latent)
    for name in ("log_q_z", "log_p_z"):
        _multiply(built.graphs[SI_SAMPLER.file], name, float("nan"))
    return GraphSet(built.graphs, sizes)


def _widen(prior: onnx.ModelProto, latent: int) -> None:
    graph = prior.graph
    graph.input[1].type.tensor_type.shape.dim[1].dim_value = latent + EXTRA
    for node in graph.node:
        node.input[:] = ["own_noise" if name == "eps_z" else name for name in node.input]
    last = graph.node.pop()
    added = [
        _constant("bounds", [latent, 1, EXTRA - 1]),
        helper.make_node("Split", ["eps_z", "bounds"], ["own_noise", "which", "rest"], axis=1),
        helper.make_node("Sign", ["which"], ["sign"]),
        _constant("side", np.float32(SIDE)),
        helper.make_node("Mul", ["sign", "side"], ["shift"]),
    ]
    nodes = [*added, *graph.node, helper.make_node("Add", [last.input[0], "shift"], ["z"])]
    del graph.node[:]
    graph.node.extend(nodes)


def _multiply(sampler: onnx.ModelProto, output: str, factor: float) -> None:
    (last,) = [node for node in sampler.graph.node if output in node.output]
    last.output[0] = f"finite_{output}"
    sampler.graph.node.extend(
        [
            _constant(f"factor_{output}", np.float32(factor)),
            helper.make_node("Mul", [f"finite_{output}", f"factor_{output}"], [output]),
        ]
    )


def _constant(name: str, value: object) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(value)))


def two_sided_bundle(path: Path, seed: int = 0, reference: type = TwoSided) -> Path:
    """Export a bundle of the method; METHODS knows it for the length of the export only."""
    METHODS[NAME] = Place(module="", graphs=__name__)
    try:
        export_bundle(
            path,
            dataclasses.replace(tiny_model(seed, TinySizes()), method=NAME),
            tiny_text().to_json(),
            lambda arrays: reference(arrays, profile=True),
            Release(name=NAME, version="1"),
        )
    finally:
        del METHODS[NAME]
    return path
