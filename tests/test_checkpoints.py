"""Checkpoints: how much of them is in memory at once, and in which processes."""

import pytest
import torch

from imagereward.tuning.policy.snapshots import Snapshot
from imagereward.tuning.trainer import checkpoint, shards
from imagereward.tuning.trainer.checkpoint import CheckpointContents, TrainingState, load_checkpoint
from imagereward.tuning.trainer.checkpoint_writer import CheckpointWriter


@pytest.fixture
def mesh(tmp_path):
    """A mesh of one process, over which weights are sharded."""
    address = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def trained():
    """(a network, an optimizer with moments of it)."""
    network = torch.nn.Linear(3, 2)
    return network, stepped(network)


def stepped(network):
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer


def contents(**snapshots):
    return CheckpointContents(TrainingState(1, 2, "", [], None, 1), snapshots, {})


@pytest.mark.parametrize("background", [False, True])
def test_shards_are_in_files_of_bounded_size(background, mesh, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "FILE_BYTES", 1000)
    sizes = {"a": 100, "b": 140, "c": 10, "d": 400, "e": 1}
    tensors = {("learned", name): torch.randn(size) for name, size in sizes.items()}
    if background:
        writing = shards.Background()
        writing.start(tensors, tmp_path / "shards", lambda: None)
        writing.wait()
    else:
        shards.write(tensors, tmp_path / "shards")
    files = [path.read_bytes() for path in sorted((tmp_path / "shards").iterdir())]
    # After the length of the header and the header; "d" alone is larger than a file should be.
    assert [len(file) - 8 - int.from_bytes(file[:8], "little") for file in files] == [1000, 1600, 4]
    read = {key: torch.zeros_like(value) for key, value in tensors.items()}
    shards.read(read, tmp_path / "shards")
    assert all(torch.equal(read[key], value) for key, value in tensors.items())


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_process_alone_copies_whole_snapshots(rank, tmp_path, monkeypatch):
    network, optimizer = trained()
    asked = []
    state_dict = Snapshot.state_dict
    monkeypatch.setattr(Snapshot, "state_dict", lambda self: asked.append(1) or state_dict(self))
    writer = CheckpointWriter(tmp_path, 1, rank, 1, write_more=lambda path, weights: None)
    writer.save(1, network, optimizer, contents(ema=Snapshot(network), old=Snapshot(network)), sharded=False)
    assert len(asked) == (3 if rank == 0 else 0)  # the average also as the result


def test_of_a_whole_checkpoint_sharded_weights_read_one_file_after_the_other(mesh, tmp_path, monkeypatch):
    from torch.distributed.fsdp import fully_shard

    network, optimizer = trained()
    kept = {name: Snapshot(network) for name in ("ema", "old")}
    path = CheckpointWriter(tmp_path, 1, 0, 1).save(1, network, optimizer, contents(**kept), sharded=False)
    moment = optimizer.state[network.weight]["exp_avg"].clone()
    other = torch.nn.Linear(3, 2)
    fully_shard(other, mesh=mesh)
    read, options = [], []
    load_file, load, fill = checkpoint.load_file, torch.load, Snapshot.load_state_dict
    monkeypatch.setattr(checkpoint, "load_file", lambda file: read.append(file.stem) or load_file(file))
    monkeypatch.setattr(torch, "load", lambda *a, **named: options.append(named) or load(*a, **named))
    monkeypatch.setattr(
        Snapshot, "load_state_dict", lambda self, values: read.append("filled") or fill(self, values)
    )
    optimizer, snapshots = torch.optim.AdamW(other.parameters()), {}
    load_checkpoint(path, other, optimizer, snapshots, lambda: Snapshot(other))
    assert read == ["learned", "ema", "filled", "old", "filled"]
    assert [each["mmap"] for each in options] == [True]
    assert torch.equal(other.weight.full_tensor(), network.weight)
    state = optimizer.state[other.weight]
    assert torch.equal(state["exp_avg"].full_tensor(), moment)
    # A part of the file in memory would be as large as the file.
    assert state["step"].untyped_storage().nbytes() == 4
