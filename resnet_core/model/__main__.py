"""Command `python -m resnet_core.model`: print the architecture of a network and the cost of each part."""

from resnet_core.command import run
from resnet_core.model.summary import main

if __name__ == "__main__":
    run(main)
