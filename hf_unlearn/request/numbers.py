"""Numbers that texts spell, as in the cells of a CSV file. All comparisons are exact."""

from __future__ import annotations

import json
import re
from decimal import Decimal, DecimalException


_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")


def spelled(number: int | float) -> str:
    """A number as JSON writes it."""
    return json.dumps(number)


def number_of(text: str) -> Decimal | None:
    """The number that a text spells, or `None`."""
    if _NUMBER.fullmatch(text):
        try:
            return Decimal(text.strip())
        except DecimalException:  # the exponent is too large
            pass
    return None
