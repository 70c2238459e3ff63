"""The table of methods: parameters and defaults as merge-semantics 1.4 has them."""

from __future__ import annotations

import pytest

from mol import _rust
from mol.config.method_spec import REQUIRED
from mol.config.methods import METHODS, foreign_parameters, weights_cancel


@pytest.mark.parametrize(
    ("method", "of_models", "shared"),
    [
        ("linear", {"weight": REQUIRED}, {"normalize": True}),
        ("slerp", {}, {"t": REQUIRED}),
        ("task_arithmetic", {"weight": REQUIRED}, {"normalize": False, "lambda": 1.0}),
        (
            "ties",
            {"weight": REQUIRED, "density": 1.0},
            {"normalize": True, "rescale": False, "lambda": 1.0, "majority_sign_method": "total"},
        ),
        ("multislerp", {"weight": REQUIRED}, {"normalize_weights": True, "eps": 1e-8}),
        ("karcher", {}, {"max_iter": 10, "tol": 1e-5}),
        ("nearswap", {}, {"t": REQUIRED}),
        ("arcee_fusion", {}, {}),
        ("ram", {}, {"epsilon": 1e-5}),
        ("ramplus_tl", {}, {"epsilon": 1e-5, "r": 0.1, "alpha": 0.2}),
        ("consensus_ta", {"weight": REQUIRED, "lambda": 1.0}, {"k": 1, "normalize": False}),
        (
            "consensus_ties",
            {"weight": REQUIRED, "density": 1.0, "lambda": 1.0},
            {"k": 1, "normalize": True, "rescale": False},
        ),
        ("magmax", {}, {"lambda": 1.0}),
        ("localize_and_stitch", {"density": 0.1}, {}),
        ("cabs", {"weight": REQUIRED}, {"n": 64, "m": 256, "lambda": 1.0}),
        ("passthrough", {"scale": 1.0}, {}),
    ],
)
def test_defaults(method: str, of_models: dict[str, object], shared: dict[str, object]) -> None:
    specs = METHODS[method].parameters.values()
    assert {spec.name: spec.default for spec in specs if spec.per_model} == of_models
    assert {spec.name: spec.default for spec in specs if not spec.per_model} == shared


def test_every_word_is_either_a_parameter_or_explained() -> None:
    words = {word for method in METHODS.values() for spec in method.parameters.values() for word in (spec.name,)}
    assert words <= set(foreign_parameters())


def test_owners_of_a_parameter_are_found_in_the_rows() -> None:
    assert foreign_parameters()["t"].split()[:4] == ["a", "parameter", "of", "slerp"]
    for word, spec in ((word, METHODS[name]) for name in METHODS for word in METHODS[name].parameters):
        assert spec.name in foreign_parameters()[word]


def test_the_table_and_the_engine_have_the_same_methods_and_numbers() -> None:
    """The engine alone has `copy`, for where nothing is computed, and `mergekit`, which computes another in its way."""
    of_engine = {name: numbers for name, numbers, _ in _rust.methods()}
    of_rows = {
        spec.in_plan: [parameter.plan or name for name, parameter in spec.parameters.items()] + ["models"] * spec.draws
        for spec in METHODS.values()
    }
    assert of_engine.pop("copy") == []
    assert sorted(of_engine.pop("mergekit")) == ["by", "dtype", "leading"]
    assert {name: sorted(numbers) for name, numbers in of_rows.items()} == {
        name: sorted(numbers) for name, numbers in of_engine.items()
    }


@pytest.mark.parametrize(
    ("weights", "cancel"),
    [([1.0, -1.0], True), ([0.1, 0.2, -0.3], True), ([0.0], True), ([1e-12], False), ([1.0, -0.99], False)],
)
def test_weights_cancel(weights: list[float], cancel: bool) -> None:
    assert weights_cancel(weights) is cancel
