"""The printed architecture is that of the network, and its costs add up."""

import re
import subprocess
import sys
from typing import Any

import pytest

from resnet_core import ConfigError, ModelConfig, measure_cost
from resnet_core.model.summary import main, make_rows, parse, summarize

RESNET_50 = """\
conv1     112×112   7×7, 64, stride 2
conv2_x   56×56     3×3 max pool, stride 2
                    ⎡ 1×1, 64  ⎤              first 1×1, 256
                    ⎢ 3×3, 64  ⎥ × 3          then identity
                    ⎣ 1×1, 256 ⎦

conv3_x   28×28     ⎡ 1×1, 128 /2 ⎤           first 1×1, 512, /2
                    ⎢ 3×3, 128    ⎥ × 4       then identity
                    ⎣ 1×1, 512    ⎦

conv4_x   14×14     ⎡ 1×1, 256  /2 ⎤          first 1×1, 1024, /2
                    ⎢ 3×3, 256     ⎥ × 6      then identity
                    ⎣ 1×1, 1024    ⎦

conv5_x   7×7       ⎡ 1×1, 512  /2 ⎤          first 1×1, 2048, /2
                    ⎢ 3×3, 512     ⎥ × 3      then identity
                    ⎣ 1×1, 2048    ⎦

fc        1×1       average pool, 1000-d fc
"""


def body(text: str, columns: slice) -> str:
    """The rows between the rules, cut to some of their characters."""
    rows = re.split("─+\n", text)[1]
    return "".join(line[columns].rstrip() + "\n" for line in rows.splitlines())


def test_the_shortest_command_prints_the_column_of_table_1(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--family", "imagenet", "--depth", "50"])
    printed = capsys.readouterr().out
    heading = next(line for line in printed.splitlines() if line.startswith("layer"))
    assert body(printed, slice(0, heading.index("parameters") - 1)) == RESNET_50
    (total,) = [line for line in printed.splitlines() if line.startswith("total")]
    assert total.split() == ["total", "25,557,032", "3,857,973,248", "79,780.0"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(depth=20),
        ModelConfig(depth=20, shortcut="none"),
        ModelConfig(depth=29, block="bottleneck", shortcut="C", stride_in="3x3", width=12),
        ModelConfig(depth=12, stages=(1, 4), shortcut="B", in_channels=1, num_classes=3),
        ModelConfig(family="imagenet", depth=34, shortcut="C"),
        ModelConfig(depth=20, block="bottleneck", match_flops="basic"),
    ],
    ids=repr,
)
def test_rows_add_up_to_the_networks_cost(config: ModelConfig) -> None:
    cost = measure_cost(config, 40)
    total = next(line for line in summarize(config, 40).splitlines() if line.startswith("total")).split()
    assert total[1:] == [f"{cost.parameters:,}", f"{cost.flops:,}", f"{cost.activation_bytes / 1024:,.1f}"]
    columns = [re.findall(r"  +([\d,.]+)(?=  |$)", line) for line in summarize(config, 40).splitlines()]
    rows = [[float(n.replace(",", "")) for n in found[-3:]] for found in columns if len(found) >= 3]
    assert len(rows) == 2 + len(config.stages or (1, 1, 1) + (1,) * (config.family == "imagenet")) + 1
    *parts, last = rows
    assert [sum(column) for column in zip(*parts, strict=True)] == pytest.approx(last, abs=0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "stacks", "shortcuts"),
    [
        (
            ModelConfig(depth=14, shortcut="A"),
            [("⎡ 3×3, 16 ⎤", "⎣ 3×3, 16 ⎦ × 2"), ("⎡ 3×3, 32 /2 ⎤", "⎣ 3×3, 32    ⎦ × 2")],
            [("identity",), ("first zero-padded, /2", "then identity")],
        ),
        (
            ModelConfig(depth=8, shortcut="C", width=8),
            [("⎡ 3×3, 8 ⎤", "⎣ 3×3, 8 ⎦ × 1"), ("⎡ 3×3, 16 /2 ⎤", "⎣ 3×3, 16    ⎦ × 1")],
            [("1×1, 8",), ("1×1, 16, /2",)],
        ),
        (
            ModelConfig(depth=20, block="bottleneck", shortcut="A", width=8, stride_in="3x3"),
            [
                ("⎡ 1×1, 8  ⎤", "⎢ 3×3, 8  ⎥ × 2", "⎣ 1×1, 32 ⎦"),
                ("⎡ 1×1, 16    ⎤", "⎢ 3×3, 16 /2 ⎥ × 2", "⎣ 1×1, 64    ⎦"),
            ],
            [("first zero-padded", "then identity"), ("first zero-padded, /2", "then identity")],
        ),
        (ModelConfig(depth=14, shortcut="none"), [("⎡ 3×3, 16 ⎤", "⎣ 3×3, 16 ⎦ × 2")], [(), ()]),
    ],
    ids=["A", "C", "bottleneck", "plain"],
)
def test_stages_show_their_blocks_their_shortcuts_and_where_the_stride_is(config: ModelConfig, stacks: Any, shortcuts: Any) -> None:
    stages = make_rows(config.resolved(), 32)[1:-1]
    assert [row.stack for row in stages][: len(stacks)] == stacks
    assert [row.shortcut for row in stages][: len(shortcuts)] == shortcuts


def test_a_plain_network_has_no_column_of_shortcuts() -> None:
    plain, residual = (summarize(ModelConfig(depth=8, shortcut=option), 32) for option in ("none", "A"))
    assert plain.startswith("Plain-8\n")
    assert residual.startswith("ResNet-8\n")
    assert "shortcut" not in plain
    assert "shortcut" in residual


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [ModelConfig(depth=1202), ModelConfig(family="imagenet", depth=152, block="bottleneck", shortcut="C", num_classes=9)]
)
def test_every_line_fits_between_the_rules_and_columns_are_aligned(config: ModelConfig) -> None:
    lines = summarize(config, 64).splitlines()
    rules = [line for line in lines if set(line) in ({"━"}, {"─"})]
    assert len({len(rule) for rule in rules}) == 1
    rows = [line for line in lines if re.match(r"layer|conv\d|fc|total", line)]
    assert {len(line) for line in rows} == {len(rules[0])}
    assert max(map(len, lines)) == len(rules[0])


@pytest.mark.parametrize(
    ("arguments", "config", "image_size"),
    [
        ("", ModelConfig(), 32),
        ("--depth 29", ModelConfig(depth=29, block="bottleneck", shortcut="B"), 32),
        ("--depth 20 --block bottleneck", ModelConfig(depth=20, block="bottleneck", shortcut="B"), 32),
        ("--family imagenet --depth 18", ModelConfig(family="imagenet", depth=18), 224),
        (
            "--family imagenet --depth 101 --shortcut none --image-size 64 --classes 7",
            ModelConfig(family="imagenet", depth=101, block="bottleneck", shortcut="none", num_classes=7),
            64,
        ),
        ("--stages 1,2 --depth 8 --in-channels 1", ModelConfig(stages=(1, 2), depth=8, in_channels=1), 32),
    ],
)
def test_fields_are_flags_and_blocks_follow_from_the_depth(arguments: str, config: ModelConfig, image_size: int) -> None:
    assert parse(arguments.split()) == (config, image_size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--depth 21", "model.depth=21: cifar with basic blocks has depths"),
        ("--family imagenet --depth 50 --block basic", "model.depth=50: imagenet with basic blocks has depths 18, 34"),
        ("--shortcut D", "model.shortcut=D: accepted: none, A, B, C"),
        ("--width 4", "model.width=4: accepted"),
        ("--image-size 0", "image_size=0: accepted: at least 1"),
        ("--image-size x", "argument --image-size: invalid int value: 'x' (see --help)"),
        ("--dep 20", "--dep: no such option; did you mean --depth? (see --help)"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_line_and_exit_code_2(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(arguments.split())
    shown = capsys.readouterr()
    assert (code, shown.out) == (2, "")
    assert shown.err.startswith(f"error: {message}")
    assert shown.err.count("\n") == 1


@pytest.mark.slow
def test_the_module_is_a_command() -> None:
    command = [sys.executable, "-W", "error", "-m", "resnet_core.model", "--depth", "8"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.rstrip("\n") == summarize(ModelConfig(depth=8), 32)
    assert not done.stderr


def test_parse_raises_config_errors() -> None:
    with pytest.raises(ConfigError):
        parse(["--depth", "3"])
