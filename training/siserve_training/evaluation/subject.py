"""What is measured: a run or a bundle, opened with the split that it is measured on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from siserve.bundle.context_text import ContextText
from siserve.bundle.tensors import CONTEXT_TOKENIZER_FILE, MANIFEST_FILE, TOKENIZER_FILE
from siserve.bundle.text import Text
from siserve.bundle.verify import open_bundle

from siserve_training.config import TrainConfig
from siserve_training.data.corpus import Dialog, DialogCorpus
from siserve_training.data.pairs import Features, PairSet
from siserve_training.data.told import Pieces
from siserve_training.errors import ConfigError, RunError
from siserve_training.evaluation.bundle_system import BundleSystem, config_of_bundle
from siserve_training.evaluation.system import ModelSystem, System
from siserve_training.methods import load_method
from siserve_training.models.dialog_model import DialogModel
from siserve_training.run_folder import RunFolder
from siserve_training.tasks.told import tell_pairs

__all__ = ["Subject", "open_bundle_subject", "open_run", "open_subject"]


@dataclass(frozen=True, eq=False)
class Subject:
    """A system with the split that it is measured on.

    Attributes:
        name: of run or bundle.
        checkpoint: which state of it.
        config: of its training; of a bundle, what its manifest tells and measuring looks at.
        system: the trained system.
        text: its vocabulary.
        pairs: the split.
        dialogs: those that the pairs were made of.
    """

    name: str
    checkpoint: str
    config: TrainConfig
    system: System
    text: Text
    pairs: PairSet
    dialogs: tuple[Dialog, ...]

    @property
    def model(self) -> DialogModel | None:
        """The torch model, if there is one."""
        return self.system.model if isinstance(self.system, ModelSystem) else None


def open_subject(
    folder: Path, data: Path, split: str, checkpoint: str = "best", skip_bad_lines: bool = False
) -> Subject:
    """Open a run or a bundle, whichever the folder holds, and read a split for it.

    Raises:
        ConfigError: if the split or the checkpoint cannot be meant.
        RunError, CorpusError, BundleError: if something cannot be read.
    """
    if split not in ("valid", "test"):
        raise ConfigError(f"--split must be valid or test, got {split!r}")
    if checkpoint not in ("best", "last"):
        raise ConfigError(f"--checkpoint must be best or last, got {checkpoint!r}")
    if (folder / "config.json").is_file():
        return open_run(folder, data, split, checkpoint, skip_bad_lines)
    if not (folder / MANIFEST_FILE).is_file():
        raise RunError(
            f"{folder} holds neither a run (config.json) nor a bundle ({MANIFEST_FILE}); expected "
            "a folder that `siserve train` or `siserve export` wrote"
        )
    if checkpoint != "best":
        raise ConfigError("--checkpoint chooses a state of a run; a bundle has one, leave it out")
    return open_bundle_subject(folder, data, split, skip_bad_lines)


def open_run(
    folder: Path, data: Path, split: str, checkpoint: str = "best", skip_bad_lines: bool = False
) -> Subject:
    """Open a checkpoint of a run and read a split with its vocabulary and features.

    Raises:
        RunError, CorpusError: if the run or the corpus cannot be read.
    """
    run = RunFolder(folder)
    config, text = run.config(), run.text()
    dialogs, _ = DialogCorpus(data, skip_bad_lines).read(split)
    pairs = PairSet.from_dialogs(dialogs, text, run.features(), config.context_utterances)
    pairs = tell_pairs(pairs, run.sentence_folder(), config.tune_context_encoder)
    at = run.checkpoint(checkpoint)
    model: DialogModel = load_method(config.method).model_class.from_pretrained(at)
    torch.nn.Module.to(model, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    system = ModelSystem(model, text.tokens)
    return Subject(folder.resolve().name, at.name, config, system, text, pairs, tuple(dialogs))


def open_bundle_subject(
    folder: Path, data: Path, split: str, skip_bad_lines: bool = False
) -> Subject:
    """Check a bundle, open its graphs and read a split with its vocabulary and features.

    Raises:
        BundleError, CorpusError: if the bundle or the corpus cannot be read.
        ConfigError: if the bundle is of another task or of an unknown method.
    """
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    if manifest.task != "dialog":
        raise ConfigError(f"{folder} is a bundle of task {manifest.task}; expected dialog")
    text = Text.from_file(bundle.file(TOKENIZER_FILE), manifest.limits.utterance_tokens)
    features = Features(manifest.features.topics, manifest.features.profile)
    dialogs, _ = DialogCorpus(data, skip_bad_lines).read(split)
    pairs = PairSet.from_dialogs(dialogs, text, features, manifest.limits.context_utterances)
    if bundle.has(CONTEXT_TOKENIZER_FILE):
        context_text = ContextText.from_file(bundle.file(CONTEXT_TOKENIZER_FILE))
        pairs = replace(pairs, told=Pieces(context_text.encode_utterances(pairs.said)))
    state = f"version {manifest.version}"
    system = BundleSystem(bundle)
    config = config_of_bundle(manifest, system.components)
    return Subject(manifest.name, state, config, system, text, pairs, tuple(dialogs))
