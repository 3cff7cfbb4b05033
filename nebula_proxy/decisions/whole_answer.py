"""What an engine's whole answer, other than a 200, says of the engine: trouble upstream, or nothing and it is the client's.

Statuses alone do not tell. vLLM says 500 "… after shutdown" while it drains, without having run anything, and 500 with the
name of its dead engine process while its HTTP server takes seven seconds to end (captured). While a deployment is changed, not
every replica has an adapter yet: a 404 there. And a 401 is about our key, not the client's, where the engine was started anew.
"""

from nebula_proxy.decisions.retry import LAST_WORDS, Trouble


def trouble_told(status: int, body: bytes, *, keyed: bool, adapter: bool) -> tuple[Trouble, str] | None:
    """The trouble, and its words for log and error; None: what it says is the request's own affair.

    `keyed`: the engine takes a key, which was sent. `adapter`: the model asked for is an adapter of the engine's own.
    """
    if status == 500 and any(word.encode() in body for word in LAST_WORDS):
        return Trouble.BROKEN, "status 500: its EngineCore is gone"
    if status in {429, 503} or (status == 500 and b"after shutdown" in body) or (status == 404 and adapter):
        return Trouble.BUSY, f"status {status}"
    if status == 401 and keyed:
        return Trouble.BROKEN, "status 401"
    return None
