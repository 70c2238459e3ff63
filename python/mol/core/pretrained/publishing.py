"""Uploads a fusion to the Hub, with a card: as it is, with copies of its models, or as one static model."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args

from mol import _rust
from mol.config.model_reference import is_local
from mol.core.pretrained.collapse import collapse
from mol.core.pretrained.model_config import description_in
from mol.core.pretrained.rebuilding import used_models
from mol.core.pretrained.saving import KEY
from mol.errors import ConfigError
from mol.io.hub import can_be_id
from mol.io.json_file import digest_of, read_object
from mol.io.layout import CARD, CONFIG
from mol.io.model_card import inline
from mol.io.upload import check_destination, check_new, upload

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mol.core.pretrained.fused_model import FusedModel
    from mol.core.runtime import Runtime
    from mol.io.upload import Destination

FusionType = Literal["runtime", "fused", "bundle"]
"""What is uploaded: adapters and routers, one static model, or adapters and routers with copies of the models."""
_log: Final = logging.getLogger("mol")


class Publication(NamedTuple):
    """What is made of a fusion for a repository; see `MoLRuntime.push_to_hf`.

    Attributes:
        fusion_type: see `FusionType`.
        fusion_method: of a "fused" model, as are the next two.
        texts: what it is measured on.
        drop_adapters: leave out adapters that are not the identity, instead of refusing them.
        evaluation: what the card says was measured: a value by its name.
    """

    fusion_type: str
    fusion_method: str
    texts: Sequence[str] | None
    drop_adapters: bool
    evaluation: Mapping[str, object]


def publish(model: FusedModel, to: Destination, made: Publication, dry_run: Path | None) -> str:
    """Upload a fusion, or write what would be uploaded into a new directory; see `MoLRuntime.push_to_hf`.

    Returns:
        The address of the commit or of the pull request, or the directory.

    Raises:
        MolError: the fusion cannot be published in this form, as listed, or the Hub refuses it.
        OSError: the Hub cannot be reached, there is no token, or something cannot be read or written.
    """
    if made.fusion_type not in get_args(FusionType):
        raise ConfigError(f"fusion_type is {made.fusion_type!r}, wanted one of {', '.join(get_args(FusionType))}")
    if not can_be_id(to.repo_id) or "/" not in to.repo_id:
        raise ConfigError(f"{to.repo_id!r} is no `user/name`, as the card needs it to say how the model is loaded")
    if dry_run is not None:
        check_new(dry_run)
        _write(model, dry_run, to.repo_id, made)
        return str(dry_run)
    check_destination(to)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        _write(model, directory, to.repo_id, made)
        files = [path.relative_to(directory).as_posix() for path in sorted(directory.rglob("*")) if path.is_file()]
        message = f"Upload a fusion ({made.fusion_type}) by mol-merge {_rust.__version__}"
        return upload(directory, files, to, default_message=message).url


def _write(model: FusedModel, directory: Path, repo_id: str, made: Publication) -> None:
    """Write all files of a repository."""
    measured = [f"{inline(str(what))}: {value}" for what, value in made.evaluation.items()]
    if made.fusion_type == "fused":
        from mol.merge.manifest import put_side_file

        done = collapse(
            model.runtime, directory, made.fusion_method, texts=made.texts, drop_adapters=made.drop_adapters
        )
        load = "from transformers import AutoModelForCausalLM\n\nmodel = AutoModelForCausalLM"
        load += f'.from_pretrained("{repo_id}")'
        card = (directory / CARD).read_text(encoding="utf-8") + _section("Made of a fusion", done.lines)
        card += _section("Evaluation", measured) + f"\n## How to load it\n\n```python\n{load}\n```\n"
        put_side_file(directory, CARD, card.encode())
        return
    names = _names(model.runtime, made.fusion_type)
    kind: Any = made.fusion_type
    model.save_pretrained(directory, kind=kind)
    _remove_paths(directory, names)
    card = (directory / CARD).read_text(encoding="utf-8")
    card = card.replace('from_pretrained("DIR")', f'from_pretrained("{repo_id}")')
    (directory / CARD).write_text(card + _section("Evaluation", measured), encoding="utf-8")


def _section(title: str, lines: Sequence[str]) -> str:
    return f"\n## {title}\n\n" + "".join(f"- {line}\n" for line in lines) if lines else ""


def _names(runtime: Runtime, fusion_type: str) -> dict[str, str]:
    """Return the models' names as others may have them, by their names here.

    Raises:
        ConfigError: a runtime names models of this machine alone.
    """
    models = list(runtime.config.models)
    mine = [name for name in models if not can_be_id(name) or Path(name).is_absolute()]
    if fusion_type == "bundle":  # whose copies are found by their number
        names: dict[str, str] = {}
        for number, name in enumerate(models):
            last = (Path(name).name or "model") if name in mine else name
            names[name] = last if last not in {*names.values(), *models} - {name} else f"{last}-{number}"
        return names
    if mine:
        raise ConfigError.listing(
            "a runtime names its models for whoever loads it, and these are paths of this machine; push them first "
            "(`mol-merge push`) and make the fusion of the repositories, or choose fusion_type='bundle'",
            mine,
        )
    for name, use in used_models(runtime).items():
        if use.checkpoint.revision is None and is_local(name):
            _log.warning(
                "%s is a directory here: whoever loads the fusion gets the Hub's %s, which is refused if it is another "
                "model, or gives a directory: from_pretrained(..., paths={%r: ...})",
                name,
                name,
                name,
            )
    return {name: name for name in models}


def _remove_paths(directory: Path, names: Mapping[str, str]) -> None:
    """Remove paths of this machine from a save."""
    path = directory / CONFIG
    content = _renamed(read_object(path), {name: other for name, other in names.items() if name != other})
    record = content[KEY]
    for model in record["models"].values():
        if "file" not in model:  # not a copy in the save
            model.pop("path", None)
    record["described"] = digest_of(description_in(content))
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _renamed(value: Any, names: Mapping[str, str]) -> Any:  # noqa: ANN401 - as JSON holds it
    if isinstance(value, dict):
        return {names.get(key, key): _renamed(one, names) for key, one in value.items()}
    if isinstance(value, list):
        return [_renamed(one, names) for one in value]
    return names.get(value, value) if isinstance(value, str) else value
