"""Rows of the table of merge methods that keep some values of each difference from the base, and drop the others."""

from __future__ import annotations

from typing import Final

from mol.config.method_parameters import DENSITY, EPSILON, GAMMA, LAMBDA, MASK, VOTES, WEIGHT, normalize, rescale
from mol.config.method_spec import NO_GAIN, MethodSpec, ParameterSpec, table

SPARSE: Final = (
    MethodSpec(
        "ties",
        table(
            WEIGHT,
            DENSITY,
            normalize(default=True),
            rescale(default=False),
            LAMBDA,
            ParameterSpec(
                "majority_sign_method",
                kind="str",
                default="total",
                choices={"total": ("sum", "mass"), "count": ()},
                about="signs are elected by the sum of the weighted differences, or by their number",
            ),
        ),
        base="required",
        min_models=2,
        title="TIES: trim, elect sign, disjoint mean",
        url="https://arxiv.org/abs/2306.01708",
        about="of each difference from the base the largest values are kept, a sign is elected for each element, "
        "and the differences that have it are averaged and added to the base",
        evidence=NO_GAIN,
    ),
    MethodSpec(
        "dare_linear",
        table(WEIGHT, DENSITY, normalize(default=False), rescale(default=True), LAMBDA),
        base="required",
        min_models=2,
        title="DARE: task arithmetic over differences thinned out at random",
        url="https://arxiv.org/abs/2311.03099",
        about="of each difference from the base values are dropped at random, the rest is made as large as the "
        "whole was, and the weighted sum is added to the base",
        divides=True,
        draws=True,
    ),
    MethodSpec(
        "dare_ties",
        table(WEIGHT, DENSITY, normalize(default=False), rescale(default=True), LAMBDA),
        base="required",
        min_models=2,
        title="DARE with TIES' election of signs",
        url="https://arxiv.org/abs/2311.03099",
        about="as `dare_linear`, and of what is left only the differences that have the elected sign are added",
        draws=True,
    ),
    MethodSpec(
        "della",
        table(WEIGHT, DENSITY, EPSILON, normalize(default=True), rescale(default=True), LAMBDA),
        base="required",
        min_models=2,
        title="DELLA: thinned out at random by magnitude, with TIES' election of signs",
        url="https://arxiv.org/abs/2406.11617",
        about="as `della_linear`, and of what is left only the differences that have the elected sign are averaged "
        "and added",
        draws=True,
    ),
    MethodSpec(
        "della_linear",
        table(WEIGHT, DENSITY, EPSILON, normalize(default=False), rescale(default=True), LAMBDA),
        base="required",
        min_models=2,
        title="DELLA: task arithmetic over differences thinned out at random by magnitude",
        url="https://arxiv.org/abs/2406.11617",
        about="of each difference from the base values are dropped at random, small ones of a row more often, "
        "the rest is made as large as the whole was, and the weighted sum is added to the base",
        divides=True,
        draws=True,
    ),
    MethodSpec(
        "breadcrumbs",
        table(WEIGHT, DENSITY, GAMMA, normalize(default=False), rescale(default=False), LAMBDA),
        base="required",
        min_models=2,
        title="model breadcrumbs: without the largest and the smallest differences",
        url="https://arxiv.org/abs/2312.06795",
        about="of each difference from the base the largest values are dropped, of the rest the largest are kept, "
        "and the weighted sum is added to the base",
        divides=True,
    ),
    MethodSpec(
        "breadcrumbs_ties",
        table(WEIGHT, DENSITY, GAMMA, normalize(default=False), rescale(default=False), LAMBDA),
        base="required",
        min_models=2,
        title="model breadcrumbs with TIES' election of signs",
        url="https://arxiv.org/abs/2312.06795",
        about="as `breadcrumbs`, and of what is left only the differences that have the elected sign are added",
    ),
    MethodSpec(
        "sce",
        table(
            ParameterSpec(
                "select_topk",
                default=1.0,
                low=0.0,
                high=1.0,
                about="share of the values on which the models differ that is taken, those that vary most",
                copy_at={0.0: 0},
            )
        ),
        base="required",
        min_models=2,
        title="SCE: select, calculate, erase",
        url="https://arxiv.org/abs/2408.07990",
        about="the differences from the base that vary most between the models are kept, those that have the "
        "elected sign are averaged by how large each model's are, and added to the base",
    ),
    MethodSpec(
        "consensus_ta",
        table(WEIGHT, MASK, VOTES, normalize(default=False)),
        base="required",
        min_models=2,
        title="consensus task arithmetic, by TALL masks",
        url="https://arxiv.org/abs/2405.07813",
        about="task arithmetic without the values that fewer than `k` models need; one needs a value where its own "
        "difference is at least `lambda` times what the merged one is off from it",
        divides=True,
    ),
    MethodSpec(
        "consensus_ties",
        table(WEIGHT, DENSITY, MASK, VOTES, normalize(default=True), rescale(default=False)),
        base="required",
        min_models=2,
        title="consensus TIES, by TALL masks",
        url="https://arxiv.org/abs/2405.07813",
        about="`ties` without the values that fewer than `k` models need, as `consensus_ta`",
    ),
    MethodSpec(
        "magmax",
        table(LAMBDA),
        base="required",
        min_models=2,
        title="MagMax, the largest difference of each value",
        url="https://arxiv.org/abs/2407.06322",
        about="base + lambda * the largest of the differences from the base, value by value",
    ),
    MethodSpec(
        "localize_and_stitch",
        table(DENSITY._replace(default=0.1, flat_default=None)),
        base="required",
        min_models=2,
        title="Localize-and-Stitch, in the form without data",
        url="https://arxiv.org/abs/2408.13656",
        about="of each difference from the base the largest values are kept and added to the base, where those of "
        "several models overlap their mean",
    ),
    MethodSpec(
        "pcb",
        table(DENSITY._replace(default=0.1, flat_default=None, about="share of each difference that counts"), LAMBDA),
        base="required",
        min_models=2,
        title="PCB-Merging, parameter competition balancing",
        url="https://arxiv.org/abs/2410.02396",
        about="base + lambda * mean of the differences, weighted value by value by their own size and by how far they "
        "agree with the sum of all; the lowest weights are dropped",
    ),
    MethodSpec(
        "cabs",
        table(
            WEIGHT,
            ParameterSpec(
                "n",
                kind="int",
                default=64,
                low=0,
                high=65_536,
                about="how many values of `m` neighbours are kept of each difference",
            ),
            ParameterSpec(
                "m",
                kind="int",
                default=256,
                low=1,
                high=65_536,
                about="how many neighbours in a row make a block",
            ),
            LAMBDA,
        ),
        base="required",
        min_models=2,
        title="CABS, n of m values of each model, few of them twice",
        url="https://arxiv.org/abs/2503.01874",
        about="of each `m` neighbours the `n` largest differences from the base are kept, first of the first "
        "model, then of the next among those left, where there are too few left of the others too, and the weighted "
        "sum is added to the base",
    ),
)
