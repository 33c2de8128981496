"""The engine: one primitive, outputs[K] = coefficients[K, T] · checkpoints[T], streamed. It knows nothing of rules.

contract   the arithmetic
chunks     the work, in pieces
cpu        chunks through threads, in cache
cuda       chunks through a GPU, copies beside the arithmetic
write      the safetensors writer
reading    how a worker gets the bytes of a chunk
updates    the low-rank updates of adapters
low_rank   their arithmetic
digest     SHA-256 of every tensor, while it is in the cache
finite     whose fault a value is that is not finite
stream     a plan, run from the first read to the last rename
"""
