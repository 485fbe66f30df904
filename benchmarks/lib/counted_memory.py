"""Count: bytes of the tensors that are alive, also of torch's fake tensors, which have no values."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Count(TorchDispatchMode):
    """Bytes of the tensors made within that are alive, and the most there were."""

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0
        self.storages = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage() not in self.storages:
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage) -> None:
        self.storages.add(storage)
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._drop, storage.nbytes())

    def _drop(self, size: int) -> None:
        self.alive -= size
