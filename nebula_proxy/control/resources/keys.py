"""`/keys`: API keys. The key itself is shown once; kept is a hash of it."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, StringConstraints
from starlette.responses import Response

from nebula_core.records.access import ApiKey, KeyLimits, Role
from nebula_core.records.event import ChangeKind
from nebula_core.records.ids import DeploymentName
from nebula_core.records.views import KeyView, NewKey, Page
from nebula_core.security.credentials import mint_key
from nebula_proxy.control.actions import Deed, Done
from nebula_proxy.control.answers import page_answer, record_answer
from nebula_proxy.control.desk import Desk
from nebula_proxy.control.operations import Calling, Operation, known_fields
from nebula_proxy.control.refusals import conflict, not_found


class KeyOrder(KeyLimits):
    #: For people: who or what uses it.
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}$")]
    role: Role = Role.CLIENT
    #: Models it may use; None is all.
    models: tuple[DeploymentName, ...] | None = Field(default=None, max_length=1000)
    expires_in_seconds: float | None = Field(default=None, gt=0, le=10 * 365 * 24 * 3600)


class Keys:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def operations(self) -> Sequence[Operation]:
        return (
            Operation("GET", "/keys", self.every, Role.ADMIN, "Keys, without what could be used", Page[KeyView]),
            Operation("POST", "/keys", self.create, Role.ADMIN, "Make a key; it is shown this once", NewKey),
            Operation("DELETE", "/keys/{key_id}", self.revoke, Role.ADMIN, "End a key at once", NewKey),
        )

    async def every(self) -> Response:
        keys = self._desk.watcher.snapshot.keys.values()
        return page_answer([_view(key) for key in sorted(keys, key=lambda key: (key.created_at, key.id))])

    async def create(self, order: KeyOrder, call: Calling) -> Response:
        known_fields(KeyOrder, call.body)
        token, record = mint_key(
            order.name,
            order.role,
            now=call.at,
            created_by=call.by,
            models=order.models,
            expires_at=None if order.expires_in_seconds is None else call.at + order.expires_in_seconds,
            limits=_limits(order),
        )
        if call.dry_run:
            return record_answer(NewKey(key=None, record=_view(record)))

        async def work() -> Done:
            revision = await self._desk.store.put(ChangeKind.KEY, record.id, record, expected_generation=0)
            await self._desk.actions.seen(revision)
            message = f"key {record.id} ({order.name}, {order.role}) was made"
            return Done(NewKey(key=token, record=_view(record)), message, revision)

        deed = Deed("key_created", f"key/{record.id}", {"name": order.name, "role": order.role.value})
        return record_answer(await self._desk.actions.perform(call, deed, work, NewKey), 201)

    async def revoke(self, key_id: str, call: Calling) -> Response:
        keys = self._desk.watcher.snapshot.keys
        if key_id not in keys:
            raise not_found("key", key_id, keys)
        if call.dry_run:
            return record_answer(NewKey(key=None, record=_view(_revoked(keys[key_id]))))

        async def work() -> Done:
            raw = await self._desk.store.get(ChangeKind.KEY, key_id)
            if raw is None:
                raise not_found("key", key_id, keys)
            former = ApiKey.from_json(raw)
            if former.revoked:
                return Done(NewKey(key=None, record=_view(former)))
            self._require_another_admin(former, call.at)
            following = _revoked(former)
            revision = await self._desk.store.put(
                ChangeKind.KEY, key_id, following, expected_generation=former.generation
            )
            await self._desk.actions.seen(revision)
            message = f"key {key_id} ({former.name}) was revoked"
            return Done(NewKey(key=None, record=_view(following)), message, revision)

        deed = Deed("key_revoked", f"key/{key_id}", severity="warn")
        return record_answer(await self._desk.actions.perform(call, deed, work, NewKey))

    def _require_another_admin(self, key: ApiKey, now: float) -> None:
        others = (
            one
            for one in self._desk.watcher.snapshot.keys.values()
            if one.id != key.id and one.role is Role.ADMIN and not one.revoked
            if one.expires_at is None or one.expires_at > now
        )
        if key.role is Role.ADMIN and next(others, None) is None:
            raise conflict("this is the last admin key", hint="make another one first: nobody could make keys any more")


def _revoked(key: ApiKey) -> ApiKey:
    return key.model_copy(update={"revoked": True, "generation": key.generation + 1})


def _view(key: ApiKey) -> KeyView:
    return KeyView(
        id=key.id,
        name=key.name,
        role=key.role.value,
        models=key.models,
        created_at=key.created_at,
        created_by=key.created_by,
        expires_at=key.expires_at,
        revoked=key.revoked,
        **dict(_limits(key)),
    )


def _limits(of: KeyLimits) -> KeyLimits:
    return KeyLimits(**{name: getattr(of, name) for name in KeyLimits.model_fields})
