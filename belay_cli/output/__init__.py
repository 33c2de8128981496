"""The output: safetensors built beside the target, whole or absent.

writer      weight files, header first, and the files beside them
placement   what was built, renamed into place
staging     where an output is built until it is whole
digests     SHA-256 of every tensor, while it is in the cache
memory      an output that stays in memory
signals     steps that an interrupt must not leave half done
"""
