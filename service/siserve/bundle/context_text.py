"""Context text to ids of a pretrained encoder's own tokenizer: for training and serving alike.

A bundle with such an encoder has `context_tokenizer.json`. Contexts go through it and responses
through the text module; truncation stands in the file, padding is always 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from siserve.bundle.text import ContextWindow, encodings, last_utterances

__all__ = ["ContextText"]


class ContextText:
    """A tokenizer that puts its own marks around every utterance.

    Args:
        tokenizer: any whose id 0 is padding.
        max_tokens: longest utterance in tokens, marks included; 0 for what the tokenizer says.

    Raises:
        ValueError: if it marks nothing, so that empty text would have no token, or gives padding.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int = 0) -> None:
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # "[SEP]" in a request is text, no mark
        if max_tokens:
            tokenizer.enable_truncation(max_tokens)
        self.tokenizer = tokenizer
        #: What stands for the artificial first utterance of every dialog: empty text.
        self.dialog_start: tuple[int, ...] = tuple(tokenizer.encode("").ids)
        if not self.dialog_start or 0 in self.dialog_start:
            raise ValueError(
                f"the tokenizer gives {list(self.dialog_start)} for empty text; expected marks, "
                "such as [CLS] and [SEP], and id 0 kept for padding"
            )

    @classmethod
    def from_json(cls, serialized: str, max_tokens: int = 0) -> ContextText:
        """Read the content of a tokenizer.json."""
        return cls(Tokenizer.from_str(serialized), max_tokens)

    @classmethod
    def from_file(cls, path: Path, max_tokens: int = 0) -> ContextText:
        """Read a tokenizer.json."""
        return cls.from_json(path.read_text(encoding="utf-8"), max_tokens)

    def to_json(self) -> str:
        """Return the content of a tokenizer.json, the longest utterance in it."""
        return str(self.tokenizer.to_str(pretty=False))

    @property
    def size(self) -> int:
        """Number of ids, marks included."""
        return int(self.tokenizer.get_vocab_size())

    def encode_utterances(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return ids of each text, marks around them and what is too long cut off."""
        return [tuple(encoding.ids) for encoding in encodings(self.tokenizer, texts, marks=True)]

    def context_window(
        self, turns: Sequence[tuple[str, Sequence[int]]], responder: str, window: int = 9
    ) -> ContextWindow:
        """Take the last `window` utterances of a dialog; see `Text.context_window`."""
        return last_utterances(turns, self.dialog_start, responder, window)
