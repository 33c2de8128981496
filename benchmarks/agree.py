"""Compare two averages of the same series: exit 1 if a tensor differs by more than rounding does.

usage: agree.py ONE.safetensors OTHER.safetensors
"""

import sys

import torch
from safetensors import safe_open

_TENSORS = 16  # spread over the file
_ROWS = 512  # of each
_FLOAT32_SUMS = 1e-6  # of a tensor's largest value: what a peer that sums in float32 may be off before it rounds


def disagreement(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, in units of what rounding both to their dtype allows: at most 1 for equal averages."""
    a, b = one.double(), other.double()
    larger = torch.maximum(a.abs(), b.abs())
    allowed = torch.finfo(one.dtype).eps * larger + _FLOAT32_SUMS * larger.max()
    return ((a - b).abs() / allowed).nan_to_num(nan=0.0 if torch.equal(a, b) else torch.inf).max().item()


def main(one: str, other: str) -> None:
    """Compare the names and some of the tensors, and say how it went."""
    with safe_open(one, "pt") as left, safe_open(other, "pt") as right:
        names = sorted(left.keys())
        if names != sorted(right.keys()):
            sys.exit(f"{one} and {other} hold tensors of different names")
        some = names[:: -(-len(names) // _TENSORS)]
        worst, name = max((disagreement(left.get_slice(n)[:_ROWS], right.get_slice(n)[:_ROWS]), n) for n in some)
    if not worst <= 1:
        sys.exit(f"{one} and {other} differ in {name} by {worst:.3g} times what rounding explains")
    print(f"{len(some)} of {len(names)} tensors compared, and equal up to rounding")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
