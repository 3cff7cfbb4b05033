"""One JSON line per request, never its prompt, in the shape of the other logs; encoded at once, written in batches.

A structlog call and a write per request would cost as much as all routing. So a line is one msgspec encoding put
into a list, and the list is written when it is long or a moment has passed. At most `MAX_LINES` wait: beyond it
lines are counted instead, and the count is the next line.
"""

import json
import os
import time
from typing import IO

import msgspec

MAX_LINES = 10_000
WRITE_AT = 256


class RequestLine(msgspec.Struct, omit_defaults=True):
    """The fields in the order of the line; those that are unknown are left out."""

    action: str
    timestamp: str
    level: str
    request_id: str
    path: str
    status: int
    outcome: str
    duration_seconds: float
    model: str | None = None
    key: str | None = None
    replica: str | None = None
    decision: str | None = None
    stream: bool | None = None
    ttft_seconds: float | None = None
    overhead_seconds: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    request_bytes: int | None = None
    response_bytes: int | None = None
    attempts: int | None = None
    #: Streams that another replica went on with.
    resumes: int = 0
    wait_seconds: float | None = None
    strategy: str | None = None
    trace_id: str | None = None
    detail: str | None = None


class RequestLog:
    """Lines on their way to a file, usually stderr."""

    def __init__(self, out: IO[bytes] | int | None) -> None:
        """`out` None writes nothing."""
        self._fd = out if isinstance(out, int) or out is None else out.fileno()
        self._encode = msgspec.json.Encoder().encode
        self._lines: list[bytes] = []
        self._dropped = 0
        self._second = -1
        self._stamp = ""

    @property
    def dropped(self) -> int:
        """Lines lost since the last ones that could be written."""
        return self._dropped

    def stamp(self, wall: float) -> str:
        """ISO 8601 in UTC, as the other logs write it; made anew once a second."""
        second = int(wall)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        # Not an f-string: `%` is a third of its price, once per request.
        return "%s.%06dZ" % (self._stamp, (wall - second) * 1_000_000)  # noqa: UP031 - see above

    def write(self, line: RequestLine) -> None:
        if self._fd is None:
            return
        lines = self._lines
        if len(lines) >= MAX_LINES:
            self._dropped += 1
            return
        data = self._encode(line)
        if not data.isascii():
            # A line stays one line, whatever a client or an engine put into it (reliability T18).
            data = json.dumps(json.loads(data)).encode("ascii")
        lines.append(data)
        if len(lines) >= WRITE_AT:
            self.flush()

    def flush(self) -> None:
        """Writes what waits. A reader that does not read loses lines, never requests."""
        if self._fd is None or not self._lines:
            return
        lines, self._lines = self._lines, []
        if self._dropped:
            lines.append(b'{"action":"request_lines_dropped","level":"warning","count":%d}' % self._dropped)
            self._dropped = 0
        data = memoryview(b"\n".join(lines) + b"\n")
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            # stderr is gone or full: counted, and said with the next lines that can be written.
            self._dropped += len(lines)
