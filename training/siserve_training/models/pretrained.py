"""Pretrained sentence encoders: weights from a folder, and the vectors of many texts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from transformers import BertModel
from transformers.utils import logging

from siserve_training.data.sentence_folder import SentenceFolder
from siserve_training.data.told import padded
from siserve_training.data.vector_file import Halves, Ints, VectorFile
from siserve_training.errors import ConfigError
from siserve_training.nets.sentence import SentenceEncoder

__all__ = ["cache_folder", "load_sentence_encoder", "sentence_vectors"]

_TOKENS_AT_ONCE = 4096


def load_sentence_encoder(folder: SentenceFolder) -> SentenceEncoder:
    """Make the encoder of a folder with its weights, in float32.

    Raises:
        ConfigError: if a weight is missing.
    """
    encoder = SentenceEncoder(**folder.shape.to_dict())
    with _quiet():  # heads that an encoder has no use for are worth no warning
        loaded: Any = BertModel.from_pretrained(
            folder.path,
            add_pooling_layer=False,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    bert, report = loaded
    if report["missing_keys"]:
        raise ConfigError(
            f"context_encoder: {folder.path}/model.safetensors lacks "
            f"{', '.join(sorted(report['missing_keys']))}; save the model again"
        )
    encoder.bert.load_state_dict(bert.state_dict())
    return encoder.train(False)


def cache_folder() -> Path:
    """Return where vectors are kept: SISERVE_CACHE, or siserve in the user's folder of caches."""
    own = os.environ.get("SISERVE_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "siserve"


def sentence_vectors(folder: SentenceFolder, texts: Sequence[str], cache: Path) -> Halves:
    """Return the vectors of texts, computed once for this encoder and these texts, (texts, P).

    Args:
        folder: of the encoder.
        texts: in the order of the rows.
        cache: folder of the files; one that is broken off is gone on with.
    """
    digest = hashlib.sha256(folder.digest.encode())
    digest.update("\0".join(texts).encode())
    path = cache / "context-vectors" / f"{digest.hexdigest()}.safetensors"
    file = VectorFile(path, len(texts), folder.shape.hidden)
    if file.is_complete:
        return file.read()
    pieces = folder.text().encode_utterances(texts)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = load_sentence_encoder(folder).to(device)

    @torch.no_grad()
    def encode(rows: Ints) -> Halves:
        ids = padded([pieces[row] for row in rows.tolist()])
        vectors: Halves = encoder(ids.to(device)).cpu().numpy().astype(np.float16)
        return vectors

    console = Console(stderr=True, soft_wrap=True)
    console.print(f"context vectors of {len(texts)} utterances, once, kept in {path.parent}")
    batches = list(_alike(pieces))
    seen = track(batches, "context vectors", console=console, disable=not console.is_terminal)
    return file.fill(seen, encode)


def _alike(pieces: Sequence[Sequence[int]]) -> Iterator[Ints]:
    """Yield rows of about equal length, some thousand tokens at a time."""
    lengths = np.array([len(ids) for ids in pieces])
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and lengths[order[stop]] * (stop + 1 - start) <= _TOKENS_AT_ONCE:
            stop += 1
        yield order[start:stop]
        start = stop


@contextmanager
def _quiet() -> Iterator[None]:
    before, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if has_bar:
            logging.enable_progress_bar()
