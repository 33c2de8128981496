"""The output: safetensors built beside the target, whole or absent.

staged      outputs from the first byte to the last step
writer      weight files, header first, and the files beside them
workplace   where an output is built until it is whole
lock        one writer at a time
journal     which ranges of it are finished
placement   what was built, put in its place
renaming    renames that the system makes in one step
digests     SHA-256 of every tensor, while it is in the cache
blocks      SHA-256 of whole files, block by block
checksums   those inside the files of a last checkpoint
memory      an output that stays in memory
signals     steps that an interrupt must not leave half done
"""
