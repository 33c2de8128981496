"""Files of torch.save, read by position, without torch, and nothing of them executed.

archive    the records of the zip file
checksums  where their CRC-32s are written
file       what was saved, and where each tensor's bytes are
objects    what a pickle makes of tensors, as plain data
hidden     tensors inside objects of unknown classes
"""
