"""Contexts in the words of a pretrained encoder, and bundles that bring its tokenizer."""

import json

import pytest
from siserve.bundle import BundleError, open_bundle, write_bundle
from siserve.bundle.context_text import ContextText
from siserve.bundle.tensors import CONTEXT_TOKENIZER_FILE, FILES
from tiny_bert import VOCABULARY, tiny_tokenizer
from tokenizers.processors import TemplateProcessing

CLS, SEP = VOCABULARY.index("[CLS]"), VOCABULARY.index("[SEP]")


def tokenizer_json() -> str:
    return str(tiny_tokenizer().to_str())


@pytest.fixture
def text():
    return ContextText.from_json(tokenizer_json(), 9)


def test_texts_stand_between_the_tokenizers_own_marks_and_nothing_pads_them(text):
    short, longer = text.encode_utterances(["dog", "The DOG ,"])
    assert [VOCABULARY[i] for i in longer] == ["[CLS]", "the", "dog", ",", "[SEP]"]
    assert short == (CLS, longer[2], SEP)
    assert text.size == len(VOCABULARY)


def test_what_is_too_long_loses_its_end_but_not_the_mark_there(text):
    (ids,) = text.encode_utterances(["the dog " * 20])
    assert len(ids) == 9 and ids[-1] == SEP and ids.count(SEP) == 1


def test_the_longest_utterance_is_kept_in_the_file(text):
    again = ContextText.from_json(text.to_json())
    texts = ["the dog " * 20, "hi", "old [PAD] [SEP] dog"]
    assert again.encode_utterances(texts) == text.encode_utterances(texts)


def test_marks_that_a_person_types_are_text(text):
    (ids,) = text.encode_utterances(["dog [SEP] [PAD]"])
    assert 0 not in ids and ids.count(SEP) == 1


def test_a_dialog_begins_with_empty_text(text):
    hi, ho = text.encode_utterances(["hi", "ho"])
    window = text.context_window([("A", hi), ("B", ho)], responder="A")
    assert window.utterances == ((CLS, SEP), hi, ho)
    assert window.floors == (1, 1, 0)
    assert text.context_window([("A", hi), ("B", ho)], "A", window=2).utterances == (hi, ho)


def test_a_tokenizer_without_marks_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.post_processor = None
    with pytest.raises(ValueError, match="expected marks"):
        ContextText(tokenizer)


def test_a_tokenizer_whose_marks_are_padding_is_refused():
    tokenizer = tiny_tokenizer()
    marks = [("[PAD]", 0), ("[SEP]", SEP)]
    tokenizer.post_processor = TemplateProcessing(single="[PAD] $A [SEP]", special_tokens=marks)
    with pytest.raises(ValueError, match="kept for padding"):
        ContextText(tokenizer)


@pytest.fixture
def files(whole_bundle):
    return {
        **{name: whole_bundle / name for name in FILES},
        CONTEXT_TOKENIZER_FILE: tokenizer_json().encode(),
    }


def test_a_bundle_may_bring_the_tokenizer_and_need_not(tmp_path, files, description, whole_bundle):
    write_bundle(tmp_path / "b", files, description)
    assert open_bundle(tmp_path / "b").has(CONTEXT_TOKENIZER_FILE)
    assert not open_bundle(whole_bundle).has(CONTEXT_TOKENIZER_FILE)


def test_a_tokenizer_that_the_manifest_promises_must_be_there(tmp_path, files, description):
    write_bundle(tmp_path / "b", files, description)
    (tmp_path / "b" / CONTEXT_TOKENIZER_FILE).unlink()
    with pytest.raises(BundleError, match="context_tokenizer.json is missing"):
        open_bundle(tmp_path / "b")


def test_a_tokenizer_that_the_manifest_does_not_know_is_refused(tmp_path, bundle):
    (bundle / CONTEXT_TOKENIZER_FILE).write_text(tokenizer_json())
    with pytest.raises(BundleError, match="context_tokenizer.json is not in"):
        open_bundle(bundle)


@pytest.mark.parametrize("content", [b"", b"[]", json.dumps("words").encode()])
def test_a_tokenizer_that_is_no_json_object_is_refused(tmp_path, files, description, content):
    with pytest.raises(BundleError, match="context_tokenizer.json is no JSON object"):
        write_bundle(tmp_path / "b", {**files, CONTEXT_TOKENIZER_FILE: content}, description)
