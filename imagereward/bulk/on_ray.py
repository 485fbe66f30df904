"""The same job on Ray Data: tasks read and decode parts, a pool of actors scores them, this process writes.

Ray places tasks near their data, holds back readers while scorers are busy, and runs again what was on a
machine that is lost. Images and weights must be reachable under the same paths from every machine.
"""

import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from imagereward.bulk.decoding.loading import Loader, wishes_of
from imagereward.bulk.job import Job, shares
from imagereward.bulk.output import Output, differences
from imagereward.errors import DeviceError, ImageRewardError, OutputError, missing_extra
from imagereward.records.arrow import arrow

# CPUs that a task counts as, and a scorer on the CPU. Together one, so that one is enough to run, and a
# scorer per CPU leaves room for as many readers and decoders. All differ, since Ray Data would make equal
# neighbours one stage, and decoding is to run beside scoring.
CPU_READING, CPU_DECODING, CPU_SCORING = 0.2, 0.3, 0.5


def score_parts(
    job: Job, output: Output, pending: list[int], models: dict[str, Any], actors: int | None, bar: tqdm
) -> None:
    """Score and write the parts `pending`, with `actors` scorers (default: one per GPU, or per CPU).

    models   this machine's `job.models_fingerprint()`, which every scorer's must equal
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
        # A row of these data sets is a part.
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


# Within a row of a data set, a part travels pickled, as everything does between Ray's processes.


@dataclass(frozen=True)
class _Read:
    job: Job

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for part in self.job.parts(set(row["parts"])):
            yield {"part": pickle.dumps(part)}


@dataclass(frozen=True)
class _Decode:
    loader: Loader

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part = pickle.loads(row["part"])
        images = {wish.image: self.loader.load(wish) for wish in wishes_of(part)}
        return {"loaded": pickle.dumps((part, images))}


class _Score:
    def __init__(self, job: Job, fingerprint: dict[str, Any]):
        if wrong := differences(fingerprint, job.models_fingerprint()):
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
    """Ray Data passes every row on at once, instead of collecting 128 MB of them; and stays quiet."""
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
