"""The few styles that are used, each readable on light and on dark terminals.

They are those of gcc's messages. Yellow is missing on purpose, since it cannot be read on white, and so is dim text,
which many terminals show as light grey.
"""

ERROR = "bold red"
WARNING = "bold magenta"
STRONG = "bold"
DONE = "bold green"
BAR = "cyan"
NEGATIVE = "red"
TRACK = "bright_black"  # of a progress bar, what is not done yet
