"""CIFAR is read right and downloaded once, and data sets are prepared and shown from the command line."""

import functools
import hashlib
import io
import pickle
import shlex
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from ablations.engine.environment import paths
from resnet_core import ConfigError, DataConfig, Dataset, RunSpec, override, preset
from resnet_core.data import cifar as cifar_files
from resnet_core.data import datasets, picture
from resnet_core.data.__main__ import default_cache, main
from resnet_core.data.datasets import Split, load_dataset


def load(config: DataConfig, cache: Path | None = None, *, download: bool = False) -> Dataset:
    """As in a fresh process."""
    datasets._kept.clear()
    cifar_files._is_complete.cache_clear()
    return load_dataset(config, cache, download=download)


def hint(name: str, root: Path) -> str:
    """Return the message where CIFAR data are missing."""
    folder = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    command = f"python -m resnet_core.data prepare --preset {name} --set data.root={shlex.quote(str(root))} --download"
    return f"no complete and uncorrupted {folder} in it; get it with --data-download or: {command}"


# --- reading CIFAR ---


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, NDArray[np.uint8]]]:
    """A folder in torchvision's layout with six images, and their pixels by file."""
    base, random = tmp_path / CIFAR10.base_folder, np.random.default_rng(0)
    base.mkdir()
    pixels: dict[str, NDArray[np.uint8]] = {}

    def save(name: str, content: dict[str, Any]) -> list[str]:
        (base / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((base / name).read_bytes()).hexdigest()]

    def batch(name: str) -> list[str]:
        pixels[name] = random.integers(0, 256, (2, 3072)).astype(np.uint8)
        return save(name, {"data": pixels[name], "labels": [len(pixels), 9]})

    monkeypatch.setattr(CIFAR10, "train_list", [batch("data_batch_1"), batch("data_batch_2")])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch")])
    _, md5 = save("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5})
    return tmp_path, pixels


def test_cifar10_is_read_in_order_by_channel_row_and_column(cifar: tuple[Path, dict[str, NDArray[np.uint8]]]) -> None:
    root, pixels = cifar
    data = load(DataConfig(name="cifar10", root=str(root)))
    assert isinstance(data.train, Split)
    assert isinstance(data.test, Split)
    assert data.classes == tuple("abcdefghij")
    assert data.train.labels.tolist() == [1, 9, 2, 9]
    assert data.test.labels.tolist() == [3, 9]
    assert np.array_equal(data.train.images[2:].reshape(2, -1), pixels["data_batch_2"])
    assert data.test.images[1, 2, 5, 7] == pixels["test_batch"][1, 2 * 1024 + 5 * 32 + 7]


def test_cifar10_is_cached_whatever_else_is_in_its_folder(cifar: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config, cache = DataConfig(name="cifar10", root=str(cifar[0])), cifar[0] / "cache"
    first = load(config, cache)
    monkeypatch.setattr(datasets, "_build", None)
    (cifar[0] / "another data set.bin").write_bytes(b"1")
    assert load(config, cache).version == first.version


@pytest.mark.parametrize("file", ["data_batch_2", "test_batch", "batches.meta"])
@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])], ids=["missing", "truncated"]
)
def test_incomplete_cifar10_is_refused_in_one_line(cifar: tuple[Path, Any], file: str, damage: Callable[[Path], Any]) -> None:
    root, _ = cifar
    damage(root / CIFAR10.base_folder / file)
    with pytest.raises(ConfigError) as caught:
        load(DataConfig(name="cifar10", root=str(root)))
    assert str(caught.value) == f"data.root={root}: {hint('cifar10', root)}"


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("cached", [False, True])
def test_missing_cifar_data_are_refused_with_the_command_that_gets_them(tmp_path: Path, name: Any, cached: bool) -> None:
    root = tmp_path / "no where"
    with pytest.raises(ConfigError) as caught:
        load(DataConfig(name=name, root=str(root)), tmp_path / "cache" if cached else None)
    assert str(caught.value) == f"data.root={root}: {hint(name, root)}"
    assert not root.exists()


def test_cifar10_test_images_are_not_read_for_validation(cifar: tuple[Path, dict[str, NDArray[np.uint8]]]) -> None:
    root, pixels = cifar
    held = load(DataConfig(name="cifar10", root=str(root), validation=0.2))
    assert isinstance(held.train, Split)
    assert isinstance(held.test, Split)
    found = np.concatenate([held.train.images, held.test.images]).reshape(4, -1)
    training = np.concatenate([pixels["data_batch_1"], pixels["data_batch_2"]])
    assert sorted(map(bytes, found)) == sorted(map(bytes, training))
    assert held.version != load(DataConfig(name="cifar10", root=str(root))).version


# --- download ---


@dataclass
class Server:
    """Serves one archive over HTTP and counts how often it did."""

    address: str = ""
    content: bytes = b""
    promised: int | None = None
    """Length that is announced, if not the real one."""
    seconds: float = 0
    served: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        if request.headers.get("Method") != "HEAD":  # torchvision's way to ask for redirections
            with self.lock:
                self.served += 1
        time.sleep(self.seconds)
        request.send_response(200)
        request.send_header("Content-Length", str(self.promised or len(self.content)))
        request.end_headers()
        request.wfile.write(self.content)


class Handler(BaseHTTPRequestHandler):
    def __init__(self, server: Server, *arguments: Any) -> None:
        self.archive = server
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self.archive.answer(self)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    http = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, served))
    served.address = f"http://127.0.0.1:{http.server_address[1]}/archive.tar.gz"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield served
    http.shutdown()
    http.server_close()
    thread.join()


def archive(kind: type[CIFAR10]) -> tuple[bytes, dict[str, Any]]:
    """A small archive in the layout of CIFAR-10 or CIFAR-100, and what the torchvision class has to say of it."""
    random, fine = np.random.default_rng(0), issubclass(kind, CIFAR100)
    files: dict[str, bytes] = {}

    def add(name: str, content: dict[str, Any]) -> str:
        files[name] = pickle.dumps(content)
        return hashlib.md5(files[name]).hexdigest()

    def part(name: str, labels: list[int]) -> list[list[str]]:
        images = random.integers(0, 256, (len(labels), 3072)).astype(np.uint8)
        return [[name, add(name, {"data": images, "fine_labels" if fine else "labels": labels})]]

    changes: dict[str, Any] = {"train_list": part("train_part", [5, 3, 5]), "test_list": part("test_part", [4])}
    names = [f"class {i}" for i in range(100 if fine else 10)]
    changes["meta"] = kind.meta | {"md5": add(kind.meta["filename"], {kind.meta["key"]: names})}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{kind.base_folder}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue(), changes | {"tgz_md5": hashlib.md5(buffer.getvalue()).hexdigest()}


@pytest.fixture(params=["cifar10", "cifar100"])
def remote(request: pytest.FixtureRequest, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """A data set that is on the server, not in the folder."""
    kind: type[CIFAR10] = {"cifar10": CIFAR10, "cifar100": CIFAR100}[request.param]
    server.content, changes = archive(kind)
    for name, value in (changes | {"url": server.address}).items():
        monkeypatch.setattr(kind, name, value)
    return DataConfig(name=request.param, root=str(tmp_path / "deep" / "data"))


def left_in(config: DataConfig) -> list[str]:
    """Return the names in the folder, without lock files."""
    return sorted(path.name for path in Path(config.root or "").iterdir() if path.suffix != ".lock")


def test_data_are_downloaded_when_asked_for_and_once(remote: DataConfig, server: Server) -> None:
    first = load(remote, download=True)
    assert load(remote).version == load(remote, download=True).version == first.version
    assert server.served == 1
    assert first.train.labels.tolist() == [5, 3, 5]
    assert first.test.labels.tolist() == [4]
    assert (len(first.classes), first.image_size) == (100 if remote.name == "cifar100" else 10, 32)
    assert first.classes[:2] == ("class 0", "class 1")
    assert left_in(remote) == [{"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[remote.name]]


def test_the_same_config_gives_the_same_object_with_and_without_download(remote: DataConfig) -> None:
    assert load_dataset(remote, download=True) is load_dataset(remote)


def test_a_process_compares_the_checksums_of_a_data_set_once(remote: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(remote, download=True)
    load_dataset(remote, download=True)
    monkeypatch.setattr(cifar_files, "_torchvision", None)
    assert load_dataset(remote, download=True) is first


def test_a_download_that_grows_gives_signs_of_life_and_one_that_stalls_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar_files, "GROWTH_POLL_INTERVAL_SECONDS", 0.02)
    heard = threading.Semaphore(0)
    with cifar_files._heartbeat_on_growth(tmp_path, heard.release):
        for size in (10, 20, 30):
            (tmp_path / "archive").write_bytes(bytes(size))
            assert heard.acquire(timeout=10)
        assert not heard.acquire(timeout=0.3)


def test_a_process_sees_that_downloaded_data_were_damaged_later(remote: DataConfig, server: Server) -> None:
    first = load_dataset(remote, download=True)
    (path,) = Path(remote.root or "").glob("*/test_part")
    path.write_bytes(b"damaged")
    assert load_dataset(remote, download=True).version == first.version
    assert server.served == 2


def test_data_that_are_damaged_are_downloaded_anew(remote: DataConfig, server: Server) -> None:
    first = load(remote, download=True)
    (path,) = Path(remote.root or "").glob("*/test_part")
    path.write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="no complete"):
        load(remote)
    assert load(remote, download=True).version == first.version
    assert server.served == 2


def wrong_checksum(server: Server) -> None:
    server.content += b"more"


def broken_off(server: Server) -> None:
    server.promised = len(server.content)
    server.content = server.content[:-100]


def no_network(server: Server) -> None:
    for kind in (CIFAR10, CIFAR100):
        kind.url = "http://127.0.0.1:9/nothing.tar.gz"


@pytest.mark.parametrize("fail", [wrong_checksum, broken_off, no_network])
def test_a_failed_download_is_one_line_and_leaves_nothing_behind(
    remote: DataConfig, server: Server, monkeypatch: pytest.MonkeyPatch, fail: Callable[[Server], None]
) -> None:
    with monkeypatch.context() as patch:
        for kind in (CIFAR10, CIFAR100):
            patch.setattr(kind, "url", kind.url)  # put back afterwards
        good = server.content
        fail(server)
        with pytest.raises(ConfigError, match=rf"^data\.root={remote.root}: download of {remote.name} failed \(.+\)$") as caught:
            load(remote, download=True)
        assert len(str(caught.value).splitlines()) == 1
        assert left_in(remote) == []
    server.content, server.promised = good, None
    assert len(load_dataset(remote, download=True).train.labels) == 3  # in the same process


DOWNLOAD = """
import pickle, sys
from pathlib import Path
from torchvision.datasets import CIFAR10
from resnet_core.data.datasets import load_dataset
config, changes = pickle.loads(Path(sys.argv[1]).read_bytes())
for name, value in changes.items():
    setattr(CIFAR10, name, value)
print("ready", flush=True)
sys.stdin.readline()
print(load_dataset(config, download=True).version)
"""


@pytest.mark.nightly
@pytest.mark.slow
def test_of_processes_that_start_together_one_downloads_and_the_others_wait(server: Server, tmp_path: Path) -> None:
    server.content, changes = archive(CIFAR10)
    server.seconds = 0.5
    config = DataConfig(name="cifar10", root=str(tmp_path / "data"))
    (tmp_path / "job").write_bytes(pickle.dumps((config, changes | {"url": server.address})))
    command = [sys.executable, "-c", DOWNLOAD, str(tmp_path / "job")]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    versions = {process.communicate(timeout=180)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert server.served == 1
    assert len(versions) == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig(name="digits"), r"digits: comes with scikit-learn"),
        (DataConfig(name="synthetic"), r"synthetic: is generated"),
        (DataConfig(name="imagenet", root="/x"), r"imagenet: put it into data\.root"),
        (DataConfig(name="imagefolder", root="/x"), r"imagefolder: put it into data\.root"),
    ],
)
def test_other_data_cannot_be_downloaded(config: DataConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^data\.name={config.name}: only cifar10 and cifar100 can be downloaded; {message}$"):
        load(config, download=True)


# --- the command line ---


def test_prepared_data_are_where_studies_look_for_them() -> None:
    assert default_cache() == paths.data_cache()


def test_prepare_downloads_caches_and_says_what_there_is(
    remote: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prepare", "--preset", remote.name, "--set", f"data.root={remote.root}", "--cache", str(tmp_path / "cache")]
    assert main([*command, "--download"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (lines["training"], lines["test"], lines["images"]) == ("3 images", "1 image: its test set", "in memory, 3×32×32")
    assert lines["classes"].startswith("10")
    assert lines["version"] == load(remote).version
    assert len(list((tmp_path / "cache").glob("*/meta.json"))) == 1


def test_a_validation_split_is_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "--preset", "smoke", "--set", "validation=0.25", "train_examples=40", "--cache", str(tmp_path)]) == 0
    assert (
        "training    30 images\nvalidation  10 images: 25 % of each class's training images, held out\n" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare"], "error: the following arguments are required: --preset (see --help)"),
        (["prepare", "--pre", "smoke"], "error: the following arguments are required: --preset (see --help)"),
        (["bake", "--preset", "smoke"], "error: argument command: invalid choice: 'bake'"),
        (["prepare", "--preset", "smoke", "--two\nlines"], "error: unrecognized arguments: --two lines (see --help)"),
        (["show", "--preset", "smoke", "--seed", "x"], "error: argument --seed: invalid int value: 'x' (see --help)"),
        (["prepare", "--preset", "smoke", "--cache", "/proc/nope"], "error: cache=/proc/nope: the folder cannot be written ("),
        (["prepare", "--preset", "nothing"], "error: preset=nothing: accepted: "),
        (["prepare", "--preset", "smoke", "--set", "validation"], "error: --set=validation: accepted: NAME=VALUE"),
        (["prepare", "--preset", "smoke", "--download"], "error: data.name=synthetic: only cifar10 and cifar100 can be"),
        (["show", "--preset", "smoke", "--set", "pad=x"], "error: data.pad=x: accepted: a whole number"),
        (["show", "--preset", "smoke", "--output", "/proc/x/batch.png"], "error: --output=/proc/x/batch.png: cannot be written"),
        (["show", "--preset", "smoke", "--output", "batch.xyz"], "error: --output=batch.xyz: cannot be written"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_status_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, *([] if "--cache" in arguments else ["--cache", str(tmp_path)])]) == 2
    output = capsys.readouterr()
    assert output.err.startswith(message)
    assert (output.out, len(output.err.splitlines())) == ("", 1)


def test_show_writes_a_picture_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "batch.png"
    assert main(["show", "--preset", "smoke", "--cache", str(tmp_path), "--output", str(output)]) == 0
    with Image.open(output) as found:
        assert capsys.readouterr().out == f"wrote {output} ({found.width}×{found.height} pixels)\n"
        assert found.width > 9 * 96
        assert found.height > 8 * 96


@pytest.mark.parametrize("normalize", ["channel", "pixel"])
def test_shown_images_have_their_own_colours_and_places(normalize: str) -> None:
    spec = override(preset("smoke"), {"data.pad": 0, "data.flip": False, "data.normalize": normalize})
    data = load(spec.data)
    assert isinstance(data.train, Split)
    part = Split(data.train.images[:5], data.train.labels[:5])
    for shown in picture.augmented(data, part, spec, 2):
        assert np.array_equal(shown, part.images)


def test_shown_images_are_augmented_as_in_training() -> None:
    spec = override(preset("smoke"), {"data.pad": 2})
    data = load(spec.data)
    assert isinstance(data.train, Split)
    part = Split(data.train.images[:5], data.train.labels[:5])
    padded = np.broadcast_to(data.subtracted("channel").round().astype(np.uint8), (5, 3, 12, 12)).copy()
    padded[:, :, 2:10, 2:10] = part.images
    crops = np.lib.stride_tricks.sliding_window_view(padded, (8, 8), (2, 3))  # (N, C, row, column, 8, 8)
    first, second = picture.augmented(data, part, spec, 2)
    for shown in (first, second):
        found = [(crops == image[:, :, None, None]).all((1, 4, 5)).any((1, 2)) for image in (shown, shown[..., ::-1])]
        assert np.logical_or(*found).all()
    assert not np.array_equal(first, second)


def test_shown_borders_are_the_mean_of_all_training_images() -> None:
    spec = override(preset("smoke"), {"data.pad": 8, "data.normalize": "pixel"})
    data = load(spec.data)
    assert isinstance(data.train, Split)
    corners = data.subtracted("pixel").round()[:, ::7, ::7]
    (shown,) = picture.augmented(data, Split(data.train.images[:5], data.train.labels[:5]), spec, 1)
    assert (shown[:, :, ::7, ::7] == corners).all(1).any((1, 2)).all()


def test_streamed_images_are_shown_too(tmp_path: Path) -> None:
    for i in range(4):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 30), (60 * i, 0, 0)).save(path)
    data = DataConfig(name="imagefolder", root=str(tmp_path / "images"), stream=True, image_size=14, decode_workers=1)
    shown = picture.draw_batch(load(data), RunSpec(data=data), images=2, epochs=3)
    assert shown.width > 4 * 96
