"""Architecture table of a network in the form of table 1 of He et al. 2015, with the cost of each part.

`python -m resnet_core.model --family imagenet --depth 50` prints one.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin

import torch
from torch import nn

from resnet_core.command import Parser
from resnet_core.config import ModelConfig
from resnet_core.config.reference import field_references
from resnet_core.fields import ConfigError, reject
from resnet_core.model.cost import NOTHING, Cost, matched, measure_parts
from resnet_core.model.network import BasicBlock, Bottleneck, ZeroPad, build_model

HEADINGS = ("layer", "output", "stack", "shortcut", "parameters", "multiply-adds", "activations (KiB)")
RIGHT_ALIGNED = HEADINGS[-3:]


@dataclass(frozen=True)
class Row:
    """Row of the table. `stack` and `shortcut` may have several lines."""

    layer: str
    output: str
    stack: tuple[str, ...]
    shortcut: tuple[str, ...]
    cost: Cost

    def cells(self) -> list[tuple[str, ...]]:
        """Return the lines of each cell, in the order of `HEADINGS`."""
        return [(self.layer,), (self.output,), self.stack, self.shortcut, *numbers(self.cost)]


def numbers(cost: Cost) -> list[tuple[str]]:
    """Return the cells of the numeric columns: parameters, multiply-adds and activations in KiB."""
    return [(f"{cost.parameters:,}",), (f"{cost.flops:,}",), (f"{cost.activation_bytes / 2**10:,.1f}",)]


def summarize(config: ModelConfig, image_size: int) -> str:
    """Return the architecture table of a network as text.

    Activations are those that training in float32 keeps for the backward pass, per image.

    Args:
        config: network; fields that are None become the paper's.
        image_size: side of the square images, in pixels.

    Raises:
        ConfigError: no width matches `match_flops` or `match_parameters`.
    """
    config = matched(config, image_size).resolved()
    rows = make_rows(config, image_size)
    total = sum((row.cost for row in rows), NOTHING)
    strided = any(" /2 " in line for row in rows for line in row.stack)
    notes = ["/2: stride 2, in the first block of its stage"] if strided else []
    notes.append("activations: kept for the backward pass, per image, in float32")
    return "\n".join([title(config), describe(config, image_size), "", *table(rows, total, config), "", *notes])


def title(config: ModelConfig) -> str:
    """Return the name of a network: `ResNet-56`, or `Plain-56` without shortcuts."""
    return f"{'Plain' if config.shortcut == 'none' else 'ResNet'}-{config.depth}"


def describe(config: ModelConfig, image_size: int) -> str:
    """Return the options of a resolved network and the size of its images, in one line."""
    parts = [f"{config.family} family", f"{config.block} blocks"]
    if config.shortcut != "none":
        parts.append(f"option {config.shortcut}")
    if config.block == "bottleneck":
        parts.append(f"stride in the {config.stride_in.replace('x', '×')}")
    parts += [f"width {config.width}", f"{image_size}×{image_size}×{config.in_channels} images", f"{config.num_classes:,} classes"]
    return ", ".join(parts)


def make_rows(config: ModelConfig, image_size: int) -> list[Row]:
    """Return the rows of a resolved network: stem, stages and classifier. As in the paper, a pooling layer belongs to the next
    stage."""
    with torch.device("meta"):
        net = build_model(config)
    parts = {part.name: part for part in measure_parts(config, image_size)}
    size = {name: "×".join(map(str, part.output[1:])) for name, part in parts.items()}
    stride = "" if net.conv1.stride[0] == 1 else f", stride {net.conv1.stride[0]}"
    stem = parts["conv1"].cost + parts["bn1"].cost
    rows = [Row("conv1", size["conv1"], (f"{kernel(net.conv1)}{stride}",), (), stem)]
    for i, name in enumerate(net.stages):
        blocks = [block for block in net.get_submodule(name).children() if isinstance(block, (BasicBlock, Bottleneck))]
        stack, cost = draw(blocks), parts[name].cost
        if i == 0:
            cost += parts["maxpool"].cost
            if isinstance(net.maxpool, nn.MaxPool2d):
                stack = (f"{net.maxpool.kernel_size}×{net.maxpool.kernel_size} max pool, stride {net.maxpool.stride}", *stack)
        shortcut = name_shortcuts(blocks)
        lead = ("",) * (len(stack) - len(convolutions(blocks[0]))) if shortcut else ()
        rows.append(Row(f"conv{i + 2}_x", size[name], stack, lead + shortcut, cost))
    fc = f"average pool, {net.fc.out_features}-d fc"
    return [*rows, Row("fc", "1×1", (fc,), (), parts["fc"].cost)]


def kernel(conv: nn.Conv2d) -> str:
    """Return the kernel and the number of filters of a convolution, as in table 1 of the paper: `3×3, 64`."""
    return f"{conv.kernel_size[0]}×{conv.kernel_size[1]}, {conv.out_channels}"


def convolutions(block: nn.Module) -> list[nn.Conv2d]:
    """Return the convolutions on the main path of a block."""
    return [child for child in block.children() if isinstance(child, nn.Conv2d)]


def draw(blocks: Sequence[BasicBlock | Bottleneck]) -> tuple[str, ...]:
    """Return a stage as in the paper: the convolutions of its first block in brackets, times the number of blocks."""
    convs = convolutions(blocks[0])
    texts = [kernel(conv) for conv in convs]
    width = max(map(len, texts))
    marks = ["" if conv.stride[0] == 1 else f"/{conv.stride[0]}" for conv in convs]
    gap = 3 if any(marks) else 0
    brackets = ["⎡⎤", *["⎢⎥"] * (len(convs) - 2), "⎣⎦"]
    lines = [f"{b[0]} {text:{width}}{mark:>{gap}} {b[1]}" for b, text, mark in zip(brackets, texts, marks, strict=True)]
    middle = (len(lines) - 1) // 2 if len(lines) > 2 else len(lines) - 1
    lines[middle] += f" × {len(blocks)}"
    return tuple(lines)


def name_shortcuts(blocks: Sequence[BasicBlock | Bottleneck]) -> tuple[str, ...]:
    """Return the shortcuts of a stage: one line if all blocks have the same, else one for the first block and one for the
    others."""
    named = [name_shortcut(block.downsample) for block in blocks]
    if not named[0]:
        return ()
    if len(blocks) == 1 or named[0] == named[1]:
        return (named[0],)
    return (f"first {named[0]}", f"then {named[1]}")


def name_shortcut(module: nn.Module | None) -> str:
    """Return the shortcut of a block in words; empty for a plain block."""
    if module is None:
        return ""
    if isinstance(module, ZeroPad):
        return f"zero-padded{f', /{module.stride}' if module.stride > 1 else ''}"
    projection = next(module.children(), None)
    if isinstance(projection, nn.Conv2d):
        return f"{kernel(projection)}{f', /{projection.stride[0]}' if projection.stride[0] > 1 else ''}"
    return "identity"


def table(rows: Sequence[Row], total: Cost, config: ModelConfig) -> list[str]:
    """Return the aligned lines of the table between its rules. A plain network has no shortcut column."""
    shown = [name != "shortcut" or config.shortcut != "none" for name in HEADINGS]
    body = [row.cells() for row in rows]
    footer = [("total",), ("",), ("",), ("",), *numbers(total)]
    widths = [
        max(len(line) for cell in (heading, *cells) for line in cell)
        for heading, *cells in zip([(name,) for name in HEADINGS], *body, footer, strict=True)
    ]

    def lines(cells: Sequence[tuple[str, ...]]) -> list[str]:
        out = []
        for i in range(max(map(len, cells))):
            texts = [cell[i] if i < len(cell) else "" for cell in cells]
            padded = [
                text.rjust(width) if name in RIGHT_ALIGNED else text.ljust(width)
                for text, width, name in zip(texts, widths, HEADINGS, strict=True)
            ]
            out.append("   ".join(text for text, show in zip(padded, shown, strict=True) if show).rstrip())
        return out

    length = sum(width + 3 for width, show in zip(widths, shown, strict=True) if show) - 3
    inner: list[str] = []
    for cells in body:
        inner += [*lines(cells), *([""] if len(rows) > 1 and max(map(len, cells)) > 1 else [])]
    out = ["━" * length, *lines([(name,) for name in HEADINGS]), "─" * length]
    return [*out, *inner, "─" * length, *lines(footer), "━" * length]


def parse(arguments: Sequence[str] | None) -> tuple[ModelConfig, int]:
    """Return the network and the image size of a command line.

    Bottleneck blocks are the default where no network of basic blocks has the depth. Their default shortcut is option B, as in
    table 1.
    """
    parser = Parser(
        prog="python -m resnet_core.model", description="Print the architecture of a network and the cost of each part."
    )
    descriptions = {each.name: each.description for each in field_references()}
    for field in (each for each in fields(ModelConfig) if each.name != "name"):
        flags = [f"--{field.name.replace('_', '-')}", *(["--classes"] if field.name == "num_classes" else [])]
        description = descriptions[f"model.{field.name}"].replace("%", "%%").replace("`", "")
        parser.add_argument(*flags, default=argparse.SUPPRESS, metavar=_accepted(ModelConfig._hints[field.name]), help=description)
    parser.add_argument("--image-size", type=int, help="side in pixels (cifar: 32, imagenet: 224)", metavar="N")
    given = vars(parser.parse_args(arguments))
    image_size = given.pop("image_size")
    if image_size is not None and image_size < 1:
        raise reject("image_size", image_size, "accepted: at least 1")
    bottleneck = {"block": "bottleneck", "shortcut": "B"} | given
    try:
        config = ModelConfig(**(bottleneck if given.get("block") == "bottleneck" else given))
    except ConfigError as error:
        try:
            config = ModelConfig(**bottleneck)
        except ConfigError:
            raise error from None
    return config, image_size or (32 if config.family == "cifar" else 224)


def _accepted(hint: Any) -> str:
    """Return the accepted values of a field for the help text: `cifar|imagenet`, `N`, `N,N,…` or `true|false`."""
    for kind in (hint, *get_args(hint)):
        if get_origin(kind) is Literal:
            return "|".join(get_args(kind))
        if get_origin(kind) is tuple:
            return "N,N,…"
    return "true|false" if hint is bool else "X" if hint is float else "N"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print an architecture table and return the exit code: 0, or 2 with one line on stderr for an invalid request."""
    try:
        config, image_size = parse(arguments)
        print(summarize(config, image_size))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
