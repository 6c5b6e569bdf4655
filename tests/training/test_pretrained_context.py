"""A pretrained context encoder: what a batch tells it, how it learns, one path to the bundle."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported_again import is_the_same_exported_again
from siserve.bundle.context_text import ContextText
from siserve.bundle.tensors import CONTEXT_TOKENIZER_FILE
from siserve.bundle.verify import open_bundle
from siserve.client.answer import make_request
from siserve.client.in_process import InProcess
from siserve.serving.requests import check_request
from siserve_training.config import TrainConfig
from siserve_training.data.batches import collate, longest_first
from siserve_training.data.corpus import DialogCorpus
from siserve_training.errors import ConfigError
from siserve_training.evaluation.subject import open_subject
from siserve_training.export.parity import open_graph
from siserve_training.export.run import export_run
from siserve_training.fit import Trainer
from siserve_training.methods import METHODS
from siserve_training.reproduce.table import chosen_rows, dialog_rows
from siserve_training.run_folder import RunFolder
from siserve_training.tasks.dialog import build_model, load_dialog_data
from siserve_training.tasks.prepared import evaluation_batches
from siserve_training.training import resume_run, start_run
from tiny_bert import tiny_bert

from .conftest import TINY

TUNED = pytest.mark.parametrize("tuned", [False, True], ids=["frozen", "tuned"])


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """The vectors of this file's tests are kept apart from a user's."""
    with pytest.MonkeyPatch.context() as patched:
        folder = tmp_path_factory.mktemp("cache")
        patched.setenv("SISERVE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("pretrained") / "bert")


def config(bert: Path, tuned: bool = False, **changes: Any) -> TrainConfig:
    values = {"context_encoder": f"hf:{bert}", "tune_context_encoder": tuned, "passes": 0.6}
    often = {"eval_every": 7, "save_every": 5, "components": 2}
    return TrainConfig.from_values({**TINY, **often, **values, **changes})


def rows(out: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    hidden = ("kind", "time", "tokens_per_s")
    return {
        line["step"]: {k: v for k, v in line.items() if k not in hidden}
        for line in lines
        if line["kind"] == "train"
    }


@pytest.fixture
def loud_corpus(corpus, tmp_path) -> Path:
    """The corpus with some utterances in capitals, which are other texts of the same words."""
    for file in corpus.glob("*.jsonl"):
        dialogs = [json.loads(line) for line in file.read_text().splitlines()]
        for dialog in dialogs:
            for turn in dialog["utts"][::3]:
                turn[1] = turn[1].upper()
        (tmp_path / file.name).write_text("".join(json.dumps(d) + "\n" for d in dialogs))
    return tmp_path


@TUNED
def test_a_batch_tells_each_place_what_was_said_there(loud_corpus, bert, tuned):
    corpus = loud_corpus
    data = load_dialog_data(corpus, config(bert, tuned), skip_bad_lines=False)
    plain = load_dialog_data(corpus, TrainConfig.from_values(TINY), skip_bad_lines=False)
    assert data.encoder is not None and data.train.told is not None
    assert len(data.train.said) > len(data.train.texts)
    dialogs, _ = DialogCorpus(corpus).read("train")
    responses = longest_first(data.train, data.train.responses[3:40])
    batch, other = collate(data.train, responses), collate(plain.train, responses)
    assert batch.told is not None and other.told is None
    said = [d for dialog in dialogs for d in ("", *(u.text for u in dialog.utterances))]
    for row, response in enumerate(responses.tolist()):
        positions = data.train.context_of(response)
        texts = [said[position] for position in positions]
        numbers = np.array([data.train.said.index(text) for text in texts])
        expected = data.train.told.rows(numbers)
        found = batch.told[batch.context[row, : len(texts)]][:, : expected.shape[1]]
        assert torch.equal(found, expected)
    for name in ("context_lengths", "floor", "topic", "profile", "dialog"):
        assert torch.equal(getattr(batch, name), getattr(other, name))
    for one in (batch, other):
        assert one.context.max() < len(one.utterances if one.told is None else one.told)
    answers = [b.utterances[b.response] for b in (batch, other)]
    assert torch.equal(*(a[:, : min(map(len, (answers[0].T, answers[1].T)))] for a in answers))


def test_only_responses_go_through_words_where_contexts_do_not(corpus, bert):
    data = load_dialog_data(corpus, config(bert), skip_bad_lines=False)
    batch = collate(data.train, longest_first(data.train, data.train.responses[:30]))
    assert sorted(set(batch.response.tolist())) == list(range(len(batch.utterances)))


@torch.no_grad()
def test_a_frozen_encoders_vectors_are_what_a_tuned_one_starts_from(corpus, bert):
    settings = [config(bert, tuned) for tuned in (False, True)]
    data = [load_dialog_data(corpus, chosen, skip_bad_lines=False) for chosen in settings]
    frozen, tuned = map(build_model, settings, data)
    for parameter in frozen.parameters():
        parameter.mul_(8.0)  # the first weights are too small to tell contexts apart
    tuned.load_state_dict(frozen.state_dict(), strict=False)
    assert tuned.holds_sentence_encoder and not frozen.holds_sentence_encoder
    expected, found = (
        model.train(False).encode(next(evaluation_batches(part.train, 20, 20))).c
        for model, part in zip((frozen, tuned), data, strict=True)
    )
    assert torch.allclose(found, expected, atol=3e-3)
    assert expected.std(dim=0).max() > 0.1


def test_a_tuned_encoder_learns_and_at_its_own_rate(corpus, bert, tmp_path):
    chosen = config(bert, tuned=True, max_steps=6, learning_rate=1e-2, context_encoder_rate=0.1)
    start_run(tmp_path / "run", corpus, chosen)
    data = load_dialog_data(corpus, chosen, skip_bad_lines=False)
    trainer = Trainer(chosen, data, build_model(chosen, data), RunFolder(tmp_path / "run"))
    trained: Any = trainer.raw_model
    encoder = {id(p): n for n, p in trained.sentence_encoder.named_parameters()}
    rates: dict[str, set[float]] = {"encoder": set(), "rest": set()}
    for optimizer in trainer.optimizers.values():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                rates["encoder" if id(parameter) in encoder else "rest"].add(group["lr"])
    (of_encoder,), (of_rest,) = rates["encoder"], rates["rest"]
    assert of_encoder == pytest.approx(0.1 * of_rest)
    start = build_model(chosen, data).sentence_encoder.state_dict()
    moved = {
        name: float((tensor - start[name]).abs().max())
        for name, tensor in trained.sentence_encoder.state_dict().items()
    }
    assert all(0 < way < 6 * 1.1e-3 for way in moved.values()), moved


@TUNED
def test_a_resumed_run_needs_the_folder_no_more(corpus, bert, tmp_path, tuned):
    start_run(tmp_path / "whole", corpus, config(bert, tuned))
    own = shutil.copytree(bert, tmp_path / "bert")
    start_run(tmp_path / "parts", corpus, config(own, tuned, max_steps=4))
    shutil.rmtree(own)
    resume_run(tmp_path / "parts", corpus, {"max_steps": 0})
    whole, parts = rows(tmp_path / "whole"), rows(tmp_path / "parts")
    assert len(whole) > 8 and parts.keys() == whole.keys()
    for step, expected in whole.items():
        assert parts[step] == pytest.approx(expected, rel=1e-5), step


@pytest.fixture(scope="module", params=[False, True], ids=["frozen", "tuned"])
def run(request, corpus, bert, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    start_run(out, corpus, config(bert, request.param, learning_rate=2e-2))
    return out


@pytest.fixture(scope="module")
def bundle(run) -> Path:
    export_run(run, run.parent / "bundle", name="tiny")  # refuses unless parity holds
    return run.parent / "bundle"


@torch.no_grad()
def test_a_request_is_encoded_as_training_encoded_it(run, bundle, corpus):
    """One path from text to c: corpus, pairs and model; request, service and graph."""
    dialogs, _ = DialogCorpus(corpus).read("test")
    opened = open_subject(run, corpus, "test")
    responses = opened.pairs.responses[: len(dialogs[0].utterances) - 1]  # of the first dialog
    batch = collate(opened.pairs, responses)
    expected = opened.system.encode(replace(batch, profile=torch.zeros_like(batch.profile))).c
    graph = open_graph(bundle / "context_encoder.onnx")
    with InProcess(bundle) as service:
        topics = open_bundle(bundle).manifest.features.topics
        for row in range(1, len(responses)):
            told = dialogs[0].utterances[: row + 1]
            turns = [(turn.speaker, turn.text) for turn in told[:-1]]
            request = make_request(turns, n=2, seed=1)
            request.responder, request.topic = told[-1].speaker, topics[batch.topic[row] - 1]
            context = service._models.default._job(_checked(service, request)).context
            longest = max(map(len, context.utterances))
            ids = np.zeros((1, len(context.utterances), longest), np.int64)
            for place, words in enumerate(context.utterances):
                ids[0, place, : len(words)] = words
            (c,) = graph.run(
                None,
                {
                    "utterances": ids,
                    "floor": np.array([context.floors]),
                    "topic": np.array([context.topic]),
                    "profile": np.zeros((1, 8), np.float32),
                },
            )
            assert np.allclose(c[0], expected[row].numpy(), atol=2e-3)
    assert expected.std(dim=0).max() > 0.02


def _checked(service, request):
    model = service._models.default
    return check_request(request, model.bundle.manifest, model.limits)


@torch.no_grad()
def test_a_run_and_its_bundle_measure_the_same_contexts(run, bundle, corpus):
    cs = []
    for folder in (run, bundle):
        opened = open_subject(folder, corpus, "test")
        batches = evaluation_batches(opened.pairs, 30, 8)
        cs.append(torch.cat([opened.system.encode(batch).c for batch in batches]))
    assert torch.allclose(cs[0], cs[1], atol=2e-3)


def test_the_bundle_is_complete_and_tells_no_path(run, bundle, bert):
    opened = open_bundle(bundle)
    assert opened.has(CONTEXT_TOKENIZER_FILE)
    text = ContextText.from_file(bundle / CONTEXT_TOKENIZER_FILE)
    assert text.to_json() == ContextText.from_file(bert / "tokenizer.json", 48).to_json()
    provenance: dict[str, Any] = dict(opened.manifest.provenance)
    assert provenance["config"]["context_encoder"] == "hf:bert"
    assert len(provenance["corpus"]["context_encoder_sha256"]) == 64
    assert str(bert.parent) not in (bundle / "manifest.json").read_text()
    assert opened.manifest.sizes.num_parameters > 5000  # the encoder's own are among them


@pytest.mark.parametrize("pooled", [{}, {"pooling": "cls", "normalize": False}])
def test_the_bundle_can_be_exported_again(corpus, tmp_path, pooled):
    start_run(tmp_path / "run", corpus, config(tiny_bert(tmp_path / "bert", **pooled), max_steps=1))
    export_run(tmp_path / "run", tmp_path / "bundle")
    is_the_same_exported_again(tmp_path / "bundle", tmp_path / "again")


def test_the_service_answers_alike_and_by_the_context(bundle):
    with InProcess(bundle) as model:
        question = make_request([("A", "do you like the dog?")], n=4, seed=3)
        other = make_request([("A", "uh-huh"), ("B", "my soup is old [SEP] [PAD]")], n=4, seed=3)
        answers = [model.send(request) for request in (question, question, other)]
    assert answers[0].responses == answers[1].responses
    assert all(len(answer.responses) == 4 for answer in answers)
    told = [[response.log_prob for response in answer.responses] for answer in answers]
    assert told[0] != told[2]


@pytest.mark.parametrize("method", [name for name in METHODS if name != "si-cvae"])
@TUNED
def test_every_method_trains_with_it_and_exports(corpus, bert, tmp_path, method, tuned):
    own = {"critic_hidden": 8, "critic_steps": 2, "num_latents": 2}
    chosen = config(bert, tuned, method=method, max_steps=2, keep_start_mark=False, **own)
    start_run(tmp_path / "run", corpus, chosen)
    manifest = export_run(tmp_path / "run", tmp_path / "bundle", dtype="float16")
    assert CONTEXT_TOKENIZER_FILE in manifest.files


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"context_encoder": "lstm"}, "gru or hf:DIR"),
        ({"context_encoder": "hf:"}, "gru or hf:DIR"),
        ({"tune_context_encoder": True}, "a GRU is always trained"),
        ({"context_encoder_rate": -1.0}, "at least 0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(values, match):
    with pytest.raises(ConfigError, match=match):
        TrainConfig.from_values(values)


def test_a_folder_that_is_not_there_is_refused_before_anything_is_written(corpus, tmp_path):
    with pytest.raises(ConfigError, match="config.json"):
        start_run(tmp_path / "run", corpus, config(tmp_path / "none"))
    assert not (tmp_path / "run").exists()


def test_the_table_gets_one_more_row_where_it_is_asked_for(bert, tmp_path):
    *rest, row = dialog_rows(f"hf:{bert}")
    assert tuple(rest) == dialog_rows()
    assert row.settings == {"context_encoder": f"hf:{bert}", "prior_noise": 0} and row.ours
    assert chosen_rows(row.name, dialog_rows(f"hf:{bert}")) == (row,)
    for wrong in ("gru", "hf:", f"hf:{tmp_path / 'none'}"):
        with pytest.raises(ConfigError, match="hf:DIR|config.json"):
            dialog_rows(wrong)
