"""Text to token ids and back, and the window of context: one module for training and serving.

Tokens are those of Zhao et al. 2017: lower case, then NLTK's WordPunct rule ``\\w+|[^\\w\\s]+``;
every utterance stands between ``<s>`` and ``</s>``, and a dialog begins with ``<s> <d> </s>``. Text
that comes in tokens already, as corpora of sentences do, is split at blanks and joined by blanks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tokenizers import Encoding, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import NFC, Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import Whitespace, WhitespaceSplit

__all__ = [
    "DIALOG_START",
    "END",
    "PAD",
    "START",
    "UNK",
    "ContextWindow",
    "SpecialTokens",
    "Text",
    "encodings",
    "last_utterances",
]

PAD, UNK, START, END, DIALOG_START = "<pad>", "<unk>", "<s>", "</s>", "<d>"

#: Texts that the thread that asks encodes itself, without help.
_FEW = 64
_CLITICS = frozenset({"s", "t", "re", "ve", "ll", "d", "m"})
_ELISIONS = frozenset({"cause", "em", "til", "bout", "round", "n"})
_JOINERS = frozenset({"-", "/", "&"})
_CLOSING = re.compile(r"^[^\w\s'\"(\[{#$&/-]+$")

#: The Whitespace rule of the tokenizers library. For ASCII alone: elsewhere the two libraries
#: differ in what a letter is, and in how it is composed and lowered.
_ASCII_WORDS = re.compile(r"\w+|[^\w\s]+", re.ASCII)


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that are marks, not words.

    A vocabulary of sentences has no ``<d>``; `dialog_start` is the id of ``<pad>`` then, which is
    never generated either.
    """

    pad: int
    unk: int
    start: int
    end: int
    dialog_start: int

    @property
    def never_generated(self) -> tuple[int, ...]:
        """Ids that decoding masks: a response has words and, at its end, ``</s>``."""
        return (self.pad, self.unk, self.start, self.dialog_start)


class ContextWindow(NamedTuple):
    """The last utterances before a response, oldest first.

    Attributes:
        utterances: token ids with ``<s>`` and ``</s>``, at most `window` of them.
        floors: 1 where the responder spoke, 0 where the other did; as long as `utterances`.
    """

    utterances: tuple[tuple[int, ...], ...]
    floors: tuple[int, ...]


class Text:
    """A word-level vocabulary and the rules that turn utterances into ids and ids into text.

    Args:
        tokenizer: a tokenizer whose vocabulary holds the special tokens; ``<d>`` may be missing.
        max_tokens: longest utterance in tokens, ``<s>`` and ``</s>`` included.

    Raises:
        ValueError: if a special token is missing from the vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int = 40) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        ids = {word: tokenizer.token_to_id(word) for word in (PAD, UNK, START, END)}
        missing = [word for word, index in ids.items() if index is None]
        if missing:
            raise ValueError(
                f"the tokenizer lacks {', '.join(missing)}; expected all of {', '.join(ids)}"
            )
        pad, unk, start, end = (index for index in ids.values() if index is not None)
        dialog_start = tokenizer.token_to_id(DIALOG_START)
        self.tokens = SpecialTokens(
            pad, unk, start, end, pad if dialog_start is None else dialog_start
        )
        self.is_in_tokens = isinstance(tokenizer.pre_tokenizer, WhitespaceSplit)
        self._ids = _words_by_rule(tokenizer)

    @classmethod
    def from_words(
        cls,
        words: Sequence[str],
        max_tokens: int = 40,
        split_at: Literal["punctuation", "blanks"] = "punctuation",
    ) -> Text:
        """Make the tokenizer of a list of words; a word's place in the list is its id.

        Args:
            words: all of them, marks too.
            max_tokens: longest utterance in tokens.
            split_at: "blanks" for text in tokens already, whose letters stay as they are.
        """
        vocabulary = {word: index for index, word in enumerate(words)}
        tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNK))
        if split_at == "blanks":
            tokenizer.normalizer = NFC()
            tokenizer.pre_tokenizer = WhitespaceSplit()
        else:
            tokenizer.normalizer = Normalizers([NFC(), Lowercase()])
            tokenizer.pre_tokenizer = Whitespace()
        return cls(tokenizer, max_tokens)

    @classmethod
    def from_json(cls, serialized: str, max_tokens: int = 40) -> Text:
        """Read the content of a tokenizer.json."""
        return cls(Tokenizer.from_str(serialized), max_tokens)

    @classmethod
    def from_file(cls, path: Path, max_tokens: int = 40) -> Text:
        """Read a tokenizer.json."""
        return cls.from_json(path.read_text(encoding="utf-8"), max_tokens)

    def to_json(self) -> str:
        """Return the content of a tokenizer.json."""
        return str(self.tokenizer.to_str(pretty=False))

    @property
    def size(self) -> int:
        """Number of ids, special tokens included."""
        return int(self.tokenizer.get_vocab_size())

    @property
    def dialog_start(self) -> tuple[int, ...]:
        """The artificial first utterance of every dialog: ``<s> <d> </s>``."""
        return (self.tokens.start, self.tokens.dialog_start, self.tokens.end)

    def encode_utterance(self, text: str) -> tuple[int, ...]:
        """Return ids from ``<s>`` to ``</s>``, cut as Zhao et al. cut (`cut_utterance`)."""
        return self.encode_utterances([text])[0]

    def encode_utterances(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Encode many utterances at once; see `encode_utterance`."""
        start, end = self.tokens.start, self.tokens.end
        return [cut_utterance((start, *ids, end), self.max_tokens) for ids in self._look_up(texts)]

    def _look_up(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of the words of each text.

        Where the rule is ours, ASCII is split here: an encoding of the tokenizers library brings
        offsets and masks that nobody wants, and takes four times as long.
        """
        if self._ids is None or not all(map(str.isascii, texts)):
            return [encoding.ids for encoding in encodings(self.tokenizer, texts, marks=False)]
        find, unk = self._ids.get, self.tokens.unk
        return [[find(word, unk) for word in _ASCII_WORDS.findall(text.lower())] for text in texts]

    def split(self, text: str) -> list[str]:
        """Return the tokens of a text as words, in lower case, before any look-up."""
        normal = self.tokenizer.normalizer.normalize_str(text)
        return [word for word, _ in self.tokenizer.pre_tokenizer.pre_tokenize_str(normal)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text up to the first ``</s>``, written as people write it."""
        end = self.tokens.end
        if end in ids:
            ids = ids[: list(ids).index(end)]
        words = [word for word in map(self._words.__getitem__, ids) if word is not None]
        return " ".join(words) if self.is_in_tokens else join_words(words)

    @cached_property
    def _words(self) -> tuple[str | None, ...]:
        """The word of each id; None for marks, which are not written."""
        silent = (self.tokens.pad, self.tokens.start, self.tokens.end, self.tokens.dialog_start)
        return tuple(
            None if index in silent else str(self.tokenizer.id_to_token(index))
            for index in range(self.size)
        )

    def context_window(
        self, turns: Sequence[tuple[str, Sequence[int]]], responder: str, window: int = 9
    ) -> ContextWindow:
        """Take the last `window` utterances of a dialog, its artificial first one included.

        Args:
            turns: (speaker, ids with ``<s>`` and ``</s>``) of every utterance so far.
            responder: name of the speaker whose response is to come.
            window: number of context utterances.
        """
        return last_utterances(turns, self.dialog_start, responder, window)


def encodings(tokenizer: Tokenizer, texts: Sequence[str], marks: bool) -> list[Encoding]:
    """Encode texts; those of a dialog without letting go of Python's lock.

    `encode_batch` hands even five texts to threads of its own and waits for them and then for the
    lock: beside a server's other threads that is 10 ms for 0.1 ms of work.

    Args:
        marks: whether the tokenizer puts its own around every text.
    """
    if len(texts) > _FEW:
        return list(tokenizer.encode_batch(list(texts), add_special_tokens=marks))
    return [tokenizer.encode(text, add_special_tokens=marks) for text in texts]


def last_utterances(
    turns: Sequence[tuple[str, Sequence[int]]],
    dialog_start: Sequence[int],
    responder: str,
    window: int,
) -> ContextWindow:
    """Put a dialog's artificial first utterance before it and take the last `window` utterances."""
    start = (dialog_start_speaker([speaker for speaker, _ in turns]), dialog_start)
    recent = [start, *turns][-window:]
    return ContextWindow(
        tuple(tuple(ids) for _, ids in recent),
        tuple(int(speaker == responder) for speaker, _ in recent),
    )


def cut_utterance(ids: tuple[int, ...], max_tokens: int) -> tuple[int, ...]:
    """Keep the first `max_tokens` - 1 ids and the last one of an utterance that is too long."""
    return ids if len(ids) <= max_tokens else (*ids[: max_tokens - 1], ids[-1])


def dialog_start_speaker(speakers: Sequence[str]) -> str:
    """Say whose flag the artificial first utterance carries.

    Zhao et al. give it to speaker "A"; a dialog whose speakers have other names gives it to
    whoever speaks first.
    """
    return "A" if not speakers or "A" in speakers else speakers[0]


def join_words(words: Sequence[str]) -> str:
    """Write tokens as a sentence: ``don ' t`` as "don't", ``uh - huh`` as "uh-huh"."""
    if all(map(str.isalnum, words)):
        return " ".join(words)  # none of the rules below is about letters and digits
    text = ""
    glue = True
    for position, word in enumerate(words):
        following = words[position + 1] if position + 1 < len(words) else ""
        if word == "'":
            elided = following in _ELISIONS or not text
            clock = words[position - 1 : position] == ["o"] and following == "clock"
            text += " '" if elided and not glue else "'"
            glue = elided or clock or following in _CLITICS
        elif word in _JOINERS:
            text += word if following or glue else ""
            glue = True
        elif not word.isalnum() and _CLOSING.match(word):
            text += word
            glue = False
        else:
            text += word if glue or not text else f" {word}"
            glue = False
    return text


def _words_by_rule(tokenizer: Tokenizer) -> Mapping[str, int] | None:
    """Return the vocabulary if the tokenizer does what `Text.from_words` says of punctuation."""
    normalizer, splitter = Normalizers([NFC(), Lowercase()]), Whitespace()
    is_ours = (
        isinstance(tokenizer.model, WordLevel)
        and tokenizer.model.unk_token == UNK
        and _is_same(tokenizer.normalizer, normalizer)
        and _is_same(tokenizer.pre_tokenizer, splitter)
        and tokenizer.truncation is None
        and not tokenizer.get_added_tokens_decoder()
    )
    return tokenizer.get_vocab() if is_ours else None


def _is_same(part: Any, other: Any) -> bool:
    """Compare parts of tokenizers, which have no equality, by what is written of them."""
    return part is not None and bool(part.__getstate__() == other.__getstate__())
