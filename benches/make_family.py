"""Make the checkpoints that the benches merge: a Llama-shaped base and fine-tunes of it, the same bytes in every run.

Weights are normal with deviation 0.02, task vectors normal with deviation 0.002, all rounded to the requested dtype: so
the deltas of bf16 models lie on a grid, with the zeros and the many equal magnitudes that real ones have.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

BASE_DEVIATION = np.float32(0.02)
DELTA_DEVIATION = np.float32(0.002)
CHUNK = 1 << 22  # elements made at a time, each chunk from a seed of its own
BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama."""

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor, in file order."""
        kv = self.width // self.heads * self.kv_heads
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.width)}
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            found |= {
                prefix + "input_layernorm.weight": (self.width,),
                prefix + "mlp.down_proj.weight": (self.width, self.inner),
                prefix + "mlp.gate_proj.weight": (self.inner, self.width),
                prefix + "mlp.up_proj.weight": (self.inner, self.width),
                prefix + "post_attention_layernorm.weight": (self.width,),
                prefix + "self_attn.k_proj.weight": (kv, self.width),
                prefix + "self_attn.o_proj.weight": (self.width, self.width),
                prefix + "self_attn.q_proj.weight": (self.width, self.width),
                prefix + "self_attn.v_proj.weight": (kv, self.width),
            }
        return found | {"model.norm.weight": (self.width,), "lm_head.weight": (self.vocabulary, self.width)}

    def config(self, dtype: str) -> dict[str, object]:
        """What config.json says of it."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "max_position_embeddings": 2048,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-05,
            "tie_word_embeddings": False,
            "torch_dtype": {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype],
            "vocab_size": self.vocabulary,
        }


SHAPES = {
    "1.1b": Shape(layers=22, width=2048, inner=5632, heads=32, kv_heads=4, vocabulary=32000),
    "0.3b": Shape(layers=6, width=2048, inner=5632, heads=32, kv_heads=4, vocabulary=16000),
    "small": Shape(layers=4, width=1024, inner=2816, heads=16, kv_heads=4, vocabulary=16000),
    "tiny": Shape(layers=2, width=256, inner=704, heads=8, kv_heads=2, vocabulary=2000),
}


def encode(values: np.ndarray, dtype: str) -> bytes:
    """Round f32 to nearest even and give little-endian bytes."""
    if dtype == "BF16":
        bits = values.view(np.uint32)
        return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2").tobytes()
    return values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def decode(data: bytes, dtype: str) -> np.ndarray:
    """The f32 values of little-endian bytes."""
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32)


def chunk(seed: tuple[int, ...], count: int, deviation: np.float32) -> np.ndarray:
    generator = np.random.Generator(np.random.SFC64(seed))
    values = generator.standard_normal(count, dtype=np.float32)
    values *= deviation
    return values


def header(tensors: dict[str, tuple[int, ...]], dtype: str) -> bytes:
    """A SafeTensors header for tensors laid out one after the other, its length before it."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in tensors.items():
        end = at + math.prod(shape) * BYTES[dtype]
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_models(tensors: dict[str, tuple[int, ...]], models: dict[str, tuple[int, str]], root: Path) -> None:
    """Write `model.safetensors` for several models of one family, in one pass over the chunks.

    Args:
        tensors: name and shape of each tensor.
        models: for each directory name its number and its dtype; number 0 is the base, others are fine-tunes of the
            base as it reads in the fine-tune's own dtype.
        root: where the directories are.
    """
    files = {}
    for name, (_, dtype) in models.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        files[name] = (root / name / "model.safetensors.part").open("wb")
        files[name].write(header(tensors, dtype))

    def make(job: tuple[int, int, int]) -> dict[str, bytes]:
        index, start, count = job
        base = chunk((index, start, 0), count, BASE_DEVIATION)
        made = {}
        for name, (number, dtype) in models.items():
            own = encode(base, dtype)
            if number:
                own = encode(decode(own, dtype) + chunk((index, start, number), count, DELTA_DEVIATION), dtype)
            made[name] = own
        return made

    jobs = [
        (index, start, min(CHUNK, math.prod(shape) - start))
        for index, shape in enumerate(tensors.values())
        for start in range(0, math.prod(shape), CHUNK)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        width = 2 * (os.cpu_count() or 1)
        for first in range(0, len(jobs), width):  # a few chunks in memory at a time
            for made in pool.map(make, jobs[first : first + width]):
                for name, data in made.items():
                    files[name].write(data)
    for name, file in files.items():
        file.close()
        (root / name / "model.safetensors.part").rename(root / name / "model.safetensors")


def make_family(root: Path, models: dict[str, tuple[int, str]], shape: Shape) -> None:
    """Make the models of `models` (see `write_models`) that `root` lacks, config.json included."""
    missing = {name: model for name, model in models.items() if not (root / name / "config.json").exists()}
    if missing:
        write_models(shape.tensors(), missing, root)
        for name, (_, dtype) in missing.items():
            (root / name / "config.json").write_text(json.dumps(shape.config(dtype), indent=2) + "\n")


def make_one_tensor(root: Path, elements: int = 300_000_000, width: int = 2000) -> None:
    """A base and three fine-tunes that are one embedding of 3e8 elements each."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 0}
    names = [name for name in ("one_base", "one_a", "one_b", "one_c") if not (root / name / "config.json").exists()]
    numbers = {name: ("one_base", "one_a", "one_b", "one_c").index(name) for name in names}
    if names:
        models = {name: (number, "BF16") for name, number in numbers.items()}
        write_models({"model.embed_tokens.weight": (elements // width, width)}, models, root)
        for name in names:
            (root / name / "config.json").write_text(json.dumps(config) + "\n")


def make_many_tensors(root: Path, count: int = 100_000) -> None:
    """Two checkpoints of `count` tensors each whose data is a hole in the file: headers are all that a plan reads."""
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (64, 8)}
    layers, experts = 32, 1041
    for layer in range(layers):
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = (8,)
        for expert in range(experts):
            for part in ("down_proj", "gate_proj", "up_proj"):
                tensors[f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight"] = (8, 8)
    tensors["model.norm.weight"] = (8,)
    tensors |= {f"model.extra.{index}.weight": (8,) for index in range(count - len(tensors))}
    config = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_hidden_layers": layers}
    for name in ("many_a", "many_b"):
        (root / name).mkdir(parents=True, exist_ok=True)
        head = header(tensors, "BF16")
        with (root / name / "model.safetensors").open("wb") as file:
            file.write(head)
            file.truncate(len(head) + 2 * sum(math.prod(shape) for shape in tensors.values()))
        (root / name / "config.json").write_text(json.dumps(config) + "\n")


def make_vocabularies(root: Path, shape: Shape) -> None:
    """Make a base and two fine-tunes that have more tokens than it, each other ones, with their tokenizers."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocab = {f"\u0120t{i}": i for i in range(shape.vocabulary)}
    for number, (name, more) in enumerate({"words_base": 0, "words_a": 2, "words_b": 64}.items()):
        make_family(root, {name: (number, "BF16")}, replace(shape, vocabulary=shape.vocabulary + more))
        tokenizer = {
            "version": "1.0",
            "added_tokens": [{"id": shape.vocabulary + i, "content": f"<|{name}_{i}|>", **flags} for i in range(more)],
            "pre_tokenizer": byte_level,
            "decoder": byte_level,
            "model": {"type": "BPE", "vocab": vocab, "merges": []},
        }
        (root / name / "tokenizer.json").write_text(json.dumps(tokenizer))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
        (root / name / "tokenizer_config.json").write_text(json.dumps(settings))


FAMILY = {"base": (0, "BF16"), "tuned_a": (1, "BF16"), "tuned_b": (2, "BF16"), "tuned_c": (3, "BF16")}
MIXED = {"base_f32": (0, "F32"), "tuned_f32": (1, "F32"), "tuned_f16": (2, "F16")}


def many(count: int) -> dict[str, tuple[int, str]]:
    """A base and fine-tunes, `count` in all."""
    return {f"of_many_{i:02}": (i, "BF16") for i in range(count)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="make a base and three fine-tunes in bf16")
    parser.add_argument("root", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="1.1b")
    parser.add_argument("--mixed", action="store_true", help="also the base and a fine-tune in f32, and one in f16")
    parser.add_argument("--many", type=int, metavar="N", help="instead: N models of 0.3B")
    parser.add_argument("--one-tensor", action="store_true", help="instead: models of one tensor of 3e8 elements")
    parser.add_argument("--many-tensors", action="store_true", help="instead: headers of 100,000 tensors")
    parser.add_argument(
        "--vocabularies", action="store_true", help="instead: three models with tokenizers of their own"
    )
    parser.add_argument("--trial", action="store_true", help="tiny, whatever is made")
    arguments = parser.parse_args()
    if arguments.one_tensor:
        make_one_tensor(arguments.root, 3_000_000 if arguments.trial else 300_000_000)
    elif arguments.many_tensors:
        make_many_tensors(arguments.root)
    elif arguments.many:
        make_family(arguments.root, many(arguments.many), SHAPES["tiny" if arguments.trial else "0.3b"])
    elif arguments.vocabularies:
        make_vocabularies(arguments.root, SHAPES["tiny" if arguments.trial else arguments.shape])
    else:
        shape = SHAPES["tiny" if arguments.trial else arguments.shape]
        make_family(arguments.root, FAMILY | (MIXED if arguments.mixed else {}), shape)
