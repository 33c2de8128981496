"""A sweep: many averages of one series, each judged by the user's own evaluation.

grid         what is tried: methods and their options, a grid by default, and the halving around the best
options      what a person may ask of a sweep, beside the grid
measures     what an evaluation wrote, in the formats that people have
metric       which number of it is meant, and which end of it is good
evaluation   the user's command, run for one candidate: never twice, whatever ends the sweep
evaluations  those of many candidates, several at a time
outcome      candidates with their scores: the best, what is tied with it, and where the grid ends
store        the directory of a sweep
"""
