"""Positions of tokens, "f{n}+l{m}": the first n and the last m real tokens of each row."""

import re
from typing import NamedTuple

import torch

from imagereward.errors import InputError

FORM = re.compile(r"(?:f([1-9]\d{0,5}))?(\+)?(?:l([1-9]\d{0,5}))?")
EXPECTED = 'expected "f1+l1", "f3", "l2" or the like (the first and the last tokens), or "all"'
ALL = 10**6  # more tokens than any model reads


class Positions(NamedTuple):
    """The first `first` and the last `last` real tokens; 0 is none.

    If both are asked for, each gets at most half of a row's real tokens, the first ones the odd one: so no
    token is changed twice. If only one is asked for, it gets at most all of them.
    """

    first: int
    last: int

    @property
    def groups(self) -> tuple[str, ...]:
        """Those of "first" and "last" that have positions."""
        return tuple(name for name in ("first", "last") if getattr(self, name))


def parse_positions(text: str) -> Positions:
    """`Positions` of "f{n}+l{m}", "f{n}", "l{m}" or "all". Raises InputError for other text."""
    if text == "all":
        return Positions(ALL, 0)
    found = FORM.fullmatch(text) if isinstance(text, str) else None
    if found is None or not (found[1] or found[3]) or bool(found[2]) != bool(found[1] and found[3]):
        raise InputError(f"positions={text!r}: {EXPECTED}")
    return Positions(int(found[1] or 0), int(found[3] or 0))


def check_allowed(text: str, allows: str, path: str) -> None:
    """Raises InputError for positions that cannot be told apart in a module.

    allows  "any"; "first": no last ones, because rows go on; "all": nothing else, because the tokens of
            several rows follow each other
    """
    positions = parse_positions(text)
    if allows == "all" and positions.first < ALL:
        raise InputError(
            f"positions={text!r}: {path} has the tokens of all images in one row; "
            'expected "all", or kind="lora"'
        )
    if allows == "first" and positions.last:
        raise InputError(
            f"positions={text!r}: the model writes on after a row, whose last tokens {path} does not know; "
            'expected "f1" or the like, "all", or kind="lora"'
        )


def limited(positions: Positions, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(first [B], last [B]): how many first and last tokens rows with `lengths_B` real tokens get."""
    both = bool(positions.first and positions.last)
    half = lengths_B // 2 if both else lengths_B
    return (lengths_B - half if both else lengths_B).clamp(max=positions.first), half.clamp(
        max=positions.last
    )


def selected(positions: Positions, mask_B_T: torch.Tensor) -> dict[str, torch.Tensor]:
    """{group: boolean [B, T]} for the groups "first" and "last" that are asked for.

    mask_B_T  true on real tokens; they need not be contiguous
    """
    mask = mask_B_T.bool()
    place = mask.long().cumsum(1) - 1
    lengths = mask.sum(1)
    first, last = limited(positions, lengths)
    every = {
        "first": mask & (place < first[:, None]),
        "last": mask & (place >= (lengths - last)[:, None]),
    }
    return {name: every[name] for name in positions.groups}


def clamped_rows(text: str, lengths: list[int]) -> int:
    """How many rows, of these numbers of real tokens, have fewer tokens than the positions ask for."""
    positions = parse_positions(text)
    if positions.first >= ALL:
        return 0
    first, last = limited(positions, torch.tensor(lengths))
    return int(((first < positions.first) | (last < positions.last)).sum())
