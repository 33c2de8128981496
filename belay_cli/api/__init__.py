"""The stages joined: what the command line calls, and what `import belay_cli` offers.

average    average, averages and plan: checkpoints and rules into a plan, the plan into outputs
sweep      averages in memory, each judged by a function
sweep_directory  averages in a directory, each judged by a command, and the best of them
tries      the candidates of a sweep with their rules for one series
inspect    what checkpoints are, and whether they are one series
verify     an output against its record and its checkpoints
push       an output on the Hub
estimate   how long a plan takes here
report     what was done, from a plan and a run
keywords   the options that these take, as types
"""
