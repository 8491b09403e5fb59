"""The report in the pages of a real MLflow server."""

from pathlib import Path

import pytest

from ablations.engine.analysis.study_analysis import analyze_study
from ablations.engine.report.bundle import publish
from ablations.engine.submission.reporting import report_address
from ablations.engine.tracking import mlflow_internals
from ablations.engine.tracking.connection import connect
from tests.helpers import synthetic_study
from tests.helpers.browser import browser, needs_chromium
from tests.helpers.one_figure import one_figure

SHOWN = "document.body.innerText.includes('Model training')"
"""The pages are drawn, with their switch between language models and trainings."""
TRAINING = "document.body.innerText.includes('Model registry')"
"""The switch is on trainings: only then is there a link to the registry of models."""


@pytest.mark.slow
@needs_chromium
def test_every_address_opens_model_training_and_the_report_is_in_a_frame_of_scripts(server: int, tmp_path: Path) -> None:
    client = connect(f"http://127.0.0.1:{server}")
    experiment = client.create_experiment("framed")
    run_id = client.create_run(experiment).info.run_id
    given = synthetic_study.evidence(epochs=2)
    with one_figure():
        publish(client, run_id, given, analyze_study(given))
    note = client.get_run(run_id).data.tags["mlflow.note.content"]
    addresses = [mlflow_internals.web_address(client.tracking_uri), report_address(client, run_id)]
    addresses += [mlflow_internals.web_address(client.tracking_uri, f"#{part.partition(')')[0]}") for part in note.split("](#")[1:]]
    assert len(addresses) > 2
    with browser(tmp_path) as page:

        def shows_training(address: str) -> bool:
            """Return whether MLflow shows trainings to a reader who has never been there."""
            page.open("about:blank")
            page.call("Storage.clearDataForOrigin", origin=client.tracking_uri, storageTypes="all")
            page.open(address)
            page.until(SHOWN)
            return bool(page.evaluate(TRAINING))

        assert not shows_training(client.tracking_uri), "MLflow does not need the part after ? any more"
        assert [address for address in addresses if not shows_training(address)] == []
        page.open(report_address(client, run_id))
        page.until("document.querySelector('iframe')?.src")
        frame = page.evaluate("(({ src, sandbox }) => [src, sandbox.value])(document.querySelector('iframe'))")
        assert frame[0].startswith(f"blob:{client.tracking_uri}/")
        assert frame[1] == "allow-scripts"
