"""The trainings that test_sharding.py runs in several processes, and what they write for its checks."""

import json
import os
import resource
import shutil
import signal
import threading
import time
from functools import partial
from pathlib import Path

import safetensors.torch
import test_grpo
import test_refl
import test_samples
import torch
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.optim.optimizer import register_optimizer_step_pre_hook

from imagereward.tuning import finetune
from imagereward.tuning.policy.snapshots import Snapshot
from imagereward.tuning.sharding import class_of, is_sharded, local_bytes, whole
from imagereward.tuning.trainer import checkpoint_writer as writer

FEW = {
    "evaluation": {"count": 1, "steps": 2, "held_out": ""},
    "updates": 3,
    "batch_size": 8,
    "micro_batch": 2,
    "learning_rate": 1e-4,
    "max_gradient_norm": 1e6,
    "ema_every": 1,  # the average moves in few updates too
}
TRAININGS = {
    "refl": (test_refl.run, {"gradient": {"mode": "last"}, "reference_weight": 0.1}),
    "suffix": (test_refl.run, {"gradient": {"mode": "suffix", "shared_by": 4}}),
    "grpo": (test_grpo.run, {"kl": {"form": "true", "beta": 0.1}}),
    "nft": (partial(test_samples.run, "nft"), {}),
    "dpo_online": (partial(test_samples.run, "dpo_online"), {}),
}
LORA = {"rank": 2}


def train(name, out, **more):
    function, settings = TRAININGS[name]
    return function(out, **{**FEW, **settings, **more})


def train_each(cases, directory, more):
    """Train every (name, LoRA or not) of `cases` with the settings `more`; output: directory/name-lora.

    Beside each output the first process writes NAME.gradients.pt, the gradients of the last step of the
    optimizer.
    """
    first = os.environ.get("RANK", "0") == "0"
    kept = []

    def keep(optimizer, *_):
        kept[:] = [whole(p.grad).clone() for group in optimizer.param_groups for p in group["params"]]
        steps.append(kept[0].new_tensor([gradient.norm() for gradient in kept]).norm().item())
        if len(steps) == 1:
            firsts[:] = kept

    steps, firsts = [], []
    register_optimizer_step_pre_hook(keep)
    for name, lora in cases:
        steps.clear()
        out = directory / f"{name}-{'lora' if lora else 'full'}"
        train(name, out, ema=0.9, lora=LORA if lora else None, **more)
        if first:
            torch.save(firsts, f"{out}.gradients.pt")


def count_bytes(directory, cases):
    """Train GRPO with each of these settings; every process writes the bytes that it holds of each.

    Beside what it holds before the last step of the optimizer these are "gathered", the most bytes of whole
    weights in any block's pass, and for comparison those of all weights ("all"), of what learns ("learns"),
    of the largest block ("block"), and of what is in no block ("outside").
    """
    every = []
    for index, more in enumerate(cases):
        every.append(_bytes_of(directory / f"out-{index}", more))
    (directory / f"bytes-{os.environ['RANK']}.json").write_text(json.dumps(every))


def _bytes_of(out, more):
    counted, snapshots, networks = {"gathered": 0}, [], []
    make, sharding = Snapshot.__init__, finetune.shard_network

    def made(self, network):
        make(self, network)
        snapshots.append(self)

    def gathered(*_):
        whole_now = [p for p in networks[0].parameters() if not is_sharded(p)]
        counted["gathered"] = max(counted["gathered"], _all_bytes(whole_now))

    def sharded(config, network, blocks, *arguments):
        sharding(config, network, blocks, *arguments)
        networks.append(network)
        found = [module for module in network.modules() if class_of(module).__name__ in blocks]
        of_blocks = [_all_bytes(module.parameters()) for module in found]
        counted["all"], counted["block"] = _all_bytes(network.parameters()), max(of_blocks)
        counted["outside"] = counted["all"] - sum(of_blocks)
        for module in found:
            module.register_forward_pre_hook(gathered)
            module.register_full_backward_hook(gathered)

    def count(optimizer, *_):
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        assert all(is_sharded(weight) for weight in networks[0].parameters())
        moments = (
            [optimizer.state[p][name] for p in weights for name in ("exp_avg", "exp_avg_sq")]
            if optimizer.state
            else []
        )
        counted.update(
            weights=local_bytes(list(networks[0].parameters())),
            gradients=local_bytes([weight.grad for weight in weights]),
            moments=local_bytes(moments),
            snapshots=[local_bytes(list(each.weights.values())) for each in snapshots],
            learns=_all_bytes(weights),
        )

    hook = register_optimizer_step_pre_hook(count)
    Snapshot.__init__, finetune.shard_network = made, sharded
    try:
        pipeline = train("grpo", out, ema=0.9, **more)
    finally:
        Snapshot.__init__, finetune.shard_network = make, sharding
        hook.remove()
    encoder = pipeline.text_encoder
    return counted | {"encoder": str(encoder.dtype)}


def _all_bytes(tensors):
    """Bytes of tensors, of sharded ones on all processes together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def killed(directory, victim, after, more):
    """Train GRPO; the process `victim` kills itself `after` seconds after the first checkpoint."""
    out = directory / "out"
    if os.environ["RANK"] == str(victim):

        def die():
            while not list(out.glob("checkpoint-*")):
                time.sleep(0.05)
            time.sleep(after)
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=die, daemon=True).start()
    train("grpo", out, **more)


def killed_while_saving(directory, victim, phase, more):
    """Train GRPO; the process `victim` kills itself at a phase of its second checkpoint.

    phase  "write": with its file open, "rename": when all files are written, or "prune": with a part of the
           first checkpoint removed
    """
    save, replace, remove, writes = safetensors.torch.save, writer._replace, shutil.rmtree, []

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def saving(*arguments, **named):
        writes.append(1)
        if len(writes) == 2:
            die()
        return save(*arguments, **named)

    def replacing(unfinished, path):
        if path.name == "checkpoint-2":
            die()
        replace(unfinished, path)

    def removing(path, *arguments, **named):
        if Path(path).name == "checkpoint-1" and Path(path).is_dir():
            next(path.glob("shards/*")).unlink()
            die()
        remove(path, *arguments, **named)

    if os.environ["RANK"] == str(victim):
        if phase == "write":
            safetensors.torch.save = saving
        elif phase == "rename":
            writer._replace = replacing
        else:
            shutil.rmtree = removing
    train("grpo", directory / "out", **more)


def trained_in_each(directory, name, of_rank):
    """Train `name` with other settings in each process: `of_rank` by rank; "out" differs with "{rank}"."""
    rank = int(os.environ.get("RANK", "0"))
    more = dict(of_rank[rank])
    out = directory / more.pop("out", "out")
    disk = more.pop("disk", None)
    if disk:
        resource.setrlimit(resource.RLIMIT_FSIZE, (disk, disk))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    train(name, out, **more)


def failing_after_a_checkpoint(directory, seen):
    """Train NFT, whose first process fails in update 3; checkpoint-2 is written in the background before.

    seen  whether the first process waits for that checkpoint to be there before it fails; else the write
          ends after it has failed
    """
    write, failing = HuggingFaceStorageWriter.write_data, threading.Event()

    def later(self, *arguments):
        if not seen and os.environ["RANK"] == "0":
            failing.wait(60)
            time.sleep(0.5)
        return write(self, *arguments)

    HuggingFaceStorageWriter.write_data = later
    out, steps = directory / "out", []

    def fail(*_):
        steps.append(1)
        if os.environ.get("RANK", "0") != "0" or len(steps) < 3:
            return
        end = time.monotonic() + 60
        while seen and not (out / "checkpoint-2").is_dir() and time.monotonic() < end:
            time.sleep(0.05)
        assert (out / "checkpoint-2").is_dir() == seen
        failing.set()
        raise OSError("the update failed")

    register_optimizer_step_pre_hook(fail)
    every = {"updates": 4, "save_every": 2, "evaluate_every": 4}
    train("nft", out, lora=LORA, sharding="full", save_in_background=True, **every)


class Plain(nn.Module):
    """A network without any block of a diffusers model."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
