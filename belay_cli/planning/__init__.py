"""The plan: everything that is decided before a weight is read, frozen.

plan        the plan itself, and every byte of the output that is no weight
options     what a person may ask of it
make        from a series, rules and options to a plan
facts       what rules ask about each checkpoint
policies    which tensors are averaged, taken from the last checkpoint, or dropped
adapters    what becomes of a series of adapters
layout      which tensor lies in which file of the output, and where
chosen      whether an output has the files of its last checkpoint
same        the layout of one that has
files       which files these are
target      what stands where the output is to go
buffers     threads, chunks and memory
gpu         whether one pays
estimate    how long a run takes
configs     configurations that are copied with an edit
statistics  tensors that belong to one set of weights, and the mends
warnings    what a person should know before trusting the average
"""

from belay_cli.planning.make import make_plan
from belay_cli.planning.options import PlanOptions
from belay_cli.planning.plan import Plan, PlannedOutput
from belay_cli.planning.policies import Policies

__all__ = ["Plan", "PlanOptions", "PlannedOutput", "Policies", "make_plan"]
