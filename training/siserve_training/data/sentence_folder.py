"""A pretrained sentence encoder on disk: a BERT as transformers saves it, and how it is pooled.

What a folder must hold: config.json, model.safetensors, tokenizer.json. The files by which
sentence-transformers says how tokens become one vector (modules.json, 1_Pooling/config.json) are
followed where they stand; without them it is the mean over tokens.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from siserve.bundle.context_text import ContextText

from siserve_training.errors import ConfigError

__all__ = ["MAX_PIECES", "SentenceFolder", "SentenceShape"]

#: Longest utterance in the encoder's own tokens; of Switchboard's 1.4 in a thousand are longer.
MAX_PIECES = 64

_WEIGHTS = "model.safetensors"
_REQUIRED = ("config.json", _WEIGHTS, "tokenizer.json")
_POOLING = "1_Pooling/config.json"
_OPTIONAL = ("modules.json", _POOLING)
#: sentence-transformers' flags of old and its one name of late.
_POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "mean": "mean",
    "cls": "first",
}


@dataclass(frozen=True)
class SentenceShape:
    """Sizes of a BERT (Devlin et al. 2019) and how its tokens become a sentence's vector.

    Attributes:
        vocabulary: number of ids.
        hidden: P, size of a vector.
        layers: number of layers.
        heads: attention heads of each.
        intermediate: inner units of a layer's feed-forward part.
        positions: most tokens.
        token_types: rows of the token-type table, of which the first is used.
        epsilon: of layer normalisation.
        pooling: "mean" over tokens or the "first" token.
        normalize: whether vectors are scaled to length sqrt(P), so that their numbers are of
            order 1 as a GRU's inputs should be; sentence-transformers scales to length 1.
    """

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    positions: int
    token_types: int
    epsilon: float
    pooling: str
    normalize: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return asdict(self)


@dataclass(frozen=True)
class SentenceFolder:
    """A folder with a pretrained sentence encoder; `open` checks it."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> SentenceFolder:
        """Check that the folder holds an encoder that can be trained with and exported.

        Raises:
            ConfigError: if a file is missing or the model is none of the kind.
        """
        missing = [name for name in _REQUIRED if not (path / name).is_file()]
        if missing:
            raise ConfigError(
                f"context_encoder: {path} has no {', '.join(missing)}; expected the folder of a "
                f"BERT with {', '.join(_REQUIRED)}, as save_pretrained writes it"
            )
        folder = cls(path)
        size = folder.text().size
        if size > folder.shape.vocabulary:
            raise ConfigError(
                f"context_encoder: {path}/tokenizer.json has {size} ids, its model "
                f"{folder.shape.vocabulary}; take both from one folder"
            )
        return folder

    @cached_property
    def shape(self) -> SentenceShape:
        """The encoder's sizes.

        Raises:
            ConfigError: if it is no BERT with exact GELU and absolute positions.
        """
        content = self._read("config.json")
        for key, wanted in (
            ("model_type", "bert"),
            ("hidden_act", "gelu"),
            ("position_embedding_type", "absolute"),
            ("pad_token_id", 0),
        ):
            found = content.get(key, wanted if key != "model_type" else None)
            if found != wanted:
                raise ConfigError(
                    f"context_encoder: {self.path}/config.json says {key} {found!r}, expected "
                    f"{wanted!r}; take a BERT such as all-MiniLM-L6-v2"
                )
        try:
            return SentenceShape(
                vocabulary=content["vocab_size"],
                hidden=content["hidden_size"],
                layers=content["num_hidden_layers"],
                heads=content["num_attention_heads"],
                intermediate=content["intermediate_size"],
                positions=content["max_position_embeddings"],
                token_types=content["type_vocab_size"],
                epsilon=content["layer_norm_eps"],
                pooling=self._pooling(),
                normalize=self._normalizes(),
            )
        except KeyError as error:
            raise ConfigError(
                f"context_encoder: {self.path}/config.json lacks {error}; expected a BERT's"
            ) from None

    def text(self) -> ContextText:
        """Return the encoder's tokenizer, which cuts what is too long.

        Raises:
            ConfigError: if it cannot be used.
        """
        longest = min(MAX_PIECES, self.shape.positions)
        try:
            return ContextText.from_file(self.path / "tokenizer.json", longest)
        except Exception as error:  # the tokenizers package raises bare Exception
            raise ConfigError(
                f"context_encoder: {self.path}/tokenizer.json cannot be used ({error})"
            ) from None

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all that a vector depends on."""
        digest = hashlib.sha256(json.dumps(self.shape.to_dict()).encode())
        digest.update(self.text().to_json().encode())
        with (self.path / _WEIGHTS).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def copy_to(self, target: Path) -> None:
        """Copy the files that count into a folder to be made."""
        for name in (*_REQUIRED, *_OPTIONAL):
            if (self.path / name).is_file():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.path / name, target / name)

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"context_encoder: {self.path / name} is no JSON ({error})") from None

    def _pooling(self) -> str:
        if not (self.path / _POOLING).is_file():
            return "mean"
        content = self._read(_POOLING)
        on = [
            str(value) if key == "pooling_mode" else key
            for key, value in content.items()
            if key.startswith("pooling_mode") and value
        ]
        if len(on) != 1 or on[0] not in _POOLINGS:
            raise ConfigError(
                f"context_encoder: {self.path / _POOLING} asks for {', '.join(on) or 'nothing'}; "
                f"expected one of {', '.join(_POOLINGS)}"
            )
        return _POOLINGS[on[0]]

    def _normalizes(self) -> bool:
        if not (self.path / "modules.json").is_file():
            return False
        kinds = [str(module["type"]).rpartition(".")[2] for module in self._read("modules.json")]
        unknown = set(kinds) - {"Transformer", "Pooling", "Normalize"}
        if unknown:
            raise ConfigError(
                f"context_encoder: {self.path / 'modules.json'} has {', '.join(sorted(unknown))}; "
                "expected Transformer, Pooling and perhaps Normalize"
            )
        return "Normalize" in kinds
