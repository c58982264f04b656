"""Finding: what was looked at before a run, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """
    Attributes:
      verdict: "good"; "doubtful": the run will start, but slowly or not for long; "bad": it will not.
      subject: a word or two.
      sentence: what was found.
      remedy: what to do about it; empty where nothing need be done.
    """

    verdict: Literal["good", "doubtful", "bad"]
    subject: str
    sentence: str
    remedy: str = ""


def good(subject: str, sentence: str) -> Finding:
    return Finding("good", subject, sentence)


def doubtful(subject: str, sentence: str, remedy: str) -> Finding:
    return Finding("doubtful", subject, sentence, remedy)


def bad(subject: str, sentence: str, remedy: str) -> Finding:
    return Finding("bad", subject, sentence, remedy)
