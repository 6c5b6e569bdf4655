"""The kernel for CPUs draws from a Gaussian prior as onnxruntime does by its graph."""

import numpy as np
import pytest
from siserve.bundle import open_bundle
from siserve.serving.fused.cpu_prior import CpuPrior
from siserve.serving.fused.native import cpu_library
from siserve.serving.fused.weights import NotFused
from siserve.serving.graphs import GraphSession
from siserve.serving.sessions import load_sessions
from wide_decoder import weights_of

from .test_cpu_kernels import ALONE_OR_HELPED, REASON

pytestmark = pytest.mark.skipif(bool(REASON), reason=f"no kernels for CPUs here: {REASON}")

PARTS = ("hidden", "out")


class Watched:
    """A graph that counts its rows, and that may bound what it draws."""

    def __init__(self, graph, bound=np.inf):
        self.graph, self.bound, self.rows = graph, bound, []

    def run(self, inputs):
        self.rows.append(len(inputs["c"]))
        (z,) = self.graph.run(inputs)
        return [np.clip(z, -self.bound, self.bound)]


@pytest.fixture
def weights(bundle):
    return {
        name: np.float32(values) for name, values in weights_of(bundle).items() if "prior" in name
    }


def some(manifest, rows, scale=0.5, seed=0):
    rng, sizes = np.random.default_rng(seed), manifest.sizes
    return {
        "c": scale * rng.standard_normal((rows, sizes.context), np.float32),
        "eps_z": rng.standard_normal((rows, sizes.prior_noise), np.float32),
    }


@pytest.mark.parametrize("rows", [1, 5, 16, 50])
def test_rows_of_any_number_get_what_the_graph_gives(sessions, graphs, manifest, rows):
    assert isinstance(sessions.prior, CpuPrior) and isinstance(graphs.prior, GraphSession)
    told = some(manifest, rows)
    (got,), (expected,) = (each.prior.run(told) for each in (sessions, graphs))
    assert got.shape == expected.shape and np.allclose(got, expected, atol=1e-5)


@ALONE_OR_HELPED
def test_a_row_has_the_same_bits_alone_and_beside_others_with_and_without_helpers(
    sessions, manifest, cores
):
    told = some(manifest, 37)
    (together,) = sessions.prior.run(told)
    cpu_library().allow(1)
    for row in (0, 11, 36):
        mine = {name: values[row : row + 1] for name, values in told.items()}
        assert np.array_equal(sessions.prior.run(mine)[0][0], together[row])


def test_beyond_the_log_variances_that_were_tried_the_graph_answers(weights, graphs, manifest):
    graph = Watched(graphs.prior)
    prior = CpuPrior(cpu_library(), weights, manifest.sizes, graph)
    tries = len(graph.rows)
    prior.run(some(manifest, 3))
    assert len(graph.rows) == tries
    beyond = {name: value.copy() for name, value in weights.items()}
    beyond["prior_net.out.bias"][-1] += 100
    with pytest.raises(NotFused, match="they differ from its prior by"):
        CpuPrior(cpu_library(), beyond, manifest.sizes, graph)
    prior._prior.bound = 1e-6
    told, tries = some(manifest, 3), len(graph.rows)
    assert np.array_equal(prior.run(told)[0], graphs.prior.run(told)[0])
    assert graph.rows[tries:] == [3]


def test_a_row_beyond_them_changes_no_bit_of_its_neighbours(weights, graphs, manifest):
    graph = Watched(graphs.prior)
    prior = CpuPrior(cpu_library(), weights, manifest.sizes, graph)
    told, odd, rest = some(manifest, 9), [2, 7], [0, 1, 3, 4, 5, 6, 8]
    expected, tries = prior.run(told)[0], len(graph.rows)
    told["c"][odd] *= 1000
    hidden, out = (
        [weights[f"prior_net.{at}.{part}"] for part in ("kernel", "bias")] for at in PARTS
    )
    logvar = (np.tanh(told["c"] @ hidden[0] + hidden[1]) @ out[0] + out[1])[
        :, manifest.sizes.latent :
    ]
    peaks = np.abs(logvar).max(axis=1)
    prior._prior.bound = bound = 1.001 * peaks[rest].max()
    assert peaks[odd].min() > bound
    (among,) = prior.run(told)
    assert graph.rows[tries:] == [2]
    assert np.array_equal(among[rest], expected[rest])
    mine = {name: values[odd] for name, values in told.items()}
    assert np.array_equal(among[odd], graphs.prior.run(mine)[0])


def test_a_graph_that_bounds_large_values_is_taken_up_to_there(weights, graphs, manifest):
    free = CpuPrior(cpu_library(), weights, manifest.sizes, graphs.prior)
    wide = some(manifest, 200, scale=10)
    largest = np.abs(graphs.prior.run({**wide, "eps_z": np.ones_like(wide["eps_z"])})[0]).max()
    bounding = Watched(graphs.prior, bound=0.8 * largest)
    bounded = CpuPrior(cpu_library(), weights, manifest.sizes, bounding)
    assert 0 < bounded._prior.bound < free._prior.bound


def test_shapes_that_are_not_the_graphs_are_its_to_refuse(sessions, manifest):
    told = some(manifest, 3)
    with pytest.raises(Exception, match="(?i)dimension|shape"):
        sessions.prior.run({**told, "c": told["c"][:, 1:]})


def test_priors_of_other_kinds_are_refused_by_name(weights, graphs, manifest):
    library, sizes = cpu_library(), manifest.sizes
    without = {name: value for name, value in weights.items() if name != "prior_net.out.bias"}
    with pytest.raises(NotFused, match=r"the prior has no prior_net\.out\.bias"):
        CpuPrior(library, without, sizes, graphs.prior)
    mixture = {**weights, "prior_net.weight.bias": np.zeros(3, np.float32)}
    with pytest.raises(NotFused, match=r"the prior has prior_net\.weight\.bias"):
        CpuPrior(library, mixture, sizes, graphs.prior)
    noisy = {**weights, "prior_net.hidden.kernel": np.zeros((sizes.context + 4, 8), np.float32)}
    with pytest.raises(NotFused, match="its prior takes or gives something else"):
        CpuPrior(library, noisy, sizes, graphs.prior)


def test_without_kernels_the_graph_draws(bundle):
    opened = open_bundle(bundle)
    assert isinstance(load_sessions(opened, "cpu", 1, kernels="off").prior, GraphSession)
