"""What keeps the requests of one conversation or one user on one replica (`session_affinity`)."""

from collections.abc import Mapping

from nebula_core.wire.openai import Facts
from nebula_proxy.decisions.rendezvous import key_of

#: Looked for in this order; then the field `user` of the body.
SESSION_HEADERS = (b"x-nebula-session", b"x-session-id")
#: More of it is not told apart.
_LONGEST = 256


def session_of(headers: Mapping[bytes, bytes], facts: Facts | None) -> int | None:
    """The session of a request as a key for rendezvous; None when the client names none."""
    for name in SESSION_HEADERS:
        given = headers.get(name)
        if given:
            return key_of(given[:_LONGEST])
    user = None if facts is None else facts.user
    if user is None or user == "":
        return None
    return key_of(str(user)[:_LONGEST].encode("utf-8", "surrogatepass"))
