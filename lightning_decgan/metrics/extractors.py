"""torch-fidelity at arm's length: its feature extractors as feature networks of ours, and the other way round.

torch-fidelity is an extra, and it imports torchvision, which breaks where it was not built for the torch beside it. So
it is imported inside these functions and never by `import lightning_decgan`; an error says what to install.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_decgan.metrics.extraction import check_network
from lightning_decgan.metrics.feature_cache import tensors_digest

_PROBE_PIXELS = 32
_IMAGES_AT_A_TIME = 32


class MissingExtraError(ImportError):
    """A package that belongs to an extra is not installed, or cannot be imported; the text says what to do."""


def torch_fidelity_version() -> str | None:
    """The version of torch-fidelity that is installed, None if none is; nothing is imported.

    Example:
        >>> torch_fidelity_version() in (None, "0.4.0")
        True
    """
    if importlib.util.find_spec("torch_fidelity") is None:
        return None
    try:
        return version("torch-fidelity")
    except PackageNotFoundError:
        return None


def require_torch_fidelity() -> Any:
    """Import torch-fidelity.

    Returns:
        The module.

    Raises:
        MissingExtraError: If it is not installed, or its import fails; says what to install.

    Example:
        >>> module = require_torch_fidelity()  # doctest: +SKIP
    """
    if torch_fidelity_version() is None:
        raise MissingExtraError(
            "this needs torch-fidelity, which is not installed: pip install -c constraints.txt "
            "'lightning-decgan[fidelity]' (or '.[fidelity]' in a checkout), with a torchvision that fits your torch"
        )
    try:
        return importlib.import_module("torch_fidelity")
    # torchvision beside a torch that it was not built for fails with a RuntimeError about a missing operator
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise MissingExtraError(
            f"torch-fidelity is installed but cannot be imported ({type(error).__name__}: {error}): install the "
            f"torchvision that was built for torch {torch.__version__}"
        ) from error


def network_digest(network: nn.Module) -> str:
    """SHA-256 of a feature network: its class, its name and all its weights and buffers; not of its code or settings.

    Example:
        >>> from lightning_decgan.metrics import ClassifierFeatures
        >>> one, other = (ClassifierFeatures(1, 8, 10, name=name) for name in ("a", "b"))
        >>> _ = other.load_state_dict(one.state_dict())
        >>> network_digest(one) == network_digest(other)
        False
    """
    kind = f"{type(network).__module__}.{type(network).__qualname__} {getattr(network, 'name', '')}"
    tensors = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    return tensors_digest({f"{kind}\n{name}": value for name, value in tensors.items()} or {kind: torch.empty(0)})


class ExtractorFeatures(nn.Module):
    """A feature extractor of torch-fidelity as a feature network: images in [-1, 1] -> features.

    Images are rounded to 256 levels, as they would be in a PNG, and grey ones become three equal channels: that is what
    torch-fidelity's extractors take.

    Args:
        extractor: A ``torch_fidelity.FeatureExtractorBase`` of one requested feature, or any module
            ``uint8 (n, 3, h, w) -> (features,)``.
        name: Names the network in tables and files.
        head: Maps the features to logits; without it there is no inception score.
        is_inception: That this is Inception with the published weights, so that a Frechet distance may be called FID.

    Raises:
        ValueError: If the extractor gives more than one feature, or features that are not ``(n, d)``.

    Example:
        >>> class Mean(nn.Module):
        ...     def forward(self, pixels):
        ...         return (pixels.float().mean(dim=(2, 3)),)
        >>> network = ExtractorFeatures(Mean(), "mean_colour")
        >>> network.num_features, network(torch.zeros(1, 1, 8, 8))
        (3, tensor([[128., 128., 128.]]))
    """

    def __init__(
        self, extractor: nn.Module, name: str, head: nn.Module | None = None, *, is_inception: bool = False
    ) -> None:
        super().__init__()
        self.extractor = extractor.eval().requires_grad_(False)
        self.name = name
        if head is not None:
            self.head = head
        self.is_inception = is_inception
        with torch.no_grad():
            probe = extractor(torch.zeros(1, 3, _PROBE_PIXELS, _PROBE_PIXELS, dtype=torch.uint8))
        if not isinstance(probe, tuple) or len(probe) != 1 or probe[0].ndim != 2:
            shapes = [tuple(part.shape) for part in probe] if isinstance(probe, tuple) else type(probe).__name__
            raise ValueError(f"extractor must give one feature (n, d) in a tuple, found {shapes}")
        self.num_features = int(probe[0].shape[1])

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of images.

        Args:
            images: ``(n, 1 or 3, h, w)`` in [-1, 1].

        Returns:
            ``(n, num_features)``, ``float32``.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images must be (n, 1 or 3, h, w), found {tuple(images.shape)}")
        # An image that is not finite gets features here; `extract` makes them NaN again.
        pixels = images.float().nan_to_num().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
        # Extractors enlarge what they get (Inception to 299 pixels): a whole batch of ours would take gigabytes.
        pieces = pixels.expand(-1, 3, -1, -1).split(_IMAGES_AT_A_TIME)
        return torch.cat([self.extractor(piece.contiguous())[0].float() for piece in pieces])


def register_network(network: nn.Module) -> str:
    """Make a feature network of ours known to torch-fidelity, for its own functions and its command line.

    ``torch_fidelity.calculate_metrics(..., feature_extractor=register_network(network))`` then scores folders, data
    sets or generators with it. It takes ``uint8`` images, or floating-point ones in [-1, 1]; for a network of one
    channel three are averaged.

    Args:
        network: See :func:`~lightning_decgan.metrics.extraction.check_network`. A copy of it is used.

    Returns:
        The name under which it is registered: its own and the beginning of its digest. Registering the same network
        again gives the same name.

    Raises:
        MissingExtraError: If torch-fidelity is not installed.
        TypeError: If it is no feature network.

    Example:
        >>> register_network(train_classifier_features(DigitsDataModule()))  # doctest: +SKIP
        'digits_cnn-0b5c3e6f7a21'
    """
    torch_fidelity = require_torch_fidelity()
    check_network(network)
    own: Any = copy.deepcopy(network).eval()
    layers = ("features", "logits") if getattr(own, "head", None) is not None else ("features",)

    class NetworkExtractor(torch_fidelity.FeatureExtractorBase):  # type: ignore[name-defined]
        """The network as torch-fidelity wants it."""

        def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
            super().__init__(name, features_list)
            self.network = copy.deepcopy(own)

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            values = images if images.is_floating_point() else images.float().div(127.5).sub(1)
            if getattr(self.network, "channels", None) == 1 and values.shape[1] == 3:
                values = values.mean(dim=1, keepdim=True)
            features = self.network(values)
            return tuple(
                features if layer == "features" else self.network.head(features) for layer in self.features_list
            )

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return layers

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

    name = f"{own.name}-{network_digest(own)[:12]}".replace("/", "_").replace(" ", "_")
    return _register(name, NetworkExtractor)


class FeatureRows(Dataset[Tensor]):
    """Features and log probabilities side by side, as a data set that torch-fidelity reads row by row.

    Args:
        features: ``(n, d)``.
        log_probabilities: ``(n, classes)``, or None.

    Example:
        >>> FeatureRows(torch.zeros(2, 3), torch.ones(2, 1))[1]
        tensor([0., 0., 0., 1.])
    """

    def __init__(self, features: Tensor, log_probabilities: Tensor | None) -> None:
        self._rows = features if log_probabilities is None else torch.cat([features, log_probabilities], dim=1)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Tensor:
        return self._rows[index]


def given_extractor(num_features: int) -> str:
    """The registered name of the extractor that only takes :class:`FeatureRows` apart again.

    Args:
        num_features: The d of the rows.

    Raises:
        MissingExtraError: If torch-fidelity is not installed.

    Example:
        >>> given_extractor(64)  # doctest: +SKIP
        'decgan-given-64'
    """
    torch_fidelity = require_torch_fidelity()

    class GivenExtractor(torch_fidelity.FeatureExtractorBase):  # type: ignore[name-defined]
        """Features in, features out."""

        def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
            super().__init__(name, features_list)

        def forward(self, rows: Tensor) -> tuple[Tensor, ...]:
            parts = {"features": rows[:, :num_features], "logits": rows[:, num_features:]}
            return tuple(parts[layer] for layer in self.features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features", "logits")

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

    return _register(f"decgan-given-{num_features}", GivenExtractor)


def _register(name: str, extractor: type) -> str:
    registry = importlib.import_module("torch_fidelity.registry")
    if name not in registry.FEATURE_EXTRACTORS_REGISTRY:
        registry.register_feature_extractor(name, extractor)
    return name
