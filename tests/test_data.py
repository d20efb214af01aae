"""What a user relies on when data are loaded, augmented and batched."""

import hashlib
import pickle
import socket
import tarfile
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.datasets import CIFAR10

import utils


def answer(reply):
    """The address of a server that sends ``reply`` and hangs up, or that says nothing if it is None; and its socket."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            connection, _ = listening.accept()
            connection.recv(1000)
            connection.sendall(reply)
            connection.close()

    if reply is not None:
        threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}/{CIFAR10.filename}", listening


@pytest.fixture
def server(tmp_path, monkeypatch):
    """``CIFAR10`` downloads a tiny archive of 5 x 20 and 20 images from this machine. The stand-in is tiny too."""
    folder = tmp_path / "archive" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    md5 = {}
    for name in ["batches.meta"] + [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        pixels = np.random.default_rng(len(md5)).integers(0, 256, (20, 3072), dtype=np.uint8)
        content = {"data": pixels, "labels": [i % 10 for i in range(20)], "label_names": utils.CLASSES}
        (folder / name).write_bytes(pickle.dumps(content))
        md5[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    archive = folder.parent / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, CIFAR10.base_folder)
    tiny = utils.Images(torch.zeros(7, 3, 32, 32), torch.zeros(7), torch.zeros(2, 3, 32, 32), torch.zeros(2))
    monkeypatch.setattr(utils, "stand_in", lambda: tiny)
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5[name]] for name in md5 if name.startswith("data")])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5["batches.meta"]})
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    url, _ = answer(b"HTTP/1.1 200 OK\r\n\r\n" + archive.read_bytes())
    monkeypatch.setattr(CIFAR10, "url", url)


def test_what_is_missing_is_downloaded_once_and_comes_the_right_way_up(server, tmp_path, monkeypatch, capfd):
    root = tmp_path / "new" / "data"
    monkeypatch.setenv("CIFAR10_ROOT", str(root))
    first = utils.load_cifar10()
    out, err = capfd.readouterr()
    assert out.endswith(f"CIFAR-10 ({root}): 100 training and 20 test images\n") and err == ""
    monkeypatch.setattr(CIFAR10, "url", "nowhere")
    second = utils.load_cifar10()
    assert capfd.readouterr() == (f"CIFAR-10 ({root}): 100 training and 20 test images\n", "")
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert first.train_images.shape == (100, 3, 32, 32) and first.train_images.dtype == torch.uint8
    assert first.train_labels.tolist() == 5 * [i % 10 for i in range(20)]
    raw = pickle.loads((root / CIFAR10.base_folder / "test_batch").read_bytes())["data"]
    assert first.test_images[7, 1, 2, 3] == raw[7, 1 * 1024 + 2 * 32 + 3]


@pytest.mark.parametrize("root, folder", [("~/images", "images"), ("", "data")])
def test_the_root_may_lie_in_the_home_and_is_else_the_folder_data(server, tmp_path, monkeypatch, root, folder):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CIFAR10_ROOT", root)
    monkeypatch.chdir(tmp_path)
    utils.load_cifar10()
    assert (tmp_path / folder / CIFAR10.base_folder / "test_batch").exists()


@pytest.mark.parametrize(
    "reply, reason",
    [
        (None, "timed out"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5000\r\nhalf of a chunk", "IncompleteRead"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "BadStatusLine: SSH-2.0-OpenSSH_9.6"),
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "HTTPError: HTTP Error 407: Proxy Authentication"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>Please log in to this network</html>", "File not found or corrupted"),
        ("no address", "unknown url type"),
    ],
)
def test_however_a_download_fails_the_stand_in_takes_its_place_until_the_cause_is_removed(
    server, tmp_path, monkeypatch, capfd, reply, reason
):
    monkeypatch.setattr(utils, "TIMEOUT", 0.5)
    monkeypatch.setenv("CIFAR10_ROOT", str(tmp_path / "data"))
    with monkeypatch.context() as patch:
        url, _listening = (reply, None) if isinstance(reply, str) else answer(reply)
        patch.setattr(CIFAR10, "url", url)
        assert len(utils.load_cifar10().train_images) == 7
    out, err = capfd.readouterr()
    assert "NOT CIFAR-10: SYNTHETIC STAND-IN" in out and reason in out and err == ""
    assert out.endswith("synthetic stand-in (made here): 7 training and 2 test images\n")
    assert utils.on_stand_in and socket.getdefaulttimeout() is None
    assert utils.output_folder() == tmp_path / "synthetic stand-in" and utils.output_folder("images").is_dir()
    assert len(utils.load_cifar10().train_images) == 100
    assert utils.output_folder() == tmp_path and not utils.on_stand_in


@pytest.mark.parametrize("error", [MemoryError, TypeError])
def test_what_is_no_failure_to_get_the_data_is_raised(monkeypatch, error):
    def load(*_, **options):
        raise error

    monkeypatch.setattr(utils, "CIFAR10", load)
    with pytest.raises(error):
        utils.load_cifar10()


def test_the_stand_in_has_cifar10s_shapes_is_the_same_each_time_and_its_classes_can_be_learned():
    data = utils.stand_in()
    assert data.train_images.shape == (50_000, 3, 32, 32) and data.test_images.shape == (10_000, 3, 32, 32)
    assert data.train_images.dtype == torch.uint8 and data.train_labels.dtype == torch.int64
    assert data.train_labels.bincount().min() > 4_000
    means = torch.stack([data.train_images[:1000][data.train_labels[:1000] == c].float().mean(0) for c in range(10)])
    nearest = torch.cdist(data.test_images[:500].flatten(1).float(), means.flatten(1)).argmin(1)
    assert (nearest == data.test_labels[:500]).float().mean() > 0.9
    assert all(torch.equal(a, b) for a, b in zip(data, utils.stand_in()))


@pytest.mark.parametrize("kind", ["RGB", "L", "P", "sideways", "16 bits"])
def test_a_picture_of_any_kind_becomes_the_networks_input_as_a_viewer_shows_it(tmp_path, kind):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    stored, exif = picture, Image.Exif()
    if kind == "sideways":
        stored, exif[0x0112] = picture.transpose(Image.Transpose.ROTATE_90), 6  # to be turned back by the viewer
    elif kind == "16 bits":
        picture = picture.convert("L")
        stored = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
    else:
        stored = picture = picture.convert(kind)
    stored.save(tmp_path / "picture.png", exif=exif)
    image = utils.load_picture(tmp_path / "picture.png")
    centre = picture.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR, box=(10, 0, 50, 40))
    assert torch.equal(image, torch.from_numpy(np.array(centre)).permute(2, 0, 1)[None])


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "RGB", "L"])
def test_what_a_picture_hides_under_transparent_pixels_is_white(tmp_path, kind):
    picture, hidden = Image.new("RGBA", (64, 64), (90, 90, 90, 255)), 7  # grey, and nearly black above
    picture.paste((hidden, hidden, hidden, 0), (0, 0, 64, 32))
    if kind in ("RGBA", "LA"):
        picture.convert(kind).save(tmp_path / "picture.png")
    else:
        stored = picture.convert("RGB")
        stored = stored.quantize(2) if kind == "P" else stored.convert(kind)
        stored.save(tmp_path / "picture.png", transparency=stored.getpixel((0, 0)))
    image = utils.load_picture(tmp_path / "picture.png")
    assert (image[:, :, :15] == 255).all() and (image[:, :, 17:] == 90).all()


@pytest.mark.parametrize("kind", ["F", "I"])
def test_pixels_of_an_unknown_range_are_refused(tmp_path, kind):
    Image.new(kind, (32, 32), 1).save(tmp_path / "picture.tiff")
    with pytest.raises(ValueError, match="picture.tiff: the range of its pixels is not known"):
        utils.load_picture(tmp_path / "picture.tiff")


def test_flips_and_crops_are_what_they_say_and_each_image_draws_its_own():
    torch.manual_seed(0)
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    batch = image.expand(200, -1, -1, -1)
    flipped = (utils.random_flip(batch) == image.flip(3)).flatten(1).all(1)
    assert 60 < flipped.sum() < 140
    padded = F.pad(image, [2] * 4, mode="reflect")
    windows = [padded[0, :, y : y + 32, x : x + 32] for y in range(5) for x in range(5)]
    seen = {next(i for i, w in enumerate(windows) if torch.equal(w, crop)) for crop in utils.random_crop(batch)}
    assert seen == set(range(25))


def test_normalisation_gives_each_channel_the_dataset_s_mean_and_deviation():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    expected = [[(i / 255 - m) / s for i in range(256)] for m, s in zip(utils.MEAN, utils.STD)]
    torch.testing.assert_close(utils.normalize(images).view(3, 256), torch.tensor(expected), atol=1e-5, rtol=1e-5)
    with pytest.raises(TypeError, match="float32.*uint8"):
        utils.normalize(images.float())


def test_training_batches_hold_every_image_once_in_a_new_order_each_time_and_test_batches_keep_the_order(small):
    images = utils.normalize(small[1].images)
    shuffled = utils.Batches(small[1].images, torch.arange(96), batch_size=19, shuffle=True)
    orders = [torch.cat([y for _, y in shuffled]) for _ in range(2)]
    assert all(order.sort().values.tolist() == list(range(96)) for order in orders) and not torch.equal(*orders)
    assert [len(y) for _, y in shuffled] == [19, 19, 19, 19, 19, 1] and len(shuffled) == 6
    assert all(torch.equal(x, images[y]) for x, y in shuffled)
    assert torch.equal(torch.cat([x for x, _ in small[1]]), images)
    assert not torch.equal(small[0].transform(small[0].images), small[0].images)


def test_no_images_or_labels_that_do_not_match_are_refused(small):
    for images, labels in ((0, 0), (4, 3)):
        with pytest.raises(ValueError, match=f"{images} images and {labels} labels"):
            utils.Batches(small[1].images[:images], small[1].labels[:labels])
