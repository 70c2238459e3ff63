"""How a file of weights is written: as a whole or not at all, whatever ends the process that saves."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from torch import nn

from mol import load_model_safe, save_model_safe
from mol.errors import CheckpointError
from tests.core.test_safe_files import bits, linear

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def in_a_process_of_its_own(act: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        try:
            act()
        except OSError:
            os._exit(3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


STEPS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree")


def test_a_save_that_is_killed_at_any_step_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    file, found, died = tmp_path / "model.safetensors", [], True
    while died:
        save_model_safe(linear(1), file)
        assert [path.name for path in tmp_path.iterdir()] == [file.name]  # nothing is left of the kill before
        old, left = file.read_bytes(), [len(found)]

        def watch(event: str, arguments: tuple[object, ...], left: list[int] = left) -> None:
            if event in STEPS and str(tmp_path) in str(arguments[0]):
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)

        def save(watch: Callable[[str, tuple[object, ...]], None] = watch) -> None:
            sys.addaudithook(watch)
            save_model_safe(linear(2), file)

        died = in_a_process_of_its_own(save) == 9
        found.append("old" if file.read_bytes() == old else "new")
        load_model_safe(linear(), file)
    assert set(found) == {"old", "new"}
    assert found == sorted(found, reverse=True)  # old until the one moment, new from then on
    assert len(found) > 8


@pytest.mark.parametrize("dies", [True, False])
def test_a_write_that_is_cut_off_leaves_the_old_file(dies: bool, tmp_path: Path) -> None:
    file = save_model_safe(linear(1), tmp_path / "model")
    old = file.read_bytes()

    def save() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if dies else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        save_model_safe(nn.Linear(200, 200), file)

    assert in_a_process_of_its_own(save) == (-signal.SIGXFSZ if dies else 3)
    assert file.read_bytes() == old
    assert dies or [path.name for path in tmp_path.iterdir()] == [file.name]
    save_model_safe(linear(2), file)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_threads_that_save_to_one_file_leave_the_file_of_one_of_them(tmp_path: Path) -> None:
    models = [linear(seed) for seed in range(4)]
    threads = [threading.Thread(target=save_model_safe, args=(model, tmp_path / "model")) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = linear(9)
    load_model_safe(again, tmp_path / "model")
    assert bits(again) in [bits(model) for model in models]
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_who_may_read_the_file_is_for_the_umask_to_say(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert save_model_safe(linear(), tmp_path / "model").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


def test_a_directory_instead_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(IsADirectoryError, match=r"model\.safetensors is a directory"):
        save_model_safe(linear(), tmp_path / "model")
    with pytest.raises(CheckpointError, match="not a file"):
        load_model_safe(linear(), tmp_path / "model")
