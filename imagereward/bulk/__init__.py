"""Bulk scoring of tables, folders and shards of images, resumable, on one machine or many: `score_table`."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from imagereward.bulk import local, on_ray
from imagereward.bulk.decoding.processes import refuse_nested_start
from imagereward.bulk.inputs.changes import InputWatch, digest_of
from imagereward.bulk.inputs.directories import skipped_of
from imagereward.bulk.inputs.folders import Folder
from imagereward.bulk.inputs.own_files import refuse_output_in_input
from imagereward.bulk.inputs.rows import find_columns
from imagereward.bulk.inputs.sources import open_source
from imagereward.bulk.job import BulkJob, Cache, default_workers
from imagereward.bulk.output import ROW_GROUP, BulkSummary, Output
from imagereward.bulk.scoring import SCORE, schema
from imagereward.checkpoints.assembling import resolve_device
from imagereward.config import whole_number
from imagereward.errors import InputError, OutputError
from imagereward.generation_metadata import Markup, check_markup
from imagereward.precision import resolve_dtype
from imagereward.records import Table
from imagereward.scoring.scorer import DEFAULT_BATCH, DEFAULT_BATCH_ACCELERATOR, MOST_AT_ONCE

__all__ = ["BulkSummary", "score_table"]

PART_ROWS = 256


def score_table(
    input: str | os.PathLike,
    out: str | os.PathLike,
    models: str | os.PathLike | Sequence[str | os.PathLike] = "ImageReward-v1.0",
    *,
    prompt: str | None = None,
    prompt_column: str | None = None,
    image_column: str | None = None,
    id_column: str | None = None,
    keep: Sequence[str] = (),
    images: str | os.PathLike | None = None,
    encoding: str | None = None,
    markup: Markup = "strip",
    device: str | Sequence[str] | None = None,
    dtype: str = "float32",
    batch_size: int | None = None,
    apply_exif_rotation: bool | None = None,
    part_rows: int = PART_ROWS,
    workers: int | None = None,
    cache: str | os.PathLike | None = None,
    cache_budget: float | None = None,
    engine: str = "local",
    actors: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
    download_root: str | os.PathLike | None = None,
    local_files_only: bool = False,
) -> BulkSummary:
    """Score every row of `input` with every one of `models` into the table `out`, in the same order.

    input          .jsonl, .csv, .tsv, .parquet (paths or encoded images), .json (a list of records), .tar
                   (WebDataset), a glob of several or of images, or a directory of .tar, .parquet or images
    out            .parquet, .jsonl or .csv with the columns row, id, prompt, image, width, height, tokens,
                   truncated (by any of the models), the columns of `keep`, score:NAME for each model, error
    models         names, directories or files that `load` takes
    prompt         one prompt for all rows, instead of a column
    prompt_column, image_column, id_column   default: the first usual name that the input has
    keep           columns of the input to copy, as text
    images         folder that relative paths of images start at; default: the folder of their table
    encoding       of tables of text: utf-8, utf-16, cp1252, gb18030 …; default: by the byte order mark,
                   UTF-8 without one
    markup         "strip" removes weights, LoRA tags, BREAK and schedules from prompts that a web UI or
                   ComfyUI wrote into images or beside them; "keep" leaves them. Columns of tables and
                   captions in plain words stay as they are
    device         one or several, such as "cuda:0"; several get a process each, and the script then needs
                   `if __name__ == "__main__":`; default: the first CUDA GPU, or else the CPU
    dtype          precision of the models: "float32" (default), "bfloat16" or "float16"
    batch_size     images in one forward pass; default: by the kind of device
    apply_exif_rotation   True rotates photos by their EXIF orientation before they are scored; default:
                   as saved with each model, which is False for all released ones
    part_rows      rows that are read, scored and written together, 1 to 65536; default 256. A part computes
                   repeated images and prompts once
    workers        decoding processes per device; 0 decodes in a thread; default: by the number of CPUs.
                   Ignored by Ray
    cache          a directory for image features; needs `cache_budget`
    cache_budget   size of the cache in GB
    engine         "local", or "ray" for Ray Data, on this machine or on a cluster
    actors         scorers on Ray, with engine="ray" alone; default: one per GPU of the cluster, or per CPU
    overwrite      True replaces an existing output
    progress       whether to show a progress bar
    download_root, local_files_only   as in `load`

    A row that cannot be scored has the reason in `error` and no scores; the other rows are scored. `skipped`
    of the result counts files of the input that are in no row. Finished parts are in `<out>.parts` until the
    end: after a crash, the same call resumes there and gives the same result.

    Raises InputError for invalid arguments and inputs, and for an input that changes during the run;
    OutputError for an output that exists, belongs to another run or is being written by another process, and
    for a full disk; ImageRewardError if a helper process dies; and the errors of `load`.
    """
    named = (models,) if isinstance(models, (str, os.PathLike)) else models
    names = tuple(str(os.fspath(model)) for model in named)
    refuse_nested_start()
    output = Output(out, overwrite)
    if engine not in ("local", "ray"):
        raise InputError(f"engine={engine!r}: expected 'local' or 'ray'")
    if actors is not None:
        whole_number("actors", actors, 1)
        if engine != "ray":
            raise InputError(
                f"actors={actors} are scorers on Ray: expected engine='ray' beside it (--engine ray)"
            )
    resolve_dtype(dtype)
    devices, kind = _devices(device, engine)
    source = open_source(input, encoding)
    refuse_output_in_input(output.out, source.files())
    watch = InputWatch(source)  # before the first read, so that every later change is noticed
    columns = find_columns(source, image_column, prompt_column, id_column, keep, prompt, check_markup(markup))
    if isinstance(source, Table):  # only columns that the caller did not name may differ between files
        given = {"image": image_column, "prompt": prompt_column, "id": id_column}
        source = source.with_roles({role: getattr(columns, role) for role in given if given[role] is None})
    if batch_size is None:
        batch_size = DEFAULT_BATCH.get(kind, DEFAULT_BATCH_ACCELERATOR)
    job = BulkJob(
        source=source,
        watch=watch,
        images=None if images is None or isinstance(source, Folder) else Path(images).expanduser(),
        out=output.out.parent,
        columns=columns,
        models=names,
        device_kind=kind,
        dtype=dtype,
        batch_size=whole_number("batch_size", batch_size, 1, MOST_AT_ONCE),
        part_rows=whole_number("part_rows", part_rows, 1, ROW_GROUP),
        workers=default_workers(len(devices)) if workers is None else whole_number("workers", workers, 0),
        cache=_cache(cache, cache_budget),
        load_options={
            "download_root": download_root,
            "local_files_only": local_files_only,
            "apply_exif_rotation": apply_exif_rotation,
        },
    )
    _check_names(job)
    if not job.rows:
        raise InputError(f"{os.fspath(input)} has no rows")
    return _run(job, output, skipped_of(source, input), devices, engine, actors, progress)


def _run(
    job: BulkJob,
    output: Output,
    skipped: dict[str, int],
    devices: list[str],
    engine: str,
    actors: int | None,
    progress: bool,
) -> BulkSummary:
    with output.locked():
        scorers = job.scorers()
        described = job.models_fingerprint(scorers)
        done = output.begin(job.fingerprint(described))
        done -= _changed_since(job, output, done)
        pending = [index for index in range(job.count) if index not in done]
        if progress and pending:
            for plan in filter(None, (scorer.plan(job.rows_in(pending)) for scorer in scorers)):
                print(f"imagereward: {plan}", file=sys.stderr)
        del scorers  # every scoring process loads its own
        with tqdm(total=job.rows, initial=job.rows_in(done), unit="row", disable=not progress) as bar:
            if pending and engine == "ray":
                on_ray.score_parts(job, output, pending, described, actors, bar)
            elif pending:
                local.score_parts(job, output, pending, devices, bar)
        job.watch.check(always=True)
        return output.finish(job.rows, job.count, skipped)


def _changed_since(job: BulkJob, output: Output, done: set[int]) -> set[int]:
    """Indices of parts in `done` whose rows have changed since, though size and time of the files have not.

    With `overwrite` these parts are removed; without, they raise OutputError. Rows are compared only if a
    program has touched the input's files since the parts were scored.
    """
    changed = set()
    if done and output.input_state() != job.watch.state:
        for part in job.parts(done):
            if output.rows_digest(part.index) == digest_of(part.rows, job.contents(part)):
                continue
            if not output.overwrite:
                raise OutputError(
                    f"{job.source.name} changed since an earlier run scored its rows from "
                    f"{part.rows[0].number} on, though size and time are the same: remove "
                    f"{output.directory}, or pass --overwrite (overwrite=True)"
                )
            output.discard(part.index)
            changed.add(part.index)
    output.keep_input_state(job.watch.state)
    return changed


def _devices(device: str | Sequence[str] | None, engine: str) -> tuple[list[str], str]:
    """(names of devices, their kind, such as "cuda"). Does not look for the devices of a Ray cluster."""
    names = [device] if device is None or isinstance(device, str) else list(device)
    if not names:
        raise InputError("device=[]: expected at least one device, such as 'cpu', or None for the default")
    if engine == "ray" and len(names) > 1:
        raise InputError("Ray gives each scorer its device: pass actors= and the kind of device")
    if engine == "ray" and names[0] is not None:
        return [names[0]], torch.device(names[0]).type
    found = [resolve_device(name) for name in names]
    if len(kinds := {each.type for each in found}) != 1:
        raise InputError(
            f"device={names!r}: expected devices of one kind, since scores of {' and '.join(sorted(kinds))} "
            "differ in their last bits"
        )
    return [str(each) for each in found], found[0].type


def _cache(directory: str | os.PathLike | None, gigabytes: float | None) -> Cache | None:
    if (directory is None) != (gigabytes is None):
        raise InputError("a cache needs both a directory and a budget in GB (cache=, cache_budget=)")
    return None if directory is None or gigabytes is None else Cache(Path(directory), int(gigabytes * 1e9))


def _check_names(job: BulkJob) -> None:
    """InputError if two columns of the output would have the same name."""
    if not job.models or len(set(job.models)) < len(job.models):
        raise InputError(f"models={list(job.models)}: expected at least one, each once")
    taken = list(schema([], []).names)
    for name in job.columns.keep:
        if name in taken or name.startswith(SCORE):
            raise InputError(f"the column {name!r} cannot be kept: the output has one of that name")
        taken.append(name)
