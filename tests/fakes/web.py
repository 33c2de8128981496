"""A plain web server on this machine that fails on demand, as the fake Hub does."""

from __future__ import annotations

from collections.abc import Callable

from tests.fakes.hub import Answer, HubServer, Refusal, Request, ranged


class Web(HubServer):
    """A plain web server with the failures of the Hub's; `special` answers a path by a function of the request."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {}
        self.special: dict[str, Callable[[Request], Answer]] = {}

    def answer(self, request: Request) -> Answer:
        try:
            if request.path in self.special:
                return self.special[request.path](request)
            if request.path not in self.files:
                return Answer(404)
            data = self.files[request.path]
            return ranged(request, data, {"ETag": f'"{hash(data) & 0xFFFFFFFF:x}"'})
        except Refusal as refusal:
            return refusal.answer(request)

    @property
    def other_origin(self) -> str:
        return self._storage
