"""Workers do together what one process does alone."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import spawn

from resnet_core import RunSpec, fit, load_dataset, override, preset
from resnet_core.data.batches import Batches
from resnet_core.data.datasets import resolve
from resnet_core.training.evaluation import evaluate, gather_predictions
from resnet_core.training.loop import _prepare, _rank, init_state, train_epoch
from resnet_core.training.optim import make_optimizer
from resnet_core.training.steps import make_step

Result = dict[str, Any]
WORKERS = 4
"""More than two: what they add up depends on the order then."""
SMOKE = preset("smoke")
CPU = torch.device("cpu")
CLOCKED = ("images_per_second", "epoch_seconds", "peak_memory_mb", "train_seconds")


def freeze_batchnorm(network: nn.Module, _: Any) -> None:
    network.eval()


class FirstPixels(nn.Module):
    """A network whose predicted class is the brightest of the first ten pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :10]


def one_step(spec: RunSpec) -> Result:
    """Metrics and weights of one step in float64, with BatchNorm in evaluation mode: nothing in it is local."""
    dataset = load_dataset(spec.data)
    spec = resolve(spec, dataset)
    state, batches = init_state(spec, CPU), Batches(dataset, spec, device=CPU, rank=_rank(spec))
    batches.mean = batches.mean.double()  # and so are the images
    state.net.double().register_forward_pre_hook(freeze_batchnorm)
    state.optimizer = make_optimizer(state.net, spec.optim)  # its momentum in float64, too
    step = make_step(_prepare(state.net, spec), state.optimizer, state.scaler, spec)
    metrics = train_epoch(step, state, batches, steps=1, total_steps=1)
    return {"metrics": metrics, "weights": state.net.state_dict()}


def evaluation(spec: RunSpec) -> Result:
    """Loss and error on the test set with initial weights, and the predictions of a network that tells images apart."""
    dataset = load_dataset(spec.data)
    spec = resolve(spec, dataset)
    batches, predicted = Batches(dataset, spec, device=CPU, rank=_rank(spec)), list[torch.Tensor]()
    metrics = evaluate(_prepare(init_state(spec, CPU).net, spec), batches)
    evaluate(FirstPixels(), batches, predicted=predicted)
    return {**metrics, "predictions": gather_predictions(predicted, batches, len(dataset.test.labels))}


def training(spec: RunSpec) -> Result:
    """Checkpoint of the last epoch of a whole training and of one that goes on after the first epoch."""
    first, whole = (copy.deepcopy(result.checkpoint()) for result in fit(spec))
    (continued,) = (result.checkpoint() for result in fit(spec, restore=first))
    return {"whole": whole, "continued": continued}


def odd(test_examples: int, **changes: Any) -> RunSpec:
    return override(SMOKE, {"test_examples": test_examples, **changes})


def work(rank: int, folder: str) -> None:
    """Everything that the tests look at, in one worker: starting it is what takes time."""
    warnings.simplefilter("error")
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORKERS)
    both = override(SMOKE, {"world_size": WORKERS})
    results = {
        "step": one_step(both),
        "training": training(both),
        **{f"evaluation {count}": evaluation(odd(count, world_size=WORKERS)) for count in (51, 1)},
    }
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """Findings of each worker."""
    folder = tmp_path_factory.mktemp("workers")
    spawn(work, args=(str(folder),), nprocs=WORKERS, daemon=True)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORKERS)]


@pytest.mark.slow
def test_a_step_of_several_workers_is_the_step_of_one_process_on_the_same_global_batch(workers: list[Result]) -> None:
    alone, untrained = one_step(SMOKE), one_step(override(SMOKE, {"lr": 0.0}))
    assert (alone["weights"]["conv1.weight"] - untrained["weights"]["conv1.weight"]).abs().max() > 1e-4
    for worker in workers:
        torch.testing.assert_close(worker["step"]["weights"], alone["weights"], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(worker["step"]["metrics"], alone["metrics"], rtol=1e-6, atol=0)  # the loss is in float32


@pytest.mark.slow
@pytest.mark.parametrize("count", [51, 1])
def test_workers_count_every_test_image_once(workers: list[Result], count: int) -> None:
    alone = evaluation(odd(count))
    for worker in workers:
        assert worker[f"evaluation {count}"]["error"] == alone["error"]
        assert worker[f"evaluation {count}"]["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert worker[f"evaluation {count}"]["predictions"].tolist() == alone["predictions"].tolist()
    assert count == 1 or len(alone["predictions"].unique()) > 1, "a constant would be in any order"


@pytest.mark.slow
def test_workers_end_with_the_same_weights_statistics_and_metrics(workers: list[Result]) -> None:
    states = [worker["training"]["whole"] for worker in workers]
    assert "layer1.0.bn1.running_var" in states[0]["model"]
    torch.testing.assert_close(states[0]["model"], states[1]["model"], rtol=0, atol=0)
    histories = [[{k: v for k, v in epoch.items() if k not in CLOCKED} for epoch in state["history"]] for state in states]
    assert histories[0] == histories[1]
    assert len(histories[0]) == 2


@pytest.mark.slow
def test_restored_workers_end_with_the_bits_of_uninterrupted_ones(workers: list[Result]) -> None:
    for worker in workers:
        whole, continued = worker["training"]["whole"], worker["training"]["continued"]
        torch.testing.assert_close(continued["model"], whole["model"], rtol=0, atol=0)
        torch.testing.assert_close(continued["optimizer"], whole["optimizer"], rtol=0, atol=0)
