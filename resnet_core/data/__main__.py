"""Data sets from the command line: `python -m resnet_core.data prepare` and `show`."""

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
    """Runs a command; returns the exit status."""
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
    """Where studies look for decoded data: below `RESNET_ABLATIONS_HOME`, else the user's data folder."""
    home = os.environ.get("RESNET_ABLATIONS_HOME") or platformdirs.user_data_dir("resnet-ablations")
    return Path(home).expanduser().absolute() / "data"


def prepare(spec: RunSpec, cache: Path, *, download: bool = False) -> str:
    """Downloads where asked, reads, checks and caches a data set. Returns a summary."""
    from resnet_core.data.datasets import images, load_dataset

    started = time.perf_counter()
    dataset = load_dataset(spec.data, cache, download=download)
    seconds = time.perf_counter() - started
    side, count = dataset.image_size, len(dataset.classes)
    stored = "streamed, crops of" if spec.data.streamed else "in memory,"
    rows = {
        "data set": spec.data.name + (f" in {spec.data.root}" if spec.data.root else ""),
        "training": images(dataset.train),
        spec.data.evaluation_split: f"{images(dataset.test)}: {dataset.scored}",
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
    """Writes a picture of some training images as several epochs see them. Returns where."""
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
    """A path of the command line; raises ValueError for what cannot be one."""
    if not text or b"\0" in os.fsencode(text):
        raise ValueError
    return Path(os.path.expanduser(text))


def _parser() -> argparse.ArgumentParser:
    shared = Parser(add_help=False)
    shared.add_argument("--preset", required=True, metavar="NAME", help=f"one of {', '.join(PRESETS)}")
    shared.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help="fields, such as data.root=DIR"
    )
    shared.add_argument(
        "--cache",
        type=_path,
        default=default_cache(),
        metavar="DIR",
        help="folder for decoded data; studies find it where it is by default: %(default)s",
    )
    parser = Parser(
        prog="python -m resnet_core.data",
        description="Prepares and shows data sets.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    prepared = commands.add_parser("prepare", parents=[shared], help="read, check, hash and cache a data set")
    prepared.add_argument("--download", action="store_true", help="download CIFAR into data.root if it is not there")
    shown = commands.add_parser("show", parents=[shared], help="picture of training images, augmented")
    shown.add_argument("--seed", type=int, default=0, metavar="N", help="of the augmentation (default: %(default)s)")
    shown.add_argument("--output", type=_path, default=Path("batch.png"), metavar="FILE.png", help="default: %(default)s")
    return parser


if __name__ == "__main__":
    run(main)
