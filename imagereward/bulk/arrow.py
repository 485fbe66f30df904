"""pyarrow, imported where it is used: it comes with an extra."""

from imagereward.errors import missing_extra


def arrow():
    """The module pyarrow, its `csv` and `parquet` included."""
    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise missing_extra("scoring tables", "scale", error) from error
    return pyarrow
