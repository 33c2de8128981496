"""What people see, with one wording for the terminal, the log and the model card.

console    the only printer: stdout and stderr, JSON, quiet, the log
report     what was done, as objects under stable names
findings   what was found in checkpoints
checks     the checks of an output
screens    a plan, an average that is there, the results of commands, as lines
sentences  what is said of a series, a rule and a run
sweep      what a sweep found: table, picture of signs, sentences, JSON
described  what an average is, in Markdown
tables     rows of weights with their bars, aligned columns
folding    lines that fit a terminal
styles     the colors, readable on light and on dark
listener   who hears what goes on: the console, or nobody
progress   how far a command is: a bar, or a line every 30 seconds
log        the same in a file
loading    how an output is loaded, by the card and by one line of Python
summary    what a command did, as Markdown for a CI job
markdown   text that nobody vouches for, made harmless
pictures   the coefficients, and a sweep, as pictures
"""
