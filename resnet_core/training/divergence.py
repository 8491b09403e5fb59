"""`Diverged`, without an import of torch."""


class Diverged(Exception):  # noqa: N818 - an outcome of a run, not an error
    """The training has diverged: the loss, or the metric of a task, is not finite."""
