"""The engine: one primitive, outputs[K] = coefficients[K, T] · checkpoints[T], streamed. It knows nothing of rules.

contract   the arithmetic
chunks     the work, in pieces
cpu        chunks through threads, in cache
cuda       chunks through a GPU, copies beside the arithmetic
write      the safetensors writer
finite     whose fault a value is that is not finite
stream     a plan, run from the first read to the last rename
"""
