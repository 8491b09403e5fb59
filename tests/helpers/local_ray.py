"""One Ray with two CPUs for all tests of a process. Starting Ray takes longer than most of these tests."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

started = False
"""True if Ray runs and was started by this module."""
users = 0
"""Number of test modules whose fixtures use this Ray now."""


@contextmanager
def in_use() -> Iterator[str]:
    """Start Ray unless it runs, and yield its address."""
    global started, users
    import ray  # imported here, since most tests do not need Ray

    from ablations.engine.scheduling import connection

    if not started:
        # With a dashboard, which answers the state API, on a free port.
        ray.init("local", num_cpus=2, include_dashboard=True, dashboard_port=0, log_to_driver=False, logging_level="ERROR")
        connection.connect()
        started = True
    users += 1
    yield ray.get_runtime_context().gcs_address
    users -= 1


def stop_unless_used() -> None:
    """Stop this Ray if no module uses it, for tests that need another Ray or none."""
    global started
    if started and not users:
        sys.modules["ray"].shutdown()
        started = False
