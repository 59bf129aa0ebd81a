"""Spectral normalisation: weights divided by their largest singular value, as torch does it, with two additions.

torch's own parametrization (:func:`torch.nn.utils.parametrizations.spectral_norm`) runs its power iteration in half
precision under autocast, and in evaluation mode trusts the singular vectors that it keeps in buffers. Those belong to
the weights of the last training step. An averaged generator or the consensus of several workers has other weights, and
an average of unit vectors is none; the weights that come out then have any norm. Here the iteration is always in the
weights' own precision, and evaluation improves on the stored vectors before it uses them, without changing them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import register_parametrization
from typing_extensions import override

from lightning_decgan.gan.networks.conditional import ProjectionHead, without_autocast

__all__ = ["SpectralNorm", "normalize_spectra"]

EVALUATION_ITERATIONS = 3
"""Power iterations from the stored vectors in evaluation mode."""


class SpectralNorm(_SpectralNorm):
    r"""A weight over its largest singular value, which one power iteration per training forward estimates.

    .. math::
        v \leftarrow \frac{W^\top u}{\|W^\top u\|}, \quad u \leftarrow \frac{W v}{\|W v\|}, \quad
        \bar W = \frac{W}{u^\top W v}

    ``W`` is the weight as a matrix, output features times the rest. In training mode ``u`` and ``v`` are kept in
    buffers from forward to forward. Names in the state dict are those of torch's spectral normalisation.

    Args:
        weight: The weight to begin with, as it is initialised.
        n_power_iterations: Iterations per training forward.
        dim: The dimension of output features.
        eps: Keeps norms from zero.

    Source: Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks" (arXiv:1802.05957),
    algorithm 1.

    Example:
        >>> weight = torch.diag(torch.tensor([4.0, 1.0]))
        >>> SpectralNorm(weight)(weight)
        tensor([[1.0000, 0.0000],
                [0.0000, 0.2500]])
    """

    _u: Tensor
    _v: Tensor

    @override
    def forward(self, weight: Tensor) -> Tensor:
        """The normalised weight."""
        with without_autocast(weight):
            return super().forward(weight) if self.training else self._evaluate(weight)

    def _evaluate(self, weight: Tensor) -> Tensor:
        matrix = self._reshape_weight_to_matrix(weight)
        with torch.no_grad():
            u, v = self._u, self._v
            for _ in range(EVALUATION_ITERATIONS):
                v = functional.normalize(matrix.mT @ u, dim=0, eps=self.eps)
                u = functional.normalize(matrix @ v, dim=0, eps=self.eps)
        return weight / torch.dot(u, matrix @ v)


def normalize_spectra(network: nn.Module) -> None:
    """Divide every weight of the network by its largest singular value: convolutions, linear layers, projections.

    Gains and biases of conditional batch normalisations are left alone. To be called once, after the weights have been
    initialised: the singular vectors are estimated from them.

    Example:
        >>> head = ProjectionHead(4, num_classes=2)
        >>> normalize_spectra(head)
        >>> round(head.linear.weight.norm().item(), 3)
        1.0
    """
    for layer in list(network.modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
            dim = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
            register_parametrization(layer, "weight", SpectralNorm(layer.weight, dim=dim))
        elif isinstance(layer, ProjectionHead) and layer.embedding is not None:
            register_parametrization(layer.embedding, "weight", SpectralNorm(layer.embedding.weight))
