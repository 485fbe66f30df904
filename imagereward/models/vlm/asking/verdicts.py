"""Grammar: how the text that a judge writes becomes a number in [0, 1], or NaN if it does not fit."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from imagereward.config import strict
from imagereward.errors import InputError

NUMBER = r"(?P<value>[0-9]+(?:\.[0-9]+)?)(?![0-9.]*[0-9])"


@dataclass(frozen=True)
class Grammar:
    """Named scores on lines of a text, such as "Alignment: 4".

    A line gives the score of the name that it begins with, after spaces, list marks and asterisks: the
    number after the line's last colon. A text fits if every name has exactly one line, and every number is
    in [low, high]. "4/5" counts as 4 where `high` is 5.

    fields  the names, with their weights in the result; weights are positive
    low     the number that counts as 0
    high    the number that counts as 1
    """

    fields: dict[str, float] = field(default_factory=dict)
    low: float = 1.0
    high: float = 5.0

    def __post_init__(self) -> None:
        if not self.fields or not all(
            isinstance(name, str) and isinstance(weight, (int, float)) and 0 < weight < math.inf
            for name, weight in self.fields.items()
        ):
            raise InputError(f"grammar fields={self.fields!r}: expected names with weights above 0")
        if not (-math.inf < self.low < self.high < math.inf):
            raise InputError(f"grammar low={self.low!r}, high={self.high!r}: expected finite, low below high")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Grammar":
        """The grammar with these values; InputError naming an unknown key's nearest."""
        return strict(cls, values)

    def numbers(self, text: str) -> dict[str, float] | None:
        """The number of each name; None if the text does not fit."""
        found = {}
        for name in self.fields:
            lines = re.findall(rf"(?im)^[\s\-*#•]*{re.escape(name)}(?!\w)([^\n]*)$", text)
            if len(lines) != 1:
                return None
            value = lines[0].rpartition(":")[2].strip().strip("*").strip()
            match = re.fullmatch(rf"{NUMBER}\s*(?:/\s*(?P<most>[0-9]+))?\.?", value)
            if ":" not in lines[0] or match is None:
                return None
            if match["most"] and float(match["most"]) != self.high:
                return None
            found[name] = float(match["value"])
            if not self.low <= found[name] <= self.high:
                return None
        return found

    def score(self, text: str) -> float:
        """The weighted mean of (number - low) / (high - low), in [0, 1]; NaN if the text does not fit."""
        numbers = self.numbers(text)
        if numbers is None:
            return math.nan
        total = sum(self.fields.values())
        return sum(
            weight * (numbers[name] - self.low) / (self.high - self.low) / total
            for name, weight in self.fields.items()
        )

    def mean_score(self, texts: Iterable[str]) -> float:
        """The mean score of those texts that fit; NaN if none does."""
        fitting = [score for score in map(self.score, texts) if not math.isnan(score)]
        return sum(fitting) / len(fitting) if fitting else math.nan
