"""The state of any module in one SafeTensors file: it comes back bit for bit, or what is wrong is listed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

from mol import load_model_safe, safetensors_manager, save_model_safe
from mol.errors import CheckpointError, ConfigError, MolError
from tests.core.zoo import language_model_of

if TYPE_CHECKING:
    from collections.abc import Callable

TEXTS = {
    "version": "1.0",
    "": "",
    "weight": "null",
    "Ünï": '\x00\x1f\x7f\u2028 "\\/\b\f\n\r\t\U0001f600',
    "list": "[1, 2]",
}


class Holding(nn.Module):
    """A module with the given buffers."""

    def __init__(self, **buffers: torch.Tensor) -> None:
        super().__init__()
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)


class Tied(nn.Module):
    """Embedding and head with one weight, or two."""

    def __init__(self, tie: bool = True) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        if tie:
            self.head.weight = self.embed.weight


def bits(model: nn.Module) -> dict[str, bytes]:
    return {
        name: tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        for name, tensor in model.state_dict().items()
    }


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


def every_dtype() -> Holding:
    raw = torch.arange(96, dtype=torch.uint8).repeat(2) * 37
    dtypes = [
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.complex64,
    ]  # fmt: skip
    buffers = {str(dtype).replace(".", "_"): raw.view(dtype).clone() for dtype in dtypes}
    nans = torch.tensor([0x7FC00001, 0x7F800001, 0x80000000, 0x00000001]).to(torch.int32).view(torch.float32)
    across = torch.arange(12.0).reshape(3, 4).t()
    assert not across.is_contiguous()
    return Holding(
        **buffers, nans=nans, across=across, flags=torch.tensor([True, False]), scalar=torch.tensor(2.5),
        none=torch.zeros(0, 3),
    )  # fmt: skip


def test_every_dtype_and_layout_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = every_dtype()
    again = Holding(**{name: torch.zeros_like(buffer) for name, buffer in model.named_buffers()})
    save_model_safe(model, tmp_path / "model")
    assert load_model_safe(again, tmp_path / "model") == {}
    assert bits(again) == bits(model)


def test_metadata_comes_back_as_it_was_given(tmp_path: Path) -> None:
    given = dict(TEXTS)
    save_model_safe(Tied(), tmp_path / "model", given)
    assert given == TEXTS
    assert load_model_safe(Tied(), tmp_path / "model") == TEXTS
    save_model_safe(linear(), tmp_path / "model", metadata=load_model_safe(Tied(), tmp_path / "model"))
    assert load_model_safe(linear(), tmp_path / "model") == TEXTS


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    model, again = Tied(), Tied()
    save_model_safe(model, tmp_path / "model", TEXTS)
    save_model(model, str(tmp_path / "plain"))
    ours, plain = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "plain")
    assert {name: tensor.tolist() for name, tensor in ours.items()} == {k: v.tolist() for k, v in plain.items()}
    load_model(again, tmp_path / "model.safetensors")
    assert bits(again) == bits(model)


def test_equal_states_and_texts_are_equal_bytes(tmp_path: Path) -> None:
    found = set()
    for number in range(4):
        texts = dict(sorted(TEXTS.items(), reverse=bool(number % 2)))
        found.add(save_model_safe(every_dtype(), tmp_path / f"{number}", texts).read_bytes())
    assert len(found) == 1


def test_shared_weights_are_stored_once_and_stay_shared(tmp_path: Path) -> None:
    model, again = Tied(), Tied()
    save_model_safe(model, tmp_path / "model")
    assert len(load_file(tmp_path / "model.safetensors")) == 1
    load_model_safe(again, tmp_path / "model")
    assert bits(again) == bits(model)
    assert again.head.weight is again.embed.weight


def test_a_block_in_two_layers_and_views_of_a_buffer_come_back(tmp_path: Path) -> None:
    def make(seed: int) -> nn.Module:
        block, table = linear(seed), torch.arange(6.0) + seed
        return nn.Sequential(block, block, Holding(all=table, some=table[2:4]))

    model, again = make(1), make(2)
    save_model_safe(model, tmp_path / "model")
    load_model_safe(again, tmp_path / "model")
    assert bits(again) == bits(model)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_language_models_come_back(kind: str, tmp_path: Path) -> None:
    model, again = language_model_of(kind, seed=1), language_model_of(kind, seed=2)
    save_model_safe(model, tmp_path / kind)
    load_model_safe(again, tmp_path / kind)
    assert bits(again) == bits(model)


def test_a_module_without_tensors_is_saved_too(tmp_path: Path) -> None:
    save_model_safe(nn.Identity(), tmp_path / "model", TEXTS)
    assert load_model_safe(nn.Identity(), tmp_path / "model") == TEXTS


def test_weights_are_loaded_into_the_parameters_that_an_optimiser_has(tmp_path: Path) -> None:
    model = linear()
    save_model_safe(linear(1), tmp_path / "model")
    parameter = model.weight
    load_model_safe(model, tmp_path / "model", device=torch.device("cpu"))
    assert model.weight is parameter
    assert parameter.requires_grad
    assert torch.equal(parameter, linear(1).weight)


@pytest.mark.parametrize(
    ("path", "file"),
    [
        ("./model", "model.safetensors"),
        ("model.pt", "model.safetensors"),
        ("model.safetensors", "model.safetensors"),
        ("run.v1.0", "run.v1.0.safetensors"),
        ("run.v1.0.pt", "run.v1.0.safetensors"),
        ("new/deep/step_10", "new/deep/step_10.safetensors"),
        (".hidden", ".hidden.safetensors"),
    ],
)
def test_a_path_with_and_without_a_suffix_is_one_file(
    path: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert save_model_safe(linear(), path) == Path(file)
    assert [found for found in Path().rglob("*") if found.is_file()] == [Path(file)]
    for same in (path, Path(path), file):
        load_model_safe(linear(1), same)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("", "names no file"), (".", "names no file"), ("..", "names no file"), ("models/", "names no file"),
        ("model.bin", r"names a pickle.*write model\.safetensors"), ("a/model.pth", "names a pickle"),
    ],
)  # fmt: skip
def test_a_path_that_names_no_file_of_ours_is_refused(
    path: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for act in (save_model_safe, load_model_safe):
        with pytest.raises(ConfigError, match=says):
            act(linear(), path)
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_named_and_a_pickle_instead_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing$"):
        load_model_safe(linear(), tmp_path / "model")
    torch.save(linear().state_dict(), tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match=r"model\.pt is there, and is not read.*weights_only=True"):
        load_model_safe(linear(), tmp_path / "model.pt")


def test_every_changed_byte_and_every_cut_is_refused_and_the_module_is_as_it_was(tmp_path: Path) -> None:
    file = save_model_safe(linear(), tmp_path / "model", {"version": "1.0"})
    content, model = file.read_bytes(), linear(1)
    before = bits(model)
    changed = [content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] for at in range(len(content))]
    for damaged in [*changed, *(content[:at] for at in range(len(content))), content + b"\0", content + content]:
        file.write_bytes(damaged)
        with pytest.raises(MolError, match=r"model\.safetensors"):
            load_model_safe(model, file)
    assert bits(model) == before
    file.write_bytes(content)
    load_model_safe(model, file)


def rewritten(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the header of a file, as an editor would."""
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


def swap(header: dict[str, Any]) -> None:
    header["a"], header["b"] = header["b"], header["a"]


@pytest.mark.parametrize(
    "change",
    [
        swap,
        lambda header: header["__metadata__"].update(version="2.0"),
        lambda header: header["__metadata__"].update(more="text"),
        lambda header: header["__metadata__"].pop("version"),
        lambda header: header["a"].update(dtype="I32"),
        lambda header: header["a"].update(shape=[2, 1]),
        *(
            lambda header, text=text: header["__metadata__"].update(mol_safe=text)
            for text in ("", "[]", "{}", "[" * 100_000, '{"format": 1, "metadata": 5}')
        ),
    ],
)
def test_an_edited_header_is_refused(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    file = save_model_safe(Holding(a=torch.ones(2), b=torch.zeros(2)), tmp_path / "model", {"version": "1.0"})
    rewritten(file, lambda header: None)
    load_model_safe(Holding(a=torch.ones(2), b=torch.zeros(2)), file)  # spaces in the header mean nothing
    rewritten(file, change)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not as it was saved \(its checksum differs\)"):
        load_model_safe(Holding(a=torch.ones(2), b=torch.zeros(2)), file)


def test_a_file_from_elsewhere_is_refused_with_the_way_out(tmp_path: Path) -> None:
    save_file(linear().state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has no checksum to verify.*safetensors\.torch\.load_model loads it"):
        load_model_safe(linear(), tmp_path / "model")
    torch.save(linear().state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not SafeTensors"):
        load_model_safe(linear(), tmp_path / "model")


def test_a_later_format_is_named(tmp_path: Path) -> None:
    file = save_model_safe(linear(), tmp_path / "model")
    rewritten(file, lambda header: header["__metadata__"].update(mol_safe='{"format": 2, "version": "9.0.0"}'))
    with pytest.raises(ConfigError, match=r"format 2, written by mol 9\.0\.0; this is mol .* upgrade mol-merge"):
        load_model_safe(linear(), file)


def test_all_that_does_not_fit_is_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    save_model_safe(Holding(a=torch.ones(2), b=torch.ones(3), c=torch.ones(2), d=torch.ones(1)), tmp_path / "model")
    model = Holding(a=torch.zeros(2), b=torch.zeros(4), c=torch.zeros(2).half(), e=torch.zeros(1))
    before = bits(model)
    with pytest.raises(CheckpointError, match="does not fit the Holding; convert the module after loading") as caught:
        load_model_safe(model, tmp_path / "model")
    assert caught.value.problems == (
        "e is missing", "d is not wanted", "b is [3], wanted [4]", "c is torch.float32, wanted torch.float16",
    )  # fmt: skip
    assert bits(model) == before


def test_not_strict_leaves_names_out_with_a_warning_and_never_shapes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_model_safe(Holding(a=torch.ones(2), c=torch.ones(2)), tmp_path / "model", TEXTS)
    model = Holding(a=torch.zeros(2).half(), e=torch.zeros(1))
    assert load_model_safe(model, tmp_path / "model", strict=False) == TEXTS
    assert model.a.tolist() == [1, 1]
    assert "loaded in part, as strict=False allows: e is missing; c is not wanted" in caplog.text
    with pytest.raises(CheckpointError, match=r"a is \[2\], wanted \[3\]"):
        load_model_safe(Holding(a=torch.zeros(3)), tmp_path / "model", strict=False)


def test_weights_that_are_shared_on_one_side_only_are_refused(tmp_path: Path) -> None:
    save_model_safe(Tied(), tmp_path / "tied")
    with pytest.raises(CheckpointError, match=r"embed\.weight is missing|head\.weight is missing"):
        load_model_safe(Tied(tie=False), tmp_path / "tied")
    save_model_safe(Tied(tie=False), tmp_path / "untied")
    with pytest.raises(CheckpointError, match=r"shares its values with .* in the module, and not in the file"):
        load_model_safe(Tied(), tmp_path / "untied")


class Extra(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        raise AssertionError


def test_a_state_that_no_file_can_hold_is_listed_and_writes_nothing(tmp_path: Path) -> None:
    model = nn.ModuleDict({
        "extra": Extra(2, 2), "lazy": nn.LazyLinear(2), "meta": nn.Linear(2, 2, device="meta"),
        "odd": Holding(
            sparse=torch.eye(2).to_sparse(), wide=torch.zeros(1, dtype=torch.complex128),
            turned=torch.tensor([1 + 2j]).conj(),
        ),
    })  # fmt: skip
    for act in (save_model_safe, load_model_safe):
        with pytest.raises(ConfigError, match="the state of ModuleDict") as caught:
            act(model, tmp_path / "model")
        assert [problem.split(" ", 1)[0] for problem in caught.value.problems] == [
            "extra._extra_state", "lazy.weight", "lazy.bias", "meta.weight", "meta.bias", "odd.sparse", "odd.wide",
            "odd.turned",
        ]  # fmt: skip
    across, halves = torch.arange(6.0).reshape(2, 3), torch.arange(8.0)
    for views in ({"a": across, "b": across.t()}, {"a": halves[:4], "b": halves[4:]}, {"a": halves[::2]}):
        with pytest.raises(ConfigError, match=r"model\.safetensors is not written: [^$]*clone\(\) gives"):
            save_model_safe(Holding(**views), tmp_path / "model")
    with pytest.raises(ConfigError, match=r"got a dict, wanted a torch\.nn\.Module"):
        save_model_safe({"a": across}, tmp_path / "model")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_metadata_that_is_no_text_is_listed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="metadata cannot be stored") as caught:
        save_model_safe(linear(), tmp_path / "model", {"epoch": 3, "mol_safe": "x", "half": "\ud800", 1: "a", "b": "b"})  # type: ignore[dict-item]
    assert [problem.split(":")[0].split(" is ")[0] for problem in caught.value.problems] == [
        "'epoch'", "'mol_safe'", "'half'", "1",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="metadata is a list, wanted a dict of texts"):
        save_model_safe(linear(), tmp_path / "model", ["a"])  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_the_manager_has_the_same_under_its_own_names(tmp_path: Path) -> None:
    safetensors_manager.save_model_state(linear(), tmp_path / "model", metadata=TEXTS)
    assert safetensors_manager.load_model_state(linear(), tmp_path / "model", device="cpu", strict=True) == TEXTS
    tensors = {
        "bias": {"shape": [2], "dtype": "F32", "device": "cpu"},
        "weight": {"shape": [2, 3], "dtype": "F32", "device": "cpu"},
    }
    assert safetensors_manager.list_tensors(tmp_path / "model") == tensors
    info = safetensors_manager.get_file_info(tmp_path / "model")
    assert info["tensors"] == tensors
    assert info["total_parameters"] == 8
    assert info["file_size"] == (tmp_path / "model.safetensors").stat().st_size
    assert TEXTS.items() <= info["metadata"].items()
    save_file(linear().state_dict(), tmp_path / "foreign.safetensors")
    assert safetensors_manager.get_file_info(tmp_path / "foreign")["tensors"].keys() == tensors.keys()


def test_without_torch_it_is_said_what_to_install() -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import mol\n"
        "assert mol.SAFETENSORS_AVAILABLE is mol.is_safetensors_available() is False\n"
        "try: mol.save_model_safe(None, 'model')\n"
        "except ImportError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "save_model_safe needs torch and safetensors: pip install 'mol-merge[fusion]'\n"
