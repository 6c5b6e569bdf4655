"""A prior that takes more noise than z has numbers, and a method that has no densities."""

import numpy as np
import pytest
from numpy_reference import NumpySICVAE
from siserve.bundle import open_bundle
from siserve_training.export import ExportError, PosteriorDraw
from siserve_training.export.parity import open_graph
from two_sided import EXTRA, SIDE, TwoSided, two_sided_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return open_bundle(two_sided_bundle(tmp_path_factory.mktemp("wide") / "bundle"))


def test_the_manifest_tells_the_width_and_the_graph_has_it(bundle):
    sizes = bundle.manifest.sizes
    assert sizes.prior_noise == sizes.latent + EXTRA
    prior = open_graph(bundle.file("prior.onnx"))
    assert [tensor.shape[1] for tensor in prior.get_inputs()] == [sizes.context, sizes.prior_noise]


def test_the_first_columns_make_z_and_the_others_choose(bundle, rng):
    sizes = bundle.manifest.sizes
    prior = open_graph(bundle.file("prior.onnx"))
    c = rng.standard_normal((4, sizes.context), np.float32)
    eps_z = rng.standard_normal((4, sizes.prior_noise), np.float32)
    other = eps_z.copy()
    other[:, sizes.latent] *= -1
    (z,) = prior.run(None, {"c": c, "eps_z": eps_z})
    (z_other,) = prior.run(None, {"c": c, "eps_z": other})
    shift = 2 * SIDE * np.sign(eps_z[:, sizes.latent, None])
    assert np.allclose(z - z_other, np.broadcast_to(shift, z.shape), atol=1e-5)


def test_a_prior_that_takes_the_further_noise_otherwise_is_refused(tmp_path):
    class OtherSide(TwoSided):  # type: ignore[misc]
        def prior(self, c, eps_z):
            return super().prior(c, eps_z * np.where(np.arange(eps_z.shape[1]) < 6, 1, -1))

    with pytest.raises(ExportError, match="prior z"):
        two_sided_bundle(tmp_path / "bundle", reference=OtherSide)


class KnowsDensities(TwoSided):  # type: ignore[misc]
    def posterior(self, c, response, eps_lam, eps_z):
        return NumpySICVAE.posterior(self, c, response, eps_lam, eps_z)


class LacksOne(TwoSided):  # type: ignore[misc]
    def posterior(self, c, response, eps_lam, eps_z):
        drawn = super().posterior(c, response, eps_lam, eps_z)
        log_q_z = np.where(np.arange(len(c)) == 0, 0.0, drawn.log_q_z)
        return PosteriorDraw(drawn.z, log_q_z, drawn.log_p_z)


@pytest.mark.parametrize("reference", [KnowsDensities, LacksOne])
def test_no_density_on_one_side_only_is_a_difference(tmp_path, reference):
    with pytest.raises(ExportError, match="posterior log_q_z"):
        two_sided_bundle(tmp_path / "bundle", reference=reference)


def test_no_number_is_never_a_latent(tmp_path):
    class NoLatent(TwoSided):  # type: ignore[misc]
        def posterior(self, c, response, eps_lam, eps_z):
            drawn = super().posterior(c, response, eps_lam, eps_z)
            return PosteriorDraw(drawn.z * np.nan, drawn.log_q_z, drawn.log_p_z)

    with pytest.raises(ExportError, match="posterior z"):
        two_sided_bundle(tmp_path / "bundle", reference=NoLatent)
