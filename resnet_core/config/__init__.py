"""Configurations of a run: frozen dataclasses that check and convert their fields.

A configuration is a value: `resnet_core.override` derives a new one from an old one, and nothing is mutated or registered.
This package imports neither torch nor numpy, so that plans, help texts and error messages appear at once.

`python -m resnet_core.config` prints docs/fields.md, the reference of all fields.
"""

from resnet_core.config.data import DataConfig as DataConfig
from resnet_core.config.model import IMAGENET_STAGES as IMAGENET_STAGES
from resnet_core.config.model import ModelConfig as ModelConfig
from resnet_core.config.network import Network as Network
from resnet_core.config.optim import CHANGEABLE as CHANGEABLE
from resnet_core.config.optim import OptimConfig as OptimConfig
from resnet_core.config.optim import change as change
from resnet_core.config.run import RunSpec as RunSpec
