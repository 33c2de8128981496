"""The element types of the safetensors format."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Dtype:
    """One element type: its code in a header, the name people use, and its size in bits."""

    code: str
    name: str
    bits: int
    averageable: bool = False  # plain floating point: a number by itself, without scales or packing

    @property
    def complex(self) -> bool:
        """Whether each element is two numbers, a real and an imaginary one."""
        return self.name.startswith("complex")


DTYPES: dict[str, Dtype] = {
    dtype.code: dtype
    for dtype in (
        Dtype("F64", "float64", 64, averageable=True),
        Dtype("F32", "float32", 32, averageable=True),
        Dtype("F16", "float16", 16, averageable=True),
        Dtype("BF16", "bfloat16", 16, averageable=True),
        Dtype("I64", "int64", 64),
        Dtype("I32", "int32", 32),
        Dtype("I16", "int16", 16),
        Dtype("I8", "int8", 8),
        Dtype("U64", "uint64", 64),
        Dtype("U32", "uint32", 32),
        Dtype("U16", "uint16", 16),
        Dtype("U8", "uint8", 8),
        Dtype("BOOL", "bool", 8),
        Dtype("C64", "complex64", 64),
        Dtype("F8_E5M2", "float8_e5m2", 8),
        Dtype("F8_E4M3", "float8_e4m3", 8),
        Dtype("F8_E5M2FNUZ", "float8_e5m2fnuz", 8),
        Dtype("F8_E4M3FNUZ", "float8_e4m3fnuz", 8),
        Dtype("F8_E8M0", "float8_e8m0", 8),
        Dtype("F6_E3M2", "float6_e3m2", 6),
        Dtype("F6_E2M3", "float6_e2m3", 6),
        Dtype("F4", "float4", 4),
    )
}

BY_NAME: dict[str, Dtype] = {dtype.name: dtype for dtype in DTYPES.values()}

# Stored as numbers of their own that are no plain floating point: an average of them would be wrong in silence.
NOT_AVERAGEABLE_FLOATS = frozenset(
    code for code, dtype in DTYPES.items() if dtype.name.startswith(("float", "complex")) and not dtype.averageable
)
