"""`precision: mergekit`: what it goes with, and the words of what is refused."""

from __future__ import annotations

import pytest

from mol.config import MergeConfig
from mol.errors import ConfigError
from tests.config.toolkit import SLERP, refusal

START = "config.yml:8: `precision: mergekit`: "
OUT = "leave `precision` out for `exact`"
BASED = "base_model: a\nmodels:\n  - model: b\n    parameters: {weight: 1}\n  - model: c\n    parameters: {weight: 1}\n"


def test_it_is_kept_and_written() -> None:
    config = MergeConfig.from_yaml(SLERP + "precision: mergekit\n")
    assert config.precision == "mergekit"
    assert MergeConfig.from_yaml(config.to_yaml()).precision == "mergekit"
    assert MergeConfig.from_yaml(SLERP).precision == "exact"
    assert "precision" not in MergeConfig.from_yaml(SLERP).to_yaml()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("dtype: float64\n", f"operations are rounded to float32, float16 or bfloat16, not to float64; {OUT}"),
        (
            "rules: [{filter: norm, copy: a}]\n",
            f"it goes with no `rules`, which mergekit lacks or takes otherwise; {OUT}",
        ),
    ],
)
def test_what_mergekit_lacks_is_refused(more: str, message: str) -> None:
    assert refusal(SLERP + "precision: mergekit\n" + more) == (START + message,)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("dare_ties", f"dare_ties draws at random, from another stream than mergekit's; {OUT}"),
        (
            "arcee_fusion",
            "arcee_fusion has no one result in mergekit, which picks other elements on another processor, and takes "
            f"the threshold of more than a million elements from a random sample; {OUT}",
        ),
        (
            "karcher",
            "karcher: mergekit's cosines are dot products of torch's BLAS, which sums in its own order; " + OUT,
        ),
        (
            "magmax",
            "magmax is not among the methods that can be made so (passthrough, linear, slerp, nuslerp, multislerp, "
            f"nearswap, task_arithmetic, ties, breadcrumbs, breadcrumbs_ties, sce, model_stock, ram, "
            f"ramplus_tl); {OUT}",
        ),
    ],
)
def test_other_methods_are_refused_by_name(method: str, message: str) -> None:
    models = BASED.replace("    parameters: {weight: 1}\n", "") if method in ("karcher", "magmax") else BASED
    models = "base_model: a\nmodels: [{model: b}]\n" if method == "arcee_fusion" else models
    text = f"merge_method: {method}\n{models}precision: mergekit\n"
    with pytest.raises(ConfigError) as caught:
        MergeConfig.from_yaml(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            "majority_sign_method: count",
            f"mergekit 0.1.5 ignores `majority_sign_method: count` and elects by `total`; write that, or {OUT}",
        ),
        ("depth_scale: {alpha: 0.2, beta: 0.8}", f"mergekit has no `depth_scale`; {OUT}"),
        (
            "weight: {auto: norm}",
            "mergekit has no `weight: {auto: ...}`; " + OUT + ", or write the weights",
        ),
    ],
)
def test_parameters_that_it_cannot_have(parameters: str, message: str) -> None:
    models = "base_model: a\nmodels: [{model: b}, {model: c}]\n" if "auto" in parameters else BASED
    text = f"merge_method: ties\n{models}parameters: {{{parameters}}}\nprecision: mergekit\n"
    with pytest.raises(ConfigError) as caught:
        MergeConfig.from_yaml(text)
    assert message in str(caught.value)


def test_an_adapter_is_refused() -> None:
    text = "merge_method: linear\nmodels: [{model: a+b, parameters: {weight: 1}}]\nprecision: mergekit\n"
    with pytest.raises(ConfigError, match=r"a\+b: adapters are added in full precision; leave `precision` out"):
        MergeConfig.from_yaml(text)


def test_ramplus_tl_writes_float32_as_mergekit() -> None:
    text = "merge_method: ramplus_tl\nbase_model: a\nmodels: [{model: b}, {model: c}]\n"
    text += "precision: mergekit\ndtype: bfloat16\n"
    config = MergeConfig.from_yaml(text)
    assert (config.dtype, config.out_dtype) == ("BF16", "F32")
    assert any("ramplus_tl writes float32 as mergekit does" in note for note in config.notes)
    assert MergeConfig.from_yaml(text + "out_dtype: bfloat16\n").out_dtype == "BF16"
    assert MergeConfig.from_yaml(text.replace("mergekit", "exact")).out_dtype is None
