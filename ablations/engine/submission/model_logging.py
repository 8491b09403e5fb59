"""Final networks as MLflow models: self-contained programs from pixels to scores, which load without this project."""

import logging
from collections.abc import Mapping

import mlflow
import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from torch import Tensor, nn

from ablations.engine.study.plan import Plan, Run
from ablations.engine.tracking.mlflow_errors import PERMANENT_ERRORS, describe_error
from ablations.engine.tracking.run_queries import RunRecord
from ablations.engine.trial.checkpoints import CheckpointFolder
from resnet_core import build_model
from resnet_core.data.datasets import Dataset

LOGGED = "model"
"""Tag of runs whose model is in MLflow already."""


class PixelsToScores(nn.Module):
    """A network behind its data set's normalization: images (N, C, H, W) of 0 to 255 in, scores (N, classes) out."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, dataset: Dataset, normalize: str) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.from_numpy(dataset.subtracted(normalize)).unsqueeze(0))
        self.register_buffer("std", torch.tensor(dataset.std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.net((images - self.mean) / self.std)
        return scores


def log_models(
    client: MlflowClient, plan: Plan, entries: Mapping[str, RunRecord], folders: Mapping[str, str], storage: str
) -> list[str]:
    """Log the final network of every completed run that has none in MLflow yet, with signature and input example.

    Returns:
        Of each that could not be logged, why, in one line. A server that does not answer ends it at the first.
    """
    mlflow.set_tracking_uri(client.tracking_uri)
    for name in ("mlflow", "torch.export"):
        logging.getLogger(name).setLevel(logging.ERROR)
    problems = []
    for run in plan.runs:
        entry = entries.get(run.fingerprint)
        if entry is None or entry.outcome != "completed" or LOGGED in entry.tags:
            continue
        try:
            _log_network(client, plan, run, entry, CheckpointFolder(storage, folders[run.fingerprint]))
        except Exception as error:  # of a store's own library, a disk, an exporter: the study has its results
            away = isinstance(error, MlflowException) and error.error_code not in PERMANENT_ERRORS
            said = describe_error(error) if isinstance(error, MlflowException) else f"{error}".partition("\n")[0]
            problems.append(
                f"{run}: its model was not logged{', nor those after it' if away else ''}: {said or type(error).__name__}"
            )
            if away:
                break
    return problems


def _log_network(client: MlflowClient, plan: Plan, run: Run, entry: RunRecord, checkpoints: CheckpointFolder) -> None:
    saved = checkpoints.latest()
    if saved is None:
        raise FileNotFoundError(f"there is no checkpoint in {checkpoints.where}")
    _log(client, run, entry, pixels_to_scores(plan, run, saved["model"]), plan.dataset_for_run(run))


def pixels_to_scores(plan: Plan, run: Run, weights: Mapping[str, Tensor]) -> PixelsToScores:
    """Return a run's network behind the normalization that it was trained with, which is that of its own training images."""
    net = build_model(run.spec.model)
    net.load_state_dict(weights)
    return PixelsToScores(net, plan.dataset_for_run(run), run.spec.data.normalize).eval()


def _log(client: MlflowClient, run: Run, entry: RunRecord, model: PixelsToScores, dataset: Dataset) -> None:
    # Two images: a batch of one would be exported as a constant.
    example = np.asarray(dataset.examples(2), np.float32)
    with torch.inference_mode():
        signature = infer_signature(example, model(torch.from_numpy(example)).numpy())
    before = client.get_run(entry.run_id).info
    try:
        with mlflow.start_run(run_id=entry.run_id):
            mlflow.pytorch.log_model(
                model,
                name="model",
                signature=signature,
                input_example=example,
                serialization_format="pt2",
                pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
            )
        client.set_tag(entry.run_id, LOGGED, "pt2")
    finally:
        client.set_terminated(entry.run_id, before.status, before.end_time)  # the run itself ended when it ended
