"""Turn the package rxnfp into three clean SafeTensors checkpoints: a BERT of reactions and two fine-tunes of it.

The wheel (MIT licence) holds the weights as pickles of 2020. They are read once here, with `weights_only=True`, so
that nothing in them can run; `training_args.bin`, which cannot be read that way, is left alone. No tensor's name,
dtype or value is changed, so the prefixes still differ (`bert.` in the base and in `bert_ft_10k_25s`, none in
`bert_ft`), as they do in the wild.

What is changed, each time because a loader of today would trip over it:

* the base's `cls.predictions.decoder.weight` is left out: it equals the word embeddings, to which transformers ties
  it;
* `model_type` and `architectures` are added to the two configs that lack them;
* `bert_ft_10k_25s` says `num_labels: 50`, as its classifier has, without the two labels that contradict it, and
  without the settings for generating text, which this encoder cannot do;
* the tokenizer, a pattern and a vocabulary in rxnfp's own code, becomes a `tokenizer.json` with the same tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

NAMES = ("bert_pretrained", "bert_ft", "bert_ft_10k_25s")
WHEEL = "rxnfp-0.1.0-py3-none-any.whl"
WHEEL_SHA256 = "c5c1e818add6f34539a6b29bc680c47c9e7311e9383d1b34ce901481e34b58cf"

ARCHITECTURES = {
    "bert_pretrained": "BertForPreTraining",
    "bert_ft": "BertModel",
    "bert_ft_10k_25s": "BertForSequenceClassification",
}
STALE_KEYS = (
    "bos_token_id",
    "do_sample",
    "eos_token_ids",
    "id2label",
    "label2id",
    "length_penalty",
    "max_length",
    "num_beams",
    "num_return_sequences",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
)
# The pattern that rxnfp splits reactions with: bracketed atoms, elements, bonds, branches, ring closures.
SMILES_TOKEN = (
    r"\%\([0-9]{3}\)|\[[^\]]+\]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p"
    r"|\||\(|\)|\.|=|#|-|\+|\\|/|:|~|@|\?|>>?|\*|\$|\%[0-9]{2}|[0-9]"
)


class FetchError(RuntimeError):
    """The package index did not give the package."""


def fetch(directory: Path) -> Path:
    """Download the wheel into `directory`, unless it is there, and check that it is the one expected.

    Raises:
        FetchError: pip could not download it.
        ValueError: the file is not the expected one.
    """
    wheel = directory / WHEEL
    if not wheel.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run(
            [*pip, "--dest", str(directory), "rxnfp==0.1.0"], capture_output=True, text=True, check=False
        )
        if done.returncode != 0 or not wheel.exists():
            raise FetchError(f"pip could not download rxnfp 0.1.0:\n{done.stderr.strip()}")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise ValueError(f"{wheel}: SHA-256 is {digest}, expected {WHEEL_SHA256}; delete the file and try again")
    return wheel


def reactions(wheel: Path) -> list[str]:
    """The reactions written out in the package's README, which the wheel carries as its description."""
    with zipfile.ZipFile(wheel) as archive:
        readme = archive.read("rxnfp-0.1.0.dist-info/METADATA").decode()
    return list(dict.fromkeys(re.findall(r'"([^"\s]+>[^"\s]*>[^"\s]+)"', readme)))


def clean_config(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """The config of checkpoint `name`, mended as this module's text says."""
    kept = {key: value for key, value in config.items() if key not in STALE_KEYS}
    return {"architectures": [ARCHITECTURES[name]], "model_type": "bert", **kept}


def write_tokenizer(vocabulary: list[str], directory: Path) -> None:
    """Write a tokenizer that gives the same tokens as rxnfp's own, and that `AutoTokenizer` loads."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import BertProcessing
    from transformers import PreTrainedTokenizerFast

    ids = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Split(Regex(SMILES_TOKEN), behavior="removed", invert=True)
    tokenizer.post_processor = BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        mask_token="[MASK]",
        model_max_length=512,
    ).save_pretrained(directory)


def write_checkpoint(archive: zipfile.ZipFile, name: str, directory: Path) -> None:
    """Write one of the wheel's three models to `directory` as a checkpoint of today."""
    import torch
    from safetensors.torch import save_file

    inside = f"rxnfp/models/transformers/{name}/"
    directory.mkdir(parents=True, exist_ok=True)
    with archive.open(inside + "pytorch_model.bin") as file:
        state = torch.load(file, weights_only=True, map_location="cpu")
    decoder = state.pop("cls.predictions.decoder.weight", None)
    if decoder is not None and not torch.equal(decoder, state["bert.embeddings.word_embeddings.weight"]):
        raise ValueError(
            f"{name}: cls.predictions.decoder.weight is not the word embeddings, which this example relies on"
        )
    tensors = {key: tensor.contiguous() for key, tensor in state.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = clean_config(name, json.loads(archive.read(inside + "config.json")))
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_tokenizer(archive.read(inside + "vocab.txt").decode().splitlines(), directory)


def prepare(directory: Path, package: Path | None = None) -> list[str]:
    """Make the three checkpoints under `directory` and return the reactions of the package's README.

    Args:
        directory: gets a folder for each model.
        package: where the wheel is, or is downloaded to; `directory` unless given.
    """
    folder = package or directory
    folder.mkdir(parents=True, exist_ok=True)
    wheel = fetch(folder)
    with zipfile.ZipFile(wheel) as archive:
        for name in NAMES:
            if not (directory / name / "tokenizer.json").exists():
                write_checkpoint(archive, name, directory / name)
    return reactions(wheel)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="fetch rxnfp 0.1.0 and write its models as SafeTensors checkpoints")
    parser.add_argument("--dir", type=Path, default=Path("build/rxnfp"))
    directory = parser.parse_args().dir
    for reaction in prepare(directory):
        print(reaction)
