"""Checks that transformers loads a result: its class, every name and every shape; no weight is read."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from mol.errors import CheckpointError, ConfigError
from mol.io.layout import CONFIG
from mol.text import first_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_log: Final = logging.getLogger("mol")
_SHOWN: Final = 10
# What transformers and the code of models raise where config.json and weights do not fit together.
_RAISED: Final = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def check_can_load() -> None:
    """Refuse to check where transformers is not installed.

    Raises:
        ConfigError: it is not, or torch is not.
    """
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--check-load loads the result with transformers, and {' and '.join(missing)} is not installed: "
            "pip install 'mol-merge[fusion]', or leave the option out"
        )


def check_results(root: Path, names: Iterable[str], *, trust_remote_code: bool) -> None:
    """Check each result of a run by its directory below `root`, "" for the only one, and log as what it loads."""
    for name in names:
        loads = check_load(root / name, trust_remote_code=trust_remote_code)
        _log.info("%s", f"{name} {loads}".strip())


def check_load(directory: Path, *, trust_remote_code: bool = False) -> str:
    """Instantiate a model on torch's meta device and compare names and shapes with its weight files.

    Args:
        directory: holds config.json and weights.
        trust_remote_code: run Python files in the directory where config.json points to them.

    Returns:
        A line that says as what it loads.

    Raises:
        ConfigError: transformers is not installed.
        CheckpointError: it does not load, or tensors are missing, left over or of another shape; lists all.
    """
    check_can_load()
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    version = f"transformers {transformers.__version__}"
    with _silent():
        try:
            config = transformers.AutoConfig.from_pretrained(
                directory, local_files_only=True, trust_remote_code=trust_remote_code
            )
            cls = _class(config, directory, version, trust_remote_code=trust_remote_code)
            _, info = cls.from_pretrained(
                directory,
                config=config,
                device_map="meta",
                ignore_mismatched_sizes=True,
                local_files_only=True,
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
            )
        except (*_RAISED, StrictDataclassError) as error:
            raise CheckpointError(f"{directory} does not load with {version}: {first_line(error)}") from error
    problems = [
        *_listed("is missing in the weights", map(str, info["missing_keys"])),
        *_listed("is in the weights, and the class has no such tensor", map(str, info["unexpected_keys"])),
        *_listed("", (_mismatch(*found) for found in info["mismatched_keys"])),
        *_listed("", map(str, info.get("error_msgs") or ())),
    ]
    if problems:
        raise CheckpointError.listing(f"{directory} does not load as {cls.__name__} of {version}", problems)
    return f"loads as {cls.__name__} of {version}: all names and shapes are as its class has them"


def _class(config: Any, directory: Path, version: str, *, trust_remote_code: bool) -> Any:  # noqa: ANN401
    """Return the class that config.json names."""
    import transformers

    names = getattr(config, "architectures", None) or []
    cls = getattr(transformers, str(names[0]), None) if names else None
    if cls is not None:
        return cls
    if trust_remote_code and getattr(config, "auto_map", None):
        return next(
            (getattr(transformers, auto) for auto in config.auto_map if auto.startswith("AutoModel")),
            transformers.AutoModel,
        )
    if names:
        raise CheckpointError(f"{directory / CONFIG} names the class {names[0]}, which {version} does not have")
    raise CheckpointError(f"{directory / CONFIG} names no class in `architectures`, so it is not known what to load")


def _mismatch(name: str, found: Iterable[int], wanted: Iterable[int]) -> str:
    return f"`{name}` has shape {list(found)}, wanted {list(wanted)}"


def _listed(reason: str, names: Iterable[str]) -> list[str]:
    """Return a line for each name, and the number of those that are too many to list."""
    lines = sorted(f"`{name}` {reason}" if reason else name for name in names)
    rest = len(lines) - _SHOWN
    return lines if rest <= 0 else [*lines[:_SHOWN], f"{rest} more {reason or 'of this kind'}"]


@contextmanager
def _silent() -> Iterator[None]:
    """Keep transformers from reporting what is reported here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
