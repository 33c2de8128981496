"""Checkpoints: finding, ordering and opening them. Reads headers, never weights.

series              arguments into the ordered checkpoints of one model, each with its tick
checkpoint          one checkpoint: tensors by name, step, files
compare             whether checkpoints have one architecture
steps               the training step, from a record or a name
directory           weights in a directory, shards and index, checkpoints in a run
companions          the files beside the weights that a loader needs
metadata            what all checkpoints say beside their tensors
safetensors_header  the header of a safetensors file
fingerprint         what identifies a checkpoint's content
formats             one file or directory of weights, by whichever format it has
weights             what a format gives: tensors by name, and where they lie
torch_file          files of torch.save: torch_zip, torch_pickle, state_dict, ema_layouts
dcp                 directories of torch.distributed.checkpoint
pieces              tensors that are not one run of bytes
restricted_pickle   pickles, of which nothing is run
remote              checkpoints by URL
foreign             what cannot be read, and how to get from there
adapters            the factors of adapters by their names, in every dialect
adapter_config      what is recorded about an adapter: its kind, its scale
lora                the pairs of factors, and what scales their product
config              what the configurations beside the weights say
packed              weights whose numbers mean nothing by themselves
ranks               files that hold what one rank of several had
differing           integers that are not the same everywhere
local               a file of this machine
storage             positioned reads, here or elsewhere
dtypes              the element types
"""

from belay_cli.checkpoints.checkpoint import Checkpoint, open_checkpoint
from belay_cli.checkpoints.series import Selection, Series, find_series

__all__ = ["Checkpoint", "Selection", "Series", "find_series", "open_checkpoint"]
