"""The command `ablations export`: a study's runs as files of other experiment trackers."""

import argparse
from pathlib import Path

from ablations.engine.cli import options
from ablations.engine.cluster import local_service
from ablations.engine.environment import paths, validation
from resnet_core.fields import ConfigError, counted

HELP = "write the runs of a study as TensorBoard event files, or as offline runs of Weights & Biases"
EXAMPLES = """examples:
  ablations export shortcuts --tensorboard events
  tensorboard --logdir events
  ablations export shortcuts --preset digits --wandb wandb-runs"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = options.fill(
        "Write the runs of a study, as MLflow has them, for another experiment tracker. MLflow is only read."
    )
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("study", metavar="NAME", help="study: a name, with all its data sets and settings, or NAME@PRESET")
    parser.add_argument("--tensorboard", metavar="FOLDER", help="new folder for event files, one subfolder for each run")
    parser.add_argument("--wandb", metavar="FOLDER", help="new folder for offline runs; needs the package wandb")
    parser.add_argument("--preset", metavar="NAME", help="only runs with this preset (default: all)")
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow server or database (default: MLFLOW_TRACKING_URI, otherwise the local service or a database)",
    )


def run(given: argparse.Namespace) -> int:
    """Export the runs; return 0. Raise ConfigError for a wrong request."""
    targets = {name: Path(folder).expanduser() for name in ("tensorboard", "wandb") if (folder := getattr(given, name))}
    if not targets:
        raise ConfigError("ablations export: names no format; accepted: --tensorboard FOLDER, --wandb FOLDER, or both")
    if len({folder.resolve() for folder in targets.values()}) < len(targets):
        raise ConfigError("--tensorboard, --wandb: name the same folder; accepted: two folders")
    local_service.select_ray_cluster()  # a running service says where its MLflow is
    tracking_uri = given.tracking_uri or paths.default_tracking_uri()
    validation.check_address("--tracking-uri", tracking_uri)
    from ablations.engine.cli.studies import catalog
    from ablations.engine.cli.studies.reader import Reader
    from ablations.engine.report import run_export
    from ablations.engine.tracking.connection import connect, is_new_database, mlflow_errors_as_config_errors
    from resnet_core.fields import reject

    if is_new_database(tracking_uri):
        raise reject("--tracking-uri", tracking_uri, "the database does not exist")
    if "wandb" in targets:
        run_export.check_wandb()
    client = connect(tracking_uri)
    with mlflow_errors_as_config_errors(tracking_uri):
        study, parents = given.study, None
        if catalog.MARK in study or catalog.RUN_ID.fullmatch(study):
            entries = catalog.find_studies(catalog.list_studies(Reader(tracking_uri, client)), study)
            study, parents = entries[0].name, {entry.run_id for entry in entries}
        runs = run_export.read_runs(client, study, given.preset, parents)
        for name, folder in targets.items():
            run_export.check_new_folder(f"--{name}", folder)
        for name, folder in targets.items():
            wrote = run_export.to_tensorboard(runs, folder) if name == "tensorboard" else run_export.to_wandb(runs, study, folder)
            then = f"tensorboard --logdir {folder}" if name == "tensorboard" else f"wandb sync {folder}/wandb/offline-run-*"
            print(f"{counted(len(runs), 'run')} with {counted(wrote, 'value')} are in {folder}; next: {then}")
    return 0
