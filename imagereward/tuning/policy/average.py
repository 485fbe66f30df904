"""move_average: the moving average of the weights, kept as the snapshot "ema"."""

from torch import nn

from imagereward.tuning.policy.snapshots import Snapshot

EMA = "ema"


def move_average(
    snapshots: dict[str, Snapshot], network: nn.Module, decay: float, every: int, number: int
) -> None:
    """Move the snapshot "ema" after an update or an optimizer step, if it is due.

    decay   highest decay of the average; 0: none is kept
    every   the average is moved once every so many updates or steps
    number  index of the update or step, from 0

    The k-th move has the decay min(decay, k / (k + 9)), as in diffusers' EMAModel; with the highest decay
    from the start, the average of a short run would be close to the first weights.
    """
    moves, rest = divmod(number + 1, every)
    if not decay or rest:
        return
    if EMA not in snapshots:
        snapshots[EMA] = Snapshot(network)
    snapshots[EMA].update(network, min(decay, moves / (moves + 9)))
