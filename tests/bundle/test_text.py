"""Text to ids: what we look up ourselves is what the tokenizer would have found."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from siserve.bundle.text import DIALOG_START, END, PAD, START, UNK, Text
from tokenizers import Tokenizer
from tokenizers.normalizers import NFC, Lowercase, Sequence, StripAccents

WORDS = [PAD, UNK, START, END, DIALOG_START, "don", "'", "t", "uh", "-", "huh", "_", "...", "é"]
TEXT = Text.from_words(WORDS)
#: Letters, marks, every blank and control character, and what is not ASCII.
CHARACTERS = "dontuhDON'-._<>s/ \t\n\x0b\x0c\r\x1c\x1f\x00\x7fé\u00a0"


@given(st.text(st.sampled_from(CHARACTERS), max_size=40))
def test_ids_are_those_of_the_tokenizer_to_the_last_character(text):
    found = TEXT.tokenizer.encode(text, add_special_tokens=False).ids
    assert TEXT.encode_utterance(text)[1:-1] == tuple(found)[: TEXT.max_tokens - 2]


@pytest.mark.parametrize("change", ["normalizer", "added token", "blanks"])
def test_a_tokenizer_of_another_rule_is_asked_itself(change):
    tokenizer = Tokenizer.from_str(TEXT.to_json())
    if change == "normalizer":
        tokenizer.normalizer = Sequence([NFC(), Lowercase(), StripAccents()])
    elif change == "added token":
        tokenizer.add_tokens(["uh-huh"])
    else:
        tokenizer = Text.from_words(WORDS, split_at="blanks").tokenizer
    said = "Don't uh-huh ..."
    found = tokenizer.encode(said, add_special_tokens=False).ids
    assert Text(tokenizer).encode_utterance(said)[1:-1] == tuple(found)


def test_marks_are_not_written_and_nothing_is_after_the_end():
    ids = [TEXT.tokenizer.token_to_id(word) for word in (START, "don", "'", "t", PAD, END, "uh")]
    assert TEXT.decode([id_ for id_ in ids if id_ is not None]) == "don't" and None not in ids
