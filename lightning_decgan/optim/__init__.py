"""Optimistic optimizers for games: `torch.optim` signatures, for a plain loop, with an anchor for whoever averages.

They know nothing of workers, networks or players; what makes a run decentralized asks them for one thing only,
:meth:`~lightning_decgan.optim.optimistic.OptimisticOptimizer.lookahead`.
"""

from lightning_decgan.optim.adam import OptimisticAdam
from lightning_decgan.optim.extragradient import ExtraAdam, ExtraSGD
from lightning_decgan.optim.named import get_optimizer
from lightning_decgan.optim.optimistic import OptimisticOptimizer
from lightning_decgan.optim.sgd import OptimisticSGD

__all__ = ["ExtraAdam", "ExtraSGD", "OptimisticAdam", "OptimisticOptimizer", "OptimisticSGD", "get_optimizer"]
