"""The engine: one primitive, outputs[K] = coefficients[K, T] · checkpoints[T], streamed. It knows nothing of rules.

contract     the arithmetic, and what an engine does
arithmetic   which engine that is on the processor
kernel       the compiled one
torch_cpu    torch, where that was not built
torch_ops    the same steps in torch, for any device
spans        ranges of the output, done and left
chunks       the work, in pieces, and where the results go
shares       who does which part of it
cpu          chunks through threads, in cache
cuda         chunks through a GPU, copies beside the arithmetic
reading      how a worker gets the bytes of a chunk
updates      the low-rank updates of adapters
low_rank     their arithmetic
finite       whose fault a value is that is not finite
ranks        processes that run a plan together
distributed  those that torchrun or Slurm started
checksum     CRC-32
records      whether what is read is what was saved
device       the device that a replay runs on
probe        what this machine does in a second
stream       a plan, run from the first read to the last write
"""
