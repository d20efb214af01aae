"""What a user relies on when data are loaded, augmented and batched."""

import hashlib
import http.client
import http.server
import pickle
import socket
import ssl
import tarfile
import threading
import time
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import CIFAR10

import utils

# --- loading ------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A tiny CIFAR-10 archive of 5 x 20 and 20 images, which torchvision takes for the real one, in a folder.

    The stand-in is tiny too.
    """
    source = tmp_path / "served"
    folder = source / CIFAR10.base_folder
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    files = {"batches.meta": {"label_names": list(utils.CLASSES)}}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        pixels = torch.randint(0, 256, (20, 3072), generator=generator, dtype=torch.uint8)
        files[name] = {"data": pixels.numpy(), "labels": [i % 10 for i in range(20)]}
    md5 = {}
    for name, content in files.items():
        (folder / name).write_bytes(pickle.dumps(content))
        md5[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    with tarfile.open(source / CIFAR10.filename, "w:gz") as tar:
        tar.add(folder, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "train_list", [[n, md5[n]] for n in md5 if n.startswith("data")])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5["batches.meta"]})
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5((source / CIFAR10.filename).read_bytes()).hexdigest())
    tiny = utils.Images(torch.zeros(7, 3, 32, 32), torch.zeros(7), torch.zeros(2, 3, 32, 32), torch.zeros(2))
    monkeypatch.setattr(utils, "stand_in", lambda: tiny)
    return source


@pytest.fixture
def server(archive, monkeypatch):
    """Serve the archive on this machine; returns the list of the requests so far."""
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=archive)

        def log_message(self, *args):  # called once a request
            requests.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{httpd.server_port}/{CIFAR10.filename}")
        yield requests
        httpd.shutdown()


def test_what_is_missing_is_downloaded_once_and_then_used_without_the_network(server, tmp_path, capfd):
    root = tmp_path / "new" / "data"
    first = utils.load_cifar10(root)
    out, err = capfd.readouterr()
    assert out.endswith(f"CIFAR-10 ({root}): 100 training and 20 test images\n") and err == ""
    requests = len(server)
    second = utils.load_cifar10(root)
    assert capfd.readouterr() == (f"CIFAR-10 ({root}): 100 training and 20 test images\n", "")
    assert len(server) == requests > 0
    assert torch.equal(first.train_images, second.train_images)
    assert first.train_images.shape == (100, 3, 32, 32) and first.train_images.dtype == torch.uint8
    assert first.train_labels.tolist() == 5 * [i % 10 for i in range(20)]


@pytest.mark.parametrize("root", ["/images", "~/images", ""])
def test_the_root_comes_from_the_environment_and_is_else_the_folder_data(server, tmp_path, monkeypatch, root):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CIFAR10_ROOT", str(tmp_path) + root if root.startswith("/") else root)
    monkeypatch.chdir(tmp_path)
    utils.load_cifar10()
    assert (tmp_path / ("images" if root else "data") / CIFAR10.base_folder / "test_batch").exists()


def test_images_lie_the_right_way_up(server, archive, tmp_path):
    raw = pickle.loads((archive / CIFAR10.base_folder / "test_batch").read_bytes())["data"]
    images = utils.load_cifar10(tmp_path / "data").test_images
    assert images[7, 1, 2, 3] == raw[7, 1 * 1024 + 2 * 32 + 3]


@pytest.mark.parametrize(
    "damaged, kept", [("cifar-10-batches-py/data_batch_3", 0), ("cifar-10-batches-py/test_batch", 500), ("", 500)]
)
def test_a_missing_or_damaged_file_is_mended_from_the_archive_and_that_from_the_server(
    server, archive, tmp_path, damaged, kept
):
    whole = utils.load_cifar10(tmp_path)
    requests = len(server)
    for name in [damaged] if damaged else [CIFAR10.filename, "cifar-10-batches-py/test_batch"]:
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        if kept:
            (tmp_path / name).write_bytes(content[:kept])
    mended = utils.load_cifar10(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(mended, whole))
    assert (len(server) == requests) == bool(damaged)  # no second download of an archive that is whole


def answer(monkeypatch, reply):
    """Send ``reply`` to whoever asks for the archive, and hang up."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            connection, _ = listening.accept()
            connection.recv(1000)
            connection.sendall(reply)
            connection.close()

    threading.Thread(target=serve, daemon=True).start()
    monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{listening.getsockname()[1]}/{CIFAR10.filename}")


@pytest.mark.parametrize(
    "failure, reason",
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5000\r\nhalf of a chunk", "IncompleteRead"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "BadStatusLine: SSH-2.0-OpenSSH_9.6"),
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "HTTPError: HTTP Error 407: Proxy Authentication"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>Please log in to this network</html>", "File not found or corrupted"),
        (b"", "closed connection without response"),
        (http.client.LineTooLong("header line"), "LineTooLong"),
        (http.client.InvalidURL("nonnumeric port"), "InvalidURL: nonnumeric port"),
        (UnicodeError("label empty or too long"), "UnicodeError: label empty or too long"),
        (ssl.SSLCertVerificationError("certificate has expired"), "certificate has expired"),
        (ValueError("unknown url type"), "ValueError: unknown url type"),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
    ],
)
def test_however_a_download_fails_the_stand_in_takes_its_place_until_the_cause_is_removed(
    server, tmp_path, monkeypatch, capfd, failure, reason
):
    with monkeypatch.context() as patch:
        if isinstance(failure, bytes):
            answer(patch, failure)
        else:
            patch.setattr(utils, "CIFAR10", mock.Mock(side_effect=failure, url=CIFAR10.url))
        assert len(utils.load_cifar10(tmp_path / "data").train_images) == 7
    out, err = capfd.readouterr()
    assert "NOT CIFAR-10: SYNTHETIC STAND-IN" in out and reason in out and err == ""
    assert out.endswith("synthetic stand-in (made here): 7 training and 2 test images\n")
    assert utils.stand_in_note() == "[synthetic stand-in]"
    assert utils.output == tmp_path / "synthetic stand-in" and utils.output.is_dir()
    assert len(utils.load_cifar10(tmp_path / "data").train_images) == 100
    assert utils.output == tmp_path and utils.stand_in_note() == ""


def test_a_server_that_never_answers_is_left_after_the_time_out(archive, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(utils, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/{CIFAR10.filename}")
        started = time.perf_counter()
        utils.load_cifar10(tmp_path)
    assert time.perf_counter() - started < 5
    assert "timed out" in capsys.readouterr().out
    assert socket.getdefaulttimeout() is None


def test_the_stand_in_has_cifar10s_shapes_is_the_same_each_time_and_its_classes_can_be_learned():
    data = utils.stand_in()
    assert data.train_images.shape == (50_000, 3, 32, 32) and data.test_images.shape == (10_000, 3, 32, 32)
    assert data.train_images.dtype == torch.uint8 and data.train_labels.dtype == torch.int64
    assert data.train_labels.bincount().min() > 4_000 and data.test_labels.bincount(minlength=10).min() > 800
    means = torch.stack([data.train_images[:1000][data.train_labels[:1000] == c].float().mean(0) for c in range(10)])
    nearest = torch.cdist(data.test_images[:500].flatten(1).float(), means.flatten(1)).argmin(1)
    assert (nearest == data.test_labels[:500]).float().mean() > 0.9
    assert all(torch.equal(a, b) for a, b in zip(data, utils.stand_in()))


# --- pictures of one's own --------------------------------------------------------


@pytest.fixture
def picture():
    """60 x 40 pixels of many colours."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P"])
def test_a_picture_of_any_kind_becomes_the_networks_input(picture, tmp_path, mode):
    picture.convert(mode).save(tmp_path / "picture.png")
    image = utils.load_picture(tmp_path / "picture.png")
    assert image.shape == (1, 3, 32, 32) and image.dtype == torch.uint8
    centre = picture.convert(mode).convert("RGB").crop((10, 0, 50, 40)).resize((32, 32), Image.Resampling.BILINEAR)
    assert torch.equal(image[0], torch.from_numpy(np.array(centre)).permute(2, 0, 1))


def test_a_picture_stored_sideways_or_with_16_bits_a_pixel_is_seen_as_a_viewer_shows_it(picture, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "sideways.png", exif=exif)
    picture.save(tmp_path / "upright.png")
    picture.convert("L").save(tmp_path / "8.png")
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(tmp_path / "16.png")
    for stored, shown in (("sideways", "upright"), ("16", "8")):
        images = [utils.load_picture(tmp_path / f"{name}.png") for name in (stored, shown)]
        assert torch.equal(*images), stored


# --- augmentation and batches ----------------------------------------------------

images_strategy = st.builds(
    lambda n, size, seed: torch.randint(
        0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    ),
    st.integers(1, 8),
    st.integers(8, 32),
    st.integers(0, 1000),
)


@settings(max_examples=30, deadline=None)
@given(images_strategy, st.floats(0, 1), st.integers(0, 4))
def test_augmentations_keep_shape_dtype_and_range_and_leave_their_input_alone(images, p, padding):
    before = images.clone()
    for result in (utils.random_flip(images, p), utils.random_crop(images, padding)):
        assert result.shape == images.shape and result.dtype == torch.uint8
        assert result.min() >= images.min() and result.max() <= images.max()
    assert torch.equal(images, before)


def test_flips_and_crops_are_what_they_say_and_each_image_draws_its_own():
    torch.manual_seed(0)
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    batch = image.expand(200, -1, -1, -1)
    assert torch.equal(utils.random_flip(image, 1), image.flip(3))
    flipped = (utils.random_flip(batch) == image.flip(3)).flatten(1).all(1)
    assert 60 < flipped.sum() < 140
    padded = torch.nn.functional.pad(image, [2] * 4, mode="reflect")
    windows = [padded[0, :, y : y + 32, x : x + 32] for y in range(5) for x in range(5)]
    seen = {next(i for i, w in enumerate(windows) if torch.equal(w, crop)) for crop in utils.random_crop(batch)}
    assert seen == set(range(25))


def test_normalisation_gives_each_channel_the_dataset_s_mean_and_deviation():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    expected = [[(i / 255 - m) / s for i in range(256)] for m, s in zip(utils.MEAN, utils.STD)]
    torch.testing.assert_close(utils.normalize(images).view(3, 256), torch.tensor(expected), atol=1e-5, rtol=1e-5)
    with pytest.raises(TypeError, match="float32.*uint8"):
        utils.normalize(images.float())


def test_training_batches_hold_every_image_once_in_a_new_order_each_epoch(small):
    small[0].transform = None
    epochs = [torch.cat([x for x, _ in small[0]]) for _ in range(2)]
    ordered = utils.normalize(small[0].images).flatten(1).sum(1).sort().values
    assert all(torch.equal(e.flatten(1).sum(1).sort().values, ordered) for e in epochs)
    assert not torch.equal(*epochs)
    assert len(small[0]) == 6


def test_test_batches_are_never_augmented_or_shuffled_and_the_last_may_be_of_one_image(small):
    images, labels = utils.normalize(small[1].images), small[1].labels
    batches = list(utils.Batches(small[1].images, labels, batch_size=19))
    assert [len(y) for _, y in batches] == [19, 19, 19, 19, 19, 1]
    assert torch.equal(torch.cat([x for x, _ in batches]), images)
    assert torch.equal(torch.cat([y for _, y in batches]), labels)
    assert not torch.equal(torch.cat([x for x, _ in small[0]]), images)


def test_no_images_or_labels_that_do_not_match_are_refused():
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match="0 images"):
        utils.Batches(images[:0], torch.zeros(0).long())
    with pytest.raises(ValueError, match="4 images and 3 labels"):
        utils.Batches(images, torch.zeros(3).long())
