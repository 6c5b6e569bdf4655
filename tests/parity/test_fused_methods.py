"""Which methods' models our kernels take; in float32 they give what the graphs give."""

import pytest
from cpu_machine import COMPILER, CpuMachine
from siserve.bundle import open_bundle
from siserve.serving.fused.cpu import CpuDecoder
from siserve.serving.fused.cpu_encoder import CpuUtteranceEncoder
from siserve.serving.fused.loading import NotFused, _hold_against, load_fused
from siserve.serving.fused.native import cpu_library
from siserve.serving.sessions import load_sessions
from siserve_training.methods import METHODS

from .test_methods_in_batches import SIZES, make

NOT_FUSED = {"cvae-co": "decoder.gru.kernel_ih has shape"}


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler to run the kernels by")
@pytest.mark.parametrize("method", METHODS)
def test_a_dialog_methods_decoder_is_taken_or_refused_by_name(method, tmp_path):
    make(tmp_path / "bundle", method, SIZES["tiny"])
    bundle = open_bundle(tmp_path / "bundle")
    decoder = load_sessions(bundle, "cpu", 1, kernels="off").exact_decoder

    def machine(definitions, kernels):
        return CpuMachine(definitions, kernels, tmp_path)

    if method in NOT_FUSED:
        with pytest.raises(NotFused, match=NOT_FUSED[method]):
            load_fused(bundle, decoder, (64,), True, machine)
    else:
        assert load_fused(bundle, decoder, (64,), True, machine).is_fused


@pytest.mark.parametrize("method", METHODS)
def test_on_a_cpu_a_dialog_methods_model_is_taken_or_refused_by_name(method, tmp_path, caplog):
    try:
        cpu_library()
    except NotFused as reason:
        pytest.skip(f"no kernels for CPUs here: {reason}")
    make(tmp_path / "bundle", method, SIZES["tiny"])
    bundle = open_bundle(tmp_path / "bundle")
    with caplog.at_level("INFO", "siserve.serving.sessions"):
        ours = load_sessions(bundle, "cpu", 1)
    graphs = load_sessions(bundle, "cpu", 1, kernels="off")
    assert isinstance(ours.utterance_encoder, CpuUtteranceEncoder), caplog.text
    if method in NOT_FUSED:
        assert not isinstance(ours.decoder, CpuDecoder) and NOT_FUSED[method] in caplog.text
    else:
        assert isinstance(ours.decoder, CpuDecoder), caplog.text
        _hold_against(ours.exact_decoder, graphs.exact_decoder, bundle.manifest)
