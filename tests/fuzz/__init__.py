"""Mutated inputs, by the hundred thousand: what a reader makes of them is a result, or one of our errors.

mutations   bytes turned, cut, moved, and put where they hurt
readers     valid files, and the way in that each is read by
"""
