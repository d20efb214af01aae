"""What a user relies on when data are loaded, augmented and batched."""

import hashlib
import pickle
import shutil
import socket
import socketserver
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps, PngImagePlugin
from torch.testing import assert_close
from torchvision import transforms
from torchvision.datasets import CIFAR10

import utils

RANDOM = np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)


def test_the_classes_have_cifar10s_names_in_its_order():
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    assert " ".join(utils.CLASSES) == names


# --- CIFAR-10 and its stand-in --------------------------------------------------------------------


def address(content, delay=0):
    """Where this machine serves a file, after ``delay`` seconds."""

    def handle(connection, *_):
        connection.recv(1000)
        time.sleep(delay)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + content)

    server = socketserver.TCPServer(("127.0.0.1", 0), handle)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """``CIFAR10_ROOT``, where nothing is yet. CIFAR-10 is tiny: 5 x 20 and 20 images.

    Its files are in ``files``, its archive is in ``archive`` and at its address.
    """
    folder = tmp_path / "files" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    content = {
        "data": RANDOM.reshape(20, 3072),
        "labels": 2 * list(range(10)),
        "label_names": [],
    }
    for name in [*names, "batches.meta"]:
        (folder / name).write_bytes(pickle.dumps(content))
    archive = f"{tmp_path}/archive/cifar-10-python"
    content = Path(shutil.make_archive(archive, "gztar", tmp_path / "files")).read_bytes()
    facts = {
        "url": address(content),
        "tgz_md5": hashlib.md5(content).hexdigest(),
        "train_list": [(name, None) for name in names[:5]],
        "test_list": [(names[5], None)],
        "meta": CIFAR10.meta | {"md5": None},
    }
    for name, fact in facts.items():
        monkeypatch.setattr(CIFAR10, name, fact)
    root = tmp_path / "new" / "root"
    monkeypatch.setenv("CIFAR10_ROOT", str(root))
    return root


def load():
    return len(utils.load_cifar10().train_images)


def test_a_download_gives_the_images_and_labels_of_the_files_and_is_no_error(root, capfd):
    data = utils.load_cifar10()
    assert torch.equal(data.test_images, torch.tensor(RANDOM))
    assert data.train_labels.tolist() == 10 * list(range(10))
    out, error = capfd.readouterr()
    assert out.endswith(f"CIFAR-10 ({root}): 100 training and 20 test images\n")
    assert error == ""


@pytest.mark.parametrize("named", ["~/files", "~/archive", ""])
def test_what_is_there_is_not_downloaded(root, tmp_path, monkeypatch, named):
    (tmp_path / "data").symlink_to("files")  # where CIFAR-10 is if no folder is named
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CIFAR10_ROOT", named)
    monkeypatch.setattr(CIFAR10, "url", "nowhere")
    for path in tmp_path.glob("files/*/batches.meta"):
        path.unlink()  # not needed
    assert load() == 100


@pytest.mark.parametrize(
    "name, fact, reason",
    [
        ("url", address(b"", 1), "timed out"),
        ("url", "no address", "unknown url type"),
        ("tgz_md5", "that of another file", "File not found or corrupted"),
    ],
)
def test_a_failed_download_gives_the_stand_in(root, monkeypatch, capfd, name, fact, reason):
    assert utils.TIMEOUT <= 60  # seconds
    monkeypatch.setattr(utils, "TIMEOUT", 0.5)
    monkeypatch.setattr(CIFAR10, name, fact)
    assert load() == 5_000 and utils.on_stand_in()
    out, error = capfd.readouterr()
    assert "NOT CIFAR-10: SYNTHETIC STAND-IN" in out and reason in out
    assert f"could not be read from {root / CIFAR10.base_folder}\n" in out  # the folder it wants
    assert out.endswith("synthetic stand-in (made here): 5,000 training and 1,000 test images\n")
    assert error == "" and socket.getdefaulttimeout() is None


def test_results_of_the_stand_in_go_to_a_folder_of_their_own(root, tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "replaced", True)
    assert utils.output_folder("a") == tmp_path / "synthetic stand-in" / "a"
    utils.load_cifar10()
    assert utils.output_folder("a") == tmp_path / "a"


def test_the_stand_in_is_the_same_each_time_and_a_class_has_a_colour():
    before, data = torch.get_rng_state(), utils.stand_in()
    labels, colours = data.train_labels, data.train_images.float().mean((2, 3))
    assert labels[:5].tolist() == [4, 9, 3, 0, 3]
    assert not torch.equal(data.test_images, data.train_images[:1000])
    assert torch.equal(torch.get_rng_state(), before)
    of_a_class = [colours[labels == number].std(0).max() for number in range(10)]
    assert max(of_a_class) < colours.std() / 4


# --- Pictures -------------------------------------------------------------------------------------

PIXELS = torch.tensor(RANDOM[:1])
PICTURE = Image.fromarray(RANDOM[0].transpose(1, 2, 0))


@pytest.fixture
def read(tmp_path):
    """Saves a picture and reads it."""

    def read(picture, name="picture.png", **options):
        picture.save(tmp_path / name, **options)
        return utils.load_picture(tmp_path / name)

    return read


def test_the_central_square_of_a_picture_is_read(read):
    picture = PICTURE.resize((60, 40))
    centre = picture.resize((32, 32), Image.Resampling.BILINEAR, box=(10, 0, 50, 40))
    assert torch.equal(read(picture), read(centre))
    assert torch.equal(read(PICTURE), PIXELS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_data_say(read, orientation):
    picture = PICTURE.copy()
    exif = picture.getexif()
    exif[ExifTags.Base.Orientation] = orientation
    assert torch.equal(read(picture, exif=exif), read(ImageOps.exif_transpose(picture)))


@pytest.mark.parametrize("kind", ["F", "I", "I;16"])
def test_more_than_8_bits_per_channel_are_refused(read, kind):
    with pytest.raises(ValueError, match="picture.tiff has more than 8 bits per channel"):
        read(Image.new(kind, (32, 32)), "picture.tiff")


TEXT = PngImagePlugin.PngInfo()
TEXT.add_text("comment", 3_000_000 * "a", zip=True)
UNREADABLE = [("a.png", {"pnginfo": TEXT}), ("a.webp", {"exif": b"Exif\0\0no EXIF"})]


@pytest.mark.parametrize("name, options", UNREADABLE)
def test_a_picture_that_cannot_be_read_is_named_with_what_to_do(read, name, options):
    with pytest.raises(ValueError, match=f"save .*{name} as JPEG or PNG with 8 bits per channel"):
        read(PICTURE, name, **options)


def test_a_file_that_is_no_picture_is_named_too(tmp_path):
    (tmp_path / "a.heic").write_text("<html>")
    with pytest.raises(ValueError, match="save .*a.heic as JPEG or PNG"):
        utils.load_picture(tmp_path / "a.heic")


def test_what_a_picture_hides_under_transparent_pixels_is_white(read):
    hidden = Image.new("LA", (64, 64), (7, 0))
    assert (read(hidden) == 255).all()


# --- Batches --------------------------------------------------------------------------------------


def test_normalised_images_have_the_statistics_of_cifar10():
    statistics = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
    expected = transforms.functional.normalize(PIXELS / 255, *statistics)
    assert_close(utils.normalize(PIXELS), expected, atol=1e-5, rtol=0)


def test_images_that_are_not_bytes_are_not_normalised():
    with pytest.raises(TypeError, match="float32.*uint8"):
        utils.normalize(PIXELS.float())


def test_shuffled_batches_hold_every_image_once_in_a_new_order(small):
    images = small[1].images
    batches = utils.Batches(images, torch.arange(96), shuffle=True)
    [(shuffled, first)] = batches
    [(_, second)] = batches
    assert sorted(first.tolist()) == list(range(96))
    assert torch.equal(shuffled, utils.normalize(images)[first])
    assert not torch.equal(first, second)


def test_test_batches_keep_the_order_and_the_last_may_be_smaller(small):
    batches = utils.Batches(small[1].images, torch.arange(96), batch_size=50)
    labels = [labels.tolist() for _, labels in batches]
    assert labels == [list(range(50)), list(range(50, 96))]
    assert len(batches) == 2
