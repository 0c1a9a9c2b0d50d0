"""Clients, their keys and who changed what, in the database. It knows neither models nor HTTP.

Every change is one transaction: the new state, an entry of who changed what from what to what, and a higher revision,
by which the processes of the service see that there is something to read.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection, Select, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from service import tables
from service.clients import NAME_PATTERN, ClientPolicy, Owner, can_be_name
from service.database import Database
from service.errors import ClientExists, InvalidParameter, PolicyMismatch, UnknownClient, UnknownKey
from service.keys import can_be_id, hash_key, key_id, new_key

logger = logging.getLogger(__name__)

Json = dict[str, Any]

Revision = tuple[int, float]
"""A number that every change makes higher, and when the newest was made: a backup that is put back reaches the same
number again, by other changes."""

CHANGES_SHOWN, MOST_CHANGES = 50, 10_000
"""How many of the newest changes are told where nothing else is asked for, and at most."""

UNREAD: Revision = (0, 0.0)


@dataclass(frozen=True)
class Key:
    """What may be shown of a key after it was made."""

    id: str
    created_at: float
    revoked_at: float | None


@dataclass(frozen=True)
class Client:
    """A client as it is kept."""

    name: str
    policy: ClientPolicy
    created_at: float
    keys: tuple[Key, ...]


@dataclass(frozen=True)
class Change:
    """One entry of the audit log."""

    at: float
    who: str
    client: str
    what: str
    before: Json | None
    after: Json | None


@dataclass(frozen=True)
class Snapshot:
    """All policies, the oldest client's first, and which client each valid key belongs to, at one revision."""

    revision: Revision
    policies: Mapping[Owner, ClientPolicy]
    clients_by_key: Mapping[str, str]

    @property
    def was_ever_changed(self) -> bool:
        """Whether anything was ever done in the database: it was made empty."""
        return self.revision[1] > 0.0


class PolicyStore:
    """Reads and changes policies.

    Args:
        database: where they are kept.
        clock: seconds since 1970.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._now = clock

    def snapshot(self, known_revision: Revision = UNREAD) -> Snapshot | None:
        """Return everything that requests are judged by, or None if the known revision is the newest."""
        with self._database.reading() as connection:
            newest = select(func.max(tables.changes.c.id)).scalar_subquery()
            at = select(tables.changes.c.at).where(tables.changes.c.id == newest).scalar_subquery()
            row = connection.execute(select(tables.revision.c.number, at.label("at"))).one()
            revision = row.number, row.at or 0.0
            if revision == known_revision:
                return None
            kept = connection.execute(
                select(tables.clients).order_by(tables.clients.c.created_at, tables.clients.c.name)
            ).all()
            valid = connection.execute(
                select(tables.keys.c.hash, tables.keys.c.client).where(tables.keys.c.revoked_at.is_(None))
            ).all()
        policies: dict[Owner, ClientPolicy] = {}
        for row in kept:
            try:
                policies[Owner(row.name, row.created_at)] = _kept_policy(row.name, row.policy)
            except PolicyMismatch as error:  # the others' changes matter all the same, above all revoked keys
                logger.error("%s Until then its keys are unknown. %s", error.message, error.remedy)
        readable = {owner.name for owner in policies}
        return Snapshot(revision, policies, {row.hash: row.client for row in valid if row.client in readable})

    def clients(self) -> list[Client]:
        """Return all clients by name.

        Raises:
            PolicyMismatch: the policy of one of them cannot be read.
        """
        return self._clients(select(tables.clients).order_by(tables.clients.c.name))

    def _clients(self, query: Select[Any]) -> list[Client]:
        with self._database.reading() as connection:
            kept = connection.execute(query).all()
            keys = connection.execute(select(tables.keys).order_by(tables.keys.c.created_at)).all()
        return [
            Client(
                row.name,
                _kept_policy(row.name, row.policy),
                row.created_at,
                tuple(Key(key_id(key.hash), key.created_at, key.revoked_at) for key in keys if key.client == row.name),
            )
            for row in kept
        ]

    def client(self, name: str) -> Client:
        """Return one client.

        Raises:
            UnknownClient: there is none of this name.
            PolicyMismatch: its policy cannot be read.
        """
        if can_be_name(name):
            for client in self._clients(select(tables.clients).where(tables.clients.c.name == name)):
                return client
        raise _unknown(name)

    def changes(self, name: str | None = None, limit: int = CHANGES_SHOWN) -> list[Change]:
        """Return the newest changes of a client (None: of all), the newest first; they outlive the client."""
        if name is not None and not can_be_name(name):
            return []
        query = select(tables.changes)
        if name is not None:
            query = query.where(tables.changes.c.client == name)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(tables.changes.c.id.desc()).limit(limit)).all()
        return [Change(row.at, row.who, row.client, row.what, row.before, row.after) for row in rows]

    def add(self, name: str, policy: ClientPolicy, *, who: str) -> str:
        """Make a client with one key, and return the key: it is not to be had a second time.

        Raises:
            ClientExists: there is one of this name.
        """
        with self._database.writing() as connection:
            row = {"name": name, "policy": _json(policy), "created_at": self._now()}
            try:  # to look before would not do: another may add one of this name between
                connection.execute(insert(tables.clients).values(row))
            except IntegrityError as error:
                raise ClientExists(
                    "There is a client of this name.",
                    field="name",
                    value=name,
                    remedy="Change it, or take another name.",
                ) from error
            key = self._new_key(connection, name)
            self._note(connection, name, "add", before=None, after=_json(policy), who=who)
        return key

    def set(self, name: str, changes: Json, *, who: str) -> ClientPolicy:
        """Change some fields of a policy and return the whole; None gives a field back to the model.

        Raises:
            UnknownClient: there is none of this name.
            InvalidParameter: the policy would contradict itself.
        """
        with self._database.writing() as connection:
            before = self._policy(connection, name)
            if before is None:
                raise _unknown(name)
            whole = before | changes
            policy = read_policy(
                {field: whole[field] for field in whole if whole[field] is not None or field not in before}
            )
            after = _json(policy)
            if after != before:
                connection.execute(update(tables.clients).where(tables.clients.c.name == name).values(policy=after))
                self._note(connection, name, "set", before=before, after=after, who=who)
        return policy

    def rotate(self, name: str, *, keep: bool = False, who: str) -> str:
        """Return a new key of the client; the others are revoked unless they are kept.

        Raises:
            UnknownClient: there is none of this name.
        """
        with self._database.writing() as connection:
            if self._policy(connection, name) is None:
                raise _unknown(name)
            before = [] if keep else self._revoke(connection, name)
            key = self._new_key(connection, name)
            revoked = {"revoked": before} if before else None
            self._note(connection, name, "rotate", before=revoked, after={"made": key_id(hash_key(key))}, who=who)
        return key

    def revoke(self, name: str, key: str, *, who: str) -> None:
        """Revoke the client's key of this id.

        Raises:
            UnknownKey: the client has no valid key of this id.
        """
        with self._database.writing() as connection:
            if not (can_be_name(name) and can_be_id(key) and self._revoke(connection, name, key)):
                raise UnknownKey(
                    "The client has no valid key of this id.", field="key", value=key, remedy="Show the client's keys."
                )
            self._note(connection, name, "revoke", before={"revoked": [key]}, after=None, who=who)

    def remove(self, name: str, *, who: str) -> None:
        """Remove the client with its keys, kept predictions and labels; who changed what remains.

        Its predictions that are not written yet never are: see `PredictionStore.write`.

        Raises:
            UnknownClient: there is none of this name.
        """
        with self._database.writing() as connection:
            before = self._policy(connection, name)
            if before is None:
                raise _unknown(name)
            connection.execute(delete(tables.predictions).where(tables.predictions.c.client == name))
            connection.execute(delete(tables.clients).where(tables.clients.c.name == name))
            self._note(connection, name, "remove", before=before, after=None, who=who)

    @staticmethod
    def _policy(connection: Connection, name: str) -> Json | None:
        if not can_be_name(name):
            return None
        query = select(tables.clients.c.policy).where(tables.clients.c.name == name)
        policy: Json | None = connection.execute(query.with_for_update()).scalar_one_or_none()
        return policy

    def _new_key(self, connection: Connection, name: str) -> str:
        key = new_key()
        connection.execute(insert(tables.keys).values(hash=hash_key(key), client=name, created_at=self._now()))
        return key

    def _revoke(self, connection: Connection, name: str, key: str = "") -> list[str]:
        keys = tables.keys
        chosen = (keys.c.client == name) & keys.c.revoked_at.is_(None) & keys.c.hash.startswith(key, autoescape=True)
        revoked = connection.execute(select(keys.c.hash).where(chosen)).scalars().all()
        if key and key not in {key_id(digest) for digest in revoked}:
            return []
        connection.execute(update(keys).where(chosen).values(revoked_at=self._now()))
        return [key_id(digest) for digest in revoked]

    def _note(
        self, connection: Connection, client: str, what: str, *, before: Json | None, after: Json | None, who: str
    ) -> None:
        entry = {"at": self._now(), "who": who[:200], "client": client, "what": what, "before": before, "after": after}
        connection.execute(insert(tables.changes).values(**entry))
        connection.execute(update(tables.revision).values(number=tables.revision.c.number + 1))


def read_policy(content: Json) -> ClientPolicy:
    """Return the policy that some JSON says.

    Raises:
        InvalidParameter: a field is unknown, malformed or contradicts another.
    """
    try:
        return ClientPolicy.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "policy"
        value = first["input"] if isinstance(first["input"], str | int | float | bool) else None
        raise InvalidParameter(
            f"{field}: {first['msg'].removeprefix('Value error, ')}.",
            field=field,
            value=str(value) if isinstance(value, float) else value,
            remedy=f"Correct it; a policy holds {', '.join(ClientPolicy.model_fields)}.",
        ) from error


def _kept_policy(name: str, content: Json) -> ClientPolicy:
    """Return a policy as it is kept, which another version of the service may have written."""
    try:
        return read_policy(content)
    except InvalidParameter as error:
        raise PolicyMismatch(
            f"The kept policy of the client {name} cannot be read: {error.message}",
            field=error.field,
            value=error.value,
            remedy="`service clients set` changes it, `--unset` takes a field out, and `remove` removes the client.",
        ) from error


def _json(policy: ClientPolicy) -> Json:
    return policy.model_dump(mode="json", exclude_none=True)


def _unknown(name: str) -> UnknownClient:
    return UnknownClient(
        "There is no client of this name.",
        field="name",
        value=name,
        remedy="`service clients list` and GET /clients tell the names. "
        f"A name has up to 64 letters, digits, '.', '_' and '-': {NAME_PATTERN}",
    )
