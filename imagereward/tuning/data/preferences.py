"""PreferencePairs: pairs of a better and a worse image of one prompt, from a table or drawn by Shapes."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imagereward.errors import InputError
from imagereward.shapes import MOST_THINGS
from imagereward.tuning.data.drawn import DrawnPreferences, MaskedRows, drawn_preprocess, drawn_prompts
from imagereward.tuning.data.image_size import CoverCrop, ImageSize
from imagereward.tuning.data.pictures import (
    Checked,
    DistinctImages,
    Images,
    Picture,
    check_masks,
    check_pictures,
    check_sizes,
    pictures_of,
)
from imagereward.tuning.data.preference_records import PairsOf, Preference, Preferences, read_preferences
from imagereward.tuning.data.requests import Row, prompt_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreferencePairs:
    """Pairs of a better and a worse image of one prompt.

    rows        the prompt of every pair, with the pictures that the model is shown
    texts       the prompt of every pair
    images      the images, all of one size, each once; `LatentPairs` encodes them
    chosen      for every pair the index in `images` of the better image
    rejected    and of the worse one
    ties        pairs of the data of which neither image is better; they are left out
    unlabelled  records of the data without a label; they are left out
    skipped     pairs with an image that cannot be read; they are left out
    """

    rows: Sequence[Row]
    texts: Sequence[str]
    images: Images
    chosen: Sequence[int]
    rejected: Sequence[int]
    ties: int = 0
    unlabelled: int = 0
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.rows)


def open_preferences(
    data: str,
    size: ImageSize,
    max_bad_share: float,
    *,
    inputs: Sequence[str] = (),
    pairs_of: PairsOf = "all",
    encoding: str | None = None,
    column: str | None = None,
    count: int = 10_000,
    seed: int = 0,
    things: int = MOST_THINGS,
) -> PreferencePairs:
    """The preferences of a table, or those that Shapes draws.

    data           path of a table, whose layouts `read_preferences` has, or "shapes": faithful images
                   without a flaw are chosen, unfaithful or damaged ones rejected (`DrawnPreferences`)
    size           height and width in pixels; images are turned upright, resized to cover it and cropped
    max_bad_share  largest share of images, and of pictures of `inputs`, that may be missing or damaged,
                   0..1; pairs with such an image are left out
    inputs         the pictures that the model takes, of "image" and "mask", as `Denoiser.inputs` names them
    pairs_of       for rankings: "all" pairs of unequal rank, or only the "extremes": best against worst
    encoding       encoding of a text file; default: its byte order mark, else UTF-8
    column         the table's column of prompts, not for rankings; default: by the usual names
    count, seed, things  for "shapes": number of pairs, seed, and most things in a scene

    All images of a table are decoded once at the start. Raises InputError as `read_preferences` does, for a
    pair whose images are the same file or have the same bytes, for a mask of another size than its image, or
    that is empty or white everywhere, in its file or as the crop leaves it, for more unusable images than
    `max_bad_share`, for a table without a pair that can be used, and as `drawn_preprocess` does for "shapes".
    """
    if data == "shapes":
        return _drawn(size, inputs, count, seed, things)
    path = Path(data).expanduser()
    preferences = read_preferences(path, inputs, pairs_of, encoding, column)
    _tell_left_out(path, preferences)
    for each in preferences.found:
        if each.chosen == each.rejected:
            raise _same(each)
    checked = check_pictures(path, _names(preferences.found, inputs), max_bad_share)
    usable = [each for each in preferences.found if _usable(each, checked, inputs)]
    if not usable:
        raise InputError(f"{path} holds no pair of images that can be used")
    if "mask" in inputs:
        check_masks([each.row for each in usable], size)
    return _distinct(usable, checked, CoverCrop(size), preferences)


def _drawn(size: ImageSize, inputs: Sequence[str], count: int, seed: int, things: int) -> PreferencePairs:
    preprocess, texts = drawn_preprocess(size, inputs), drawn_prompts(count, seed, things)
    rows = MaskedRows(count, seed, size.height, things) if inputs else texts
    images = DrawnPreferences(count, seed, preprocess, things, masked=bool(inputs))
    return PreferencePairs(rows, texts, images, range(0, 2 * count, 2), range(1, 2 * count, 2))


def _tell_left_out(path: Path, preferences: Preferences) -> None:
    """Log how many ties and unlabelled records there are; InputError if there is nothing else."""
    left_out = f"{preferences.ties} ties, {preferences.unlabelled} records without a label"
    if not preferences.found:
        raise InputError(f"{path} prefers no image to another: {left_out}; expected at least one preference")
    if preferences.ties or preferences.unlabelled:
        log.warning("%s: %d pairs; left out: %s", path, len(preferences.found), left_out)


def _names(preferences: Sequence[Preference], inputs: Sequence[str]) -> dict[Picture, str]:
    """{picture: its name in messages}, of all pictures of all pairs, each once."""
    names: dict[Picture, str] = {}
    for each in preferences:
        pictures = {"chosen": each.chosen, "rejected": each.rejected, **pictures_of(each.row, inputs)}
        for name, picture in pictures.items():
            names.setdefault(picture, f"{each.where}, {name}")
    return names


def _usable(each: Preference, checked: dict[Picture, Checked], inputs: Sequence[str]) -> bool:
    """Whether all pictures of a pair can be read; InputError for equal images and masks of another size."""
    shown = pictures_of(each.row, inputs)
    if any(checked[picture].fault for picture in (each.chosen, each.rejected, *shown.values())):
        return False
    if checked[each.chosen].digest == checked[each.rejected].digest:
        raise _same(each)
    check_sizes(shown, checked, each.where)
    return True


def _same(each: Preference) -> InputError:
    files = (picture for picture in (each.chosen, each.rejected) if isinstance(picture, Path))
    named = "".join(f" {file}" for file in dict.fromkeys(files))
    return InputError(f"{each.where}: chosen and rejected are the same image{named}; expected two")


def _distinct(
    pairs: Sequence[Preference],
    checked: dict[Picture, Checked],
    preprocess: CoverCrop,
    preferences: Preferences,
) -> PreferencePairs:
    """The pairs, with each of their images once."""
    pictures: dict[str, Picture] = {}
    for each in pairs:
        for picture in (each.chosen, each.rejected):
            pictures.setdefault(checked[picture].digest, picture)
    places = {digest: place for place, digest in enumerate(pictures)}
    return PreferencePairs(
        [each.row for each in pairs],
        [prompt_of(each.row) for each in pairs],
        DistinctImages(preprocess, pictures),
        [places[checked[each.chosen].digest] for each in pairs],
        [places[checked[each.rejected].digest] for each in pairs],
        preferences.ties,
        preferences.unlabelled,
        len(preferences.found) - len(pairs),
    )
