"""pyarrow, imported when it is first used: an extra installs it."""

from imagereward.errors import ImageRewardError


def arrow():
    """The module pyarrow, its `csv` and `parquet` included."""
    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise ImageRewardError(
            f"Parquet and tables of scores need more: python -m pip install 'imagereward[scale]' ({error})"
        ) from error
    return pyarrow
