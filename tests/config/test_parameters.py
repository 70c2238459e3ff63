"""The value of a parameter for a tensor: precedence, filters, gradients."""

from __future__ import annotations

import pytest

from mol.config import MergeConfig, ParameterMap, Rule
from mol.config.parameters import at_position
from mol.errors import ConfigError
from tests.config.toolkit import calls

NAME = "model.layers.3.mlp.up_proj.weight"


def value(
    config: MergeConfig,
    name: str,
    *,
    source: int | None = None,
    slice_index: int = 0,
    source_tensor: str = NAME,
    output_tensor: str = NAME,
    position: float = 0.0,
) -> object:
    return config.resolve(
        name,
        slice_index=slice_index,
        source=source,
        source_tensor=source_tensor,
        output_tensor=output_tensor,
        position=position,
    )


def slerp(t: object) -> MergeConfig:
    recipe = {"merge_method": "slerp", "base_model": "a", "models": [{"model": "a"}, {"model": "b"}]}
    return MergeConfig.from_dict({**recipe, "parameters": {"t": t}})


@pytest.mark.parametrize(
    ("points", "position", "expected"),
    [
        ((0.0, 1.0), 0.0, 0.0),
        ((0.0, 1.0), 1.0, 1.0),
        ((0.0, 1.0), 0.25, 0.25),
        ((1.0, 0.0, 1.0), 0.5, 0.0),
        ((1.0, 0.0, 1.0), 0.75, 0.5),
        ((0.0, 0.5, 0.3, 0.7, 1.0), 1.0, 1.0),
        ((0.0, 0.5, 0.3, 0.7, 1.0), 0.5, 0.3),
        ((True, False), 0.99, True),
        ((True, False), 1.0, False),
        (("total", "count", "total"), 0.5, "count"),
        (0.3, 0.7, 0.3),
    ],
)
def test_gradients(points: float | tuple[float | bool | str, ...], position: float, expected: object) -> None:
    result = at_position(points, position)
    assert result == (pytest.approx(expected) if isinstance(expected, float) else expected)


def test_the_ends_of_a_gradient_are_exact() -> None:
    assert at_position((0.1, 0.7, 0.9), 0.0) == 0.1
    assert at_position((0.1, 0.7, 0.9), 1.0) == 0.9


def test_a_gradient_through_a_recipe() -> None:
    config = slerp([0, "0.5", 1])
    assert [value(config, "t", position=p) for p in (0.0, 0.25, 0.5, 1.0)] == [0.0, 0.25, 0.5, 1.0]


def test_a_list_of_one_and_a_list_of_equals_are_constants() -> None:
    assert slerp([0.3]).parameters["t"] == (Rule(0.3),)
    assert slerp([1, 1.0]).parameters["t"] == (Rule(1.0),)


@pytest.mark.parametrize(
    ("text", "name", "fits"),
    [
        ("mlp", "model.layers.0.mlp.up_proj.weight", True),
        ("mlp", "model.layers.0.self_attn.q_proj.weight", False),
        ("layers.1", "model.layers.11.mlp.weight", True),
        ("*", "anything", True),
        ("*.mlp.*", "model.layers.0.mlp.up_proj.weight", True),
        ("mlp.*", "model.layers.0.mlp.up_proj.weight", False),  # a glob is for the whole name
        ("*.layers.[01].*", "model.layers.1.mlp.up_proj.weight", True),
        ("*.layers.[01].*", "model.layers.2.mlp.up_proj.weight", False),
        ("*.layers.?.*", "model.layers.11.mlp.weight", False),
        (r"re:layers\.(1|2)\.", "model.layers.2.mlp.weight", True),
        (r"re:layers\.(1|2)\.", "model.layers.12.mlp.weight", False),
        (r"re:^lm_head", "model.lm_head.weight", False),
    ],
)
def test_filters(text: str, name: str, fits: bool) -> None:
    config = slerp([{"filter": text, "value": 1}, {"value": 0}])
    assert value(config, "t", output_tensor=name) == (1.0 if fits else 0.0)


def test_the_first_filter_that_fits_wins() -> None:
    config = slerp([{"filter": "up_proj", "value": 0.1}, {"filter": "mlp", "value": 0.2}, {"value": 0.3}])
    assert value(config, "t") == 0.1
    assert value(config, "t", output_tensor="layers.0.mlp.down_proj") == 0.2
    assert value(config, "t", output_tensor="lm_head") == 0.3


def test_a_single_map_and_a_gradient_under_a_filter() -> None:
    assert value(slerp({"value": 0.4}), "t") == 0.4
    config = slerp([{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}])
    assert value(config, "t", position=0.75) == 0.75
    assert value(config, "t", position=0.75, output_tensor="x") == 0.5


SLICES = """
merge_method: ties
base_model: base
parameters:
  weight: 1
  density: 0.9
  normalize: false
slices:
  - sources:
      - model: base
        layer_range: [0, 4]
      - model: a
        layer_range: [4, 8]
        parameters:
          weight:
            - filter: layers.7
              value: 4
            - filter: mlp
              value: 3
    parameters:
      weight:
        - filter: self_attn
          value: 2
      normalize:
        - filter: layers.0
          value: true
  - sources:
      - model: base
        layer_range: [0, 4]
      - model: a
        layer_range: [0, 4]
"""


def test_source_beats_slice_beats_recipe_beats_default() -> None:
    config = MergeConfig.from_yaml(SLICES)
    assert value(config, "weight", source=1) == 3.0  # the source's, by its filter
    assert value(config, "weight", source=1, source_tensor="layers.3.self_attn.q") == 2.0  # falls through to the slice
    assert value(config, "weight", source=1, source_tensor="lm_head") == 1.0  # and to the recipe
    assert value(config, "density", source=1) == 0.9
    assert value(config, "weight", source=1, slice_index=1) == 1.0
    assert value(config, "rescale") is False  # the default
    assert value(config, "lambda") == 1.0
    assert value(config, "majority_sign_method") == "total"


def test_parameters_of_models_go_by_the_source_and_shared_ones_by_the_output() -> None:
    config = MergeConfig.from_yaml(SLICES)
    names = {"source_tensor": "layers.7.x", "output_tensor": "layers.0.x"}
    assert value(config, "weight", source=1, **names) == 4.0  # type: ignore[arg-type]
    assert value(config, "normalize", **names) is True  # type: ignore[arg-type]
    assert value(config, "normalize", source_tensor="layers.0.x", output_tensor="layers.7.x") is False


def test_no_filter_that_fits_and_no_default_is_an_error_with_the_way_out() -> None:
    first_slice = SLICES.replace("  weight: 1\n", "").rpartition("  - sources:")[0]
    config = MergeConfig.from_yaml(first_slice)
    with pytest.raises(ConfigError) as caught:
        value(config, "weight", source=1, source_tensor="lm_head.weight")
    assert str(caught.value) == (
        "a has no `weight` whose filter fits, and ties needs one; add a value without `filter` at the end of the list"
    )


def test_rules_after_the_first_that_fits_a_tensor_are_not_evaluated() -> None:
    tried = [{"filter": "self_attn", "value": [0, 1]}, {"filter": "re:mlp", "value": [0, 1]}]
    behind = [{"filter": f"re:layers\\.{i}\\.", "value": 0.2} for i in range(500)]

    def cost(config: MergeConfig) -> int:
        assert value(config, "t", position=0.25) == 0.25  # the first look lays the rules out, once for all tensors
        return calls(lambda: [value(config, "t", position=0.25) for _ in range(100)])

    assert cost(slerp([*tried, {"value": 0.5}])) == cost(slerp([*tried, *behind, {"value": 0.5}]))


def test_a_parameter_map_compares_and_hashes_by_content() -> None:
    one = ParameterMap({"a": (Rule(1.0),), "b": (Rule(2.0, "x"),)})
    two = ParameterMap({"b": (Rule(2.0, "x"),), "a": (Rule(1.0),)})
    assert one == two
    assert hash(one) == hash(two)
    assert one.to_dict() == {"a": 1.0, "b": [{"filter": "x", "value": 2.0}]}
