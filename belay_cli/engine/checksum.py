"""CRC-32, as zip files have it."""

from __future__ import annotations

import zlib

crc32 = zlib.crc32
