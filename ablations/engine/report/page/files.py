"""Files that a page offers: texts within it, and links to the files one folder above it.

A viewer such as MLflow's shows the page in a frame that allows no downloads and no navigation. Texts can be read and copied there,
and links name the page at which MLflow shows the file.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from ablations.engine.tracking import mlflow_internals


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """A text file within the page."""

    name: str
    about: str
    """Its content, such as `CSV with every digit`."""
    text: str

    @property
    def url(self) -> str:
        """Data URL that holds the file."""
        return f"data:text/plain;base64,{base64.b64encode(self.text.encode()).decode()}"


@dataclass(frozen=True, kw_only=True)
class FileLink:
    """A link to a file one folder above the page."""

    name: str
    href: str
    """Address of the file: relative to the page, or that of MLflow's page with the file."""
    mlflow_page: str = ""
    """The part of the address of MLflow's page that follows the server's; empty outside MLflow."""


@dataclass(frozen=True, kw_only=True)
class MlflowPlace:
    """Place in MLflow at which a page and its files are stored."""

    tracking_uri: str
    experiment_id: str
    run_id: str
    folder: str = ""
    """Folder among the artifacts of the run; empty for their root."""

    def link(self, path: str) -> FileLink:
        """Return the link to a file; `path` is relative to the folder."""
        artifact = str(PurePosixPath(self.folder) / path)
        page = mlflow_internals.artifact_page(self.experiment_id, self.run_id, artifact)
        served = self.tracking_uri.startswith(("http://", "https://"))
        href = mlflow_internals.web_address(self.tracking_uri, page) if served else f"../{path}"
        return FileLink(name=path, href=href, mlflow_page=page)


def links(paths: Sequence[str], place: MlflowPlace | None) -> list[FileLink]:
    """Return links to the files of a report, by their paths; relative ones if it is not in MLflow."""
    return [place.link(path) if place else FileLink(name=path, href=f"../{path}") for path in paths]
