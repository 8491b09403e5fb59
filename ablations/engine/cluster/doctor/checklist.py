"""All checks of `ablations doctor`: run them on every node at the same time and print one line for each."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
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
from ablations.engine.cluster.doctor.check import Check, failed, join_names, not_checked, passed
from ablations.engine.cluster.doctor.nodes import NoAnswer, Node
from ablations.engine.cluster.doctor.request import DoctorRequest
from ablations.engine.environment import paths, storage
from ablations.engine.environment.console import format_duration, make_console, print_line
from ablations.engine.scheduling import connection, gpu_choice
from ablations.engine.scheduling.capacity import RunResources
from resnet_core.fields import ConfigError, printable

NODE_ANSWER_TIMEOUT_SECONDS = 15.0
"""Time limit for a node's first answer. Starting a process on the node takes 1 to 3 seconds of it."""
MEASUREMENT_TIMEOUT_SECONDS = 20.0
"""Time limit for storage, data, GPUs and MLflow together, which are measured at the same time."""
CLOCK_ROUNDS = 3
"""Number of times that each clock is read."""
STATUS_COLORS = {"ok": "green", "failed": "bold red", "not checked": "yellow"}


def run_checks(request: DoctorRequest) -> int:
    """Print a line for each check. Return 0 if no check failed, otherwise 1."""
    console = make_console()
    tracking = tracking_server.MeasurementThread(request.tracking_uri)
    connection.connect()
    tracking.start()
    done: list[Check] = []
    for check in _checks(request, tracking, console):
        _print_check(console, check)
        done.append(check)
    counts = {status: sum(check.status == status for check in done) for status in STATUS_COLORS}
    console.print(" · ".join(f"{count} {status}" for status, count in counts.items()))
    return 1 if counts["failed"] else 0


def _checks(request: DoctorRequest, tracking: tracking_server.MeasurementThread, console: Console) -> Iterator[Check]:
    reserved = None
    if workers := request.workers:
        request = _with_gpus(request, workers)
        reserved = _reserve_workers(request, workers, console)
        yield _evaluate_workers(request, arrived=reserved is not None)
    try:
        alive = nodes.alive_nodes()
        functions = {node: partial(_measure_node, str(paths.home())) for node in alive}
        answers, no_answers = nodes.run_on_nodes(functions, NODE_ANSWER_TIMEOUT_SECONDS)
        answering = list(answers)
        yield _evaluate_nodes(alive, no_answers)
        if answering:
            yield from _evaluate_measurements(answers)
            yield from _measure_at_the_same_time(request, answers, tracking)
            yield from _check_all_reduce(request, answering, reserved)
    finally:
        if reserved:
            remove_placement_group(reserved)


@dataclass(frozen=True)
class _NodeMeasurements:
    """The first answer of a node."""

    facts: node_facts.NodeFacts
    exposure: network_exposure.NodeExposure
    has_gpus: bool
    """True if the node's driver lists a GPU."""


def _measure_node(home: str) -> _NodeMeasurements:
    return _NodeMeasurements(node_facts.measure(home), network_exposure.measure(), gpus.has_gpus())


def _evaluate_nodes(alive: list[Node], no_answers: Mapping[Node, NoAnswer]) -> Check:
    if no_answers:
        reasons = (f"{node.name} {answer.reason}" for node, answer in no_answers.items())
        remedy = "ray status shows the cluster's nodes; restart Ray on the named ones (ray stop, then ray start), or remove them"
        return failed("nodes", join_names(reasons), remedy)
    total = {"CPUs": sum(node.cpus for node in alive), "GPUs": sum(node.gpus for node in alive)}
    resources = ", ".join(f"{count:g} {name}" for name, count in total.items())
    return passed("nodes", f"{len(alive)} of {len(alive)} answer ({resources}): {join_names(node.name for node in alive)}")


def _evaluate_measurements(measured: Mapping[Node, _NodeMeasurements]) -> Iterator[Check]:
    facts = {node.name: found.facts for node, found in measured.items()}
    exposures = {node.name: found.exposure for node, found in measured.items()}
    skews = nodes.clock_skews(list(measured), CLOCK_ROUNDS, NODE_ANSWER_TIMEOUT_SECONDS / CLOCK_ROUNDS)
    yield node_facts.evaluate_versions(facts)
    yield node_facts.evaluate_clocks({node.name: skew for node, skew in skews.items()})
    yield node_facts.evaluate_disks(facts)
    if shared_memory := node_facts.evaluate_shared_memory(facts):
        yield shared_memory
    dashboard = connection.dashboard_address()
    job_server = network_exposure.requires_password(f"http://{dashboard}", network_exposure.RAY_PROBE_PATH)
    yield network_exposure.evaluate_token(exposures, job_server)
    yield network_exposure.evaluate_ports(exposures)


def _measure_at_the_same_time(
    request: DoctorRequest, measured: Mapping[Node, _NodeMeasurements], tracking: tracking_server.MeasurementThread
) -> Iterator[Check]:
    """Check storage, data, GPUs and MLflow, each of which takes seconds on each node."""
    deadline = time.monotonic() + MEASUREMENT_TIMEOUT_SECONDS

    def seconds_left() -> float:
        return deadline - time.monotonic()

    answering = list(measured)
    data_tasks = nodes.NodeTasks({node: partial(local_data.measure, request.data, str(paths.data_cache())) for node in answering})
    # A node without CPUs and GPUs in Ray, such as a head that trains nothing, is not tested, whatever its hardware.
    with_gpus = [node for node in answering if node.gpus or (node.cpus and measured[node].has_gpus)]
    gpu_tasks = nodes.NodeTasks(dict.fromkeys(with_gpus, gpus.measure))
    yield _check_storage(request.storage, answering, seconds_left)
    datasets, no_answers = data_tasks.results(seconds_left())
    reasons = {node.name: answer.reason for node, answer in no_answers.items()}
    yield local_data.evaluate(request.data.name, {node.name: found for node, found in datasets.items()}, reasons)
    found, no_answers = gpu_tasks.results(seconds_left())
    check = gpus.evaluate({node.name: node.gpus for node in found}, {node.name: gpu for node, gpu in found.items()})
    silent = join_names(f"{node.name} {answer.reason}" for node, answer in no_answers.items())
    yield not_checked("GPUs", silent) if silent and check.status != "failed" else check
    yield _check_tracking(request.tracking_uri, tracking, seconds_left())


def _check_storage(address: str, answering: list[Node], seconds_left: Callable[[], float]) -> Check:
    try:
        connection.check_reachable("--storage", address)
    except ConfigError as error:
        remedy = "set RESNET_ABLATIONS_STORAGE or --storage to a place that all nodes share: s3://bucket/folder, file:///mnt/share"
        return failed("storage", str(error), remedy)
    place, first = storage.without_credentials(address), answering[0]
    made, no_answers = nodes.run_on_nodes({first: partial(_make_storage, address)}, seconds_left())
    if no_answers or made[first]:
        remedy = "check the spelling of the address, and that the head has its keys"
        return failed("storage", made.get(first) or f"{place} does not answer", remedy)
    with shared_storage.temporary_folder(address, answering) as folder:
        functions = {node: partial(shared_storage.write_test_file, address, folder, node.id) for node in answering}
        written, no_answers = nodes.run_on_nodes(functions, seconds_left())
        read = shared_storage.read_on_nodes(address, folder, list(written), seconds_left())
    if no_answers:
        detail = f"{place} does not answer on {join_names(node.name for node in no_answers)}"
        return failed("storage", detail, "mount the share there, and check that the node reaches its server")
    measured = shared_storage.StorageMeasurements({node.name: result for node, result in written.items()}, read)
    return shared_storage.evaluate(address, {node.name: node.id for node in answering}, measured)


def _make_storage(address: str) -> str:
    """Make the folder as a study does. Return why it cannot be made, or an empty string."""
    try:
        storage.check_storage(address)
        storage.make_storage(address)
    except ConfigError as error:
        return str(error)
    return ""


def _check_tracking(uri: str, tracking: tracking_server.MeasurementThread, timeout_seconds: float) -> Check:
    try:
        connection.check_reachable("--tracking-uri", uri.removeprefix("sqlite:///"))
    except ConfigError as error:
        return failed("MLflow", str(error), "run ablations mlflow on the head, and set MLFLOW_TRACKING_URI to its address")
    return tracking_server.evaluate(uri, tracking.wait(timeout_seconds))


def _check_all_reduce(request: DoctorRequest, answering: list[Node], reserved: PlacementGroup | None) -> Iterator[Check]:
    """Check the reserved workers; without a reservation, the CPUs and the GPUs of all nodes that train."""
    if reserved:
        backend: all_reduce.Backend = "nccl" if (request.gpus_per_worker or 0) >= 1 else "gloo"
        if reserved.bundle_count == 1:
            yield not_checked(f"all-reduce {backend}", "a single worker needs none")
        else:
            yield all_reduce.evaluate(backend, all_reduce.measure([reserved], backend))
        return
    groups: list[tuple[all_reduce.Backend, str]] = [("gloo", "CPU")]
    if any(node.gpus for node in answering):
        groups.append(("nccl", "GPU"))
    for backend, resource in groups:
        yield all_reduce.check_across_nodes(backend, resource, answering)


def _with_gpus(request: DoctorRequest, workers: int) -> DoctorRequest:
    """Return the request with the number of GPUs that a study would choose, unless it names one."""
    needs = RunResources(workers=workers, cpus_per_worker=request.cpus_per_worker)
    chosen = gpu_choice.choose_resources(needs, request.gpus_per_worker, gpu_choice.joined_cluster())
    return replace(request, gpus_per_worker=chosen.resources.gpus_per_worker)


def _reserve_workers(request: DoctorRequest, workers: int, console: Console) -> PlacementGroup | None:
    """Request workers as a run does, and wait for them. Return None if they do not arrive in time."""
    bundle = {"CPU": request.cpus_per_worker}
    if request.gpus_per_worker:
        bundle["GPU"] = request.gpus_per_worker
    reserved = placement_group([bundle] * workers, strategy="SPREAD")
    if not reserved.wait(2):
        print_line(console, f"waiting for {_describe_workers(request)}, at most {format_duration(request.worker_timeout_seconds)}")
    if reserved.wait(request.worker_timeout_seconds):
        return reserved
    remove_placement_group(reserved)
    return None


def _evaluate_workers(request: DoctorRequest, *, arrived: bool) -> Check:
    workers = _describe_workers(request)
    if arrived:
        return passed("workers", f"the cluster has room for {workers}")
    remedy = "ray status shows which resources are missing, the autoscaler's log why no node comes; --wait SECONDS waits longer"
    return failed("workers", f"no room for {workers} after {format_duration(request.worker_timeout_seconds)}", remedy)


def _describe_workers(request: DoctorRequest) -> str:
    resources = {"CPU": request.cpus_per_worker, "GPU": request.gpus_per_worker}
    each = " and ".join(f"{count:g} {name}{'' if count == 1 else 's'}" for name, count in resources.items() if count)
    return f"{request.workers} worker{'' if request.workers == 1 else 's'} with {each} each"


def _print_check(console: Console, check: Check) -> None:
    """Print a check, and its remedy below it. Without a terminal, each is one unwrapped line."""
    if not console.is_terminal:
        print_line(console, f"{check.status:<13}{check.name:<17}{check.detail}")
        if check.remedy:
            print_line(console, f"{'':<30}→ {check.remedy}")
        return
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_column(width=max(map(len, STATUS_COLORS)), style=STATUS_COLORS[check.status])
    line.add_column(width=15)
    line.add_column(overflow="fold")
    line.add_row(check.status, check.name, Text(printable(check.detail)))
    if check.remedy:
        line.add_row("", "", Text(f"→ {printable(check.remedy)}"))
    console.print(line)
