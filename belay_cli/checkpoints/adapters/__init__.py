"""Adapters: their dialects, what scales their updates, and the two factors of each.

names    the factors among tensors' names, by the dialect of each library
config   what a configuration beside them says
lora     the updates of a series, as pairs of factors
"""
