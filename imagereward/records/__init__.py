"""Reads records of tables in JSON Lines, JSON, CSV, TSV and Parquet.

Bulk scoring, training, comparing, benchmarks and reports read their tables, prompts and rankings with it.
"""

from imagereward.records.columns import find_column, usual_columns
from imagereward.records.prompt_lines import read_prompt_lines
from imagereward.records.record import Found, Record, Wanted, prompt_error
from imagereward.records.table import SUFFIXES, Table, open_table, read_all

__all__ = [
    "SUFFIXES",
    "Found",
    "Record",
    "Table",
    "Wanted",
    "find_column",
    "open_table",
    "prompt_error",
    "read_all",
    "read_prompt_lines",
    "usual_columns",
]
