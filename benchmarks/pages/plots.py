"""The common style of the docs' plots."""

from pathlib import Path


def panels(rows: int, columns: int, size: tuple[float, float], **options):
    """(figure, axes) of pyplot.subplots in the docs' style; `size` in inches."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    return pyplot.subplots(rows, columns, figsize=size, layout="constrained", **options)


def save(figure, path: Path) -> None:
    """Save as a PNG without date and software in its metadata, so that equal plots have equal bytes."""
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
