"""The stages joined: what the command line calls, and what `import belay_cli` offers.

average    average, averages and plan: checkpoints and rules into a plan, the plan into outputs
sweep      many averages, each judged by the user's own evaluation
inspect    what checkpoints are, and whether they are one series
verify     an output against its record and its checkpoints
push       an output on the Hub
report     what was done, from a plan and a run
keywords   the options that these take, as types
"""
