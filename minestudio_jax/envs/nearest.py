"""The known word that was probably meant by an unknown one.

Simulator side: the standard library only, Python 3.8 syntax.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """The end of a message that asks so; empty if nothing is near."""
    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
