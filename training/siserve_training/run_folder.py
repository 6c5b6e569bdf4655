"""The folder of a run: configuration, vocabulary, features, metrics and checkpoints.

config.json       every field of the configuration
corpus.json       the corpus as the run saw it: counts, features, notes
tokenizer.json    the vocabulary
started_from.json what the run was whose weights this one began with, if there is one
context_encoder/  copy of the pretrained encoder that the run began with, if it has one
metrics.jsonl     one object a logged step or validation
tensorboard/      the same for TensorBoard
checkpoints/      step-N folders; last.json and best.json point at two of them
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siserve.bundle.text import Text

from siserve_training.checkpoint import pointed, write_atomically
from siserve_training.config import TrainConfig
from siserve_training.data.pairs import Features
from siserve_training.data.sentence_folder import SentenceFolder
from siserve_training.errors import ConfigError, RunError

__all__ = ["RESUMABLE_KEYS", "RunFolder"]

RESUMABLE_KEYS = frozenset({"max_steps", "log_every", "eval_every", "save_every", "valid_pairs"})


@dataclass(frozen=True)
class RunFolder:
    """A run's files by name."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """File of the logged numbers."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's events."""
        return self.path / "tensorboard"

    def sentence_folder(self) -> SentenceFolder | None:
        """Open the run's copy of its pretrained context encoder, None if it has none."""
        if self.config().pretrained_folder is None:
            return None
        return SentenceFolder.open(self.path / "context_encoder")

    def check_free(self, overwrite: bool) -> None:
        """Refuse a folder that holds something, before any work.

        Raises:
            RunError: if the folder is not empty and `overwrite` is off, or is no run's.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"--out {self.path} is a file; expected a folder")
        if self.path.is_dir() and any(self.path.iterdir()):
            if not overwrite:
                raise RunError(
                    f"--out {self.path} is not empty; pass --resume to go on with the run in it, "
                    "--overwrite to replace it, or another folder"
                )
            if not (self.path / "config.json").is_file():
                raise RunError(
                    f"--out {self.path} is not empty and holds no run; --overwrite replaces "
                    "runs only, so pass another folder"
                )

    def create(
        self,
        config: TrainConfig,
        text: Text,
        corpus: dict[str, Any],
        encoder: SentenceFolder | None = None,
        started_from: dict[str, Any] | None = None,
    ) -> None:
        """Write the run's fixed files, in place of an earlier run's."""
        if self.path.is_dir():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True)
        write_atomically(self.path / "tokenizer.json", text.to_json())
        if encoder is not None:
            encoder.copy_to(self.path / "context_encoder")
        if started_from is not None:
            told = json.dumps(started_from, indent=2) + "\n"
            write_atomically(self.path / "started_from.json", told)
        write_atomically(self.path / "corpus.json", json.dumps(corpus, indent=2) + "\n")
        write_atomically(self.path / "config.json", config.to_json())

    def config(self) -> TrainConfig:
        """Read the configuration.

        Raises:
            RunError: if the folder holds no run.
        """
        file = self.path / "config.json"
        if not file.is_file():
            raise RunError(
                f"{self.path} holds no run (no config.json); "
                "start one with `siserve train --task dialog --data DIR --out DIR`"
            )
        return TrainConfig.from_json(file.read_text(encoding="utf-8"))

    def started_from(self) -> dict[str, Any] | None:
        """Tell what the run was whose weights this one began with, None if it began anew."""
        file = self.path / "started_from.json"
        if not file.is_file():
            return None
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return content

    @staticmethod
    def portable_config(config: TrainConfig) -> dict[str, Any]:
        """Return a configuration's values, paths cut to their last part."""
        values = dataclasses.asdict(config)
        for name in ("word_vectors", "start_from"):
            values[name] = Path(values[name]).name
        if config.pretrained_folder is not None:
            values["context_encoder"] = f"hf:{config.pretrained_folder.name}"
        return values

    def resumed_config(self, overrides: dict[str, Any]) -> TrainConfig:
        """Return the run's configuration with bookkeeping keys changed; others must agree."""
        config = self.config()
        for key, value in overrides.items():
            if key not in RESUMABLE_KEYS and getattr(config, key, None) != value:
                raise ConfigError(
                    f"--resume keeps the run's configuration, but {key} was {value!r} here and "
                    f"{getattr(config, key, 'unknown')!r} there; only "
                    f"{', '.join(sorted(RESUMABLE_KEYS))} may change"
                )
        return TrainConfig.from_values({**dataclasses.asdict(config), **overrides})

    def text(self) -> Text:
        """Read the vocabulary."""
        return Text.from_file(self.path / "tokenizer.json", self.config().max_utterance_tokens)

    def corpus(self) -> dict[str, Any]:
        """Read what the run noted of its corpus."""
        content: dict[str, Any] = json.loads((self.path / "corpus.json").read_text())
        return content

    def features(self) -> Features:
        """Read the features that the model was trained with."""
        corpus = self.corpus()
        return Features(tuple(corpus["topics"]), bool(corpus["profile"]))

    def checkpoint(self, name: str = "best") -> Path:
        """Return the checkpoint that `name` points at; ``best`` falls back to ``last``.

        Raises:
            RunError: if the run has none yet.
        """
        found = pointed(self.checkpoints, name) or pointed(self.checkpoints, "last")
        if found is None:
            raise RunError(f"{self.path} has no checkpoint yet; let it train to its first save")
        return found

    def cut_metrics(self, step: int) -> None:
        """Drop logged lines past a step, which a resumed run will write again."""
        if not self.metrics.is_file():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (json.JSONDecodeError, KeyError):
                continue  # the torn last line of a killed process
        write_atomically(self.metrics, "".join(f"{line}\n" for line in kept))
