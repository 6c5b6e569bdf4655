"""Dumps: what was written is read, another's code finds what it needs, bad lines are named."""

from __future__ import annotations

import json

import numpy as np
import pytest
from response_sets import make_set
from siserve_training.errors import ResponseError
from siserve_training.evaluation.dump import (
    read_dump,
    read_vectors_table,
    words_path,
    write_dump,
    write_vectors,
)


@pytest.fixture
def dump(tmp_path):
    path = tmp_path / "test.jsonl"
    write_dump(path, make_set())
    return path


def test_a_dump_is_read_back_exactly(dump):
    written, read = make_set(), read_dump(dump)
    assert read.contexts == written.contexts
    assert read.references == written.references
    assert read.words == written.words
    assert read.samples.dtype == np.int64
    np.testing.assert_array_equal(read.samples, written.samples)
    assert sorted(file.name for file in dump.parent.iterdir()) == ["test.jsonl", "test.words.json"]


def test_a_line_says_all_that_another_metric_needs(dump):
    written = make_set()
    lines = [json.loads(line) for line in dump.read_text().splitlines()]
    words = json.loads(words_path(dump).read_text())
    assert len(lines) == len(written)
    for number, line in enumerate(lines):
        assert list(line) == ["context", "reference", "reference_ids", "samples", "sample_ids"]
        assert line["context"] == list(written.contexts[number])
        assert line["reference"] == " ".join(words[i] for i in line["reference_ids"][1:-1])
        assert line["sample_ids"] == written.samples[number].tolist()
        for text, ids in zip(line["samples"], line["sample_ids"], strict=True):
            kept = ids[: ids.index(3)] if 3 in ids else ids
            assert text == " ".join(words[i] for i in kept)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda line: b"{", "not JSON"),
        (lambda line: b"[1]", "expected an object"),
        (lambda line: b"\xff" + line, "not UTF-8"),
        (lambda line: line.replace(b'"reference"', b'"ref"'), "reference: .*got nothing"),
        (lambda line: line.replace(b'"context": [', b'"context": [7, '), "context: .*strings"),
        (lambda line: line.replace(b'"sample_ids": [[', b'"sample_ids": [[1.5, '), "rows of ids"),
        (lambda line: line.replace(b'"sample_ids": [[', b'"sample_ids": [[true, '), "rows of ids"),
        (lambda line: line.replace(b'"sample_ids": [[', b'"sample_ids": [[99, '), "below 25"),
        (lambda line: line.replace(b'"sample_ids": [[', b'"sample_ids": [[7, '), "one width"),
        (lambda line: line.replace(b'"samples": [', b'"samples": ["x", '), "6 and 5"),
        (lambda line: line.replace(b'"reference_ids": [2', b'"reference_ids": [-1'), "below 25"),
    ],
)
def test_a_malformed_line_is_named_by_file_and_number(dump, change, what):
    lines = dump.read_bytes().splitlines()
    changed = change(lines[2])
    assert changed != lines[2]
    dump.write_bytes(b"\n".join([*lines[:2], changed, *lines[3:]]) + b"\n")
    with pytest.raises(ResponseError, match=rf"test\.jsonl:3: .*{what}"):
        read_dump(dump)


def test_rows_of_another_number_or_width_than_the_first_line_are_named(dump, tmp_path):
    other = tmp_path / "other.jsonl"
    for change in ({"samples": 4}, {"width": 8}):
        write_dump(other, make_set(**change))
        lines = dump.read_bytes().splitlines()[:1] + other.read_bytes().splitlines()[:1]
        other.write_bytes(b"\n".join(lines))
        with pytest.raises(ResponseError, match=r":2: expected 5 samples of 9 ids as on line 1"):
            read_dump(other)


def test_what_is_missing_or_empty_is_said(dump, tmp_path):
    with pytest.raises(ResponseError, match=r"absent\.words\.json: no such file.*beside it"):
        read_dump(tmp_path / "absent.jsonl")
    words_path(dump).write_text('{"a": 1}')
    with pytest.raises(ResponseError, match="JSON list of words"):
        read_dump(dump)
    write_dump(dump, make_set())
    dump.write_bytes(b"")
    with pytest.raises(ResponseError, match="empty"):
        read_dump(dump)


def test_writing_that_is_broken_off_leaves_the_old_dump_whole(dump, monkeypatch):
    before = dump.read_bytes()
    other = make_set(seed=1)
    broken = [*other.reference_texts[:3]]  # the fourth line fails
    monkeypatch.setitem(other.__dict__, "reference_texts", broken)
    with pytest.raises(IndexError):
        write_dump(dump, other)
    assert dump.read_bytes() == before
    assert len(list(dump.parent.iterdir())) == 2


def test_a_table_of_vectors_is_read_back_exactly_and_another_file_is_refused(tmp_path):
    table = np.random.default_rng(0).normal(size=(7, 3))
    write_vectors(tmp_path / "table.npy", table)
    np.testing.assert_array_equal(read_vectors_table(tmp_path / "table.npy"), table)
    (tmp_path / "bad.npy").write_text("word 1 2")
    with pytest.raises(ResponseError, match=r"bad\.npy: not an array"):
        read_vectors_table(tmp_path / "bad.npy")
    np.save(tmp_path / "flat.npy", np.ones(3))
    with pytest.raises(ResponseError, match="one row for each word"):
        read_vectors_table(tmp_path / "flat.npy")
