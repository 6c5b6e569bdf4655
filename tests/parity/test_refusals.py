"""What is not exported: whatever does not fit, and whatever would answer unlike the model."""

import dataclasses

import numpy as np
import pytest
from bundle_factory import TinySizes, tiny_model, tiny_text
from numpy_reference import NumpySICVAE
from siserve.bundle.errors import UsageError
from siserve.bundle.manifest import Features
from siserve_training.errors import ConfigError
from siserve_training.export import ExportError, Release, export_bundle
from siserve_training.export.weights import WeightStore

RELEASE = Release(name="tiny", version="1")


def reference(arrays):
    return NumpySICVAE(arrays, profile=True)


def export(target, model=None, make_reference=reference, tokenizer=None, **options):
    tokenizer = tokenizer or tiny_text().to_json()
    export_bundle(target, model or tiny_model(), tokenizer, make_reference, RELEASE, **options)


def refused(tmp_path, match, **changes):
    target = tmp_path / "bundle"
    with pytest.raises(ExportError, match=match):
        export(target, **changes)
    assert list(tmp_path.iterdir()) == []


def changed_model(**arrays):
    model = tiny_model()
    return dataclasses.replace(model, arrays={**model.arrays, **arrays})


@pytest.mark.parametrize(
    ("weight", "tensor"),
    [
        ("context_encoder.gru.weight_hh_l0", "c of the graphs"),
        ("prior_net.out.bias", "prior z"),
        ("posterior_net.out.weight", "posterior z"),
        ("decoder.gru.bias_hh_l0", "log_probs|decodes greedily"),
        ("decoder.init.bias", "log_probs|decodes greedily"),
        ("decoder.out.bias", "log_probs|decodes greedily"),
    ],
)
def test_a_model_that_answers_otherwise_is_named_by_its_tensor(tmp_path, weight, tensor):
    def other(arrays):
        return reference({**arrays, weight: arrays[weight] * np.float32(1.001)})

    refused(tmp_path, tensor, make_reference=other)


def test_another_greedy_word_is_refused(tmp_path):
    class OtherWord(NumpySICVAE):  # type: ignore[misc]
        def step(self, token, state):
            logits, state = super().step(token, state)
            return np.roll(logits, 1, axis=1), state

    refused(
        tmp_path, "decodes greedily to word", make_reference=lambda a: OtherWord(a, profile=True)
    )


def test_a_difference_tells_how_large_it_is_and_what_to_do(tmp_path):
    def other(arrays):
        return reference({**arrays, "prior_net.out.bias": arrays["prior_net.out.bias"] + 0.5})

    with pytest.raises(ExportError, match=r"by 0\.\d+, at most 1e-05 .* Check that the checkpoint"):
        export(tmp_path / "bundle", make_reference=other)


def test_a_float16_bundle_is_compared_with_rounded_weights(tmp_path):
    exact = tiny_model().arrays
    refused(tmp_path, "differs", make_reference=lambda _: reference(exact), dtype="float16")
    export(tmp_path / "bundle", dtype="float16")


def test_a_missing_weight_is_named(tmp_path):
    model = tiny_model()
    arrays = {n: a for n, a in model.arrays.items() if n != "decoder.gru.bias_ih_l0"}
    model = dataclasses.replace(model, arrays=arrays)
    refused(tmp_path, "no weight decoder.gru.bias_ih_l0", model=model)


def test_a_weight_that_no_graph_uses_is_named_unless_it_is_for_training(tmp_path):
    extra = np.zeros((3, 3), np.float32)
    refused(
        tmp_path, "no graph uses decoder.extra", model=changed_model(**{"decoder.extra": extra})
    )
    export(tmp_path / "bundle", changed_model(**{"bow_head.out.weight": extra}))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    bias = tiny_model().arrays["prior_net.out.bias"].copy()
    bias[2] = value
    model = changed_model(**{"prior_net.out.bias": bias})
    refused(tmp_path, "prior_net.out.bias .* not finite", model=model)


def test_weights_beyond_float16_are_refused(tmp_path):
    bias = tiny_model().arrays["prior_net.out.bias"].copy()
    bias[2] = 7e4
    model = changed_model(**{"prior_net.out.bias": bias})
    refused(tmp_path, "prior_net.out.bias reaches 7e.04", model=model, dtype="float16")


@pytest.mark.parametrize(
    ("features", "match"),
    [
        (Features(topics=TinySizes().topics, profile=False), "condition vector has"),
        (Features(topics=(), profile=True), "condition vector has"),
        (Features(topics=("ONE",), profile=True), "has 4 rows; expected 2"),
    ],
)
def test_features_that_the_model_was_not_trained_with_are_refused(tmp_path, features, match):
    model = dataclasses.replace(tiny_model(), features=features)
    refused(tmp_path, match, model=model)


def test_another_tokenizer_is_refused(tmp_path):
    text = tiny_text()
    words = [text.tokenizer.id_to_token(i) for i in range(text.size)]
    longer = type(text).from_words([*words, "zebra"]).to_json()
    refused(tmp_path, "tokenizer has 124 words", tokenizer=longer)
    words[2], words[3] = words[3], words[2]
    refused(tmp_path, "special tokens", tokenizer=type(text).from_words(words).to_json())
    refused(tmp_path, "tokenizer.json cannot be read", tokenizer="{}")


def test_an_unknown_method_is_refused_and_the_known_are_told(tmp_path):
    model = dataclasses.replace(tiny_model(), method="oracle")
    with pytest.raises(ConfigError, match="one of si-cvae.*got 'oracle'"):
        refused(tmp_path, "expected", model=model)


@pytest.mark.parametrize(
    ("release", "match"),
    [
        (Release(name="../up", version="1"), "name of the bundle cannot be '../up'"),
        (Release(name="tiny", version=""), "version of the bundle cannot be ''"),
        (Release(name="tiny", version="1", metrics={"nll": np.inf}), "metrics.nll"),
    ],
)
def test_what_a_manifest_cannot_say_is_refused_before_any_comparison(tmp_path, release, match):
    def never(arrays):
        raise AssertionError("compared")

    with pytest.raises(ExportError, match=match):
        export_bundle(tmp_path / "b", tiny_model(), tiny_text().to_json(), never, release)
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_holds_something_is_left_alone(tmp_path):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "precious").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        export(target)
    assert [file.name for file in tmp_path.rglob("*")] == ["bundle", "precious"]


def test_two_weights_of_one_name_are_a_bug_not_a_bundle():
    weights = WeightStore()
    weights.add("a", np.ones(3, np.float32))
    weights.add("a", np.ones(3, np.float32))
    with pytest.raises(AssertionError, match="two different weights"):
        weights.add("a", np.zeros(3, np.float32))
