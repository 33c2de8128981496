"""What is left of an output when a system call of the run fails, or the run is killed at it: `make crash`.

shim.c       breaks the N-th system call of a process
shim         builds it and arms it
situations   what stands at the target before a run
looking      what a loader finds at the target after one
checking     what must hold after a broken run, and after the same command run again
forked       the command in a fork of an interpreter that has imported everything
worker       one situation, broken at every call in every way
moments      real processes, met by signals at random moments
table        the figures
"""
