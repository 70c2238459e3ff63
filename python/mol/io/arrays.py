"""SafeTensors files as numpy arrays, for those who want to look at weights in Python."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mol.dtypes import NUMPY_CODES
from mol.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np


def need_numpy() -> None:
    """Check that numpy can be imported, before work is done for its arrays.

    Raises:
        ImportError: numpy is not installed.
    """
    try:
        import numpy as np  # noqa: F401
    except ImportError as error:
        raise ImportError("a state_dict is made of arrays, which need numpy: pip install numpy") from error


def read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Read every tensor of a file that mol wrote.

    BF16, which numpy lacks, comes as float32 of the same values.

    Raises:
        ImportError: numpy is not installed.
        CheckpointError: a tensor has a dtype that numpy lacks.
        OSError: the file cannot be read.
    """
    import numpy as np

    arrays: dict[str, np.ndarray[Any, Any]] = {}
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            file.seek(8 + length + begin)
            data = file.read(end - begin)
            if entry["dtype"] == "BF16":
                # The upper half of a float32: shifting it into place changes no value.
                array = (np.frombuffer(data, "<u2").astype("<u4") << np.uint32(16)).view("<f4")
            elif entry["dtype"] in NUMPY_CODES:
                array = np.frombuffer(bytearray(data), NUMPY_CODES[entry["dtype"]])
            else:
                raise CheckpointError(f"{path}: tensor `{name}` is {entry['dtype']}, which numpy lacks")
            arrays[name] = array.reshape(entry["shape"])
    return arrays
