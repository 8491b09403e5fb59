"""Command `python -m resnet_core.config`: print docs/fields.md, the reference of every field of a run."""

from resnet_core.command import run
from resnet_core.config.reference import main

if __name__ == "__main__":
    run(main)
