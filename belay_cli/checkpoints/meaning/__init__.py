"""What lies in a checkpoint: from what a format found to its weights, by the same steps for every format.

understand        the steps, in order
state_dict        the weights among several things
saved             what was saved, as nested dicts
guessed_keys      the same where nothing says which dots are those of keys
containers        dicts and lists, however they nest
raw_or_ema        raw weights, or an EMA of them
prefixes          what wrappers put before the names of a model
parts             what one rank of a parallel run saved
recorded          the step that was saved beside the weights
not_understood    objects of unknown classes
"""
