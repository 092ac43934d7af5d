"""Names in texts: whole words, whatever the letter case, the form of the letters and the line breaks."""

from __future__ import annotations

import unicodedata
from functools import cache


# Their words are not divided by spaces, so a name has no border in them.
_WITHOUT_SPACES = ("CJK", "HIRAGANA", "THAI", "LAO", "KHMER", "MYANMAR")


def plain(text: str) -> str:
    """The text for comparing names: case folded, in Unicode NFC, with every run of whitespace as one space."""
    folded = unicodedata.normalize("NFD", text).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def is_mentioned(name: str, text: str) -> bool:
    """Whether a name stands in a text as whole words. Both are `plain`.

    >>> is_mentioned("ann", "ann's house"), is_mentioned("ann", "anna's house")
    (True, False)
    """
    start = text.find(name)
    while start >= 0:
        if _is_border(text, start) and _is_border(text, start + len(name)):
            return True
        start = text.find(name, start + 1)
    return False


def _is_border(text: str, position: int) -> bool:
    return position in (0, len(text)) or not (_joins(text[position - 1]) and _joins(text[position]))


@cache
def _joins(character: str) -> bool:
    """Whether a letter, a mark on one, a digit or an underscore, in a script that divides words."""
    if unicodedata.category(character)[0] not in "LMN" and character != "_":
        return False
    return not unicodedata.name(character, "").startswith(_WITHOUT_SPACES)
