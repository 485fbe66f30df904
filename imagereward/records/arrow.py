"""pyarrow, imported when it is first used: an extra installs it."""

from imagereward.errors import missing_extra


def arrow():
    """The module pyarrow, its `csv` and `parquet` included."""
    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise missing_extra("Parquet and tables of scores", "scale", error) from error
    return pyarrow
