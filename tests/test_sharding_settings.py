"""Settings of sharding that are refused, and shares of a batch that must be equal."""

import pytest
import torch
from sharded_trainings import Plain

from imagereward.errors import InputError
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.objectives.grpo import GRPOConfig
from imagereward.tuning.objectives.refl import ReFLConfig
from imagereward.tuning.sharding import check_sharded, make_mesh, shard


def config(kind=GRPOConfig, **values):
    needed = {"noise": {"kind": "flow_grpo", "level": 0.7}, "reward": "x"} if kind is GRPOConfig else {}
    return kind(model="m", output="o", prompts="p", **needed, **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sharding": "full", "quantize": True, "lora": {"rank": 2}}, "4 bits have scales of their own"),
        ({"sharding": "full", "optimizer": "adamw-8bit"}, "bitsandbytes does not know shards"),
        ({"sharding": "zero2", "precision": "float16"}, "disagree about the loss's scale"),
        ({"sharding_group": 2}, "for sharded weights"),
        ({"sharding": "full", "sharding_group": 2}, "it is for sharding='hybrid'"),
        ({"offload": True}, "for sharded weights"),
        ({"save_in_background": True}, "for sharded weights"),
        ({"sharding": "half"}, "'none', 'zero2', 'full' or 'hybrid'"),
    ],
)
def test_settings_that_sharding_cannot_have_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        config(**values)


def test_shares_of_a_batch_must_be_equal():
    with pytest.raises(InputError, match="3 micro-batches for 2 processes; expected a multiple of 2"):
        config(batch_size=6, micro_batch=2, group=3).check_processes(2, sharded=True)
    config(batch_size=6, micro_batch=2, group=3).check_processes(2, sharded=False)
    plan = UpdatePlan(0, 24, 4, 0, 2, equal=True).in_groups(8, whole=True)
    with pytest.raises(
        InputError, match=r"compute \[4, 2\] micro-batches; sharded weights need equal numbers"
    ):
        _ = plan.mine
    assert len(UpdatePlan(0, 32, 4, 0, 2, equal=True).in_groups(8, whole=True).mine) == 4


def test_refl_with_a_reference_over_several_steps_is_refused():
    several = config(ReFLConfig, reference_weight=0.1, gradient={"mode": "last", "count": 2})
    with pytest.raises(InputError, match="the distance to the reference is taken over one step"):
        several.check_processes(2, sharded=True)


def test_a_group_that_does_not_divide_the_processes_is_refused():
    with pytest.raises(InputError, match="sharding_group=3: expected a number that divides the 4 processes"):
        make_mesh("hybrid", 3, 4, torch.device("cpu"))


def test_a_network_without_blocks_and_one_that_stayed_whole_are_refused():
    arguments = {"group": 1, "ranks": 1, "device": torch.device("cpu")}
    with pytest.raises(InputError, match=r"Plain has none of the blocks \['FluxTransformerBlock'\]"):
        shard(Plain(), ["FluxTransformerBlock"], "full", **arguments)
    with pytest.raises(
        Exception, match=r"2 of the network's weights are not in shards, such as layer\.weight"
    ):
        check_sharded(Plain())
