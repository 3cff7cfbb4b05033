"""What the simulated engine is told to do wrong: the `--fault` switches and the body's field `nebula_fault`."""

from dataclasses import dataclass

#: Kinds and what their argument counts; None takes no argument, a trailing `?` makes it optional.
KINDS: dict[str, str | None] = {
    "slow-start": "seconds",
    "failed-start": "seconds",
    "crash-at-token": "tokens",
    "freeze": None,
    "freeze-at-token": "tokens",
    "error-frame": None,
    "error-frame-at-token": "tokens",
    "sigterm-hang": None,
    "orphan-child": "seconds?",
    "shm-leak": None,
    "scrape-slow": "seconds",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestFault:
    """crash, freeze or error, once the request has `at_token` tokens."""

    kind: str
    at_token: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Faults:
    """All faults of one engine; None is a fault that was not asked for."""

    slow_start_seconds: float | None = None
    failed_start_seconds: float | None = None
    freeze: bool = False
    sigterm_hang: bool = False
    orphan_child: bool = False
    orphan_after_seconds: float | None = None
    shm_leak: bool = False
    scrape_slow_seconds: float = 0.0
    #: Falls on every request.
    every_request: RequestFault | None = None


def parse_faults(texts: list[str]) -> Faults:
    """Reads `KIND[=ARG]`, each at most once; raises ValueError that names the kinds there are."""
    given: dict[str, float | None] = {}
    for text in texts:
        kind, equals, argument = text.partition("=")
        if kind not in KINDS:
            raise ValueError(f"unknown fault {kind!r}; there are: {', '.join(KINDS)}")
        wants = KINDS[kind]
        if wants is None and equals:
            raise ValueError(f"fault {kind} takes no argument")
        if wants is not None and not wants.endswith("?") and not equals:
            raise ValueError(f"fault {kind} needs an argument: {kind}={wants.upper()}")
        try:
            given[kind] = float(argument) if equals else None
        except ValueError:
            raise ValueError(f"fault {kind}: {argument!r} is no number") from None
    on_requests = [
        RequestFault(kind=kind, at_token=int(given[switch] or 0))
        for switch, kind in (
            ("crash-at-token", "crash"),
            ("freeze-at-token", "freeze"),
            ("error-frame", "error"),
            ("error-frame-at-token", "error"),
        )
        if switch in given
    ]
    if len(on_requests) > 1:
        raise ValueError("only one of crash-at-token, freeze-at-token, error-frame and error-frame-at-token at a time")
    return Faults(
        slow_start_seconds=given.get("slow-start"),
        failed_start_seconds=given.get("failed-start"),
        freeze="freeze" in given,
        sigterm_hang="sigterm-hang" in given,
        orphan_child="orphan-child" in given,
        orphan_after_seconds=given.get("orphan-child"),
        shm_leak="shm-leak" in given,
        scrape_slow_seconds=given.get("scrape-slow") or 0.0,
        every_request=on_requests[0] if on_requests else None,
    )


def parse_request_fault(text: str) -> RequestFault:
    """Reads `crash@5`, `freeze@5`, `error@5` or `error`; raises ValueError."""
    kind, _, at_token = text.partition("@")
    if kind not in {"crash", "freeze", "error"} or not (at_token or "0").isdecimal():
        raise ValueError(f"nebula_fault {text!r} is none of crash@K, freeze@K, error@K")
    return RequestFault(kind=kind, at_token=int(at_token or 0))
