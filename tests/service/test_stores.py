"""Policies, predictions and labels in both databases, for real."""

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from time import monotonic, sleep, time

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import update
from starlette.testclient import TestClient

from service import database as database_module
from service import prediction_store
from service.app import create_app
from service.clients import ClientPolicy, Owner
from service.database import _MIGRATION_LOCK, Database, check_url, connect
from service.errors import ClientExists, InvalidParameter, PolicyMismatch, StoreUnavailable, UnknownClient, UnknownKey
from service.keeping import Keeping
from service.keys import hash_key, key_id
from service.metrics import Metrics
from service.policy_store import PolicyStore
from service.prediction_store import KeptPrediction, PredictionStore
from service.settings import Settings
from service.tables import clients, metadata
from tests.deploy.prometheus import free_port
from tests.service import postgresql
from tests.service.fakes import FakeModel, make_manifest, picture
from tests.service.postgresql import PostgreSql


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSql]:
    # Not in pytest's folders, which only their owner may enter: the server runs as someone else.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        with postgresql.running(Path(folder) / "cluster", free_port()) as running:
            yield running


numbers = count()

FULL = 2
"""What SQLite's `PRAGMA synchronous` says of itself where every commit waits for the disk."""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state' / 'evenkeel.sqlite'}"
    server: PostgreSql = request.getfixturevalue("server")
    return server.create(f"test_{next(numbers)}")


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = Database(url)
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def policies(database: Database) -> PolicyStore:
    return PolicyStore(database, clock=count(1000).__next__)


def add_at_the_beginning(database: Database, *names: str) -> None:
    """Add clients that are older than any prediction."""
    policies = PolicyStore(database, clock=lambda: 0.0)
    for name in names:
        policies.add(name, ClientPolicy(), who="ann")


def prediction(number: int, client: str = "shop", *, at: float = 0.0) -> KeptPrediction:
    return KeptPrediction(f"{number:026x}", client, "m" * 16, at, 1.0, 0.0, 4.0, "", 2, bytes(10))


def keep(store: PredictionStore, predictions: Sequence[KeptPrediction], *, made_at: float = 0.0) -> int:
    """Keep predictions, each as one of the client of this name that was made then."""
    return store.write([Owner(each.client, made_at if each.client else 0.0) for each in predictions], predictions)


def test_a_policy_that_cannot_be_read_stops_no_other(
    database: Database, policies: PolicyStore, caplog: pytest.LogCaptureFixture
) -> None:
    keys = {name: policies.add(name, ClientPolicy(), who="ann") for name in ("album", "newer")}
    with database.writing() as connection:
        of_another_version = update(clients).where(clients.c.name == "newer").values(policy={"alpha": 1.0, "beta": 2})
        connection.execute(of_another_version)
    snapshot = policies.snapshot()
    assert snapshot is not None
    assert [*snapshot.policies.values()] == [ClientPolicy()]
    assert [owner.name for owner in snapshot.policies] == ["album"]
    assert snapshot.clients_by_key == {hash_key(keys["album"]): "album"}
    assert "The kept policy of the client newer cannot be read: beta" in caplog.text
    with pytest.raises(PolicyMismatch, match="newer cannot be read"):
        policies.clients()
    assert policies.client("album").name == "album"
    assert policies.set("newer", {"beta": None}, who="ann") == ClientPolicy(alpha=1.0)
    assert [client.name for client in policies.clients()] == ["album", "newer"]


def test_the_migrations_make_the_tables_that_the_code_uses(url: str, database: Database) -> None:
    engine = connect(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_several_processes_may_migrate_at_once(url: str) -> None:
    failures: list[BaseException] = []

    def migrate() -> None:
        database = Database(url)
        try:
            database.migrate()
        except BaseException as error:
            failures.append(error)
        finally:
            database.close()

    threads = [threading.Thread(target=migrate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_client_is_added_changed_and_removed_and_each_change_is_kept(policies: PolicyStore) -> None:
    key = policies.add("shop", ClientPolicy(alpha=0.5, alpha_max=2), who="cli:ann")
    policies.set("shop", {"alpha": 1.0, "images_per_second": 5}, who="admin")
    policies.remove("shop", who="cli:ann")
    changes = [(each.who, each.what, each.before, each.after) for each in policies.changes("shop")]
    first, second = {"alpha": 0.5, "alpha_max": 2.0}, {"alpha": 1.0, "alpha_max": 2.0, "images_per_second": 5.0}
    assert changes == [
        ("cli:ann", "remove", second, None),
        ("admin", "set", first, second),
        ("cli:ann", "add", None, first),
    ]
    assert [each.at for each in policies.changes("shop")] == sorted(
        (c.at for c in policies.changes("shop")), reverse=True
    )
    assert key.startswith("ek_")
    assert policies.clients() == []


def test_none_gives_a_knob_back_to_the_model_and_no_change_is_no_entry(policies: PolicyStore) -> None:
    policies.add("shop", ClientPolicy(alpha=0.5), who="ann")
    assert policies.set("shop", {"alpha": None}, who="ann").alpha is None
    policies.set("shop", {"alpha": None}, who="ann")
    assert len(policies.changes("shop")) == 2


def test_keys_are_kept_hashed_rotated_and_revoked(policies: PolicyStore) -> None:
    first = policies.add("shop", ClientPolicy(), who="ann")
    second = policies.rotate("shop", keep=True, who="ann")
    third = policies.rotate("shop", who="ann")
    fourth = policies.rotate("shop", keep=True, who="ann")
    policies.revoke("shop", key_id(hash_key(fourth)), who="ann")
    snapshot = policies.snapshot()
    assert snapshot is not None
    assert snapshot.clients_by_key == {hash_key(third): "shop"}
    assert first not in repr(snapshot)
    shown = policies.client("shop").keys
    assert [each.revoked_at is None for each in shown] == [False, False, True, False]
    assert shown[1].id == key_id(hash_key(second))


def test_a_snapshot_comes_only_when_something_changed(policies: PolicyStore) -> None:
    policies.add("shop", ClientPolicy(), who="ann")
    snapshot = policies.snapshot()
    assert snapshot is not None
    assert policies.snapshot(snapshot.revision) is None
    policies.set("shop", {"alpha": 1}, who="ann")
    changed = policies.snapshot(snapshot.revision)
    assert changed is not None
    assert [policy.alpha for policy in changed.policies.values()] == [1]


def test_what_is_not_there_or_cannot_be_is_refused(policies: PolicyStore) -> None:
    policies.add("shop", ClientPolicy(alpha_max=2), who="ann")
    with pytest.raises(ClientExists):
        policies.add("shop", ClientPolicy(), who="ann")
    with pytest.raises(InvalidParameter, match="alpha_min <= alpha <= alpha_max"):
        policies.set("shop", {"alpha": 2.5}, who="ann")
    with pytest.raises(UnknownKey):
        policies.revoke("shop", "no such key", who="ann")
    for attempt in (
        lambda: policies.client("gone"),
        lambda: policies.set("gone", {}, who="ann"),
        lambda: policies.rotate("gone", who="ann"),
        lambda: policies.remove("gone", who="ann"),
    ):
        with pytest.raises(UnknownClient):
            attempt()
    assert len(policies.changes("shop")) == 1


@pytest.mark.parametrize("nothing", ["\0", "a\0b", "a b", "\udcff", "", "shop\n"])
def test_what_can_be_no_name_or_key_is_unknown_without_asking_the_database(policies: PolicyStore, nothing: str) -> None:
    policies.add("shop", ClientPolicy(), who="ann")
    for attempt in (
        lambda: policies.client(nothing),
        lambda: policies.set(nothing, {}, who="ann"),
        lambda: policies.rotate(nothing, who="ann"),
        lambda: policies.remove(nothing, who="ann"),
    ):
        with pytest.raises(UnknownClient):
            attempt()
    for name, key in ((nothing, "0123456789ab"), ("shop", nothing)):
        with pytest.raises(UnknownKey):
            policies.revoke(name, key, who="ann")
    assert policies.changes(nothing) == []
    assert len(policies.changes()) == 1


def test_a_nul_in_what_is_sent_is_unknown_and_no_outage(url: str) -> None:
    admin = {"Authorization": "Bearer operator"}
    app = create_app(Settings(database_url=url, admin_key="operator"), FakeModel())
    with TestClient(app, raise_server_exceptions=False) as served:
        assert served.post("/clients", json={"name": "shop"}, headers=admin).status_code == 201
        made = served.post("/predict", content=picture(), headers={"Content-Type": "image/png"}).json()
        labels = [{"prediction_id": each, "label": 1} for each in ("\0", made["images"][0]["prediction_id"])]
        receipt = served.post("/feedback", json=labels).json()
        assert receipt["accepted"] == 1
        assert [(each["position"], each["code"]) for each in receipt["refused"]] == [(0, "unknown_prediction")]
        for method, path, code in (
            ("GET", "/clients/%00", "unknown_client"),
            ("PATCH", "/clients/%00", "unknown_client"),
            ("DELETE", "/clients/%00", "unknown_client"),
            ("POST", "/clients/a%00/keys", "unknown_client"),
            ("GET", "/clients/a%00b/tradeoff", "unknown_client"),
            ("DELETE", "/clients/shop/keys/%00", "unknown_key"),
        ):
            response = served.request(method, path, json={} if method == "PATCH" else None, headers=admin)
            assert (response.status_code, response.json()["code"]) == (404, code), path
        assert served.get("/changes?client=%00", headers=admin).json() == {"changes": []}
        assert "evenkeel_store_up 1.0" in served.get("/metrics").text


def test_of_those_who_add_one_client_at_once_one_does(database: Database) -> None:
    results: list[type[BaseException] | None] = []

    def slow_clock() -> float:
        sleep(0.1)  # within the transaction, so that the others' begin meanwhile
        return 0.0

    def add() -> None:
        policies = PolicyStore(database, clock=slow_clock)
        try:
            policies.add("shop", ClientPolicy(), who="ann")
        except BaseException as error:
            results.append(type(error))
        else:
            results.append(None)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, results)) == sorted(map(str, [None, *[ClientExists] * 3]))
    assert len(PolicyStore(database).client("shop").keys) == 1


def test_labels_are_kept_the_last_one_wins_and_replay_finds_them(database: Database) -> None:
    add_at_the_beginning(database, "shop", "other")
    store = PredictionStore(database, clock=count(1000).__next__)
    keep(store, [prediction(1), prediction(2), prediction(3, "other")])
    keep(store, [prediction(1)])
    ids = [prediction(number).id for number in (1, 2, 3, 4)]
    assert set(store.find(ids, "shop")) == set(ids[:2])
    assert set(store.find(ids, None)) == set(ids[:3])
    assert store.label({ids[0]: 3, ids[2]: 1, ids[3]: 1}) == {ids[0], ids[2]}  # the last is not there
    assert store.label({ids[3]: 1}) == store.label({}) == set()
    store.label({ids[0]: 4})
    (found,) = store.labelled("shop", model="m" * 16, target="", limit=10)
    assert (found.label, found.candidates) == (4, bytes(10))
    assert store.label_count("nobody", "m" * 16) is store.label_count("shop", "n" * 16) is None
    assert store.label_counts("n" * 16) == {}
    assert store.labelled("shop", model="m" * 16, target="another", limit=10) == []
    counts = store.label_counts()
    assert {name: each.labels for name, each in counts.items()} == {"shop": 1, "other": 1}
    before = counts["shop"].newest
    store.label({ids[0]: 3})
    assert store.label_counts()["shop"].newest > before


def test_of_predictions_written_together_none_is_left_out(database: Database) -> None:
    store = PredictionStore(database)
    written = [prediction(number, "") for number in range(1543)]  # 3 * 512 + 4 + 2 + 1
    keep(store, written)
    assert store.find([prediction(number).id for number in range(2000)], "").keys() == {each.id for each in written}


def test_a_removed_client_leaves_no_prediction_or_label(database: Database, policies: PolicyStore) -> None:
    store = PredictionStore(database)
    policies.add("shop", ClientPolicy(), who="ann")
    keep(store, [prediction(1, at=2000.0)], made_at=1000)
    assert store.label({prediction(1).id: 1})
    policies.remove("shop", who="ann")
    assert store.find([prediction(1).id], None) == {}
    assert store.labelled("shop", model="m" * 16, target="", limit=1) == []


def test_what_waits_of_a_removed_client_is_not_written_and_whoever_has_its_name_next_gets_none_of_it(
    database: Database,
) -> None:
    store, now = PredictionStore(database), [10.0]
    policies = PolicyStore(database, clock=lambda: now[0])
    policies.add("shop", ClientPolicy(), who="ann")
    policies.add("other", ClientPolicy(), who="ann")
    waiting = [prediction(1), prediction(2, "other"), prediction(3, "")]
    policies.remove("shop", who="ann")
    ids = [prediction(number).id for number in range(6)]
    assert keep(store, waiting[:1], made_at=10.0) == 0
    assert store.find(ids, None) == {}
    now[0] = 12.0
    policies.add("shop", ClientPolicy(), who="ann")
    assert keep(store, waiting, made_at=10.0) == 2
    assert keep(store, [prediction(4), prediction(5, "never was")], made_at=12.0) == 1
    assert store.find(ids, None).keys() == {ids[2], ids[3], ids[4]}
    assert store.find(ids, "shop").keys() == {ids[4]}


@pytest.mark.parametrize("ahead", [-3600.0, 3600.0])
def test_predictions_are_kept_whatever_the_clock_said_where_their_client_was_made(
    ahead: float, database: Database
) -> None:
    store = PredictionStore(database)
    PolicyStore(database, clock=lambda: time() + ahead).add("shop", ClientPolicy(), who="ann")
    snapshot = PolicyStore(database).snapshot()
    assert snapshot is not None
    assert store.write([*snapshot.policies], [prediction(1, at=time())]) == 1
    assert store.find([prediction(1).id], "shop").keys() == {prediction(1).id}


@pytest.mark.parametrize("removed_first", [True, False])
def test_a_client_that_is_removed_while_its_predictions_are_written_leaves_none(
    removed_first: bool, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, policies, under_way = PredictionStore(database), PolicyStore(database, clock=lambda: 0.0), threading.Event()
    policies.add("shop", ClientPolicy(), who="ann")

    def slow(work: Callable[..., None]) -> Callable[..., None]:
        def slowed(*given: object, **named: object) -> None:
            under_way.set()
            sleep(0.5)  # the other comes now, and waits
            work(*given, **named)

        return slowed

    if removed_first:
        monkeypatch.setattr(policies, "_note", slow(policies._note))
    else:
        monkeypatch.setattr(prediction_store, "_insert_rows", slow(prediction_store._insert_rows))
    works: list[Callable[[], object]] = [
        lambda: keep(store, [prediction(1)]),
        lambda: policies.remove("shop", who="ann"),
    ]
    first, second = reversed(works) if removed_first else works
    thread = threading.Thread(target=first)
    thread.start()
    assert under_way.wait(10)
    second()
    thread.join()
    assert store.find([prediction(1).id], None) == {}


def test_old_predictions_are_forgotten_with_their_labels(database: Database) -> None:
    add_at_the_beginning(database, "shop")
    store = PredictionStore(database, clock=lambda: 100.0)
    keep(store, [prediction(number, at=number * 10.0) for number in range(10)])
    store.label({prediction(0).id: 1, prediction(9).id: 1})
    store.prune(max_age=75, max_unlabelled=100, max_labelled=100)
    kept = store.find([prediction(number).id for number in range(10)], None)
    assert sorted(kept) == [prediction(number).id for number in range(3, 10)]
    assert store.label_counts()["shop"].labels == 1


def test_one_clients_predictions_cost_no_other_client_what_it_has(database: Database) -> None:
    add_at_the_beginning(database, "shop", "busy")
    store = PredictionStore(database, clock=lambda: 100.0)
    keep(store, [prediction(number, at=number) for number in range(5)])
    keep(store, [prediction(number, "busy", at=number) for number in range(5, 10)])
    keep(store, [prediction(number, "", at=number) for number in range(10, 90)])
    store.label({prediction(number).id: 1 for number in (0, 1, 10, 11, 12)})
    ids = [prediction(number).id for number in range(90)]
    for _ in range(2):  # the second time there is nothing to do
        store.prune(max_age=200, max_unlabelled=10, max_labelled=2)
        assert [int(each, 16) for each in sorted(store.find(ids, "shop"))] == [0, 1, 2, 3, 4]
        assert [int(each, 16) for each in sorted(store.find(ids, "busy"))] == [7, 8, 9]
        assert [int(each, 16) for each in sorted(store.find(ids, ""))] == [11, 12, 87, 88, 89]
    assert {name: each.labels for name, each in store.label_counts().items()} == {"shop": 2, "": 2}


def test_a_model_is_remembered_by_its_version(database: Database) -> None:
    store, manifest = PredictionStore(database), make_manifest()
    for _ in range(2):
        store.remember_model(manifest, manifest.version)
    back = store.model(manifest.version)
    assert back is not None
    assert (back.classes, back.alpha) == (manifest.classes, manifest.alpha)
    assert store.model("unknown") is None


def test_a_database_that_goes_away_is_an_error_in_time_and_comes_back(tmp_path: Path) -> None:
    said: list[bool] = []
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        with postgresql.running(Path(folder) / "cluster", free_port()) as server:
            database = Database(server.url(), said.append)
            database.migrate()
            policies = PolicyStore(database)
            policies.add("shop", ClientPolicy(), who="ann")
            server.stop()
            with pytest.raises(StoreUnavailable, match=str(server.port)) as caught:
                policies.clients()
            assert caught.value.body()["message"] == "The database cannot be used."
            assert said[-1] is False
            server.start()
            assert [client.name for client in policies.clients()] == ["shop"]
            assert said[-1] is True
            database.close()


@pytest.mark.alone
def test_a_database_that_is_frozen_is_an_error_in_time_and_a_new_connection_is_made(
    server: PostgreSql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.database._DEADLINE", 1.0)
    said: list[bool] = []
    database = Database(server.create(f"test_{next(numbers)}"), said.append)
    database.migrate()
    policies = PolicyStore(database)
    policies.add("shop", ClientPolicy(), who="ann")
    with server.frozen():
        for attempt in ("a pooled connection, which is pinged", "a new one, as that was thrown away"):
            begin = monotonic()
            with pytest.raises(StoreUnavailable, match=r"in time|timeout expired"):
                policies.snapshot()
            assert monotonic() - begin < 4, attempt  # psycopg waits two seconds at least for a connection
            assert said[-1] is False
    assert [client.name for client in policies.clients()] == ["shop"]
    policies.set("shop", {"alpha": 1.0}, who="ann")
    assert said[-1] is True
    database.close()


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["reading", "writing"])
def test_a_database_that_freezes_within_a_transaction_is_an_error_in_time(
    kind: str, server: PostgreSql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.database._DEADLINE", 1.0)
    database = Database(server.create(f"test_{next(numbers)}"))
    database.migrate()
    begin = monotonic()
    with (
        pytest.raises(StoreUnavailable, match="did not answer in time"),
        ExitStack() as frozen,
        getattr(database, kind)() as connection,
    ):
        connection.exec_driver_sql("SELECT 1")
        frozen.enter_context(server.frozen())
        connection.exec_driver_sql("SELECT 2")
    assert monotonic() - begin < 3
    with database.reading() as connection:
        assert connection.exec_driver_sql("SELECT 3").scalar_one() == 3
    database.close()


@pytest.mark.alone
def test_a_commit_that_is_not_acknowledged_in_time_is_no_success(
    server: PostgreSql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.database._DEADLINE", 1.0)
    database = Database(server.create(f"test_{next(numbers)}"))
    database.migrate()
    with (
        pytest.raises(StoreUnavailable, match="did not answer in time"),
        ExitStack() as frozen,
        database.writing() as connection,
    ):
        connection.exec_driver_sql("UPDATE revision SET number = 7")
        frozen.enter_context(server.frozen())
    database.close()


@contextmanager
def nobody_else_migrates(url: str) -> Iterator[None]:
    engine = connect(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
        yield
    engine.dispose()


@pytest.mark.alone
def test_a_migration_may_take_longer_than_a_transaction_and_not_for_ever(
    server: PostgreSql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.database._DEADLINE", 0.5)
    url = server.create(f"test_{next(numbers)}")
    database = Database(url)
    with nobody_else_migrates(url), monkeypatch.context() as patch:
        patch.setattr("service.database._MIGRATION_DEADLINE", 1.0)
        with pytest.raises(StoreUnavailable, match="did not answer in time"):
            database.migrate()
    with ExitStack() as others:
        others.enter_context(nobody_else_migrates(url))
        release = threading.Timer(1.0, others.close)
        release.start()
        database.migrate()
        release.join()
    assert PolicyStore(database).clients() == []
    database.close()


def test_a_folder_that_cannot_be_written_is_an_error_when_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    database = Database(f"sqlite:///{tmp_path / 'file' / 'evenkeel.sqlite'}")
    with pytest.raises(StoreUnavailable, match="unable to open"):
        database.migrate()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "a database's address looks like"),
        ("mysql://localhost/x", "must be sqlite or postgresql, got 'mysql'"),
        ("sqlite://", "SQLite needs a file"),
        ("sqlite+aiosqlite:////tmp/x.sqlite", "Python's own driver alone"),
        ("sqlite://u:swordfish@host/x.sqlite", "a file and nothing else"),
        ("sqlite:////tmp/x.sqlite?mode=ro", "a file and nothing else"),
        ("postgresql://u:swordfish@host:port/x", "a database's address looks like"),
        ("sqlite:///a?swordfish.sqlite", "a file and nothing else"),
        ("postgresql://u:p@swordfish@host/x", "written %40"),
        ("postgresql://u:pa@swordfish/x@h:5432/d", "written %40"),
        ("postgresql://u:p@ss?swordfish@h/d", "written %40"),
        ("postgresql://swordfish/er:p@h/d", "written %40"),
        ("postgresql://u:p@swordfish:x@host/x", "a database's address looks like"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        check_url(url)
    assert "swordfish" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://h/d",
        "postgresql+psycopg://u%40x:p%40:/?@[::1]:5432/d?sslmode=require",
        "postgresql:///d?host=/run/postgresql&host=other",
        "sqlite:////var/lib/a b@c.sqlite",
    ],
)
def test_an_address_that_can_be_used_stays_as_it_is(url: str) -> None:
    assert check_url(url) == url


def test_the_tables_are_made_wherever_the_package_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "100% of %(all)s"
    shutil.copytree(Path(database_module.__file__).parent / "migrations", folder / "migrations")
    monkeypatch.setattr(database_module, "__file__", str(folder / "database.py"))
    database = Database(f"sqlite:///{tmp_path / 'evenkeel.sqlite'}")
    database.migrate()
    assert PolicyStore(database).clients() == []
    database.close()


def test_a_file_that_is_removed_is_noticed_and_made_again_and_nothing_is_acknowledged_meanwhile(tmp_path: Path) -> None:
    path, said = tmp_path / "evenkeel.sqlite", list[bool]()
    database = Database(f"sqlite:///{path}", said.append)
    database.migrate()
    store, policies = PredictionStore(database), PolicyStore(database)
    keep(store, [prediction(1, "")])
    for file in tmp_path.glob("evenkeel.sqlite*"):
        file.unlink()
    for attempt in (lambda: store.label({prediction(1).id: 1}), policies.snapshot, lambda: store.find([], None)):
        with pytest.raises(StoreUnavailable, match="unable to open"):
            attempt()
        assert said[-1] is False
    assert not path.exists()
    assert database.losses
    database.migrate()
    keep(store, [prediction(2, "")])
    assert list(store.find([prediction(1).id, prediction(2).id], None)) == [prediction(2).id]
    assert said[-1] is True
    database.close()


def test_what_is_committed_to_a_file_that_is_removed_meanwhile_is_not_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "evenkeel.sqlite"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    with pytest.raises(StoreUnavailable, match="removed or replaced"), database.writing() as connection:
        connection.exec_driver_sql("UPDATE revision SET number = 7")
        path.unlink()
    assert database.losses
    database.close()


def test_a_file_that_is_replaced_is_read_from_then_on(tmp_path: Path) -> None:
    for name in ("one", "other"):
        database = Database(f"sqlite:///{tmp_path / name}")
        database.migrate()
        PolicyStore(database).add(name, ClientPolicy(), who="ann")
        database.close()
    database = Database(f"sqlite:///{tmp_path / 'one'}")
    policies = PolicyStore(database)
    before = policies.snapshot()
    assert before is not None
    (tmp_path / "other").replace(tmp_path / "one")
    after = policies.snapshot(before.revision)
    assert after is not None
    assert [owner.name for owner in after.policies] == ["other"]
    assert (after.revision[0], database.losses) == (before.revision[0], 1)
    database.close()


def drop_all_tables(url: str) -> None:
    engine = connect(url)
    with engine.begin() as connection:
        metadata.drop_all(connection)
        connection.exec_driver_sql("DROP TABLE alembic_version")
    engine.dispose()


def test_tables_that_are_dropped_are_noticed_and_made_again(url: str, database: Database) -> None:
    drop_all_tables(url)
    policies = PolicyStore(database)
    with pytest.raises(StoreUnavailable):
        policies.snapshot()
    assert database.losses == 1
    database.migrate()
    assert policies.clients() == []


def test_a_running_service_makes_dropped_tables_again_and_says_its_model_there(url: str) -> None:
    manifest = make_manifest()
    keeping = Keeping(Settings(database_url=url), manifest, Metrics())
    keeping.refresh()
    keeping.policies.add("shop", ClientPolicy(), who="ann")
    keeping.refresh()
    drop_all_tables(url)
    with pytest.raises(StoreUnavailable):
        keeping.refresh()
    keeping.refresh()
    assert keeping.callers.of_name("shop") is not None, "the last known policies go on"
    assert keeping.predictions.model(manifest.version) is not None
    keeping.policies.add("market", ClientPolicy(), who="ann")
    keeping.refresh()
    assert keeping.callers.of_name("shop") is None
    assert keeping.callers.of_name("market") is not None
    keeping.database.close()


def test_it_is_there_only_if_reading_and_writing_both_went_well(url: str, database: Database) -> None:
    said: list[bool] = []
    other = Database(url, said.append)
    with pytest.raises(StoreUnavailable), other.writing() as connection:
        connection.exec_driver_sql("INSERT INTO keys (hash) VALUES ('x')")
    policies = PolicyStore(other)
    policies.clients()
    assert said == [False, False]
    policies.add("shop", ClientPolicy(), who="ann")
    policies.clients()
    assert said == [False, False, True, True]
    other.close()


def test_what_sqlite_commits_is_on_the_disk_before_it_is_acknowledged(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'evenkeel.sqlite'}")
    database.migrate()
    with database.reading() as reading, database.writing() as writing:
        found = [each.exec_driver_sql("PRAGMA synchronous").scalar_one() for each in (reading, writing)]
    assert found == [FULL, FULL]
    database.close()


def test_only_its_owner_may_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "state" / "evenkeel.sqlite"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    PolicyStore(database).add("shop", ClientPolicy(), who="ann")
    assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}
    database.close()
