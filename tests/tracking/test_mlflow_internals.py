"""Private parts of MLflow stand in one module, are checked before use, and each has a fallback."""

import ast
import logging
import re
import shutil
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlflow.environment_variables
import mlflow.utils.mlflow_tags
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from ablations.engine.cluster import mlflow_server
from ablations.engine.tracking import mlflow_internals, run_queries
from ablations.engine.tracking.connection import connect
from ablations.engine.tracking.mlflow_internals import Part
from resnet_core import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning")  # of MLflow's migrations

ENGINE = Path(mlflow_internals.__file__).parents[2]
PUBLIC = {
    *("mlflow", "mlflow.entities", "mlflow.exceptions", "mlflow.models", "mlflow.pytorch"),
    "mlflow.utils.mlflow_tags",  # the names of tags that MLflow documents
}
"""Modules of MLflow that are documented."""
PARTS = {name: part for name, part in vars(mlflow_internals).items() if isinstance(part, Part)}
OVER_HTTP = ("HOST_CREDENTIALS", "HTTP_REQUEST", "VERIFY_RESPONSE")
PASSWORDS = ("USER_STORE", "USER_STORE_INIT", "USER_STORE_UPDATE", "USER_TABLE")


@pytest.fixture(autouse=True)
def nothing_said_yet() -> Iterator[None]:
    mlflow_internals._warn.cache_clear()
    yield
    mlflow_internals._warn.cache_clear()
    mlflow_internals._missing_words.cache_clear()


def log(client: MlflowClient, name: str) -> list[str]:
    experiment = client.create_experiment(name)
    runs = [client.create_run(experiment).info.run_id for _ in range(2)]
    for number, run in enumerate(runs):
        metrics = [Metric("error", 10.0 * number + step, 0, step) for step in (1, 2, 3)]
        client.log_batch(run, metrics=[*metrics, Metric("loss", float("nan"), 0, 1)])
    return runs


def history(client: MlflowClient, runs: list[str]) -> set[tuple[object, ...]]:
    return set(run_queries.metric_histories(client, runs, ["error", "loss"]).itertuples(index=False, name=None))


def logged(runs: list[str]) -> set[tuple[object, ...]]:
    return {(run, "error", step, 10.0 * number + step) for number, run in enumerate(runs) for step in (1, 2, 3)}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == mlflow_internals.logger.name]


def change(part: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a part look as in another version of MLflow: missing, or with other parameters."""
    known = PARTS[part]
    other = replace(known, name=f"{known.name}_of_another_version") if how == "gone" else replace(known, parameters=("new",))
    monkeypatch.setattr(mlflow_internals, part, other)


@pytest.fixture
def database(home: Path) -> MlflowClient:
    return connect(f"sqlite:///{home}/mlflow.db")


def test_every_part_is_removed_by_a_test() -> None:
    assert {*OVER_HTTP, *PASSWORDS, "DATABASE_LOGGER", "REGISTER_ARTIFACT_REPOSITORY"} == PARTS.keys()


@pytest.mark.parametrize("part", sorted(PARTS))
def test_the_installed_mlflow_has_every_part(part: str) -> None:
    assert PARTS[part].load()


def test_histories_come_from_a_database_at_once(
    database: MlflowClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs = log(database, "at once")
    monkeypatch.setattr(database, "get_metric_history", lambda *_: pytest.fail("read run by run"))
    assert history(database, runs) == logged(runs)
    assert not warnings(caplog)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("HISTORY_TABLE", "values"),
        *(("HISTORY_COLUMNS", ("run_uuid", "key", "step", "value", missing)) for missing in ("nan", "x")),
    ],
)
def test_a_database_with_other_tables_is_read_run_by_run(
    database: MlflowClient, name: str, other: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs = log(database, "run by run")
    monkeypatch.setattr(mlflow_internals, name, other)
    assert history(database, runs) == logged(runs)
    assert history(database, runs) == logged(runs)
    (line,) = warnings(caplog)
    assert "run by run" in line


@pytest.mark.slow
@pytest.mark.parametrize("how", ["gone", pytest.param("other parameters", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("part", [*OVER_HTTP, "route", "words"])
def test_a_server_is_read_run_by_run_where_a_part_is_another(
    server: int, part: str, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(f"http://127.0.0.1:{server}")
    runs = log(client, f"{part} {how}")
    assert history(client, runs) == logged(runs)
    assert not warnings(caplog)
    if part == "route":
        monkeypatch.setattr(mlflow_internals, "HISTORY_ROUTE", "/ajax-api/2.0/mlflow/of-another-version")
    elif part == "words":  # a route that answers something else
        monkeypatch.setattr(mlflow_internals, "HISTORY_ROUTE", "/version")
    else:
        change(part, how, monkeypatch)
    assert history(client, runs) == logged(runs)
    (line,) = warnings(caplog)
    assert "run by run" in line


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of a database that holds the server's administrator, whose password is `old`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RESNET_ABLATIONS_HOME", str(tmp_path))
    monkeypatch.delenv(mlflow_server.PASSWORD_VARIABLE, raising=False)
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(tmp_path / "mlflow" / "server.ini"))
    mlflow_server._environment()
    store = mlflow_internals.USER_STORE.load()()
    uri = f"sqlite:///{tmp_path}/mlflow/users.db"
    store.init_db(uri)
    store.create_user(mlflow_server.ADMIN_USER, "the old password", is_admin=True)
    (tmp_path / "mlflow" / "password").write_text("the old password")
    return uri


def has_password(users: str, password: str) -> bool:
    store = mlflow_internals.USER_STORE.load()()
    store.init_db(users)
    return bool(store.authenticate_user(mlflow_server.ADMIN_USER, password))


def test_a_password_is_changed(users: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(mlflow_server.PASSWORD_VARIABLE, "another password")
    assert mlflow_server._environment()[mlflow_server.PASSWORD_VARIABLE] == "another password"
    assert has_password(users, "another password")


def test_a_database_without_users_needs_no_table_of_users(users: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mlflow_internals.has_users(users)
    change("USER_TABLE", "gone", monkeypatch)
    assert not mlflow_internals.has_users(f"sqlite:///{tmp_path}/new.db")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "how"),
    [(part, how) for part in PASSWORDS for how in ("gone", "other parameters")][:-1],  # a table has no parameters
)
def test_a_password_that_cannot_be_changed_stays(
    users: str, part: str, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv(mlflow_server.PASSWORD_VARIABLE, "another password")
    with monkeypatch.context() as changed:
        change(part, how, changed)
        assert mlflow_server._environment()[mlflow_server.PASSWORD_VARIABLE] == "the old password"
        (line,) = warnings(caplog)
        assert "the administrator's password cannot be changed" in line
        (tmp_path / "mlflow" / "password").unlink()
        with pytest.raises(ConfigError, match="password of admin cannot be changed"):
            mlflow_server._environment()
    assert has_password(users, "the old password")


@pytest.mark.parametrize("table", range(len(mlflow_internals.ARTIFACT_COLUMNS)))
@pytest.mark.parametrize("how", ["other table", "other column"])
def test_addresses_in_a_database_with_other_tables_stay(
    home: Path, empty: Path, table: int, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(empty, database := home / "mlflow.db")
    client = connect(f"sqlite:///{database}")
    client.create_experiment("study", "file:///gone/artifacts/study")
    known = list(mlflow_internals.ARTIFACT_COLUMNS)
    known[table] = ("values", known[table][1]) if how == "other table" else (known[table][0], "address")
    monkeypatch.setattr(mlflow_internals, "ARTIFACT_COLUMNS", tuple(known))
    for _ in range(2):
        connect(f"sqlite:///{database}")
    (line,) = warnings(caplog)
    assert f"no column {'.'.join(known[table])}" in line
    assert "the home folder cannot be moved" in line
    assert client.get_experiment_by_name("study").artifact_location == "file:///gone/artifacts/study"


def test_a_new_database_has_no_addresses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert mlflow_internals.artifact_addresses(tmp_path / "new.db") == []
    assert not warnings(caplog)


def test_tracebacks_of_a_database_are_logged_where_its_logger_is_another(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(empty, tmp_path / "mlflow.db")
    change("DATABASE_LOGGER", "gone", monkeypatch)
    connect(f"sqlite:///{tmp_path}/mlflow.db")
    (line,) = warnings(caplog)
    assert "tracebacks" in line


def test_artifacts_of_the_service_stay_with_it_without_the_registry(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RESNET_ABLATIONS_HOME", str(tmp_path))
    shutil.copy(empty, tmp_path / "mlflow.db")
    change("REGISTER_ARTIFACT_REPOSITORY", "gone", monkeypatch)
    connect(f"sqlite:///{tmp_path}/mlflow.db")
    (line,) = warnings(caplog)
    assert "available only while it runs" in line


@pytest.mark.parametrize("word", mlflow_internals.RUNS_PAGE_WORDS)
def test_web_pages_without_a_word_show_no_charts_of_cells(
    word: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    view = {"search_filter": "", "columns": (), "group_by_tag": "cell", "title": "Cells", "lines": ["e"], "bars": ["s"]}
    assert mlflow_internals.shared_view_tag("key", **view)  # type: ignore[arg-type]
    others = tuple(f"{known} of another version" if known == word else known for known in mlflow_internals.RUNS_PAGE_WORDS)
    monkeypatch.setattr(mlflow_internals, "RUNS_PAGE_WORDS", others)
    assert mlflow_internals.shared_view_tag("key", **view) is None  # type: ignore[arg-type]
    (line,) = warnings(caplog)
    assert f"{word} of another version" in line


def test_web_pages_know_the_kind_of_experiment_and_the_routes() -> None:
    words = [part for pair in mlflow_internals.EXPERIMENT_KIND.items() for part in pair]
    words[0] = words[0].removeprefix("mlflow.")
    assert mlflow_internals._missing_words((*words, "/experiments/:experimentId/runs/:runUuid")) == []


def test_a_function_is_known_by_its_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("of_another_version")
    module.read = lambda run, metric: None  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, module.__name__, module)
    assert Part(module.__name__, "read", ("run", "metric")).load()
    for part in (Part(module.__name__, "read", ("key",)), Part(module.__name__, "write"), Part("no_such_module", "read")):
        with pytest.raises(mlflow_internals.MissingPart):
            part.load()


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in PUBLIC else node.module


def has_sql(text: str) -> bool:
    """Return whether a text has a statement on tables of MLflow, or names one of them as a whole."""
    tables = {mlflow_internals.HISTORY_TABLE, *(table for table, _ in mlflow_internals.ARTIFACT_COLUMNS), "users"}
    statement = re.search(r"\b(SELECT|UPDATE|INSERT INTO|DELETE FROM|PRAGMA)\b", text)
    return bool(statement) or text in tables - {"experiments", "metrics", "runs"}  # words of MLflow's REST API too


@pytest.mark.parametrize("text", ["UPDATE runs SET artifact_uri = ?", "SELECT DISTINCT name FROM experiments", "users"])
def test_a_use_of_a_table_is_recognized(text: str) -> None:
    assert has_sql(text)


@pytest.mark.slow
def test_no_other_module_uses_private_parts_of_mlflow() -> None:
    private = ("ajax-api", "sharedViewState", "viewStateShareKey", "experimentKind", "/artifacts/{")
    for path in ENGINE.rglob("*.py"):
        if path.parent.name == "mlflow_internals":
            continue
        tree = ast.parse(path.read_text())
        found = {name for name in imported(tree) if name.partition(".")[0] == "mlflow"}
        assert found <= PUBLIC, f"{path.name} imports {found - PUBLIC}"
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_tracking_client"):
                pytest.fail(f"{path.name}: {ast.unparse(node)}")
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not [word for word in private if word in node.value], f"{path.name}: {node.value}"
                assert not node.value.startswith("mlflow.store"), f"{path.name}: {node.value}"
                assert not has_sql(node.value), f"{path.name}: {node.value}"


@pytest.mark.slow
def test_every_variable_and_tag_of_mlflow_is_one_that_it_documents() -> None:
    variables = {name for name in vars(mlflow.environment_variables) if name.startswith("MLFLOW_")}
    tags = {value for value in vars(mlflow.utils.mlflow_tags).values() if isinstance(value, str)}
    own = {"MLFLOW_AUTH_ADMIN_PASSWORD"} | variables
    for path in ENGINE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
                if node.value.startswith("MLFLOW_"):
                    assert node.value.split("=")[0] in own, f"{path.name}: {node.value}"
                if node.value.startswith("mlflow.") and node.value != "mlflow.db" and path.parent.name != "mlflow_internals":
                    assert node.value in tags, f"{path.name}: {node.value}"


def test_nothing_is_said_of_an_mlflow_as_it_is_known(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        mlflow_internals.quiet_database_errors()
    assert not warnings(caplog)
