"""The command `ablations du`: what takes space on disk."""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ablations.engine.cli import options
from ablations.engine.cli.studies import disk_usage
from ablations.engine.cli.studies.disk_usage import FINISHED, ORPHANED, UNFINISHED, CheckpointUsage, Usage, format_size
from ablations.engine.cli.studies.documents import print_document
from ablations.engine.cli.studies.reader import add_reading_options, read, tracking_uri
from ablations.engine.environment import paths, validation

HELP = "show what takes space: checkpoints by study, data, artifacts, logs, Ray's temporary folders"
SCHEMA = "ablations-disk-usage/1"
KINDS = {
    "data": "decoded and downloaded data sets",
    "artifacts": "reports and other artifacts of MLflow",
    "database": "database of MLflow",
    "mlflow": "files of MLflow's server",
    "logs": "logs of the service and of crashes",
    "journals": "records that wait for MLflow, and locks",
    "scratch": "scratch folders of Ray Tune",
    "ray": "temporary folders of Ray",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = options.fill("Show what takes space in the storage of checkpoints and in RESNET_ABLATIONS_HOME.")
    add_storage_option(parser)
    add_reading_options(parser)


def add_storage_option(parser: argparse.ArgumentParser) -> None:
    """Add `--storage`, as studies have it."""
    parser.add_argument(
        "--storage",
        default=paths.default_storage(),
        metavar="URI",
        help="folder or address of checkpoints (default: as for a study)",
    )


def chosen_storage(given: argparse.Namespace) -> str:
    """Return the storage of checkpoints; raise ConfigError for a wrong address."""
    validation.check_address("--storage", given.storage)
    return paths.storage_address("--storage", given.storage)


def run(given: argparse.Namespace) -> int:
    """Print the sizes; return the exit code."""
    storage = chosen_storage(given)
    found = read(tracking_uri(given), lambda reader: disk_usage.checkpoints(reader, storage))
    state = disk_usage.local_state()
    if given.json:
        print_document(_document(storage, found, state))
    else:
        _print(storage, found, state)
    return 0


def by_study(found: Sequence[CheckpointUsage]) -> dict[str, dict[str, tuple[int, int]]]:
    """Return the number and the bytes of checkpoint folders by study and state, the largest study first."""
    sums: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    for each in found:
        count, size = sums[each.study].get(each.state, (0, 0))
        sums[each.study][each.state] = count + 1, size + each.bytes
    return dict(sorted(sums.items(), key=lambda item: -_bytes(item[1])))


def _bytes(of_study: dict[str, tuple[int, int]]) -> int:
    return sum(size for _, size in of_study.values())


def _document(storage: str, found: Sequence[CheckpointUsage], state: Sequence[Usage]) -> dict[str, Any]:
    from ablations.engine.environment.storage import without_credentials  # imports pyarrow

    checkpoints = [
        {"study": study or None, "state": name, "folders": count, "bytes": size}
        for study, of_study in by_study(found).items()
        for name, (count, size) in of_study.items()
    ]
    return {
        "schema": SCHEMA,
        "home": str(paths.home()),
        "storage": without_credentials(storage),
        "checkpoints": checkpoints,
        "other": [{"kind": each.kind, "name": each.name, "path": each.path, "bytes": each.bytes} for each in state],
        "bytes": sum(each.bytes for each in found) + sum(each.bytes for each in state),
    }


def _print(storage: str, found: Sequence[CheckpointUsage], state: Sequence[Usage]) -> None:
    from rich.table import Table
    from rich.text import Text

    from ablations.engine.analysis.number_format import MISSING
    from ablations.engine.environment.console import make_console, print_line
    from ablations.engine.environment.storage import without_credentials

    console = make_console()
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("checkpoints of", overflow="fold")
    for name in ("size", "with a result", "without", "unknown to MLflow"):
        table.add_column(name, justify="right")
    for study, sums in by_study(found).items():
        parts = [
            f"{format_size(sums[name][1])} ({sums[name][0]})" if name in sums else MISSING
            for name in (FINISHED, UNFINISHED, ORPHANED)
        ]
        table.add_row(Text(study or "no known study"), format_size(_bytes(sums)), *parts)
    print_line(
        console, f"Storage {without_credentials(storage)}, {format_size(sum(each.bytes for each in found))}; (n): run folders"
    )
    if found:
        console.print(table)
    console.print()
    print_line(console, f"Home {paths.home()}, {format_size(sum(each.bytes for each in state))}")
    rest = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("kind", "name"):
        rest.add_column(name, overflow="fold")
    rest.add_column("size", justify="right", no_wrap=True)
    for each in sorted(state, key=lambda each: (list(KINDS).index(each.kind), -each.bytes)):
        rest.add_row(KINDS[each.kind], Text(each.name), format_size(each.bytes))
    console.print(rest)
    console.print(Text("ablations clean --dry-run says what can be removed.", "dim"))
