"""Which methods' decoders the CUDA kernels take; in float32 they give what decoder.onnx gives."""

import pytest
from cpu_machine import COMPILER, CpuMachine
from siserve.bundle import open_bundle
from siserve.serving.fused.loading import NotFused, load_fused
from siserve.serving.sessions import load_sessions
from siserve_training.methods import METHODS

from .test_methods_in_batches import SIZES, make

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler to run the kernels by")
NOT_FUSED = {"cvae-co": "decoder.gru.kernel_ih has shape"}


@pytest.mark.parametrize("method", METHODS)
def test_a_dialog_methods_decoder_is_taken_or_refused_by_name(method, tmp_path):
    make(tmp_path / "bundle", method, SIZES["tiny"])
    bundle = open_bundle(tmp_path / "bundle")
    decoder = load_sessions(bundle, "cpu", 1, "fp32").exact_decoder

    def machine(definitions, kernels):
        return CpuMachine(definitions, kernels, tmp_path)

    if method in NOT_FUSED:
        with pytest.raises(NotFused, match=NOT_FUSED[method]):
            load_fused(bundle, decoder, (64,), True, machine)
    else:
        assert load_fused(bundle, decoder, (64,), True, machine).is_fused
