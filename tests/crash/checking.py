"""What must hold after a run that was broken, and after the same command run once more."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tests.crash.forked import Ran
from tests.crash.looking import Tree, View, visible
from tests.crash.shim import KILLS, LASTING, SIGNALS, TWICE

_IN_PLACE = re.compile(r"\bin place\b")
_ENDS = ("old", "new", "nothing")
_WORDS = {130: "belay: interrupted\n", 143: "belay: terminated\n"}
_CODES = {"SIGINT": (130,), "SIGTERM": (143,), "SIGINT+SIGTERM": (130, 143)}


@dataclass(frozen=True)
class Expected:
    """What is known of a situation before anything breaks in it."""

    before: Tree
    clean: Tree  # after a run in which nothing broke
    old: View | None
    new: View
    foreign: Sequence[str]
    overwrites: bool


@dataclass(frozen=True)
class After:
    """What a run left."""

    ran: Ran
    tree: Tree
    loads: str  # what a loader finds
    reached: bool = True  # whether the run came to the call that was to be broken


def faults_of_a_broken_run(kind: str, after: After, expected: Expected) -> list[str]:
    """What is wrong, in words that are the same for all cases of a fault."""
    found = [] if after.loads in _ENDS else [f"a loader finds {after.loads}"]
    if any(after.tree.get(name) != expected.before[name] for name in expected.foreign):
        found.append("a foreign file is not what it was")
    if kind in KILLS:
        return [*found, *_of_a_kill(after)]
    return [*found, *_of_an_end(kind, after, expected), *_of_words(after.ran)]


def notes_of_a_broken_run(kind: str, after: After, expected: Expected, all_weights: object) -> list[str]:
    """What is no fault and worth a figure."""
    found = []
    if after.loads == "nothing" and expected.old is not None:
        found.append("the older output is gone until the command is run again")
    if all_weights is not None and after.loads == "nothing":
        found.append("weight files without their index: a loader that takes every file takes these")
    if kind in SIGNALS and after.ran.code and _is_clean(after, expected):
        found.append("the output is in place, and the run ends by the signal all the same")
    if after.ran.code == 0 and after.tree != expected.clean:
        found.append("exit 0 with something hidden left behind")
    return found


def _of_a_kill(after: After) -> list[str]:
    return [] if after.ran.code == -9 or not after.reached else [f"killed, and exit {after.ran.code}"]


def _is_clean(after: After, expected: Expected) -> bool:
    return visible(after.tree, expected.before, expected.clean) == expected.clean


def _of_an_end(kind: str, after: After, expected: Expected) -> list[str]:
    """Whether the exit code is true, and what is there is one output with all its files."""
    code, clean = after.ran.code, _is_clean(after, expected)
    if code == 0:
        return [] if clean else ["exit 0, and the new output is not there whole"]
    if code not in _CODES.get(kind, (1,)):
        return [f"{kind}: exit {code}"]
    if clean:
        told = code != 1 or _IN_PLACE.search(after.ran.err)
        return [] if told else ["exit 1, the new output is in place, and nothing says so"]
    if visible(after.tree, expected.before, expected.clean) == expected.before:
        return []
    if kind in (*LASTING, *TWICE) and after.loads in ("old", "nothing"):
        return []  # where putting back fails as well, the next run has to
    if after.loads not in _ENDS:
        return []  # said already
    return [f"exit {code}, {after.loads} loads, and files of the run are left or older ones are missing"]


def _of_words(ran: Ran) -> list[str]:
    """Whether an error is one line, with its hint below it, and nothing else is said."""
    if ran.code == 0:
        return ["an exit 0 that says something"] if ran.err else []
    if "Traceback" in ran.err or "this is unexpected" in ran.err or "Exception ignored" in ran.err:
        return ["a traceback, or an error that is called unexpected"]
    lines = ran.err.splitlines()
    found = [] if ran.out == "" else ["a failure that prints a result"]
    if not lines or not lines[0].startswith("belay: ") or any(not line.startswith("       ") for line in lines[1:]):
        found.append("an error that is not one line")
    if ran.code in _WORDS and not ran.err.startswith(_WORDS[ran.code]):
        found.append("a signal that is not named")
    return found


def faults_of_the_next_run(after: After, again: After, expected: Expected) -> list[str]:
    """The same command, with nothing broken: a whole output, and nothing beside it."""
    if again.ran.code == 0:
        found = _of_words(again.ran)
    elif _there_already(after, again, expected):
        found = []
    else:
        return [f"run again: exit {again.ran.code}: {_first_line(again.ran.err)}"]
    if again.tree == expected.clean:
        return found
    if visible(again.tree, expected.before, expected.clean) == expected.clean:
        return [*found, f"run again, exit {again.ran.code}: something hidden is left behind"]
    return [*found, f"run again, exit {again.ran.code}: other files than those of a clean run"]


def _there_already(after: After, again: After, expected: Expected) -> bool:
    exists = again.ran.code == 1 and re.search(r": exists\n", again.ran.err)
    return bool(exists) and not expected.overwrites and after.loads == "new"


def _first_line(text: str) -> str:
    return (text.splitlines() or ["nothing is said"])[0]
