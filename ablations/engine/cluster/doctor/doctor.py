"""The doctor's list: measures everything on all nodes at once, judges it, prints it."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ablations.engine.cluster.doctor import (
    all_reduce,
    gpus,
    local_data,
    network_exposure,
    node_facts,
    nodes,
    shared_storage,
    tracking_server,
)
from ablations.engine.cluster.doctor.check import Check, listed, ok, unchecked, wrong
from ablations.engine.cluster.doctor.nodes import Node, Silence
from ablations.engine.cluster.doctor.request import Request
from ablations.engine.environment import paths, storage
from ablations.engine.environment.console import format_duration, make_console, print_line
from ablations.engine.scheduling import connection
from resnet_core.fields import ConfigError, printable

FACT_SECONDS = 15.0
"""For a node to answer at all. A new process takes 1 to 3 there."""
MEASURING_SECONDS = 20.0
"""For storage, data, GPUs and MLflow, which are measured at the same time."""
CLOCK_ROUNDS = 3
COLOURS = {"ok": "green", "wrong": "bold red", "not checked": "yellow"}


def check_up(request: Request) -> int:
    """Prints a line for each check; returns 0 if nothing is wrong, else 1."""
    console = make_console()
    tracking = tracking_server.Measurement(request.tracking_uri)
    connection.connect()
    tracking.start()
    found: list[Check] = []
    for check in _checks(request, tracking, console):
        _show(console, check)
        found.append(check)
    counts = {state: sum(check.state == state for check in found) for state in COLOURS}
    console.print(" · ".join(f"{count} {state}" for state, count in counts.items()))
    return 1 if counts["wrong"] else 0


def _checks(request: Request, tracking: tracking_server.Measurement, console: Console) -> Iterator[Check]:
    reserved = None
    if request.workers:
        reserved = _reserve(request, request.workers, console)
        yield _judge_workers(request, arrived=reserved is not None)
    try:
        present = nodes.alive()
        asked = {node: partial(_look, str(paths.home())) for node in present}
        answers, silent = nodes.ask(asked, FACT_SECONDS)
        there = list(answers)
        yield _judge_nodes(present, answers, silent)
        if there:
            yield from _judge_facts(answers)
            yield from _measured_together(request, answers, tracking)
            yield from _all_reduce(request, there, reserved)
    finally:
        if reserved:
            remove_placement_group(reserved)


@dataclass(frozen=True)
class _Looks:
    """What every node says first."""

    facts: node_facts.Facts
    network_exposure: network_exposure.Exposure
    gpus: bool
    """Whether its driver has any."""


def _look(home: str) -> _Looks:
    return _Looks(node_facts.measure(home), network_exposure.measure(), gpus.present())


def _judge_nodes(present: list[Node], answers: Mapping[Node, object], silent: Mapping[Node, Silence]) -> Check:
    if silent:
        shown = (f"{node.name} {silence.reason}" for node, silence in silent.items())
        return wrong("nodes", listed(shown), "ray status; restart Ray on them (ray stop, ray start …), or take them out")
    total = {"CPUs": sum(node.cpus for node in present), "GPUs": sum(node.gpus for node in present)}
    has = ", ".join(f"{count:g} {name}" for name, count in total.items())
    return ok("nodes", f"{len(answers)} of {len(present)} answer ({has}): {listed(node.name for node in present)}")


def _judge_facts(looks: Mapping[Node, _Looks]) -> Iterator[Check]:
    facts = {node.name: look.facts for node, look in looks.items()}
    exposures = {node.name: look.network_exposure for node, look in looks.items()}
    skews = nodes.skews(list(looks), CLOCK_ROUNDS, FACT_SECONDS / CLOCK_ROUNDS)
    yield node_facts.judge_versions(facts)
    yield node_facts.judge_clocks({node.name: skew for node, skew in skews.items()})
    yield node_facts.judge_disks(facts)
    if shared_memory := node_facts.judge_shared_memory(facts):
        yield shared_memory
    dashboard = connection.dashboard_address()
    yield network_exposure.judge_token(
        exposures, network_exposure.asks_for_password(f"http://{dashboard}", network_exposure.RAY_QUESTION)
    )
    yield network_exposure.judge_ports(exposures)


def _measured_together(request: Request, looks: Mapping[Node, _Looks], tracking: tracking_server.Measurement) -> Iterator[Check]:
    """What takes seconds on each node."""
    deadline = time.monotonic() + MEASURING_SECONDS

    def left() -> float:
        return deadline - time.monotonic()

    there = list(looks)
    data = nodes.Question({node: partial(local_data.measure, request.data, str(paths.data_cache())) for node in there})
    # Not of a node that is to run nothing, as a head may be whatever it has.
    with_gpus = [node for node in there if node.gpus or (node.cpus and looks[node].gpus)]
    graphics = nodes.Question(dict.fromkeys(with_gpus, gpus.measure))
    yield _check_storage(request.storage, there, left)
    answers, silent = data.answers(left())
    has = {node.name: found for node, found in answers.items()}
    yield local_data.judge(request.data.name, has, {node.name: silence.reason for node, silence in silent.items()})
    found, mute = graphics.answers(left())
    check = gpus.judge({node.name: node.gpus for node in found}, {node.name: gpu for node, gpu in found.items()})
    late = listed(f"{node.name} {silence.reason}" for node, silence in mute.items())
    yield unchecked("GPUs", late) if late and check.state != "wrong" else check
    yield _check_tracking(request.tracking_uri, tracking, left())


def _check_storage(address: str, there: list[Node], left: Callable[[], float]) -> Check:
    try:
        connection.check_reachable("--storage", address)
    except ConfigError as error:
        return wrong(
            "storage", str(error), "RESNET_ABLATIONS_STORAGE or --storage: s3://bucket/folder, or file:///mnt/share/folder"
        )
    made, silent = nodes.ask({there[0]: partial(_make, address)}, left())
    if silent or made[there[0]]:
        return wrong(
            "storage",
            made.get(there[0]) or f"{storage.without_credentials(address)} hangs",
            "is it spelt right? are its keys on the head?",
        )
    with shared_storage.folder_in(address, there) as folder:
        written, silent = nodes.ask({node: partial(shared_storage.write, address, folder, node.id) for node in there}, left())
        seen = shared_storage.look(address, folder, list(written), left())
    if silent:
        where = listed(node.name for node in silent)
        return wrong(
            "storage", f"{storage.without_credentials(address)} hangs on {where}", "is the share mounted and reachable there?"
        )
    by_name = {node.name: result for node, result in written.items()}
    return shared_storage.judge(address, {node.name: node.id for node in there}, shared_storage.Storage(by_name, seen))


def _make(address: str) -> str:
    """Makes the folder, as a study does; returns why it cannot."""
    try:
        storage.check_storage(address)
        storage.make_storage(address)
    except ConfigError as error:
        return str(error)
    return ""


def _check_tracking(uri: str, tracking: tracking_server.Measurement, seconds: float) -> Check:
    try:
        connection.check_reachable("--tracking-uri", uri.removeprefix("sqlite:///"))
    except ConfigError as error:
        return wrong("MLflow", str(error), "python -m ablations.engine mlflow on the head, and MLFLOW_TRACKING_URI")
    return tracking_server.judge(uri, tracking.wait(seconds))


def _all_reduce(request: Request, there: list[Node], reserved: PlacementGroup | None) -> Iterator[Check]:
    """Of the workers that were asked for; else of all nodes that train, on their CPUs and on their GPUs."""
    if reserved:
        backend: all_reduce.Backend = "nccl" if request.gpus_per_worker >= 1 else "gloo"
        if reserved.bundle_count == 1:
            yield unchecked(f"all-reduce {backend}", "of one worker")
        else:
            yield all_reduce.judge(backend, all_reduce.measure(reserved, backend))
        return
    groups: list[tuple[all_reduce.Backend, str]] = [("gloo", "CPU")]
    if any(node.gpus for node in there):
        groups.append(("nccl", "GPU"))
    for backend, resource in groups:
        yield all_reduce.over_nodes(backend, resource, there)


def _reserve(request: Request, workers: int, console: Console) -> PlacementGroup | None:
    """Asks for workers as a run does, and waits for them; None if they do not come."""
    bundle = {"CPU": request.cpus_per_worker}
    if request.gpus_per_worker:
        bundle["GPU"] = request.gpus_per_worker
    reserved = placement_group([bundle] * workers, strategy="SPREAD")
    if not reserved.wait(2):
        print_line(console, f"waiting for {_asked_for(request)}, at most {format_duration(request.wait)}")
    if reserved.wait(request.wait):
        return reserved
    remove_placement_group(reserved)
    return None


def _judge_workers(request: Request, *, arrived: bool) -> Check:
    if arrived:
        return ok("workers", f"{_asked_for(request)} are there")
    remedy = "ray status says what is missing; the autoscaler's log, why it does not come; --wait gives it longer"
    return wrong("workers", f"{_asked_for(request)} are not there after {format_duration(request.wait)}", remedy)


def _asked_for(request: Request) -> str:
    takes = {"CPU": request.cpus_per_worker, "GPU": request.gpus_per_worker}
    return f"{request.workers} workers of {' and '.join(f'{count:g} {name}' for name, count in takes.items() if count)}"


def _show(console: Console, check: Check) -> None:
    """A line, and under one that is wrong what to do. Where no terminal wraps it, each stays one line."""
    if not console.is_terminal:
        print_line(console, f"{check.state:<13}{check.name:<17}{check.value}")
        if check.remedy:
            print_line(console, f"{'':<30}→ {check.remedy}")
        return
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_column(width=max(map(len, COLOURS)), style=COLOURS[check.state])
    line.add_column(width=15)
    line.add_column(overflow="fold")
    line.add_row(check.state, check.name, Text(printable(check.value)))
    if check.remedy:
        line.add_row("", "", Text(f"→ {printable(check.remedy)}"))
    console.print(line)
