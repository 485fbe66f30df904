"""What each process of a distributed metric does; it imports little, because every process starts anew."""

import torch

from imagereward.loops.metric import RewardMetric


class Counting:
    """A scorer that gives image k the score k."""

    name = "counting"

    def score_pairs(self, prompts, images):
        return [float(image) for image in images]


def measure(rank: int, store: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    metric = RewardMetric(Counting())
    metric.update([[1.0, 2.0, 3.0], [10.0]][rank], "a")
    assert float(metric.compute()) == 4.0  # of all four images, not of the two means
    torch.distributed.destroy_process_group()
