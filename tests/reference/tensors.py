"""The type of a tensor in the references: a flat float64 array."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Tensor: TypeAlias = NDArray[np.float64]
