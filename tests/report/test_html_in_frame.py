"""The report where it is opened: in MLflow's viewer, which shows it in a frame that allows scripts only, and as a file."""

import functools
import http.server
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ablations.engine.report import tables
from ablations.engine.report.page.files import MlflowPlace
from tests.helpers import synthetic_study
from tests.helpers.browser import Browser, browser, needs_chromium
from tests.helpers.synthetic_findings import found_in
from tests.helpers.synthetic_findings import page as made

pytestmark = [pytest.mark.slow, needs_chromium]

OUTER = """<!DOCTYPE html><title>viewer</title><body style="margin: 0">
<iframe sandbox="allow-scripts" style="width: 1200px; height: 600px; border: 0"></iframe>
<script>
const frame = document.querySelector("iframe");
fetch("report/report.html").then((answer) => answer.text()).then((text) => {
  frame.onload = () => (document.body.dataset.ready = 1);
  const how = location.hash.slice(1);
  if (how === "notebook") frame.removeAttribute("sandbox");
  if (how !== "blob") frame.srcdoc = text;
  else frame.src = URL.createObjectURL(new Blob([text], { type: "text/html" }));
});
function ask(what, selector) {
  return new Promise((resolve) => {
    onmessage = (event) => resolve(event.data);
    setTimeout(() => resolve(null), 3000);
    frame.contentWindow.postMessage([what, selector], "*");
  });
}
</script></body>"""
PROBE = """<script>addEventListener("message", ({ data: [what, selector] }) => {
  const one = document.querySelector(selector);
  const tell = () => {
    const box = one.getBoundingClientRect(), text = document.activeElement;
    parent.postMessage({
      x: box.x + Math.min(box.width / 2, 20), y: box.y + box.height / 2, top: box.top, width: box.width, text: one.textContent,
      href: one.href, title: document.title, selected: String(getSelection()),
      inText: text.value?.slice(text.selectionStart, text.selectionEnd),
    }, "*");
  };
  if (what === "show") {
    if (one.closest("details")) one.closest("details").open = true;
    document.documentElement.style.scrollBehavior = "auto";
    one.scrollIntoView({ block: "center" });
  }
  setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(tell)), what === "show" ? 100 : 0);  // when it is drawn
});</script>"""
"""Script in the page that tells the viewer what a reader sees."""


@dataclass
class Viewer:
    """A page in a viewer."""

    browser: Browser

    def ask(self, what: str, selector: str) -> dict[str, Any]:
        found: dict[str, Any] = self.browser.evaluate(f"ask({what!r}, {selector!r})")
        assert found, f"the page is gone: {selector}"
        return found

    def click(self, selector: str) -> None:
        place = self.ask("show", selector)
        assert place["width"] > 0, selector
        self.browser.click(place["x"], place["y"])


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a report that a local MLflow stores, and the files beside it."""
    (tmp_path / "report").mkdir()
    place = MlflowPlace(tracking_uri="http://tracking.example:5000", experiment_id="7", run_id="abc")
    (tmp_path / "report/report.html").write_text(made(place=place).replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    (tmp_path / "outer.html").write_text(OUTER, encoding="utf-8")
    return tmp_path


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    """Return the address of a server of the folder."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(params=["blob", "srcdoc"])
def viewer(request: pytest.FixtureRequest, chromium: Browser, address: str) -> Viewer:
    """Return the report in a frame, as MLflow shows it (blob) and as other viewers do (srcdoc)."""
    chromium.open("about:blank")
    chromium.open(f"{address}/outer.html#{request.param}")
    chromium.until("document.body.dataset.ready")
    return Viewer(chromium)


def test_links_within_the_page_scroll(viewer: Viewer) -> None:
    for name in ("protocol", "answer", "downloads"):
        viewer.click(f'nav a[href="#{name}"]')
        for _ in range(40):
            if 0 <= (top := viewer.ask("look", f"#{name}")["top"]) < 600:
                break
        else:
            pytest.fail(f"{name} is at {top}")


def test_no_link_replaces_the_page(viewer: Viewer) -> None:
    links = [f'nav li:nth-child({i}) a[href^="#"]' for i in range(1, 9)]
    links += [f"a.file:nth-of-type({i})" for i in range(1, 8) if viewer.browser.evaluate(f"ask('look', 'a.file:nth-of-type({i})')")]
    for link in links:
        viewer.click(link)
        assert viewer.ask("look", "h1")["title"] == "shortcuts on digits"
    assert viewer.browser.evaluate("document.title") == "viewer"


def test_the_table_can_be_copied(viewer: Viewer) -> None:
    expected = tables.csv(found_in(synthetic_study.evidence()))
    assert viewer.ask("look", ".downloads li a")["width"] == 0, "a download button would do nothing"
    viewer.click(".downloads button.copy")
    viewer.browser.until("ask('look', '.downloads [role=status]').then((found) => found.text)")
    told = viewer.ask("look", ".downloads [role=status]")
    assert told["inText"] == expected
    assert told["text"] == "Copied."
    viewer.browser.call("Browser.grantPermissions", permissions=["clipboardReadWrite"])
    viewer.browser.evaluate("frame.blur(), window.focus()")
    assert viewer.browser.evaluate("navigator.clipboard.readText()") == expected


def test_a_file_beside_the_page_has_an_address_to_copy(viewer: Viewer) -> None:
    viewer.click("a.file")
    shown = viewer.ask("look", ".address")
    page = "#/experiments/7/runs/abc/artifacts/table.csv?workflowType=machine_learning"
    assert shown["text"].endswith(page)
    assert shown["selected"] == shown["text"]


def test_addresses_name_the_server_at_which_the_reader_is(chromium: Browser, address: str) -> None:
    chromium.open(f"{address}/outer.html#blob")
    chromium.until("document.body.dataset.ready")
    assert Viewer(chromium).ask("look", "a.file")["href"].startswith(f"{address}/#/experiments/7/")


def test_a_notebook_has_downloads_but_no_files_beside_the_page(chromium: Browser, address: str, folder: Path) -> None:
    (folder / "report/report.html").write_text(made().replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    chromium.open("about:blank")
    chromium.open(f"{address}/outer.html#notebook")
    chromium.until("document.body.dataset.ready")
    notebook = Viewer(chromium)
    assert notebook.ask("look", ".downloads li a")["width"] > 0
    assert notebook.ask("look", ".files")["width"] == 0
    notebook.click('nav a[href="#protocol"]')
    notebook.browser.until("ask('look', '#protocol').then((found) => found.top >= 0 && found.top < 600)")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a report in a folder."""
    (tmp_path / "report").mkdir()
    (tmp_path / "table.csv").write_text("the table", encoding="utf-8")
    path = tmp_path / "report" / "report.html"
    path.write_text(made(), encoding="utf-8")
    return path


def click(chromium: Browser, selector: str) -> None:
    place = chromium.evaluate(
        f"""(() => {{
document.documentElement.style.scrollBehavior = "auto";
const one = document.querySelector({selector!r});
one.scrollIntoView({{ block: "center" }});
const box = one.getBoundingClientRect();
return [box.x + Math.min(box.width / 2, 20), box.y + box.height / 2];
}})()"""
    )
    chromium.click(*place)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.05)


@pytest.mark.parametrize("scripts", [True, False])
def test_a_file_has_anchors_with_and_without_scripts(chromium: Browser, file: Path, *, scripts: bool) -> None:
    chromium.call("Emulation.setScriptExecutionDisabled", value=not scripts)
    try:
        chromium.open(file.as_uri())
        click(chromium, 'nav a[href="#protocol"]')
        chromium.until("location.hash === '#protocol'")
        chromium.until("document.querySelector('#protocol').getBoundingClientRect().top < 600")
    finally:
        chromium.call("Emulation.setScriptExecutionDisabled", value=False)


def test_a_file_has_downloads_and_links_to_the_files_beside_it(chromium: Browser, file: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    chromium.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(saved))
    chromium.open(file.as_uri())
    click(chromium, ".downloads li:first-child > a")
    wait_for(saved / "shortcuts.csv")
    assert (saved / "shortcuts.csv").read_text() == tables.csv(found_in(synthetic_study.evidence()))
    click(chromium, "a.file")  # which Chromium saves, since it cannot show CSV
    wait_for(saved / "table.csv")
    assert (saved / "table.csv").read_text() == "the table"
