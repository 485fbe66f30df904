"""Counts the memory of a card in one sharded update of all weights, or of LoRA, at real sizes.

    python -m benchmarks.training.fits_sharded

ReFL's step with gradient, the largest of all objectives, with the guidance of the model's recipe.
Activations, decoder and scorer are those that fits.py counts with torch's fake tensors, over a network in
bfloat16. From the sizes of the network's blocks follows what each of N cards holds:

    4 P / N           shards of the weights that learn, float32, and as much for their gradients
    8 P / N           AdamW's moments
    2 B / N           shards of a frozen base under LoRA, bfloat16
    gathered          in bfloat16: "full" the weights outside blocks and two blocks, of which one is gathered
                      ahead; "zero2" all weights
    6 bytes a weight  of the largest block that learns: its gradients before they are summed, in bfloat16, and
                      their float32 copy that is sent

"hybrid" needs what "full" needs in one of its groups. One image at a time, checkpointing, text encoders away,
ImageReward at full size. Writes results/fits-sharded.json.
"""

import argparse
import itertools
import json
from typing import NamedTuple

import torch
from diffusers.utils import logging

from benchmarks.lib import record
from benchmarks.training.fits import GB, MODELS, Setting, count, laid_out
from imagereward.tuning.policy.trainable import LoRA, set_trainable

PROCESSES = (2, 4, 8, 16)
SIDES = {model: 512 if model.startswith("SD 1.5") else 1024 for model in MODELS}


class Sizes(NamedTuple):
    """Numbers of weights of a network.

    learned, frozen  of those that learn, and of the others
    outside          of those in no block, gathered all the time
    block            of the largest block
    block_learned    of those that learn in the block with the most of them
    """

    learned: int
    frozen: int
    outside: int
    block: int
    block_learned: int


def sizes(model: str, side: int, lora: bool) -> Sizes:
    """The sizes of a model's network, laid out without weights."""
    denoiser = laid_out(Setting("ReFL", model, side, lora=lora))
    set_trainable(denoiser, LoRA(rank=MODELS[model].rank()) if lora else None)
    network = denoiser.network
    blocks = [module for module in network.modules() if type(module).__name__ in denoiser.blocks]

    def number(module, learned: bool | None = None) -> int:
        wanted = (p for p in module.parameters() if learned is None or p.requires_grad == learned)
        return sum(parameter.numel() for parameter in wanted)

    return Sizes(
        number(network, True),
        number(network, False),
        number(network) - sum(map(number, blocks)),
        max(map(number, blocks)),
        max(number(block, True) for block in blocks),
    )


def of_card(of: Sizes, mode: str, processes: int) -> float:
    """Gigabytes of a card for weights, gradients and moments, gathered weights among them."""
    gathered = of.learned + of.frozen if mode == "zero2" else of.outside + 2 * of.block
    held = (16 * of.learned + 2 * of.frozen) / processes
    return (held + 2 * gathered + 6 * of.block_learned) / GB


def row(model: str, lora: bool) -> dict:
    """Gigabytes of a card without shards, and by sharding and number of cards."""
    plain = Setting("ReFL", model, SIDES[model], lora=lora, encoders=False)
    of, base = sizes(model, SIDES[model], True), count(plain._replace(lora=True), [1])
    held = (2 * of.frozen + 4 * of.learned) / GB + base.moments
    beside = base.peaks[1] - held  # decoder, scorer and activations, with a network in bfloat16
    of = sizes(model, SIDES[model], lora)
    return {
        "model": f"{model}, {SIDES[model]} px",
        "learns": "LoRA" if lora else "all",
        "none": (base if lora else count(plain, [1])).peaks[1],
        **{mode: {n: beside + of_card(of, mode, n) for n in PROCESSES} for mode in ("zero2", "full")},
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    record.add_option(parser)
    record.refuse_changes(parser.parse_args().allow_changes)
    logging.set_verbosity_error()
    rows = []
    for model, lora in itertools.product(MODELS, (True, False)):
        rows.append(row(model, lora))
        print(json.dumps(rows[-1]), flush=True)
    found = {"rows": rows, "environment": record.environment(torch.device("cpu"))}
    print(record.write("fits-sharded", found))


if __name__ == "__main__":
    main()
