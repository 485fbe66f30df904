"""Pictures that are known again by their width, and tables of any kind that name them."""

import csv
import json

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from test_bulk import write_lines


def picture(path, width: int):
    """A picture that is known again by its width."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (width, 20), (width, 90, 30)).save(path)
    return path


def table_of(path, records: list[dict]):
    """The records as a table of the path's kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        write_lines(path, records)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        with open(path, "w", newline="") as stream:
            writer = csv.writer(stream, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([list(records[0]), *([*record.values()] for record in records)])
    return path
