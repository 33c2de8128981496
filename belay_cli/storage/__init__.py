"""Bytes by position, on this machine and elsewhere.

files       the files that hold weights, and how many of them stay open
local       a file of this machine
remote      files by URL
retry       trying a request again
pieces      tensors that are not one run of bytes
boxes       parts of tensors that are, and the same parts in other files
json_file   JSON from anyone, read only if it is of a size that can be right
seal        a text that carries the SHA-256 of itself
blocks      digests of large files, block by block
"""
