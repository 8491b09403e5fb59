"""Imports go down only, and each library stays where it belongs."""

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
LAYERS = [
    "resnet_core",
    *(
        f"ablations.engine.{name}"
        for name in (
            *(
                "paths",
                "private_files",
                "relocation",
                "interrupts",
                "storage",
                "checkpoints",
                "factors",
                "comparability",
                "definition",
                "study",
                "search_request",
                "options",
                "mlflow_server",
                "provenance",
            ),
            *("evidence", "space", "halving", "population", "samplers", "proposals", "optimiser", "search"),
            *("findings", "inference", "contrasts", "answers", "tables"),
            *("search_trials", "optuna_export", "importance", "ranking", "search_analysis", "analysis"),
            *("reference", "estimate", "calibration"),
            *("mlflow_errors", "ledger", "trials", "results", "journal", "heartbeat", "run_delivery", "delivery", "tracking"),
            *(
                f"figures.{name}"
                for name in ("looks", "drawing", "curves", "charts", "forest", "front", "search", "search_fields", "captions")
            ),
            *("figures", "paper", "report"),
            *(
                "terminal",
                "relay",
                "models",
                "overview",
                "reporting",
                "watchdog",
                "capacity",
                "deaths",
                "liveness",
                "worker_group",
                "group_failures",
                "trial",
                "ddp_group",
                "trainable",
                "tune_loop",
                "tune_callbacks",
                "lifeline",
                "shares",
                "scratch_folders",
                "ray_address",
                "scheduler",
            ),
            "health",
            *(
                f"health.{name}"
                for name in (
                    *("check", "nodes", "node_facts", "exposure", "gpus", "local_data", "shared_storage", "preflight"),
                    *("tracking_server", "all_reduce", "request", "checkup"),
                )
            ),
            *(
                "searches",
                "trial_source",
                "plan_view",
                "preview",
                "execution",
                "searching",
                "agreement",
                "replay",
                "service",
                "doctor",
                "last_resort",
                "cli",
                "__main__",
            ),
        )
    ),
]
"""A module may import those before it."""

HOME = {
    "ray": {
        f"ablations.engine.{name}"
        for name in (
            *(
                "deaths",
                "liveness",
                "worker_group",
                "group_failures",
                "ddp_group",
                "trainable",
                "lifeline",
                "tune_loop",
                "tune_callbacks",
                "capacity",
                "shares",
                "ray_address",
                "scheduler",
            ),
            *(f"health.{name}" for name in ("nodes", "exposure", "all_reduce", "checkup")),
        )
    },
    "mlflow": {
        f"ablations.engine.{name}"
        for name in (
            *(
                "mlflow_errors",
                "tracking",
                "delivery",
                "run_delivery",
                "heartbeat",
                "ledger",
                "trials",
                "results",
                "models",
                "overview",
            ),
            *("reporting", "execution", "searching", "replay", "mlflow_server", "health.tracking_server"),
        )
    },
    "matplotlib": {
        "ablations.engine.figures",
        *(
            f"ablations.engine.figures.{name}"
            for name in ("drawing", "curves", "charts", "forest", "front", "search", "search_fields")
        ),
    },
    "optuna": {f"ablations.engine.{name}" for name in ("space", "samplers", "proposals", "importance", "optuna_export")},
    "statsmodels": {"ablations.engine.inference"},
    "jinja2": {"ablations.engine.report"},
}
"""Which modules may import a library."""


SHIPPED = ("blocks", "degradation", "depth", "hyperparameters", "responses", "shortcuts", "warmup")
"""The studies that come with this project and keep to its style. Those that people add beside them need not."""


def modules() -> dict[str, Path]:
    files = [*PROJECT.glob("resnet_core/**/*.py"), *PROJECT.glob("ablations/**/*.py")]
    return {".".join(p.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"): p for p in files}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def layer(module: str) -> int | None:
    names = [name for name in LAYERS if module == name or module.startswith(f"{name}.")]
    return LAYERS.index(max(names, key=len)) if names else None


@pytest.mark.parametrize("module", sorted(m for m in modules() if m.startswith("ablations.engine.")))
def test_the_engine_imports_downwards_only(module: str) -> None:
    own = layer(module)
    assert own is not None, "name its place in LAYERS"
    above = {name for name in imports(modules()[module]) if (other := layer(name)) is not None and other > own}
    assert not above


@pytest.mark.parametrize("module", sorted(m for m in modules() if m.startswith("resnet_core")))
def test_the_core_knows_nothing_of_the_engine_or_its_libraries(module: str) -> None:
    roots = {name.partition(".")[0] for name in imports(modules()[module])}
    assert not roots & {"ray", "mlflow", "optuna", "ablations", "pandas", "rich"}


@pytest.mark.parametrize("library", sorted(HOME))
def test_a_library_is_imported_only_where_it_belongs(library: str) -> None:
    users = {module for module, path in modules().items() if any(n.partition(".")[0] == library for n in imports(path))}
    assert users <= HOME[library]


def test_a_study_imports_the_study_and_the_command_line_only() -> None:
    roots = {
        "typing",
        "typing.Any",
        "ablations.engine.cli",
        "ablations.engine.study",
        "ablations.engine.cli.main",
        "ablations.engine.study.Study",
    }
    for name in SHIPPED:
        assert imports(modules()[f"ablations.{name}"]) <= roots, name
