"""Checkpoints: finding, ordering and opening them. Reads headers, never weights.

series              arguments into the ordered checkpoints of one model, each with its tick
checkpoint          one checkpoint: tensors by name, step, files
compare             whether checkpoints have one architecture
steps               the training step, from a record or a name
directory           weights in a directory, shards and index, checkpoints in a run
companions          the files beside the weights that a loader needs
safetensors_header  the header of a safetensors file
fingerprint         what identifies a checkpoint's content
storage             positioned reads
dtypes              the element types
"""

from belay_cli.checkpoints.checkpoint import Checkpoint, open_checkpoint
from belay_cli.checkpoints.series import Selection, Series, find_series

__all__ = ["Checkpoint", "Selection", "Series", "find_series", "open_checkpoint"]
