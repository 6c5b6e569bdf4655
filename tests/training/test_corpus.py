"""Reading: good lines in, bad lines named, features that are not there switched off."""

from __future__ import annotations

import json

import pytest
from siserve_training.config import TrainConfig
from siserve_training.data.corpus import DialogCorpus, parse_dialog, parse_profile
from siserve_training.data.pairs import build_vocabulary, find_features
from siserve_training.data.statistics import corpus_statistics
from siserve_training.errors import CorpusError
from siserve_training.tasks.dialog import load_dialog_data

from .conftest import write_corpus

LINE = {"utts": [["A", "hello there"], ["B", "hi"], ["A", "bye"]]}


def broken_corpus(folder, content: bytes):
    write_corpus(folder, dialogs=3)
    good = (folder / "train.jsonl").read_bytes()
    (folder / "train.jsonl").write_bytes(good + content)
    return DialogCorpus(folder)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'{"utts": [["A", "hello"]\n', "not JSON"),
        ('{"utts": [["A", "caf\xe9"], ["B", "no"]]}\n'.encode("latin-1"), "not UTF-8 (byte 0xe9)"),
        (b'{"turns": []}\n', "expected an object with a list `utts`"),
        (b'{"utts": [["A"], ["B", "hi"]]}\n', "utts[0]: expected [speaker, text, ...]"),
        (b'{"utts": [["A", "hi"], ["B", " "]]}\n', "utts[1]: the text is empty"),
        (b'{"utts": [["A", "hi"]]}\n', "expected at least 2 utterances, got 1"),
        (b"[1, 2]\n", "expected an object"),
    ],
)
def test_a_wrong_line_is_reported_with_file_line_and_reason(tmp_path, content, what):
    corpus = broken_corpus(tmp_path, content)
    with pytest.raises(CorpusError) as refusal:
        corpus.read("train")
    message = str(refusal.value)
    assert message.startswith(f"{tmp_path}/train.jsonl:4: ") and what in message
    assert "\n" not in message


def test_wrong_lines_are_skipped_and_counted_where_that_is_asked(tmp_path):
    corpus = broken_corpus(tmp_path, b"nonsense\n{}\n")
    dialogs, skipped = DialogCorpus(corpus.folder, skip_bad_lines=True).read("train")
    assert (len(dialogs), skipped) == (3, 2)


def test_a_missing_split_an_empty_file_and_a_missing_folder_are_named(tmp_path):
    write_corpus(tmp_path / "c", dialogs=3)
    (tmp_path / "c" / "valid.jsonl").write_text("")
    with pytest.raises(CorpusError, match=r"valid\.jsonl: no dialog in it"):
        DialogCorpus(tmp_path / "c").read("valid")
    (tmp_path / "c" / "test.jsonl").unlink()
    with pytest.raises(CorpusError, match=r"test\.jsonl missing"):
        DialogCorpus(tmp_path / "c")
    with pytest.raises(CorpusError, match="no such folder"):
        DialogCorpus(tmp_path / "nowhere")


def test_blanks_and_quotes_around_sex_and_topic_are_stripped():
    profile = parse_profile({"sex": ' "FEMALE"', "age": 47, "education": " 2"})
    assert profile is not None and profile.numbers() == pytest.approx((0.47, 2 / 3, 0.0, 1.0))
    line = json.dumps({**LINE, "topic": '"AIR POLLUTION"', "A": {"sex": "MALE"}})
    dialog = parse_dialog(line.encode())
    assert dialog.topic == "AIR POLLUTION" and dialog.profiles["A"].is_male == 1.0
    assert set(dialog.profiles) == {"A"}


def test_a_third_entry_of_an_utterance_and_other_fields_are_tolerated():
    record = {"utts": [["A", "hi", ["x", [0.1]]], ["B", "ho", None, 3]], "prompt": 1, "extra": []}
    assert [u.text for u in parse_dialog(json.dumps(record).encode()).utterances] == ["hi", "ho"]


def test_features_that_a_corpus_lacks_switch_off_and_the_run_is_told(tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(LINE) + "\n")
    data = load_dialog_data(tmp_path, TrainConfig(), skip_bad_lines=False)
    assert data.features.topics == () and not data.features.profile
    assert data.notes == (
        "the corpus has no topic: that feature is off",
        "the corpus has no speaker profile: that feature is off",
    )


def test_the_vocabulary_counts_marks_and_keeps_first_seen_order_in_ties(corpus):
    dialogs, _ = DialogCorpus(corpus).read("train")
    text = build_vocabulary(dialogs, size=26)
    words = [text.tokenizer.id_to_token(index) for index in range(text.size)]
    assert words[:4] == ["<pad>", "<unk>", "<s>", "</s>"] and text.size == 28


def test_the_marks_are_in_the_vocabulary_however_small_it_is(corpus):
    dialogs, _ = DialogCorpus(corpus).read("train")
    text = build_vocabulary(dialogs, size=3)
    words = {text.tokenizer.id_to_token(index) for index in range(text.size)}
    assert {"<pad>", "<unk>", "<s>", "</s>", "<d>"} <= words


def test_topics_are_ordered_by_frequency_and_unknown_ones_get_zero(corpus):
    dialogs, _ = DialogCorpus(corpus).read("train")
    features = find_features(dialogs)
    counts = [sum(d.topic == topic for d in dialogs) for topic in features.topics]
    assert counts == sorted(counts, reverse=True)
    assert features.topic_id("NEVER HEARD OF") == features.topic_id(None) == 0
    assert features.topic_id(features.topics[1]) == 2


@pytest.mark.corpus
def test_switchboard_has_the_published_counts(switchboard):
    counts = corpus_statistics(switchboard)
    splits = counts["splits"]
    assert counts["vocabulary"] == 10_002
    assert (splits["valid"]["pairs"], splits["test"]["pairs"]) == (5_165, 5_481)
    assert (splits["valid"]["utterances"], splits["test"]["utterances"]) == (5_225, 5_543)
    assert (splits["valid"]["cut_utterances"], splits["test"]["cut_utterances"]) == (354, 395)
    assert (splits["train"]["dialogs"], splits["train"]["utterances"]) == (1_099, 116_395)
    assert (splits["train"]["words"], splits["test"]["words"]) == (1_311_542, 66_267)
