"""One Ray of two CPUs for all tests of a process. Starting Ray takes longer than most of these tests."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

started = False
"""Whether Ray runs and was started here."""
users = 0
"""Number of modules whose fixtures use it at present."""


@contextmanager
def in_use() -> Iterator[str]:
    """Start Ray unless it runs; yield its address."""
    global started, users
    import ray  # most tests need none of it

    from ablations.engine.scheduling import connection

    if not started:
        # With a dashboard: the state API asks it. It takes a port of its own.
        ray.init("local", num_cpus=2, include_dashboard=True, dashboard_port=0, log_to_driver=False, logging_level="ERROR")
        connection.connect()
        started = True
    users += 1
    yield ray.get_runtime_context().gcs_address
    users -= 1


def stop_unless_used() -> None:
    """Stop this Ray, for tests that need another one or none."""
    global started
    if started and not users:
        sys.modules["ray"].shutdown()
        started = False
