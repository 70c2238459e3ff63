"""How the experts of a model are stored: one tensor for each of them, or all in one, in which orientation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from mol.regex import regex

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mol.io.checkpoint import TensorInfo

Layout = Literal["single", "fused", "transposed"]
Words = tuple[str, str, str]

PROJ: Final[Words] = ("gate_proj", "up_proj", "down_proj")
NUMBERED: Final[Words] = ("w1", "w3", "w2")
GATE_UP, DOWN = "gate_up_proj", "down_proj"

_SINGLE: Final = regex(r"(?P<block>(?:.*\.)?)experts\.(?P<expert>[0-9]{1,6})\.(?P<rest>.+)")
_FUSED: Final = regex(rf"(?P<block>(?:.*\.)?)experts\.(?P<part>{GATE_UP}|{DOWN})")
_OF_EXPERTS: Final = regex(r"(?:^|\.)(?:experts\.[a-z_]+(?:\.weight)?|(?:input|output)_linear\.weight)$")
_ROUTER: Final = regex(
    r"(?:^|\.)(?:(?:mlp|block_sparse_moe|feed_forward|moe|ffn)\.(?:gate|gate\.wg)|(?:\w+\.)?router(?:\.\w+)*)"
    r"\.(?:weight|bias|e_score_correction_bias)$"
)


class Block(NamedTuple):
    """The experts of one layer.

    Attributes:
        prefix: what their names begin with, as in "model.layers.0.mlp.".
        layout: one tensor for each ("single"), all in `gate_up_proj` (experts, 2 x inner, width) and `down_proj`
            (experts, width, inner) ("fused"), or the same with the last two axes exchanged ("transposed").
        experts: number of them.
        words: of the three tensors of an expert: gate, up, down.
    """

    prefix: str
    layout: Layout
    experts: int
    words: Words = PROJ

    def single(self, expert: int, part: int) -> str:
        """Name a tensor of one expert, where it has its own."""
        return f"{self.prefix}experts.{expert}.{self.words[part]}.weight"

    @property
    def fused(self) -> tuple[str, str]:
        """The names of the two tensors of all experts."""
        return f"{self.prefix}experts.{GATE_UP}", f"{self.prefix}experts.{DOWN}"


def find_experts(tensors: Mapping[str, TensorInfo]) -> dict[str, Block]:
    """Find the experts of each layer, by the beginning of their names; experts of another kind are left out."""
    found: dict[str, Block] = {}
    singles: dict[str, dict[int, list[str]]] = {}
    for name, info in tensors.items():
        if "experts." not in name:
            continue
        if (match := _FUSED.fullmatch(name)) and match["part"] == GATE_UP and len(info.shape) == 3:
            block = _fused(match["block"], tensors)
            if block is not None:
                found[block.prefix] = block
        elif match := _SINGLE.fullmatch(name):
            singles.setdefault(match["block"], {}).setdefault(int(match["expert"]), []).append(match["rest"])
    for prefix, experts in singles.items():
        parts = {frozenset(rest) for rest in experts.values()}
        words = next((w for w in (PROJ, NUMBERED) if parts == {frozenset(f"{word}.weight" for word in w)}), None)
        if words is not None and len(experts) == max(experts) + 1:
            found[prefix] = Block(prefix, "single", len(experts), words)
    return found


def _fused(prefix: str, tensors: Mapping[str, TensorInfo]) -> Block | None:
    """Return the fused experts of a layer, their orientation found from the shapes of the two tensors."""
    block = Block(prefix, "fused", 0)
    up, down = (tensors[name].shape if name in tensors else () for name in block.fused)
    if len(down) != 3 or up[0] != down[0]:
        return None
    if (up[1], up[2]) == (2 * down[2], down[1]):
        return Block(prefix, "fused", up[0])
    if (up[1], up[2]) == (down[2], 2 * down[1]):
        return Block(prefix, "transposed", up[0])
    return None


def expert_rows(name: str, tensors: Mapping[str, TensorInfo]) -> int:
    """Return into how many matrices a tensor of all experts divides, one below the other; 1 for any other tensor.

    Gate and up of an expert are two, as they are where each expert has its own tensors.
    """
    shape = tensors[name].shape if name in tensors else ()
    if len(shape) != 3 and not (len(shape) == 2 and name.endswith("_bias")):
        return 1
    if _OF_EXPERTS.search(name) is None:
        return 1
    match = _FUSED.fullmatch(name)
    block = None if match is None else _fused(match["block"], tensors)
    halves = block is not None and block.layout == "fused" and name.endswith(GATE_UP)
    return shape[0] * (2 if halves else 1)


def matrix_name(name: str, number: int, of: int, experts: int) -> str:
    """Name one of the matrices that a tensor of all experts divides into, as if each expert had its own tensors.

    Args:
        name: the tensor.
        number: which matrix.
        of: how many there are.
        experts: number of experts.
    """
    match = _FUSED.fullmatch(name)
    if match is None:
        return name
    expert, part = divmod(number, of // experts)
    word = PROJ[part] if of > experts else match["part"]
    return f"{match['block']}experts.{expert}.{word}.weight"


def is_router(name: str) -> bool:
    """Return whether a tensor decides which experts a token goes to."""
    return ("gate" in name or "router" in name) and "experts." not in name and _ROUTER.search(name) is not None
