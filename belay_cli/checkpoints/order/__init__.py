"""The order of a series: what names and records say, and whether they prove one.

pieces     a name in pieces, and which of its numbers count
names      the step that a name states, and the epochs
averages   averages by their names
ranks      parts of tensors by their names
steps      the step that name and record agree on
places     the names on a checkpoint's path, and its step
parts      parts of one checkpoint among those given
proof      the order, by steps or by names
rounds     steps that start again in each epoch
one_run    whether they are checkpoints of one run
twins      two saves of one checkpoint
"""
