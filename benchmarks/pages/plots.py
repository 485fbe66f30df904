"""Plots for the docs, all in one style."""

from pathlib import Path


def panels(rows: int, columns: int, size: tuple[float, float], **options):
    """(figure, axes) as pyplot.subplots gives them; `size` in inches."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    return pyplot.subplots(rows, columns, figsize=size, layout="constrained", **options)


def save(figure, path: Path) -> None:
    """As a PNG that says nothing of when or with what it was drawn."""
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
