"""Contexts to ask a server with: dialogs of its own words, that it has not seen before.

Utterances are spliced from two of the server's replies, so that they read like its corpus and no
text of anybody is needed. None is ever said twice, unless the same dialog is asked for.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Literal

from siserve.client.answer import make_request

__all__ = ["Dialogs", "Kind", "Talk"]

Kind = Literal["new", "growing", "same"]

_SPEAKERS = ("A", "B")
_TRIES = 100


class Talk:
    """Says utterances that it never said before.

    Args:
        replies: of a model, as text; what is said is spliced from them.
        seed: of the choice.
    """

    def __init__(self, replies: Sequence[str], seed: int) -> None:
        """Split the replies into words."""
        self._words = [words for reply in replies if (words := reply.split())] or [["hello"]]
        self._dice = random.Random(seed)
        self._said: set[str] = set()

    def utterance(self) -> str:
        """Say something new."""
        for _ in range(_TRIES):
            one, other = self._dice.choice(self._words), self._dice.choice(self._words)
            kept = one[: self._dice.randint(1, len(one))]
            text = " ".join(kept + other[self._dice.randrange(len(other)) :])
            if text not in self._said:
                break
        else:
            text = f"{text} {len(self._said)}"  # few words have few splices
        self._said.add(text)
        return text

    @property
    def words_per_utterance(self) -> float:
        """Mean length of what was said."""
        return sum(len(text.split()) for text in self._said) / max(1, len(self._said))


class Dialogs:
    """Serialised requests, each with a context of `turns` turns.

    new: no utterance of a context was ever sent before. growing: several dialogs, which gain one
    turn with each request and are told with their last turns. same: one context.

    Args:
        talk: where utterances come from.
        kind: see above.
        turns: of a context.
        n: responses that are asked for.
        dialogs: how many grow at the same time.
    """

    def __init__(self, talk: Talk, kind: Kind, turns: int, n: int, dialogs: int = 1) -> None:
        """Prepare the first contexts."""
        self._talk, self._kind, self._turns = talk, kind, turns
        self._options = make_request((), n=n).SerializeToString()
        self._ready: deque[bytes] = deque()
        self._growing = [self._dialog() for _ in range(dialogs)] if kind == "growing" else []
        self._same = self._whole() if kind == "same" else b""

    def prepare(self, requests: int) -> None:
        """Make new contexts ahead of time, so that they cost nothing while one measures."""
        while self._kind == "new" and len(self._ready) < requests:
            self._ready.append(self._whole())

    def take(self, dialog: int) -> bytes:
        """Return the next request.

        Args:
            dialog: of which growing dialog, counted round.
        """
        if self._kind == "same":
            return self._same
        if self._kind == "new":
            return self._ready.popleft() if self._ready else self._whole()
        turns = self._growing[dialog % len(self._growing)]
        turns.append(self._turn(turns.said))
        turns.said += 1
        return b"".join(turns) + self._options

    def _whole(self) -> bytes:
        return b"".join(self._dialog()) + self._options

    def _dialog(self) -> _Turns:
        said = [self._turn(number) for number in range(self._turns)]
        return _Turns(said, self._turns)

    def _turn(self, number: int) -> bytes:
        """Return one turn as it stands within a request."""
        speaker = _SPEAKERS[number % len(_SPEAKERS)]
        return make_request([(speaker, self._talk.utterance())]).SerializeToString()


class _Turns(deque[bytes]):
    """The last turns of a dialog, and how many were said."""

    def __init__(self, turns: Sequence[bytes], most: int) -> None:
        super().__init__(turns, maxlen=most)
        self.said = most
