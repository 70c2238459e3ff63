"""Models as transformers builds them are whole by their own config.json, and are missed when layers are taken."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the extra: pip install 'mol-merge[fusion]'")
transformers = pytest.importorskip("transformers", reason="needs the extra: pip install 'mol-merge[fusion]'")

from mol.errors import MergeError  # noqa: E402
from tests.core.zoo import TYPES, config_of  # noqa: E402
from tests.merge.toolkit import plan  # noqa: E402
from tests.tiny import Shapes, headers  # noqa: E402

pytestmark = pytest.mark.fusion

PASS = {"merge_method": "passthrough", "models": [{"model": "a"}]}


@pytest.mark.parametrize("kind", TYPES)
def test_a_model_of_each_kind_is_whole_until_layers_are_taken(kind: str) -> None:
    config = config_of(kind)
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config)
    shapes: Shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    stated = config.to_diff_dict() | {"architectures": [type(model).__name__]}
    assert len(plan(PASS, headers("a", shapes, stated, "F32")).plan.tensors) == len(shapes)
    cut = {name: shape for name, shape in shapes.items() if not {"1", "2"} & set(name.split("."))}
    if len(cut) < len(shapes) and kind != "albert":
        with pytest.raises(MergeError, match=r"counts other layers|hold no tensor"):
            plan(PASS, headers("a", cut, stated, "F32"))
