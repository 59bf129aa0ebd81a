"""Which tests need a GPU; without one they are skipped with that reason."""

import pytest
import torch

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, found none")
