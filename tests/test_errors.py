"""The tree of exceptions, and errors that list several problems."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import pytest

from mol import errors

if TYPE_CHECKING:
    from pathlib import Path


def test_listing_has_one_bullet_per_problem() -> None:
    error = errors.MergeError.listing("these models do not fit", ["a: 1", "b: 2"])
    assert type(error) is errors.MergeError
    assert str(error) == "these models do not fit:\n  - a: 1\n  - b: 2"
    assert error.problems == ("a: 1", "b: 2")


def test_a_plain_error_has_no_list() -> None:
    assert errors.CheckpointError("cut off").problems == ()


@pytest.mark.parametrize(
    "name",
    [
        "ConfigError",
        "ArchitectureError",
        "CheckpointError",
        "MergeError",
        "MergeCancelled",
        "FusionError",
        "InternalError",
    ],
)
def test_every_error_is_a_mol_error(name: str) -> None:
    assert issubclass(getattr(errors, name), errors.MolError)


@pytest.mark.parametrize("name", ["ConfigError", "ArchitectureError", "FusionError"])
def test_a_users_mistake_in_what_is_given_is_a_value_error(name: str) -> None:
    assert issubclass(getattr(errors, name), ValueError)


def test_a_bug_of_mol_is_no_value_error_and_a_cancelled_merge_a_merge_error() -> None:
    assert not issubclass(errors.InternalError, ValueError)
    assert issubclass(errors.MergeCancelled, errors.MergeError)


def test_problems_survive_a_pickle() -> None:
    error = pickle.loads(pickle.dumps(errors.ConfigError.listing("no", ["a"])))
    assert error.problems == ("a",)
    assert str(error) == "no:\n  - a"


def test_what_the_system_refuses_is_said_without_pythons_number(tmp_path: Path) -> None:
    missing, link = tmp_path / "missing", tmp_path / "link"
    link.symlink_to("blobs/gone")
    for path, says in ((missing, "No such file or directory"), (link, "is a link to blobs/gone, which is not there")):
        with pytest.raises(FileNotFoundError) as caught:
            path.read_bytes()
        assert errors.reason_of(caught.value) == f"{path}: {says}"
    assert errors.reason_of(errors.MergeError("no")) == "no"
