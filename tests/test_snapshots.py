"""Snapshots: the network with other weights for a while, moved at the end of updates, saved and resumed."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_grpo import moved, small
from test_refl import NO_FILES, PROMPTS, brightness, policy_of, refl_of

from imagereward.errors import CheckpointError, InputError
from imagereward.tuning.data.requests import prompts_of
from imagereward.tuning.objectives.base import Objective
from imagereward.tuning.objectives.refl import ReFL, ReFLConfig
from imagereward.tuning.objectives.weighted import Weighted
from imagereward.tuning.policy.snapshots import Snapshot
from imagereward.tuning.policy.trainable import LoRA, trainable_parameters
from imagereward.tuning.rewards.weighted import open_rewards
from imagereward.tuning.trainer.accelerate_setup import accelerating, make_accelerator
from imagereward.tuning.trainer.trainer import Trainer
from imagereward.tuning.trainer_config import TrainerConfig


def prediction(policy):
    x = torch.randn(2, *policy.denoiser.autoencoder.shape, generator=torch.Generator().manual_seed(2))
    return policy.predict(x, torch.zeros(2, dtype=torch.long), policy.denoiser.encode(PROMPTS[:2]))


def weights_of(policy):
    return {name: value.detach().clone() for name, value in trainable_parameters(policy.module).items()}


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_the_reference_predicts_as_the_network_did_and_the_network_is_itself_again(family, lora):
    policy = policy_of(family, lora=lora, base=True)
    before = prediction(policy).detach()
    moved(policy, 0.1)
    own, after = weights_of(policy), prediction(policy).detach()
    with policy.using("reference"):
        assert torch.equal(prediction(policy), before)
        with policy.using("current"):
            assert torch.equal(prediction(policy), before)
    assert not torch.equal(before, after)
    assert torch.equal(prediction(policy), after)
    assert all(torch.equal(value, own[name]) for name, value in trainable_parameters(policy.module).items())


def test_under_lora_the_reference_is_the_network_with_its_adapters_switched_off():
    policy = policy_of("sd", lora=LoRA(rank=2), base=True)
    moved(policy, 0.1)
    with policy.using("reference"):
        reference = prediction(policy)
    policy.denoiser.network.disable_adapters()
    assert torch.equal(prediction(policy), reference)


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_between_a_forward_and_its_backward_pass_the_gradient_stays_what_it_was(lora):
    gradients = []
    for between in (False, True):
        policy = policy_of("sd", lora=lora, base=True)
        moved(policy, 0.1)
        loss = prediction(policy).square().mean()
        if between:
            with policy.using("reference"):
                assert not prediction(policy).requires_grad
        loss.backward()
        gradients.append([value.grad for value in trainable_parameters(policy.module).values()])
    for plain, swapped in zip(*gradients, strict=True):
        assert plain is not None
        assert torch.equal(plain, swapped)


def test_under_autocast_a_snapshot_is_not_mistaken_for_weights_that_autocast_keeps():
    policy = small(base=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = prediction(policy)
    moved(policy, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        own = prediction(policy)
        with policy.using("reference"):
            assert torch.equal(prediction(policy), before)
        again = prediction(policy)
    assert torch.equal(own, again)
    again.sum().backward()
    assert all(value.grad is not None for value in trainable_parameters(policy.module).values())


def test_within_modules_are_in_eval_mode_and_afterwards_in_their_own():
    policy = policy_of("sd", base=True)
    policy.module.train()
    frozen = next(module for module in policy.module.modules() if isinstance(module, torch.nn.Conv2d))
    frozen.eval()
    modes = [module.training for module in policy.module.modules()]
    with policy.using("reference"):
        assert not any(module.training for module in policy.module.modules())
    assert [module.training for module in policy.module.modules()] == modes
    with pytest.raises(ZeroDivisionError), policy.using("reference"):
        raise ZeroDivisionError
    assert [module.training for module in policy.module.modules()] == modes


def test_a_policy_computes_where_its_autoencoder_is():
    """Offloaded weights are elsewhere; here they are on the device without memory."""
    policy = small()
    policy.denoiser.network.to("meta")
    assert policy.device == torch.device("cpu")


def test_a_snapshot_that_is_not_there_is_named():
    with pytest.raises(InputError, match=r"snapshot 'old': expected one of \['current', 'reference'\]"):
        small(base=True).using("old").__enter__()


def test_a_snapshot_moves_by_its_decay():
    network = torch.nn.Linear(2, 2)
    snapshot, first = Snapshot(network), network.weight.detach().clone()
    with torch.no_grad():
        network.weight += 1
    snapshot.update(network, 0.75)
    torch.testing.assert_close(snapshot.weights["weight"], first + 0.25)
    snapshot.update(network)
    assert torch.equal(snapshot.weights["weight"], network.weight)
    assert snapshot.weights["weight"].data_ptr() != network.weight.data_ptr()


def test_weights_of_another_network_are_refused():
    snapshot = Snapshot(torch.nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match=r"2 names differ, \['bias', 'other'\]"):
        snapshot.load_state_dict({"weight": torch.zeros(2, 2), "other": torch.zeros(2)})


@pytest.fixture
def one_process(tmp_path):
    """A group of one process, over which weights are sharded."""
    address = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_sharded_weights_are_copied_there_and_back_between_forward_and_backward(one_process):
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    sharded, x = copy.deepcopy(plain), torch.randn(3, 4)
    fully_shard(sharded[0], mesh=one_process)
    fully_shard(sharded, mesh=one_process)
    first, snapshot = plain(x).detach(), Snapshot(sharded)
    for network in (plain, sharded):
        with torch.no_grad():
            for value in network.parameters():
                value.mul_(2)
    loss = sharded(x).sum()
    with torch.no_grad(), snapshot.in_place_of(sharded):
        torch.testing.assert_close(sharded(x), first)
    loss.backward()
    plain(x).sum().backward()
    for expected, found in zip(plain.parameters(), sharded.parameters(), strict=True):
        torch.testing.assert_close(found.grad.full_tensor(), expected.grad)
    torch.testing.assert_close(sharded(x), plain(x))
    whole = snapshot.state_dict()
    snapshot.update(sharded)
    snapshot.load_state_dict(whole)
    assert all(torch.equal(value, whole[name]) for name, value in snapshot.state_dict().items())


class Following(ReFL):
    """ReFL with a snapshot `old` that follows the network, and a count of its updates as its state."""

    snapshots = ("old",)

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.ended = []

    def loss(self, policy, chunk):
        loss, metrics = super().loss(policy, chunk)
        with policy.using("old"):
            old = prediction(policy)
        away = (prediction(policy) - old).square().mean()
        return loss + away, metrics | {"away": away.detach()}

    def end_update(self, policy, update):
        policy.snapshots["old"].update(policy.denoiser.network, 0.5)
        self.ended.append(update)
        return {"ended": float(len(self.ended))}

    def state_dict(self):
        return {"ended": self.ended, "sum": torch.tensor(self.ended).sum()}

    def load_state_dict(self, state):
        assert state["sum"] == sum(state["ended"])
        self.ended = list(state["ended"])


@accelerating()
def train(output: Path, updates: int, resume: bool = False, wrap=lambda objective: objective):
    settings = {"batch_size": 4, "micro_batch": 2, "updates": updates, "save_every": 1, "resume": resume}
    config = ReFLConfig(
        **NO_FILES, prompts="", target=None, gradient={"first_step": 3, "last_step": 5}, **settings
    )
    objective = wrap(Following(config, PROMPTS, open_rewards(brightness)))
    output.mkdir(exist_ok=True)
    trainer = TrainerConfig(learning_rate=1e-3, ema=0.5, **settings)
    policy = policy_of("sd")
    loop = Trainer(policy, objective, trainer, output, make_accelerator(trainer, output))
    loop.run()
    return loop, policy, objective


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_snapshot_that_an_objective_moves_is_resumed_bit_for_bit(wrapped, tmp_path):
    def wrap(objective):
        return Weighted({"following": (1.0, objective)}) if wrapped else objective

    whole, policy, _ = train(tmp_path / "whole", 3, wrap=wrap)
    train(tmp_path / "parts", 2, wrap=wrap)
    parts, resumed, _ = train(tmp_path / "parts", 3, resume=True, wrap=wrap)
    assert set(policy.snapshots) == {"old", "ema"}
    for name in ("learned", "old", "ema"):
        file = f"checkpoint-3/weights/{name}.safetensors"
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()
    saved = load_file(tmp_path / "whole/checkpoint-3/weights/old.safetensors")
    learned = load_file(tmp_path / "whole/checkpoint-3/weights/learned.safetensors")
    assert any(not torch.equal(value, learned[name]) for name, value in saved.items())
    for name, value in resumed.snapshots["old"].weights.items():
        assert torch.equal(value, policy.snapshots["old"].weights[name])
    assert whole.history == parts.history
    assert [entry["ended"] for entry in parts.history] == [1, 2, 3]
    assert parts.history[0]["away"] == 0
    assert parts.history[1]["away"] > 0


def test_an_objective_has_no_state_metrics_or_snapshots_unless_it_says_so():
    class Plain(Objective):
        prompts = ()

        def minibatches(self, policy, plan):
            yield from ()

        def loss(self, policy, minibatch):
            raise NotImplementedError

        def prompts_in(self, minibatch):
            return prompts_of([])

    plain = Plain()
    assert (plain.end_update(None, 0), plain.state_dict(), plain.snapshots) == ({}, {}, ())
    plain.load_state_dict({})
    with pytest.raises(TypeError, match="abstract"):
        Objective()


def test_only_an_objective_that_needs_it_asks_for_the_reference():
    assert list(refl_of().snapshots) == []
    assert list(refl_of(reference_weight=1.0).snapshots) == ["reference"]
    assert list(Weighted({"a": (1.0, refl_of()), "b": (1.0, refl_of(reference_weight=1.0))}).snapshots) == [
        "reference"
    ]
