"""Tokenised dialogs in flat arrays, and every (context, response) pair of every dialog.

The window is that of Zhao et al. 2017: up to 9 context utterances, then 1 response. A dialog
begins with the artificial utterance ``<s> <d> </s>``; every later utterance but the last is a
response once (their window count leaves the last one out, and 5,165 and 5,481 pairs of the valid
and test splits rest on that). Nothing is dropped or repeated for the sake of a batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from siserve.bundle.text import DIALOG_START, END, PAD, START, UNK, Text, dialog_start_speaker

from siserve_training.data.corpus import Dialog
from siserve_training.data.told import Told

__all__ = ["Features", "PairSet", "build_vocabulary", "find_features"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

_NOBODY = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Features:
    """What a model is told of a dialog besides its words.

    Attributes:
        topics: names, by frequency; a topic's id is its place plus 1, and 0 means unknown.
        profile: whether speakers' profiles are used.
    """

    topics: tuple[str, ...] = ()
    profile: bool = False

    def topic_id(self, topic: str | None) -> int:
        """Return a topic's id, 0 if it is unknown."""
        return self.topics.index(topic) + 1 if topic in self.topics else 0


def find_features(dialogs: Sequence[Dialog]) -> Features:
    """See which features a corpus offers; those it lacks are switched off."""
    topics = Counter(dialog.topic for dialog in dialogs if dialog.topic)
    return Features(
        topics=tuple(topic for topic, _ in topics.most_common()),
        profile=any(dialog.profiles for dialog in dialogs),
    )


def build_vocabulary(dialogs: Sequence[Dialog], size: int = 10_000, max_tokens: int = 40) -> Text:
    """Build the text module's vocabulary on a training split.

    ``<pad>`` and ``<unk>``, then the `size` most frequent tokens, the marks ``<s>``, ``</s>`` and
    ``<d>`` counted among them; ties keep the order of first sight (Zhao et al. 2017).
    """
    splitter = Text.from_words([PAD, UNK, START, END, DIALOG_START])
    counts: Counter[str] = Counter()
    for dialog in dialogs:
        counts.update((START, DIALOG_START, END))
        for utterance in dialog.utterances:
            counts[START] += 1
            counts.update(splitter.split(utterance.text))
            counts[END] += 1
    words = [word for word, _ in counts.most_common(size)]
    words += [mark for mark in (START, END, DIALOG_START) if mark not in words]
    return Text.from_words([PAD, UNK, *words], max_tokens)


@dataclass(frozen=True)
class PairSet:
    """A split as flat arrays: every utterance once, every pair as a position.

    Utterances of all dialogs follow one another, each dialog's artificial first one included. A
    pair is the position of its response; its context are the utterances before it, back to the
    dialog's start and at most `window` of them.

    Attributes:
        texts: distinct utterances, ids with ``<s>`` and ``</s>``.
        said: distinct utterances as text, for encoders with words of their own; "" opens a dialog.
        text_of: for every position the index of its utterance in `texts`, (P,).
        said_of: for every position the index of its utterance in `said`, (P,).
        speaker_of: for every position the speaker's number within its dialog, (P,).
        dialog_of: for every position the dialog's number, (P,).
        first_of: position of each dialog's artificial first utterance, (dialogs,).
        topic_of: topic id of each dialog, (dialogs,).
        profile_of: profiles by dialog and speaker's number, (dialogs, speakers, 4).
        responses: positions of the responses, dialog after dialog, (pairs,).
        window: largest number of context utterances.
        truncated: number of utterances that were cut.
        told: what a pretrained context encoder is told of each text in `said`, None without one.
    """

    texts: tuple[tuple[int, ...], ...]
    said: tuple[str, ...]
    text_of: Ints
    said_of: Ints
    speaker_of: Ints
    dialog_of: Ints
    first_of: Ints
    topic_of: Ints
    profile_of: Floats
    responses: Ints
    window: int
    truncated: int
    told: Told | None = None

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.responses)

    @classmethod
    def from_dialogs(
        cls, dialogs: Sequence[Dialog], text: Text, features: Features, window: int = 9
    ) -> PairSet:
        """Tokenise dialogs and enumerate their pairs."""
        spoken = [utterance.text for dialog in dialogs for utterance in dialog.utterances]
        encoded = iter(text.encode_utterances(spoken))
        number_of: dict[tuple[int, ...], int] = {}
        said: dict[str, int] = {}
        text_of: list[int] = []
        said_of: list[int] = []
        speaker_of: list[int] = []
        dialog_of: list[int] = []
        first_of: list[int] = []
        responses: list[int] = []
        for number, dialog in enumerate(dialogs):
            speakers = _speaker_numbers(dialog)
            opener = dialog_start_speaker(list(speakers))
            first_of.append(len(text_of))
            rows = [(opener, "", text.dialog_start)]
            rows += [(turn.speaker, turn.text, next(encoded)) for turn in dialog.utterances]
            responses += range(len(text_of) + 1, len(text_of) + len(rows) - 1)
            for speaker, spoken_text, ids in rows:
                text_of.append(number_of.setdefault(ids, len(number_of)))
                said_of.append(said.setdefault(spoken_text, len(said)))
                speaker_of.append(speakers[speaker])
                dialog_of.append(number)
        texts = tuple(number_of)
        lengths = np.array([len(ids) for ids in texts])
        return cls(
            texts=texts,
            said=tuple(said),
            text_of=np.array(text_of, dtype=np.int64),
            said_of=np.array(said_of, dtype=np.int64),
            speaker_of=np.array(speaker_of, dtype=np.int64),
            dialog_of=np.array(dialog_of, dtype=np.int64),
            first_of=np.array(first_of, dtype=np.int64),
            topic_of=np.array([features.topic_id(d.topic) for d in dialogs], dtype=np.int64),
            profile_of=_profile_table(dialogs, features),
            responses=np.array(responses, dtype=np.int64),
            window=window,
            truncated=int((lengths[np.array(text_of)] >= text.max_tokens).sum()),
        )

    def context_of(self, response: int) -> range:
        """Return the positions of the context of the response at a position."""
        first = int(self.first_of[self.dialog_of[response]])
        return range(max(first, response - self.window), response)


def _speaker_numbers(dialog: Dialog) -> dict[str, int]:
    names = dict.fromkeys(utterance.speaker for utterance in dialog.utterances)
    return {name: number for number, name in enumerate(names)}


def _profile_table(dialogs: Sequence[Dialog], features: Features) -> Floats:
    most = max(len(_speaker_numbers(dialog)) for dialog in dialogs)
    table = np.zeros((len(dialogs), max(2, most), 4), dtype=np.float32)
    if features.profile:
        for row, dialog in enumerate(dialogs):
            for name, number in _speaker_numbers(dialog).items():
                profile = dialog.profiles.get(name)
                table[row, number] = profile.numbers() if profile else _NOBODY
    return table
