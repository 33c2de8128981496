"""What stands for a class or function that belay does not know, and for whatever a pickle makes with it."""

from __future__ import annotations

from typing import Any, final


@final
class Unknown:
    """Something of the class `name`, as `module.name`, that is not known: all that is done with it does nothing.

    `inside`: what the pickle gave it, as it came. It is kept to tell whether tensors lie in it; they are not weights
    that are read.
    """

    __slots__ = ("inside", "name")
    name: str
    inside: list[Any] | None  # None for most: there are many, and each list takes memory

    def __init__(self, name: str, *inside: Any) -> None:
        self.name = name
        self.inside = list(inside) if inside else None

    def take(self, part: Any) -> None:
        """Keep what the pickle sets, appends or adds. Not looked at, it costs the same whatever it is."""
        if self.inside is None:
            self.inside = []
        self.inside.append(part)

    def attribute(self, name: str) -> Any:
        """What its state, as most objects have it, gives to an attribute; None if there is none."""
        states = [part for part in self.inside or () if isinstance(part, dict) and name in part]
        return states[-1][name] if states else None

    def __repr__(self) -> str:
        return f"Unknown({self.name!r})"
