"""Draw `architecture.svg` from the floors that the tests enforce and from the imports of the source.

    python docs/figures/architecture.py

An arrow from one package to another is an import. Arrows that follow from two others are left out.
"""

import sys
from html import escape
from itertools import chain
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from tests import test_architecture  # noqa: E402  # of the folder that was put on the path

PICTURE = Path(__file__).with_suffix(".svg")
PURPOSE = {
    "studies": ("what to vary, what to compare with", ""),
    "api": ("run and load, results as DataFrames", ""),
    "cli": ("options, commands, exit codes", ""),
    "submission": ("one study, from request to report", ""),
    "report": ("tables, figures, the HTML page", "matplotlib, jinja2, rich"),
    "cluster": ("local service, MLflow server, doctor", "Ray, MLflow"),
    "scheduling": ("runs on a cluster, fair shares", "Ray Tune"),
    "tracking": ("journal, writer, lease, queries", "MLflow"),
    "search": ("which configuration is tried next", "Optuna"),
    "trial": ("one run's processes, checkpoints", "Ray, torch.distributed"),
    "analysis": ("paired differences, conclusions", "statsmodels, SciPy"),
    "study": ("factors, cells, runs: plain data", ""),
    "task": ("what a run trains, its metric", ""),
    "environment": ("folders, storage, signals, terminal", ""),
    test_architecture.RAY_INTERNALS: ("checked before use, with fallbacks", "private API of Ray"),
    "resnet_core": ("configurations, networks, data, training", "PyTorch"),
}
"""What each box says: its purpose, and the library that it wraps."""
WIDTH, MARGIN, BOX_WIDTH, BOX_HEIGHT, ROW_HEIGHT = 960, 60, 252, 58, 88
TEXT = {"name": 'font-size="15" font-weight="bold"', "purpose": 'font-size="12"', "library": 'font-size="11" fill="#9a4a00"'}
BOX, CORE = 'fill="#eef3f8" stroke="#7c93a8"', 'fill="#fdf1e3" stroke="#c2883f"'
LINE = 'fill="none" stroke="#8a9aa9" stroke-width="1.3"'

Graph = dict[str, set[str]]


def rows() -> list[tuple[str, ...]]:
    """Return the packages from top to bottom. What imports nothing else of the engine stands beside the core."""
    *floors, lowest = reversed(test_architecture.FLOORS)
    return [("studies",), *floors, ("resnet_core", *lowest)]


def imports() -> Graph:
    """Return which packages each package imports."""
    graph: Graph = {"studies": {"cli", "api"}, "resnet_core": set()}
    for _, name, modules in test_architecture.engine():
        packages = {"resnet_core" if module.startswith("resnet_core") else test_architecture.package(module) for module in modules}
        graph.setdefault(name, set()).update(package for package in packages if package not in (None, name))
    return graph


def reduced(graph: Graph) -> Graph:
    """Return the graph without the arrows that follow from two or more others."""

    def reachable(package: str) -> set[str]:
        return graph[package] | set(chain.from_iterable(map(reachable, graph[package])))

    return {name: {to for to in targets if not any(to in reachable(other) for other in targets)} for name, targets in graph.items()}


def draw() -> str:
    """Return the picture as SVG."""
    floors = rows()
    boxes = {
        name: (MARGIN + (WIDTH - 2 * MARGIN) * (2 * column + 1) / (2 * len(names)), 20.0 + ROW_HEIGHT * row)
        for row, names in enumerate(floors)
        for column, name in enumerate(names)
    }
    height = 20 + ROW_HEIGHT * len(floors)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img">',
        "<title>Packages and their imports</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    lines += [_arrow(boxes[name], boxes[to]) for name, targets in sorted(reduced(imports()).items()) for to in sorted(targets)]
    lines.append('<g font-family="Helvetica, Arial, sans-serif" text-anchor="middle" fill="#1f2933">')
    lines += [_box(name, *place) for name, place in boxes.items()]
    return "\n".join([*lines, "</g>", "</svg>", ""])


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    """Return an arrow: between neighboring floors straight down, past other floors around their boxes."""
    (x, y), (to_x, to_y) = start, end
    if to_y - y == ROW_HEIGHT:
        shift = (to_x - x) / 8  # arrows to different boxes leave and enter at different places
        x, y, to_x = x + shift, y + BOX_HEIGHT, to_x - shift
        bend = (to_y - y) / 2
        curve, tip = f"C{x:.0f} {y + bend:.0f} {to_x:.0f} {to_y - bend:.0f} {to_x:.0f} {to_y:.0f}", (-4, -8, 8, 0)
    else:
        side = -1 if x + to_x < WIDTH else 1
        edge = x + BOX_WIDTH / 2 + 55 if x == to_x else WIDTH * (side > 0)
        x, y, to_x, to_y = x + side * BOX_WIDTH / 2, y + BOX_HEIGHT / 2, to_x + side * BOX_WIDTH / 2, to_y + BOX_HEIGHT / 2
        curve, tip = f"C{edge:.0f} {y:.0f} {edge:.0f} {to_y:.0f} {to_x:.0f} {to_y:.0f}", (side * 8, -4, 0, 8)
    left, up, across, down = tip
    head = f"M{to_x:.0f} {to_y:.0f}l{left} {up}l{across} {down}z"
    return f'<path d="M{x:.0f} {y:.0f}{curve}" {LINE}/><path d="{head}" fill="#8a9aa9"/>'


def _box(name: str, x: float, y: float) -> str:
    purpose, library = PURPOSE[name]
    texts = [("name", name, 18 if library else 25), ("purpose", purpose, 34 if library else 42), ("library", library, 50)]
    labels = "".join(f'<text {TEXT[kind]} x="{x:.0f}" y="{y + dy:.0f}">{escape(text)}</text>' for kind, text, dy in texts if text)
    corner = f'x="{x - BOX_WIDTH / 2:.0f}" y="{y:.0f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"'
    return f"<rect {CORE if name == 'resnet_core' else BOX} {corner}/>{labels}"


if __name__ == "__main__":
    PICTURE.write_text(draw())
    print(PICTURE.relative_to(PROJECT))
