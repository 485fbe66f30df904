"""Imports pyarrow on first use, since it belongs to an optional extra."""

from imagereward.errors import missing_extra


def arrow():
    """The module pyarrow with `pyarrow.csv` and `pyarrow.parquet` imported. Raises MissingExtraError."""
    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise missing_extra("Parquet and tables of scores", "scale", error) from error
    return pyarrow
