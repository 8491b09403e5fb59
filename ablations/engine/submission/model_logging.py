"""Final networks as MLflow models: self-contained programs from pixels to class scores, which load without this project."""

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
from resnet_core import build_network
from resnet_core.data.datasets import Dataset
from resnet_core.training.state import evaluated_weights

LOGGED_TAG = "model"
"""Tag of runs whose model MLflow has."""


class PixelsToScores(nn.Module):
    """Network preceded by the normalization of its data set.

    Input: images (N, C, H, W) with values from 0 to 255. Output: scores (N, classes).
    """

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
    client: MlflowClient, plan: Plan, records: Mapping[str, RunRecord], folders: Mapping[str, str], storage: str
) -> list[str]:
    """Log the final network of every completed run that has none in MLflow yet, with signature and input example.

    Returns:
        One line for each model that could not be logged. If the server does not answer, later models are not tried.
    """
    mlflow.set_tracking_uri(client.tracking_uri)
    for name in ("mlflow", "torch.export"):
        logging.getLogger(name).setLevel(logging.ERROR)
    problems = []
    for run in plan.runs:
        record = records.get(run.fingerprint)
        if record is None or record.outcome != "completed" or LOGGED_TAG in record.tags:
            continue
        try:
            _log_network(client, plan, run, record, CheckpointFolder(storage, folders[run.fingerprint]))
        except Exception as error:  # store, disk or exporter; the study has its results
            server_is_down = isinstance(error, MlflowException) and error.error_code not in PERMANENT_ERRORS
            reason = describe_error(error) if isinstance(error, MlflowException) else f"{error}".partition("\n")[0]
            others = ", nor those after it" if server_is_down else ""
            problems.append(f"{run}: its model was not logged{others}: {reason or type(error).__name__}")
            if server_is_down:
                break
    return problems


def _log_network(client: MlflowClient, plan: Plan, run: Run, record: RunRecord, checkpoints: CheckpointFolder) -> None:
    saved = checkpoints.latest()
    if saved is None:
        raise FileNotFoundError(f"there is no checkpoint in {checkpoints.where}")
    _log(client, run, record, pixels_to_scores(plan, run, evaluated_weights(saved)), plan.dataset_for_run(run))


def pixels_to_scores(plan: Plan, run: Run, weights: Mapping[str, Tensor]) -> PixelsToScores:
    """Return a run's network preceded by the normalization with which it was trained."""
    dataset = plan.dataset_for_run(run)
    net = build_network(run.spec.model, **dataset.sizes)
    net.load_state_dict(weights)
    return PixelsToScores(net, dataset, run.spec.data.normalize).eval()


def _log(client: MlflowClient, run: Run, record: RunRecord, model: PixelsToScores, dataset: Dataset) -> None:
    # Two images: with one image, torch.export would treat the batch size as a constant.
    example = np.asarray(dataset.examples(2), np.float32)
    with torch.inference_mode():
        signature = infer_signature(example, model(torch.from_numpy(example)).numpy())
    before = client.get_run(record.run_id).info
    try:
        with mlflow.start_run(run_id=record.run_id):
            mlflow.pytorch.log_model(
                model,
                name="model",
                signature=signature,
                input_example=example,
                serialization_format="pt2",
                pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
            )
        client.set_tag(record.run_id, LOGGED_TAG, "pt2")
    finally:
        client.set_terminated(record.run_id, before.status, before.end_time)  # keep the time at which training ended
