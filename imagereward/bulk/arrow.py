"""pyarrow, imported where it is used: it comes with an extra."""

from imagereward.errors import ImageRewardError


def arrow():
    """The module pyarrow, its `csv` and `parquet` included."""
    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise ImageRewardError(
            f"scoring tables needs more: python -m pip install 'imagereward[scale]' ({error})"
        ) from error
    return pyarrow
