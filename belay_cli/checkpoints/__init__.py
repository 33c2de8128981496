"""Checkpoints: what a run is. Finding, understanding and ordering them. Reads headers, never weights.

series        arguments into the ordered checkpoints of one model, each with its tick
selection     which of them are taken, in which order, and what of each one
arguments     what was typed, as paths; and the mend for what names nothing
runs          which entries of a run directory are its checkpoints
components    the folders of a checkpoint that is several models
together      the weights of all of them as one
checkpoint    one checkpoint: tensors by name, step, files
weights       what is left of it when everything has its meaning
directory     which files of a directory are its weights
read          these files, by their format and what they mean
meaning       what lies in a checkpoint, by the same steps for every format
order         what names and records say, and whether they prove an order
adapters      the factors of adapters, in every dialect
packed        weights whose numbers mean nothing by themselves
aliases       several names of one tensor
unreadable    tensors that are no plain arrays
beside        weights that lie beside those of a checkpoint
companions    the other files beside the weights that a loader needs
metadata      what all checkpoints say beside their tensors
learning_rate  what the run records of it
metrics       what the run records of evaluations
config        what the configurations beside the weights say
notes         what holds for many checkpoints, said once
recognised    what was recognised in each, in words
compare       whether checkpoints have one architecture
nonfinite     NaN and infinity, by reading every value
differing     integers that are not the same everywhere
fingerprint   what identifies a checkpoint's content
"""

from belay_cli.checkpoints.checkpoint import Checkpoint, open_checkpoint
from belay_cli.checkpoints.selection import Selection
from belay_cli.checkpoints.series import Series, find_series

__all__ = ["Checkpoint", "Selection", "Series", "find_series", "open_checkpoint"]
