"""torch-fidelity needs torchvision, which the shim makes importable beside a torch that it was not built for."""

import tests.torchvision_shim  # noqa: F401
