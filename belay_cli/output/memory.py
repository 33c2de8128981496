"""An output that stays in memory: a state dict for whoever evaluates it."""

from __future__ import annotations

import torch

from belay_cli.engine.chunks import Chunk, by_tensor
from belay_cli.errors import UsageError
from belay_cli.formats.dtypes import DTYPES
from belay_cli.planning import Plan

# safetensors code -> torch dtype, of everything that belay writes
_TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


class MemoryOutput:
    """One average under construction. `write` may be called from several threads."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._bytes: dict[str, torch.Tensor] = {}
        for tensor in plan.tensors:
            if tensor.dtype not in _TORCH:
                raise UsageError(
                    f"{tensor.name!r} is {DTYPES[tensor.dtype].name}, for which torch has no dtype",
                    hint=f"leave it out: drop={tensor.name!r}",
                )
            self._bytes[tensor.name] = torch.empty(tensor.nbytes, dtype=torch.uint8)

    def write(self, chunk: Chunk, data: memoryview) -> None:
        """Copy a chunk's bytes to their place in the tensor."""
        for part, own in by_tensor(chunk, data):
            begin = part.start * DTYPES[part.tensor.dtype].bits // 8
            self._bytes[part.tensor.name].numpy()[begin : begin + len(own)] = own

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The tensors by name, on the CPU; names that share bytes in the checkpoints share a tensor."""
        found = {
            tensor.name: self._bytes[tensor.name].view(_TORCH[tensor.dtype]).reshape(tensor.shape)
            for tensor in self._plan.tensors
        }
        return found | {name: found[kept] for name, kept in self._plan.aliases.items()}
