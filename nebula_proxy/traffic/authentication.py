"""Who calls the data plane: the key of a request, checked against the snapshot's keys, remembered for the next time."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from nebula_core.records.access import ApiKey, KeyLimits, Principal, Role
from nebula_core.security.credentials import check_token

#: Tokens remembered at once; beyond it the memory starts anew.
REMEMBERED = 4096

ANYONE = Principal(name="anyone", role=Role.CLIENT, key_id="-", models=None)


@dataclass(frozen=True, slots=True)
class Pass:
    """A checked caller, with what every request asks of it at hand."""

    principal: Principal
    key_id: str
    #: Models it may use; None is all.
    models: frozenset[str] | None
    max_inflight: int | None
    max_priority: int
    #: Its limits, where one must be kept together with other workers; else None.
    limits: KeyLimits | None
    #: Unix seconds.
    expires_at: float | None
    #: Asked of every request, so both are worked out once: may do what an operator may; is more than a mere client.
    operator: bool
    person: bool

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models


#: Highest priority that a key may ask for which says none: from the role `operator` on, and below it.
OPERATORS_PRIORITY = 10
CLIENTS_PRIORITY = 0


def _pass(principal: Principal, key: ApiKey | None = None) -> Pass:
    models = None if principal.models is None else frozenset(principal.models)
    operator = principal.role.includes(Role.OPERATOR)
    person = principal.role is not Role.CLIENT
    priority = OPERATORS_PRIORITY if operator else CLIENTS_PRIORITY
    if key is None:
        return Pass(principal, principal.key_id, models, None, priority, None, None, operator, person)
    if key.max_priority is not None:
        priority = key.max_priority
    return Pass(
        principal,
        principal.key_id,
        models,
        key.max_inflight,
        priority,
        key if key.is_shared else None,
        key.expires_at,
        operator,
        person,
    )


_ANYONE = _pass(ANYONE)


class Authenticator:
    """Checks keys without I/O. What it remembers is forgotten with every change of the keys."""

    def __init__(self, *, required: bool) -> None:
        self._required = required
        self._keys: Mapping[str, ApiKey] = {}
        # By the header as it came: only what was found right is in here, so a lookup tells nothing about a secret.
        self._known: dict[bytes, Pass] = {}

    def update(self, keys: Mapping[str, ApiKey]) -> None:
        if keys is not self._keys:
            self._keys = keys
            self._known.clear()

    def check(self, headers: Mapping[bytes, bytes]) -> Pass | None:
        """The caller, or None when its credential is missing or wrong."""
        given = headers.get(b"authorization")
        if given is None:
            given = headers.get(b"x-api-key")  # as Anthropic's clients send it
            if given is None:
                return None if self._required else _ANYONE
        known = self._known.get(given)
        if known is not None and (known.expires_at is None or time.time() < known.expires_at):
            return known
        token = given
        if b"authorization" in headers:
            token = given[7:].strip() if given[:7].lower() == b"bearer " else b""
        principal = check_token(token.decode("latin-1"), self._keys, time.time())
        if principal is None:
            return None if self._required else _ANYONE
        checked = _pass(principal, self._keys[principal.key_id])
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        self._known[given] = checked
        return checked
