"""Tensors that belong to one set of weights, so that the average of them does not fit the average of the weights.

They are known by the names that libraries give them, and by the partner without which they mean something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from belay_cli.planning.layout import PlannedTensor
from belay_cli.planning.policies import AVERAGE

Fits = Callable[[PlannedTensor, PlannedTensor], bool]


@dataclass(frozen=True)
class Kind:
    """`endings` of names, each with the endings of its partners, of which one must be there and fit (none: always).

    `text` says what is averaged, and what mends it; {names} are the first tensor and how many more.
    """

    endings: Mapping[str, tuple[str, ...]]
    text: str
    fits: Fits = lambda tensor, partner: True


def _is_vector(tensor: PlannedTensor, partner: PlannedTensor) -> bool:
    return len(tensor.shape) == 1 and len(partner.shape) > 1


def _are_length_and_direction(one: PlannedTensor, other: PlannedTensor) -> bool:
    """One has the other's shape but for dimensions of 1, over which the norm was taken, or is a scalar."""
    lengths, directions = sorted((one.shape, other.shape), key=prod)
    same_rank = len(lengths) == len(directions) and all(n in (1, m) for n, m in zip(lengths, directions, strict=True))
    return len(directions) > 1 and prod(lengths) < prod(directions) and (lengths == () or same_rank)


# A module may have several parametrizations; that of the spectral norm is counted among them.
_PARAMETRIZED = {f".{number}._{vector}": (".original",) for number in range(3) for vector in "uv"}

KINDS = (
    # torch.nn.BatchNorm; running_std is of batch renormalization (Ioffe, arXiv 1702.03275)
    Kind(
        {"running_mean": (), "running_var": (), "running_std": ()},
        "BatchNorm statistics are averaged like weights ({names}); "
        "re-estimate them on training data: torch.optim.swa_utils.update_bn",
    ),
    # torch.nn.utils.spectral_norm, its form as a parametrization, and weight_bar of implementations before it
    Kind(
        {"_u": ("_orig", "_bar"), "_v": ("_orig", "_bar"), **_PARAMETRIZED},
        "spectral norm vectors are averaged like weights ({names}), so that the norms of their layers are not 1; "
        "re-estimate them: a few dozen forward passes in train mode, without an optimizer",
        _is_vector,
    ),
    # BigGAN's own spectral norm: the vectors, and the singular values they found
    Kind(
        {".u0": (".sv0",), ".sv0": (".u0",)},
        "spectral norm vectors are averaged like weights ({names}), so that the norms of their layers are not 1; "
        "re-estimate them: a few dozen forward passes in train mode, without an optimizer",
    ),
    # torch.nn.utils.weight_norm, and its form as a parametrization
    Kind(
        {"_g": ("_v",), "_v": ("_g",)},
        "weight norm's lengths g and directions v are averaged apart ({names}), and g·v/|v| of them is not the "
        "average of the weights; for that, take it off the checkpoints first: torch.nn.utils.remove_weight_norm",
        _are_length_and_direction,
    ),
    Kind(
        {".original0": (".original1",), ".original1": (".original0",)},
        "weight norm's lengths g and directions v are averaged apart ({names}), and g·v/|v| of them is not the "
        "average of the weights; for that, take it off the checkpoints first: "
        "torch.nn.utils.parametrize.remove_parametrizations",
        _are_length_and_direction,
    ),
    # torch.nn.utils.prune
    Kind(
        {"_mask": ("_orig",)},
        "pruning masks are averaged like weights ({names}): where they differ, a weight is neither there nor gone; "
        "make the pruning permanent in the checkpoints first: torch.nn.utils.prune.remove",
        lambda tensor, partner: tensor.shape == partner.shape,
    ),
    # Codebooks that are moving averages (van den Oord et al., arXiv 1711.00937, appendix A): taming-transformers,
    # EnCodec, Mimi
    Kind(
        {
            "cluster_size": ("embed_avg", "embedding_avg", "w"),
            "embed_avg": ("cluster_size",),
            "cluster_usage": ("embedding_sum", "embed_sum"),
            "embedding_sum": ("cluster_usage",),
            "embed_sum": ("cluster_usage",),
            "embedding_avg": ("cluster_size",),
        },
        "codebook statistics are averaged apart ({names}), and the codes that they give, sum / count, are not the "
        "averaged codes; set the sums to averaged codes · count",
    ),
)


def statistics_warnings(tensors: Sequence[PlannedTensor]) -> Iterator[str]:
    """One for each kind of which something is averaged; tensors: those of the output."""
    kept = {tensor.name: tensor for tensor in tensors}
    endings = tuple(ending for kind in KINDS for ending in kind.endings)
    averaged = [tensor for tensor in tensors if tensor.action == AVERAGE and tensor.name.endswith(endings)]
    for kind in KINDS:
        names = [tensor.name for tensor in averaged if _is_of(kind, tensor, kept)]
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            yield kind.text.format(names=names[0] + more)


def _is_of(kind: Kind, tensor: PlannedTensor, kept: Mapping[str, PlannedTensor]) -> bool:
    if not tensor.name.endswith(tuple(kind.endings)):
        return False
    for ending, partners in kind.endings.items():
        if tensor.name.endswith(ending):
            found = (kept.get(tensor.name.removesuffix(ending) + partner) for partner in partners)
            if not partners or any(other is not None and kind.fits(tensor, other) for other in found):
                return True
    return False
