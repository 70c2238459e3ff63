"""The verbs that look at what checkpoints hold: diff, verify; inspect has tests of its own."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mol.cli import main
from mol.cli.diff import Sums, distance

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("verb", [["inspect"], ["diff", "base"], ["verify"]])
def test_what_is_not_there_is_said(verb: list[str], family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb, "./nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [["inspect"], ["diff", "base"]])
def test_a_model_with_an_adapter_is_in_no_files(
    verb: list[str], family: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*verb, "chat+lora"]) == 1
    assert "`chat+lora` is a model with an adapter, which only a merge applies" in capsys.readouterr().err


def test_diff_agrees_with_numpy(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "base", "chat", "--json", "-j", "2"]) == 0
    document = json.loads(capsys.readouterr().out)
    base, chat = (load_file(Path(name, "model.safetensors")) for name in ("base", "chat"))
    found = {entry["name"]: entry for entry in document["tensors"]}
    assert set(found) == set(base)
    for name, entry in found.items():
        a, b = (side[name].astype(np.float64).ravel() for side in (base, chat))
        assert entry["change"] == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-9)
        assert entry["cosine"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-9)
        assert entry["max"] == pytest.approx(np.abs(b - a).max(), rel=1e-6)
        assert entry["index"] == np.abs(b - a).argmax()
    layer = {entry["name"]: entry for entry in document["layers"]}["model.layers.1"]
    inside = [name for name in base if name.startswith("model.layers.1.")]
    a, b = (np.concatenate([side[name].astype(np.float64).ravel() for name in inside]) for side in (base, chat))
    assert layer["change"] == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-9)
    assert layer["cosine"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-9)


def test_diff_of_a_model_with_itself(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "base", "base"]) == 0
    said = capsys.readouterr().out
    assert re.search(rf"^{re.escape(NAME)} +0 +1\.000000 +0$", said, re.MULTILINE)
    assert re.search(r"^outside the layers +0 +1\.000000 +0$", said, re.MULTILINE)
    assert "compared  9 tensors; 9 of them equal" in said
    assert max(map(len, said.splitlines())) <= 80


def test_diff_aligns_prefixes_and_names_what_only_one_has(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = load_file("base/model.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in base.items()}
    bare[NAME.removeprefix("model.")] = bare[NAME.removeprefix("model.")][:4]
    del bare["lm_head.weight"]
    save_file({**bare, "score.weight": np.ones(3, np.float32)}, "code/model.safetensors")
    assert main(["diff", "base", "code", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["only_in_a"] == ["lm_head.weight"]
    assert document["only_in_b"] == ["score.weight"]
    assert list(document["not_compared"]) == [NAME]
    assert len(document["tensors"]) == 7
    assert document["all"]["change"] == 0.0


def test_distance_where_a_norm_is_zero() -> None:
    nothing, something = Sums(0, 0, 0, 0, 0, 0), Sums(0, 2, 2, 0, 2, 1)
    assert distance("x", [nothing]).change == 0.0
    assert distance("x", [something]).change == float("inf")
    assert np.isnan(distance("x", [something]).cosine)


def test_verify_finds_a_result_as_written(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "merged"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("verified  9 tensors in 1 file, 3 side files, ")
    assert said.err == ""


def damage(merged: Path, name: str) -> None:
    """Turn one bit in the middle of a tensor."""
    path = merged / "model.safetensors"
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    start, end = json.loads(data[8 : 8 + length])[name]["data_offsets"]
    data[8 + length + (start + end) // 2] ^= 1
    path.write_bytes(data)


def test_verify_names_the_damaged_tensor(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(merged, NAME)
    assert main(["verify", "merged", "--json"]) == 1
    said = capsys.readouterr()
    assert f"model.safetensors: tensor `{NAME}` differs from what was written" in said.err
    assert json.loads(said.out)["damage"] == [
        {"file": "model.safetensors", "tensor": NAME, "problem": "differs from what was written"}
    ]


def test_verify_sees_a_header_a_cut_and_a_missing_file(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = merged / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"pt"', b'"pq"'))
    assert main(["verify", "merged"]) == 1
    assert "outside its tensors, in the header" in capsys.readouterr().err
    path.write_bytes(whole[:-10])
    assert main(["verify", "merged"]) == 1
    assert f"has {len(whole) - 10:,} bytes, {len(whole):,} were written" in capsys.readouterr().err
    path.unlink()
    assert main(["verify", "merged"]) == 1
    assert "model.safetensors: is missing" in capsys.readouterr().err


def test_verify_points_to_files_that_are_not_in_the_manifest(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"x": np.ones(1, np.float32)}, merged / "stale.safetensors")
    assert main(["verify", "merged"]) == 0
    assert "warning: merged/stale.safetensors is not in mol_manifest.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a manifest of mol"),
        ('{"format": 2}', "is of format 2, this mol reads 1"),
        ('{"format": 1, "files": [{"name": 3}], "tensors": []}', "`files` is not a list of entries"),
        (
            '{"format": 1, "files": [{"name": "../x", "size": 1, "crc64nvme": ""}], "tensors": []}',
            "leaves the directory",
        ),
        ('{"format": 1, "files": [], "tensors": [{"name": "t", "file": "f", "crc64nvme": ""}]}', "is not listed"),
        ('{"format": 1, "files": [], "tensors": []}', "`side_files` is not a list of entries"),
        (
            '{"format": 1, "files": [], "tensors": [], "side_files": []}',
            "lists no weights and no tensors and no config.json, which every merge has",
        ),
        (
            '{"format": 1, "files": [], "tensors": [], "side_files": [{"name": "a/../../x", "size": 1, "sha256": ""}]}',
            "leaves the directory",
        ),
        (
            '{"format": 1, "files": [], "tensors": [], "side_files": [{"name": "/etc/x", "size": 1, "sha256": ""}]}',
            "leaves the directory",
        ),
        (
            json.dumps({"format": 1, "files": [{"name": "x", "size": 1, "crc64nvme": ""}] * 2, "tensors": []}),
            "lists x twice",
        ),
        ("[" * 100_000, "levels deep"),
        ('{"format": 1' + "0" * 5000 + "}", "digits"),
    ],
)
def test_verify_trusts_no_manifest(text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mol_manifest.json").write_text(text)
    assert main(["verify", str(tmp_path)]) == 1
    assert says in capsys.readouterr().err


def test_verify_says_what_a_file_is(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "merged/config.json"]) == 1
    assert "merged/config.json is a file; name the directory of a result" in capsys.readouterr().err


def test_verify_waits_for_no_pipe(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("config.json", "model.safetensors", "mol_manifest.json"):
        (merged / name).unlink()
        os.mkfifo(merged / name)
        assert main(["verify", "merged"]) == 1
        assert re.search(rf"{name}.* is (no regular file|a pipe)", capsys.readouterr().err)


@pytest.mark.parametrize("name", ["config.json", "README.md", "mergekit_config.yml"])
def test_verify_checks_side_files(name: str, merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (merged / name).read_bytes()
    changed = whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:]
    for content, says in (
        (b"", f"has 0 bytes, {len(whole):,} were written"),
        (changed, "differs from what was written"),
    ):
        (merged / name).write_bytes(content)
        assert main(["verify", "merged", "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["damage"] == [{"file": name, "tensor": None, "problem": says}]
    (merged / name).unlink()
    assert main(["verify", "merged"]) == 1
    assert f"{name}: is missing" in capsys.readouterr().err


def test_verify_checks_the_index_and_files_in_folders(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (family / "base" / "1_Pooling").mkdir()
    (family / "base" / "1_Pooling" / "config.json").write_text("{}")
    Path("r.yml").write_text("merge_method: passthrough\nmodels: [model: base]\n")
    assert main(["r.yml", "out", "-q", "--out-shard-size", "1kB"]) == 0
    assert main(["verify", "out"]) == 0
    capsys.readouterr()
    for name in ("1_Pooling/config.json", "model.safetensors.index.json"):
        Path("out", name).write_text("[]")
        assert main(["verify", "out"]) == 1
        assert f"{name}: " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["generation_config.json", "vocab.txt", "1_Pooling/config.json", "pytorch_model.bin"])
def test_verify_refuses_a_file_that_loaders_read_and_the_manifest_does_not_name(
    name: str, merged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (merged / name).parent.mkdir(exist_ok=True)
    (merged / name).write_text("{}")
    assert main(["verify", "merged"]) == 1
    assert f"{name}: is not in mol_manifest.json, but loaders read it" in capsys.readouterr().err


def test_verify_reports_every_other_file_too(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("LICENSE", "notes.txt", ".gitattributes"):
        (merged / name).touch()
    assert main(["verify", "merged", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["unlisted"] == ["LICENSE", "notes.txt"]
    assert "merged/notes.txt is not in mol_manifest.json; it was not checked" in said.err


def test_verify_follows_the_links_of_the_hub_cache(merged: Path) -> None:
    blobs = merged.parent / "blobs"
    blobs.mkdir()
    for path in [*merged.iterdir()]:
        path.rename(blobs / path.name)
        path.symlink_to(f"../blobs/{path.name}")
    assert main(["verify", "merged"]) == 0


def test_verify_says_what_it_needs(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "base"]) == 1
    assert "only what mol has written can be verified" in capsys.readouterr().err


def test_verify_checks_cryptographic_digests_too(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(recipe), "out", "-q", "--digest", "blake3"]) == 0
    manifest = json.loads(Path("out/mol_manifest.json").read_text())
    assert all(len(tensor["blake3"]) == 64 for tensor in manifest["tensors"])
    assert main(["verify", "out"]) == 0
    manifest["tensors"][0]["blake3"] = "0" * 64
    Path("out/mol_manifest.json").write_text(json.dumps(manifest))
    assert main(["verify", "out"]) == 1
