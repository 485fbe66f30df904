"""What, besides weights and settings, decides the last bits of a score."""

from importlib.metadata import PackageNotFoundError, version

from imagereward.version import __version__

LIBRARIES = ("torch", "torchvision", "timm", "open_clip_torch", "tokenizers", "Pillow", "numpy")


def versions() -> dict[str, str]:
    """Library -> version; "none" for one that is not installed."""
    found = {"imagereward": __version__}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "none"
    return found
