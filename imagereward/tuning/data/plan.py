"""UpdatePlan: the samples of an update, cut into chunks, and the process that takes each chunk."""

from dataclasses import dataclass, replace

from imagereward.errors import InputError
from imagereward.tuning.data.chunks import Chunk


@dataclass(frozen=True)
class UpdatePlan:
    """The samples of one update, cut into chunks that are dealt to the processes in turn.

    Samples are numbered through the whole run: update u has the samples u * batch_size to
    (u + 1) * batch_size - 1, whatever the number of processes.

    update        index of the update, from 0
    batch_size    samples in the update, over all processes
    micro_batch   most samples in a chunk; a process computes a chunk in one forward pass
    rank, ranks   index of this process, 0..ranks - 1, and the number of processes
    group         samples in a group, such as the images of one prompt; a group has consecutive numbers
    whole_groups  all samples of a group go to one process. No chunk then has a part of one group and a part
                  of another
    equal         every process must get equally many chunks: those of sharded weights compute together
    """

    update: int
    batch_size: int
    micro_batch: int
    rank: int = 0
    ranks: int = 1
    group: int = 1
    whole_groups: bool = False
    equal: bool = False

    @property
    def first(self) -> int:
        """The number of the update's first sample."""
        return self.update * self.batch_size

    @property
    def chunks(self) -> list[Chunk]:
        """All chunks of the update, in the order of their samples."""
        return [chunk for chunk, _ in self._dealt()]

    @property
    def owners(self) -> list[int]:
        """The rank of the process that takes each of `chunks`."""
        return [owner for _, owner in self._dealt()]

    @property
    def mine(self) -> list[Chunk]:
        """The chunks of this process, in order; may be empty where there are fewer chunks than processes.

        Raises InputError, in every process alike, if they must be `equal` and are not.
        """
        dealt = self._dealt()
        counts = [sum(owner == rank for _, owner in dealt) for rank in range(self.ranks)]
        if self.equal and len(set(counts)) > 1:
            of_groups = f", whole groups of {self.group}" if self.whole_groups else ""
            raise InputError(
                f"batch_size={self.batch_size}, micro_batch={self.micro_batch}{of_groups}: {self.ranks} "
                f"processes would compute {counts} micro-batches; sharded weights need equal numbers: "
                "expected a batch_size that is a multiple of processes * micro_batch, and of processes * "
                "group with whole groups"
            )
        return [chunk for chunk, owner in dealt if owner == self.rank]

    @property
    def spare(self) -> Chunk:
        """The update's first sample with a share of 0: a pass that adds nothing to the loss."""
        return Chunk(self.update, 0, (self.first,), 0.0)

    def resized(self, batch_size: int, micro_batch: int | None = None) -> "UpdatePlan":
        """The same update and process with another batch size, for a second objective in a weighted sum."""
        return replace(self, batch_size=batch_size, micro_batch=micro_batch or self.micro_batch)

    def in_groups(self, group: int, whole: bool = False) -> "UpdatePlan":
        """The same plan with `group` samples in a group; with `whole`, each group stays on one process."""
        return replace(self, group=group, whole_groups=whole)

    def _dealt(self) -> list[tuple[Chunk, int]]:
        """Every chunk with its owner: blocks of chunks are dealt in turn, block b to process b % ranks.

        A block has micro_batch samples, which are one chunk. With whole groups it has
        group * max(1, micro_batch // group) samples instead: as many groups as fit into a chunk, or one
        group in several chunks.
        """
        block = self.micro_batch
        if self.whole_groups:
            block = self.group * max(1, self.micro_batch // self.group)
        end = self.first + self.batch_size
        dealt: list[tuple[Chunk, int]] = []
        for number, start in enumerate(range(self.first, end, block)):
            stop = min(start + block, end)
            for at in range(start, stop, self.micro_batch):
                samples = tuple(range(at, min(at + self.micro_batch, stop)))
                chunk = Chunk(self.update, len(dealt), samples, len(samples) / self.batch_size)
                dealt.append((chunk, number % self.ranks))
        return dealt
