"""The Ray engine of bulk scoring, in which tasks read and decode parts and actors score them.

Ray places tasks near their data, holds readers back while scorers are busy, and repeats the work of a machine
that is lost. Every machine must reach images and weights under the same paths.
"""

import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from imagereward.bulk.decoding.loading import Loader, image_requests_of
from imagereward.bulk.job import BulkJob, shares
from imagereward.bulk.output import Output, differences
from imagereward.errors import DeviceError, ImageRewardError, OutputError, missing_extra
from imagereward.records.arrow import arrow

# CPUs that each stage reserves. They add up to 1, so that a machine with one CPU can run all stages, and a
# scorer per CPU leaves a reader and a decoder their share. They differ, because Ray Data fuses neighbouring
# stages of equal resources, and decoding should run beside scoring.
CPU_READING, CPU_DECODING, CPU_SCORING = 0.2, 0.3, 0.5


def score_parts(
    job: BulkJob, output: Output, pending: list[int], models: dict[str, Any], actors: int | None, bar: tqdm
) -> None:
    """Score the parts with the indices `pending` and write them to `output`.

    models   this machine's `job.models_fingerprint`; a machine with another one is an OutputError
    actors   number of scorers; default: one per GPU of the cluster, or per CPU

    Raises MissingExtraError without ray, DeviceError for a cluster without the GPUs that the job needs, and
    ImageRewardError if Ray gives up.
    """
    ray = _ray()
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    gpu = job.device_kind != "cpu"
    actors = actors or int(ray.cluster_resources().get("GPU" if gpu else "CPU", 0))
    if not actors:
        raise DeviceError(f"no machine of the Ray cluster has a GPU, which {job.device_kind!r} asks for")
    actors = min(actors, len(pending))
    with _a_row_a_block(ray.data.DataContext.get_current()):
        # Every row of these Ray data sets is a share of parts, then a single part.
        scored = (
            ray.data.from_items([{"parts": share} for share in shares(pending, actors)])
            .flat_map(_Read(job), num_cpus=CPU_READING)
            .map(
                _Decode(job.decoding_loader()),
                num_cpus=1 if gpu else CPU_DECODING,
            )
            .map(
                _Score,
                fn_constructor_args=(job, models),
                compute=ray.data.ActorPoolStrategy(size=actors),
                **({"num_gpus": 1} if gpu else {"num_cpus": CPU_SCORING}),
            )
        )
        try:
            for row in scored.iter_rows():
                job.watch.check()
                output.write(row["part"], arrow().parquet.read_table(io.BytesIO(row["table"])))
                bar.update(row["rows"])
        except ray.exceptions.RayError as error:
            raise ImageRewardError(f"Ray gave up; finished parts are kept: {error}") from error


# The stages pass parts on as pickles, since a row of a Ray data set cannot hold Python objects.


@dataclass(frozen=True)
class _Read:
    job: BulkJob

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for part in self.job.parts(set(row["parts"])):
            yield {"part": pickle.dumps(part)}


@dataclass(frozen=True)
class _Decode:
    loader: Loader

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part = pickle.loads(row["part"])
        images = {request.image: self.loader.load(request) for request in image_requests_of(part)}
        return {"loaded": pickle.dumps((part, images))}


class _Score:
    def __init__(self, job: BulkJob, fingerprint: dict[str, Any]):
        if wrong := differences(fingerprint, job.models_fingerprint(job.scorers())):
            raise OutputError(f"this machine would score differently from the one that started:{wrong}")
        self.score = job.part_scorer(job.device_kind)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part, images = pickle.loads(row["loaded"])
        table = self.score(part, images)
        if self.score.cache is not None:
            self.score.cache.commit()
        buffer = io.BytesIO()
        arrow().parquet.write_table(table, buffer)
        return {"part": part.index, "rows": table.num_rows, "table": buffer.getvalue()}


@contextmanager
def _a_row_a_block(context) -> Iterator[None]:
    """Make Ray Data pass every row on at once, instead of collecting blocks of 128 MB; no progress bars."""
    wanted = {"target_max_block_size": 1, "enable_progress_bars": False, "print_on_execution_start": False}
    before = {name: getattr(context, name) for name in wanted}
    try:
        for name, value in wanted.items():
            setattr(context, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


def _ray():
    try:
        import ray.data
        import ray.exceptions
    except ImportError as error:
        raise missing_extra("--engine ray", "scale", error) from error
    return ray
