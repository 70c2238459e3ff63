"""`merge_method: average`: which checkpoints it takes, in which order, with which weights, and what is refused."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mol.config import MergeConfig
from mol.config.average import checkpoint_weights
from mol.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def run_of(directory: Path, *names: str) -> str:
    for name in names:
        (directory / name).mkdir(parents=True)
    return str(directory)


def taken(recipe: dict[str, Any]) -> list[tuple[str, float]]:
    """Names without their folders, and weights."""
    config = MergeConfig.from_dict({"merge_method": "average", **recipe})
    assert config.method == "linear"
    assert config.donor() == (config.models or ())[-1].model
    return [
        (str(source.model).rpartition("/")[2], float(source.parameters["weight"][0].value))  # type: ignore[arg-type]
        for source in config.models or ()
    ]


@pytest.mark.parametrize("word", ["checkpoint-", "step_", "step", "global_step", "epoch-", "iter_", "ckpt-"])
def test_checkpoints_of_a_directory_are_taken_in_the_order_of_their_steps(word: str, tmp_path: Path) -> None:
    names = [f"{word}{step}" for step in (1000, 500, 20, 10000)]
    run = run_of(tmp_path, *names, "runs", "tmp-checkpoint-30000", "best")
    (tmp_path / f"{word}7").write_text("no directory")
    found = [name for name, _ in taken({"checkpoints": run})]
    assert found == [f"{word}{step}" for step in (20, 500, 1000, 10000)]
    assert [name for name, _ in taken({"checkpoints": run, "last": 2})] == found[-2:]
    assert [name for name, _ in taken({"checkpoints": f"{run}/"})] == found


def test_a_pattern_a_list_and_revisions_name_checkpoints_too(tmp_path: Path) -> None:
    run = run_of(tmp_path, "it-30", "it-4", "it-200-hf", "other-7")
    assert [name for name, _ in taken({"checkpoints": f"{run}/it-*"})] == ["it-4", "it-30", "it-200-hf"]
    assert [name for name, _ in taken({"checkpoints": [f"{run}/other-7", f"{run}/it-4"]})] == ["other-7", "it-4"]
    assert [name for name, _ in taken({"checkpoints": "org/run@step9,step10,step200"})] == [
        "run@step9", "run@step10", "run@step200",
    ]  # fmt: skip
    # As a shell sorts what it expands.
    assert [name for name, _ in taken({"models": ["r/step-10", "r/step-200", "r/step-9"]})] == [
        "step-9", "step-10", "step-200",
    ]  # fmt: skip
    config = MergeConfig.from_dict({"merge_method": "average", "checkpoints": ["r/step-10", "r/step-9"]})
    assert "the checkpoints are put in the order of their steps" in config.notes


def test_an_average_moves_like_its_average_over_the_steps() -> None:
    """EMA: what a loop over the checkpoints gives."""
    values = np.random.default_rng(0).normal(size=12)
    moving = values[0]
    for value in values[1:]:
        moving = 0.8 * moving + 0.2 * value
    assert np.dot(checkpoint_weights("ema:0.8", 12), values) == pytest.approx(moving, rel=1e-12)


@pytest.mark.parametrize(("rule", "factor"), [
    ("wsm:linear", lambda x: 1 - x),
    ("wsm:cosine", lambda x: (1 + np.cos(np.pi * x)) / 2),
    ("wsm:minus-sqrt", lambda x: 1 - np.sqrt(x)),
    ("minus-sqrt", lambda x: 1 - np.sqrt(x)),
])  # fmt: skip
def test_weights_of_a_decay_scale_the_updates_as_it_scales_the_learning_rate(rule: str, factor: Any) -> None:  # noqa: ANN401
    """WSM: sum of c_i x_i = x_1 + sum over the updates u_i of w_i u_i, with the w of the decay."""
    n = 9
    weights = np.array(checkpoint_weights(rule, n))
    updates = np.random.default_rng(1).normal(size=n - 1)
    checkpoints = 3.0 + np.concatenate([[0.0], np.cumsum(updates)])
    decayed = 3.0 + sum(factor(i / n) * update for i, update in enumerate(updates, start=1))
    assert np.dot(weights, checkpoints) == pytest.approx(decayed, rel=1e-12)
    assert weights.sum() == pytest.approx(1.0, rel=1e-12)
    assert (weights > 0).all()


def test_a_linear_decay_is_the_mean() -> None:
    assert checkpoint_weights("wsm:linear", 8) == [1 / 8] * 8
    assert checkpoint_weights("mean", 8) == [1.0] * 8
    assert all(checkpoint_weights(rule, 1) == [1.0] for rule in ("mean", "ema:0.5", "minus-sqrt", "wsm:cosine"))
    assert sum(Fraction(weight) for weight in checkpoint_weights("wsm:linear", 4)) == 1


def test_windows_are_a_sweep_over_the_last(tmp_path: Path) -> None:
    run = run_of(tmp_path, *(f"checkpoint-{i}" for i in range(1, 21)))
    recipe = {"merge_method": "average", "checkpoints": run, "weights": "ema:0.9", "sweep": {"last": [5, 20]}}
    config = MergeConfig.from_dict(recipe)
    assert {name: len(swept.config.models or ()) for name, swept in config.sweep.items()} == {
        "last-5": 5,
        "last-20": 20,
    }
    assert MergeConfig.from_dict(config.to_dict()) == config
    rules = MergeConfig.from_dict({**recipe, "sweep": {"weights": ["mean", "ema:0.9"], "last": [2, 3]}})
    assert list(rules.sweep) == [
        "weights-mean_last-2", "weights-mean_last-3", "weights-ema-0.9_last-2", "weights-ema-0.9_last-3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"last": 4}, "`last: 4`, and `checkpoints` has 3; take fewer, or leave it out"),
        ({"last": 0}, "`last` is a number of checkpoints, 1 or more, not 0"),
        ({"last": "all"}, "`last` is a number of checkpoints, 1 or more, not 'all'"),
        ({"weights": "exp"}, "`weights` is one of `mean`, `ema:BETA`, `minus-sqrt`, `wsm:linear`"),
        ({"weights": "ema:1"}, "BETA above 0 and below 1"),
        ({"weights": "ema:much"}, "BETA above 0 and below 1"),
        ({"weights": "wsm:square"}, "`wsm:cosine`"),
        ({"weights": [1, 2]}, "`weights` has 2 entries for 3 checkpoints"),
        ({"weights": 0.5}, "`weights` is a rule such as `ema:0.9`, or a list, not 0.5"),
        ({"parameters": {"normalize": False}}, "`parameters` in a recipe of average; an average has `checkpoints`"),
        ({"base_model": "a"}, "`base_model` in a recipe of average"),
        ({"models": ["a"]}, "`checkpoints` and `models` name the same; give one of them"),
        ({"sweep": {"weight": [1, 2]}}, "`weight` in `sweep`: average has `last` and `weights`"),
        ({"sweep": {"last": [2, 9]}}, "`last: 9`, and `checkpoints` has 3"),
    ],
)
def test_what_an_average_refuses(more: dict[str, Any], problem: str, tmp_path: Path) -> None:
    run = run_of(tmp_path, "step_1", "step_2", "step_3")
    with pytest.raises(ConfigError) as caught:
        MergeConfig.from_dict({"merge_method": "average", "checkpoints": run, **more})
    assert problem in str(caught.value)


def test_directories_that_leave_a_choice_are_refused(tmp_path: Path) -> None:
    def problem(checkpoints: object) -> str:
        with pytest.raises(ConfigError) as caught:
            MergeConfig.from_dict({"merge_method": "average", "checkpoints": checkpoints})
        return str(caught.value).replace(str(tmp_path), "RUN")

    run = run_of(tmp_path / "mixed", "epoch-1", "step-100", "step-200")
    assert "RUN/mixed holds checkpoints of several kinds" in problem(run)
    assert "RUN/empty holds no checkpoints (checkpoint-N, step_N, epoch-N)" in problem(run_of(tmp_path / "empty", "x"))
    assert "no directory is named like RUN/mixed/it-*" in problem(f"{run}/it-*")
    run_of(tmp_path / "more", "it-1", "it-last")
    assert "RUN/more/it-* also fits it-last, whose name holds no step" in problem(f"{tmp_path}/more/it-*")
    assert "average needs `checkpoints`" in problem(None)


def test_a_recipe_names_its_revisions() -> None:
    with pytest.raises(ConfigError, match=r"looked up on the Hub by `mol-merge average 'org/run@step\*' OUT`"):
        taken({"checkpoints": "org/run@step*"})


def test_an_average_of_one_checkpoint_is_called_so(tmp_path: Path) -> None:
    run = run_of(tmp_path, "step_1", "step_2")
    for last, says in ((2, "average of 2 checkpoints with equal weights"), (1, "step_2, so nothing is averaged")):
        config = MergeConfig.from_dict({"merge_method": "average", "checkpoints": run, "last": last})
        assert any(says in note for note in config.notes)
