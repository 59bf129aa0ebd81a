"""The order in which a worker goes through the shard that is its own, with equally many batches for every worker.

Neighbours wait for each other, so no worker may have fewer batches than another, whatever its shard's size. The order
is a function of seed, worker and epoch alone: a run that is resumed in the middle of an epoch finds it again. It never
touches a global random number generator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from torch.utils.data import DistributedSampler
from typing_extensions import override

from lightning_decgan.data.partition import epoch_images


class ShardSampler(DistributedSampler[int]):
    r"""Draws an epoch of ``L`` images for one worker from its own shard, L being the mean size of all shards.

    A worker goes through its shard in passes, each in a new random order, and pays no attention to where epochs begin:
    epoch e takes the positions :math:`eL, \ldots, (e + 1)L - 1` of that endless sequence. So a shard smaller than L is
    repeated within an epoch, a larger one is spread over several, and after any number of epochs no image of a worker
    has been seen more than once oftener than another of the same worker.

    It is a ``DistributedSampler``, which is how Lightning knows that the data are sharded already and that
    ``set_epoch`` has to be called; under ``use_distributed_sampler=True`` it is left as it is.

    Args:
        shards: The positions that each worker owns, see :func:`~lightning_decgan.data.partition.make_shards`.
        worker: Whose shard is drawn from.
        seed: Of the order; mixed with the worker's number and the number of the pass.

    Raises:
        ValueError: If ``worker`` is no worker's number, or a shard is empty.

    Example:
        >>> shards = [np.array([0, 1, 2, 3, 4, 5]), np.array([6, 7])]
        >>> [len(ShardSampler(shards, worker)) for worker in range(2)]
        [4, 4]
        >>> sorted(ShardSampler(shards, worker=1))
        [6, 6, 7, 7]
    """

    def __init__(self, shards: Sequence[npt.NDArray[np.int64]], worker: int, seed: int = 0) -> None:
        if not 0 <= worker < len(shards):
            raise ValueError(f"worker must be from 0 to {len(shards) - 1}, found {worker}")
        empty = [number for number, shard in enumerate(shards) if not len(shard)]
        if empty:
            raise ValueError(f"shards must have at least one image each, found none for workers {empty}")
        self.shard = shards[worker]
        super().__init__(self.shard, num_replicas=len(shards), rank=worker, seed=seed)  # type: ignore[arg-type]
        self.num_samples = epoch_images(shards)
        self.total_size = self.num_samples * len(shards)

    @override
    def __iter__(self) -> Iterator[int]:
        size, first = len(self.shard), self.epoch * self.num_samples
        passes = range(first // size, (first + self.num_samples - 1) // size + 1)
        order = np.concatenate([self._one_pass(number) for number in passes])
        skipped = first - passes[0] * size
        return iter(order[skipped : skipped + self.num_samples].tolist())

    def _one_pass(self, number: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng([self.seed, self.rank, number]).permutation(self.shard)
