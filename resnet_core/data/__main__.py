"""Commands `python -m resnet_core.data prepare` and `python -m resnet_core.data show`."""

import argparse
import os
import sys
import time
from pathlib import Path

import platformdirs

from resnet_core.command import Parser, run
from resnet_core.config import RunSpec
from resnet_core.fields import ConfigError, printable
from resnet_core.overrides import assignments, override
from resnet_core.presets import PRESETS, preset

EXAMPLES = """examples:
  python -m resnet_core.data prepare --preset cifar10 --set data.root=~/data --download
  python -m resnet_core.data prepare --preset imagenet --set data.root=/data/imagenet
  python -m resnet_core.data show --preset digits --set data.pad=1 --output digits.png
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return the exit code: 0, or 2 with one line on stderr for an invalid request."""
    try:
        options = _parser().parse_args(arguments)
        spec = override(preset(options.preset), assignments("--set", options.set))
        if options.command == "prepare":
            print(prepare(spec, options.cache, download=options.download))
        else:
            print(show(override(spec, {"seed": options.seed}), options.cache, options.output))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def default_cache() -> Path:
    """Return the folder where studies look for decoded data: below `RESNET_ABLATIONS_HOME`, else below the user's data folder."""
    home = os.environ.get("RESNET_ABLATIONS_HOME") or platformdirs.user_data_dir("resnet-ablations")
    return Path(home).expanduser().absolute() / "data"


def prepare(spec: RunSpec, cache: Path, *, download: bool = False) -> str:
    """Read, check and cache a data set, and return a summary.

    Args:
        spec: run whose data set is prepared.
        cache: folder for decoded data.
        download: download missing CIFAR data into `data.root`.

    Raises:
        ConfigError: the data are missing, corrupt or not usable.
    """
    from resnet_core.data.datasets import images, load_dataset

    started = time.perf_counter()
    dataset = load_dataset(spec.data, cache, download=download)
    seconds = time.perf_counter() - started
    side, count = dataset.image_size, len(dataset.classes)
    stored = "streamed, crops of" if spec.data.streamed else "in memory,"
    rows = {
        "data set": spec.data.name + (f" in {spec.data.root}" if spec.data.root else ""),
        "training": images(dataset.train),
        spec.data.evaluation_split: f"{images(dataset.test)}: {dataset.origin}",
        "classes": f"{count:,}: {', '.join(dataset.classes[:10])}{', …' if count > 10 else ''}",
        "images": f"{stored} {dataset.in_channels}×{side}×{side}",
        "mean, std": f"{_numbers(dataset.mean)}; {_numbers(dataset.std)} of 255",
        "version": dataset.version,
        "cache": str(cache),
        "took": f"{seconds:.1f} s",
    }
    rows |= {"changed": dataset.changes} if dataset.changes else {}
    rows |= {"not used": dataset.skipped} if dataset.skipped else {}
    return "\n".join(f"{name:<12}{printable(value)}" for name, value in rows.items())


def show(spec: RunSpec, cache: Path, output: Path) -> str:
    """Save a picture of some training images as several epochs see them, and return a line that says where.

    Args:
        spec: run whose images are shown.
        cache: folder for decoded data.
        output: file of the picture; its suffix selects the format.

    Raises:
        ConfigError: the data are not usable, or the picture cannot be written.
    """
    from resnet_core.data.datasets import load_dataset
    from resnet_core.data.picture import draw_batch

    picture = draw_batch(load_dataset(spec.data, cache), spec)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        picture.save(output)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--output={output}: cannot be written ({error})") from error
    return f"wrote {printable(str(output.absolute()))} ({picture.width}×{picture.height} pixels)"


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.1f}" for value in values)


def _path(text: str) -> Path:
    """Return a path from the command line; raise ValueError if `text` is no valid path."""
    if not text or b"\0" in os.fsencode(text):
        raise ValueError
    return Path(os.path.expanduser(text))


def _parser() -> argparse.ArgumentParser:
    shared = Parser(add_help=False)
    shared.add_argument("--preset", required=True, metavar="NAME", help=f"preset that sets the fields: {', '.join(PRESETS)}")
    shared.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help="override fields, such as data.root=DIR"
    )
    shared.add_argument(
        "--cache",
        type=_path,
        default=default_cache(),
        metavar="DIR",
        help="folder for decoded data (default: %(default)s, where studies look for it)",
    )
    parser = Parser(
        prog="python -m resnet_core.data",
        description="Prepare or show a data set.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    prepared = commands.add_parser("prepare", parents=[shared], help="read, check, hash and cache a data set")
    prepared.add_argument("--download", action="store_true", help="download CIFAR into data.root if it is missing")
    shown = commands.add_parser("show", parents=[shared], help="save a picture of augmented training images")
    shown.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the augmentation (default: %(default)s)")
    shown.add_argument("--output", type=_path, default=Path("batch.png"), metavar="FILE.png", help="picture (default: %(default)s)")
    return parser


if __name__ == "__main__":
    run(main)
