"""What a user relies on when data are loaded, augmented and batched."""

import hashlib
import pickle
import socket
import socketserver
import tarfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.datasets import CIFAR10

import utils


def address(reply, requests):
    """Where a server sends ``reply`` and hangs up, or stays silent for a second if it is None."""

    def handle(connection, *_):
        requests.append(connection.recv(1000))
        time.sleep(1 if reply is None else 0)
        connection.sendall(reply or b"")

    server = socketserver.TCPServer(("127.0.0.1", 0), handle)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}/{CIFAR10.filename}"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """``CIFAR10`` downloads a tiny archive of 5 x 20 and 20 images from this machine. The stand-in
    is tiny too."""
    folder = tmp_path / "archive" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    for seed, name in enumerate([*names, "batches.meta"]):
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 3072), dtype=np.uint8)
        content = {"data": pixels, "labels": 2 * list(range(10)), "label_names": utils.CLASSES}
        (folder / name).write_bytes(pickle.dumps(content))
    with tarfile.open(tmp_path / "archive.tar.gz", "w:gz") as tar:
        tar.add(folder, CIFAR10.base_folder)
    archive = (tmp_path / "archive.tar.gz").read_bytes()
    monkeypatch.setattr(utils, "stand_in", lambda: utils.Data(7 * [0], 7 * [0], 2 * [0], 2 * [0]))
    monkeypatch.setattr(
        CIFAR10, "train_list", [(name, None) for name in names[:5]]
    )  # no checksum of its own
    monkeypatch.setattr(CIFAR10, "test_list", [(names[5], None)])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": None})
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive).hexdigest())
    requests = []
    monkeypatch.setattr(CIFAR10, "url", address(b"HTTP/1.1 200 OK\r\n\r\n" + archive, requests))
    return requests


def test_what_is_missing_is_downloaded_and_what_is_there_is_read_the_right_way_up(
    server, tmp_path, monkeypatch, capfd
):
    root, line = (
        tmp_path / "new" / "images",
        f"CIFAR-10 ({tmp_path}/new/images): 100 training and 20 test images\n",
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CIFAR10_ROOT", "~/new/images")
    first = utils.load_cifar10()
    out, err = capfd.readouterr()
    assert out.endswith(line) and err == ""
    monkeypatch.setattr(CIFAR10, "url", "nowhere")
    assert all(torch.equal(a, b) for a, b in zip(first, utils.load_cifar10()))
    assert capfd.readouterr() == (line, "")
    assert first.train_images.shape == (100, 3, 32, 32) and first.train_images.dtype == torch.uint8
    assert first.train_labels.tolist() == 10 * list(range(10))
    raw = pickle.loads((root / CIFAR10.base_folder / "test_batch").read_bytes())["data"]
    assert first.test_images[7, 1, 2, 3] == raw[7, 1 * 1024 + 2 * 32 + 3]


def start(_):
    return len(utils.load_cifar10().train_images)


def test_of_two_first_starts_at_once_one_downloads_and_both_have_the_images(
    server, tmp_path, monkeypatch
):
    monkeypatch.setenv("CIFAR10_ROOT", str(tmp_path))
    with ProcessPoolExecutor(2, get_context("fork")) as pool:  # which keep what is patched
        assert list(pool.map(start, range(2))) == [100, 100]
    assert len(server) == 2  # of one download: torchvision asks for the address first


@pytest.mark.parametrize(
    "reply, reason",
    [
        (None, "timed out"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5000\r\nhalf of a chunk",
            "IncompleteRead",
        ),
        (
            b"HTTP/1.1 200 OK\r\n\r\n<html>Please log in to this network</html>",
            "File not found or corrupted",
        ),
        ("no address", "unknown url type"),
    ],
)
def test_while_a_download_fails_the_stand_in_takes_its_place(
    server, tmp_path, monkeypatch, capfd, reply, reason
):
    monkeypatch.setattr(utils, "TIMEOUT", 0.5)
    monkeypatch.setenv("CIFAR10_ROOT", "")  # as if it were not set: data
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(CIFAR10, "url", reply if isinstance(reply, str) else address(reply, []))
        assert len(utils.load_cifar10().train_images) == 7
    out, err = capfd.readouterr()
    assert "NOT CIFAR-10: SYNTHETIC STAND-IN" in out and reason in out and err == ""
    assert out.endswith("synthetic stand-in (made here): 7 training and 2 test images\n")
    assert utils.on_stand_in and socket.getdefaulttimeout() is None
    assert (
        utils.output_folder() == tmp_path / "synthetic stand-in"
        and utils.output_folder("images").is_dir()
    )
    assert (
        len(utils.load_cifar10().train_images) == 100
        and (tmp_path / "data" / CIFAR10.base_folder).is_dir()
    )
    assert utils.output_folder() == tmp_path and not utils.on_stand_in


def test_the_stand_in_has_a_tenth_of_the_images_is_the_same_each_time_and_its_classes_can_be_learned():
    before = torch.get_rng_state()
    data = utils.stand_in()
    assert torch.equal(torch.get_rng_state(), before) and data.train_labels[:9].tolist() == [
        6,
        8,
        8,
        4,
        8,
        0,
        0,
        1,
        6,
    ]
    assert data.train_images.shape == (5_000, 3, 32, 32) and data.test_images.shape == (
        1_000,
        3,
        32,
        32,
    )
    assert data.train_images.dtype == torch.uint8 and data.train_labels.dtype == torch.int64
    means = torch.stack(
        [data.train_images[:1000][data.train_labels[:1000] == c].float().mean(0) for c in range(10)]
    )
    nearest = torch.cdist(data.test_images[:500].flatten(1).float(), means.flatten(1)).argmin(1)
    assert (nearest == data.test_labels[:500]).float().mean() > 0.9


def test_the_central_square_of_a_picture_becomes_the_input_the_way_up_that_a_viewer_shows_or_it_is_refused(
    tmp_path,
):
    pixels, exif = (
        np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8),
        Image.Exif(),
    )
    picture = Image.fromarray(pixels)
    exif[0x0112] = 6  # stored sideways, to be turned back by the viewer
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "picture.png", exif=exif)
    centre = picture.resize((32, 32), Image.Resampling.BILINEAR, box=(10, 0, 50, 40))
    expected = torch.from_numpy(np.array(centre)).permute(2, 0, 1)[None]
    assert torch.equal(utils.load_picture(tmp_path / "picture.png"), expected)
    for kind in ("F", "I", "I;16"):
        Image.new(kind, (32, 32), 1).save(tmp_path / "picture.tiff")
        with pytest.raises(ValueError, match="picture.tiff has more than 8 bits per channel"):
            utils.load_picture(tmp_path / "picture.tiff")


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "RGB", "L"])
def test_what_a_picture_hides_under_transparent_pixels_is_white(tmp_path, kind):
    picture = Image.new("RGBA", (64, 64), (90, 90, 90, 255))
    picture.paste((7, 7, 7, 0), (0, 0, 64, 32))  # hidden: nearly black
    stored = picture.convert("RGB").quantize(2) if kind == "P" else picture.convert(kind)
    hidden = {} if kind in ("RGBA", "LA") else {"transparency": stored.getpixel((0, 0))}
    stored.save(tmp_path / "picture.png", **hidden)
    image = utils.load_picture(tmp_path / "picture.png")
    assert (image[:, :, :15] == 255).all() and (image[:, :, 17:] == 90).all()


def test_crops_and_normalisation_are_what_they_say_and_each_image_draws_its_own():
    torch.manual_seed(0)
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    padded = F.pad(image, [4] * 4, mode="reflect")
    windows = {
        padded[0, :, y : y + 32, x : x + 32].numpy().tobytes() for y in range(9) for x in range(9)
    }
    assert {
        crop.numpy().tobytes() for crop in utils.random_crop(image.expand(2000, -1, -1, -1))
    } == windows
    channels = zip(image[0].tolist(), utils.MEAN, utils.STD)
    expected = [
        [[(pixel / 255 - mean) / std for pixel in row] for row in rows]
        for rows, mean, std in channels
    ]
    torch.testing.assert_close(
        utils.normalize(image)[0], torch.tensor(expected), atol=1e-5, rtol=1e-5
    )
    assert utils.normalize(image).is_contiguous(
        memory_format=torch.channels_last
    )  # faster on a CPU
    with pytest.raises(TypeError, match="float32.*uint8"):
        utils.normalize(image.float())


def test_training_batches_hold_every_image_once_in_a_new_order_test_batches_keep_it_and_labels_must_match(
    small,
):
    images = utils.normalize(small[1].images)
    shuffled = utils.Batches(small[1].images, torch.arange(96), batch_size=19, shuffle=True)
    orders = [torch.cat([y for _, y in shuffled]) for _ in range(2)]
    assert all(
        order.sort().values.tolist() == list(range(96)) for order in orders
    ) and not torch.equal(*orders)
    assert [len(y) for _, y in shuffled] == [19, 19, 19, 19, 19, 1] and len(shuffled) == 6
    assert all(torch.equal(x, images[y]) for x, y in shuffled)
    assert torch.equal(torch.cat([x for x, _ in small[1]]), images)
    for images, labels in ((0, 0), (4, 3)):
        with pytest.raises(ValueError, match=f"{images} images and {labels} labels"):
            utils.Batches(small[1].images[:images], small[1].labels[:labels])
