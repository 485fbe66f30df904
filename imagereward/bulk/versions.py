"""Versions of the libraries that decide the last bits of a score, for fingerprints and cache keys."""

from importlib.metadata import PackageNotFoundError, version

from imagereward.version import __version__

LIBRARIES = (
    *("torch", "torchvision", "timm", "open_clip_torch", "transformers", "peft"),
    *("tokenizers", "Pillow", "numpy"),
)


def versions() -> dict[str, str]:
    """{library: version}; "none" for a library that is not installed."""
    found = {"imagereward": __version__}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "none"
    return found
