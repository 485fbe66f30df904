"""Steps that several commands share: find images, check the prompt, load a scorer, print its note."""

import glob
import os
import sys
import warnings

from imagereward.cli.output import print_rows

__all__ = ["adapted", "allow_pixels", "check_prompt", "image_paths", "load_scorer", "print_rows", "say_note"]

DEFAULT_MODEL = "ImageReward-v1.0"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jxl", ".heic")


def load_scorer(model, checkpoint, device, dtype, download_root, offline, exif_rotation=False):
    """Load the scorer that a command names, and print its note. CheckpointError for a missing file."""
    options = {"dtype": dtype, "local_files_only": offline, "apply_exif_rotation": exif_rotation or None}
    import imagereward
    from imagereward.errors import CheckpointError

    if checkpoint is not None:
        if "+" in (model or ""):
            raise CheckpointError(f"--checkpoint {checkpoint} takes no adapter: load() does, in Python")
        if not checkpoint.is_file():
            found = "is a directory: pass it as --model" if checkpoint.is_dir() else "does not exist"
            raise CheckpointError(f"checkpoint {checkpoint} {found}")
        return imagereward.load(checkpoint, device, download_root, kind=model, **options)
    name = model or DEFAULT_MODEL
    say_note(name)
    return imagereward.load(name, device, download_root, **options)


def adapted(names: list[str], adapters: list[str] | None, offline: bool) -> list[str]:
    """The names of scorers, "+ADAPTER" behind those that an adapter is for."""
    if not adapters:
        return names
    from imagereward.checkpoints.adapted import with_adapters

    return with_adapters(names, adapters, offline)


def allow_pixels(millions: float | None) -> None:
    """Set the largest image to decode, in millions of pixels; None keeps the default."""
    from imagereward.images.reading import set_max_pixels

    if millions is not None:
        set_max_pixels(round(millions * 10**6))


def say_note(name: str) -> None:
    """Print the registry's note on a scorer, such as a limitation, to stderr."""
    from imagereward.checkpoints.registry import REGISTRY

    name = name.partition("+")[0]
    if name in REGISTRY and REGISTRY[name].note:
        print(f"imagereward: note: {REGISTRY[name].note}", file=sys.stderr)


def image_paths(patterns: list[str]) -> list[str]:
    """Expand globs that the shell left, sorted, and check that all files are images.

    Commands call this before they load a model, so that a wrong path fails at once. Raises ImageNotFound for
    a glob without matches, and the errors of `check_image`.
    """
    from imagereward.errors import ImageNotFound
    from imagereward.images.reading import check_image

    paths: list[str] = []
    for pattern in patterns:
        found = _matching(pattern)
        if not found:
            raise ImageNotFound(f"no file matches {pattern!r}")
        paths += found
    for index, path in enumerate(paths):
        check_image(path, index)
    return paths


def check_prompt(prompt: str, command: str) -> None:
    """InputError if the prompt is an image file, so was left out; a warning if it looks like a file."""
    from imagereward.errors import InputError

    is_image = prompt.lower().endswith(IMAGE_SUFFIXES)
    is_file = any(map(os.path.isfile, _matching(prompt) if is_image else [prompt]))
    order = (
        f"the order is `imagereward {command} PROMPT IMAGES`, "
        f"for example `imagereward {command} 'a red bicycle' a.png b.png`"
    )
    if is_file and is_image:
        raise InputError(f"the first argument is the prompt, but {prompt!r} is an image file: {order}")
    if is_file or is_image:
        kind = "is a file" if is_file else "ends like the name of an image file"
        warnings.warn(f"{prompt!r} is scored as the prompt, though it {kind}: {order}", stacklevel=2)


def _matching(pattern: str) -> list[str]:
    """The files of a glob, sorted; the pattern itself if it is no glob or if a file has that name."""
    if not glob.has_magic(pattern) or os.path.exists(pattern):
        return [pattern]
    return sorted(filter(os.path.isfile, glob.glob(pattern, recursive=True)))
