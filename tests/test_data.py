"""What a user relies on when data are loaded, augmented and batched."""

import errno
import functools
import hashlib
import http.server
import pickle
import re
import socket
import ssl
import tarfile
import threading
import time
from urllib.request import urlopen

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.datasets import CIFAR10

import utils

# --- loading ------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A tiny CIFAR-10 archive of 5 x 20 and 20 images, whose checksums torchvision is told; returns its folder."""
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
    return source


@pytest.fixture
def server(archive, monkeypatch):
    """Serve the archive on this machine; returns the list of the requests so far."""
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=archive)

        def do_GET(self):
            requests.append(self.path)
            super().do_GET()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{httpd.server_port}/{CIFAR10.filename}")
        yield requests
        httpd.shutdown()


@pytest.fixture
def offline(archive, monkeypatch):
    """No server answers, and the stand-in is quick to make."""
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:1/nothing.tar.gz")
    quick_stand_in(monkeypatch)


def quick_stand_in(monkeypatch):
    pixels = torch.zeros(100, 3, 32, 32, dtype=torch.uint8)
    tiny = utils.Images(pixels, torch.arange(100) % 10, pixels[:20], torch.arange(20) % 10, utils.STAND_IN)
    monkeypatch.setattr(utils, "stand_in", lambda: tiny)


def test_what_is_missing_is_downloaded_once_and_then_used_without_the_network(server, tmp_path, capsys):
    root = tmp_path / "new" / "data"
    first = utils.load_cifar10(root)
    assert capsys.readouterr().out.endswith(f"CIFAR-10 ({root}): 100 training and 20 test images\n")
    requests = len(server)
    second = utils.load_cifar10(root)
    assert capsys.readouterr().out == f"CIFAR-10 ({root}): 100 training and 20 test images\n"
    assert len(server) == requests > 0
    assert first.note == second.note == "" and torch.equal(first.train_images, second.train_images)
    assert first.train_images.shape == (100, 3, 32, 32) and first.train_images.dtype == torch.uint8
    assert first.train_labels.tolist() == 5 * [i % 10 for i in range(20)]


def test_the_root_comes_from_the_environment(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CIFAR10_ROOT", str(tmp_path / "elsewhere"))
    utils.load_cifar10()
    assert str(tmp_path / "elsewhere") in capsys.readouterr().out


@pytest.mark.parametrize(
    "typed",
    [
        "~/images",
        "$HOME/images",
        "~/images/cifar-10-batches-py",
        "~/images/cifar-10-python.tar.gz",
        "~/images/cifar-10-batches-py/..",
        "link",
        "",
    ],
)
def test_a_root_is_taken_as_a_person_means_it(server, tmp_path, monkeypatch, typed):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    utils.load_cifar10(tmp_path / ("images" if typed else "data"))
    (tmp_path / "link").symlink_to(tmp_path / "images" / CIFAR10.base_folder)
    requests = len(server)
    monkeypatch.setenv("CIFAR10_ROOT", typed)
    assert utils.load_cifar10().note == "" and utils.load_cifar10(typed).note == ""
    assert len(server) == requests and not (tmp_path / "~").exists()


def test_images_lie_the_right_way_up(server, archive, tmp_path):
    raw = pickle.loads((archive / CIFAR10.base_folder / "test_batch").read_bytes())["data"]
    images = utils.load_cifar10(tmp_path / "data").test_images
    assert images[7, 1, 2, 3] == raw[7, 1 * 1024 + 2 * 32 + 3]


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("damage", ["missing", "wrong checksum", "truncated"])
def test_a_missing_or_damaged_file_is_mended_from_the_archive(server, tmp_path, name, damage):
    whole = utils.load_cifar10(tmp_path)
    requests = len(server)
    file = tmp_path / CIFAR10.base_folder / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:-9] + 9 * b"x" if damage == "wrong checksum" else content[: len(content) // 2])
    mended = utils.load_cifar10(tmp_path)
    assert mended.note == "" and torch.equal(mended.train_images, whole.train_images)
    assert len(server) == requests  # the archive was still there: no second download


def test_a_truncated_archive_is_downloaded_again(server, archive, tmp_path):
    half = (archive / CIFAR10.filename).read_bytes()[:500]
    (tmp_path / CIFAR10.filename).write_bytes(half)
    assert utils.load_cifar10(tmp_path).note == ""
    assert len(server) > 0 and (tmp_path / CIFAR10.filename).stat().st_size > 500


def test_a_download_that_breaks_off_is_never_trained_on_and_done_anew_the_next_time(
    server, archive, tmp_path, monkeypatch, capsys
):
    whole = (archive / CIFAR10.filename).read_bytes()
    (archive / CIFAR10.filename).write_bytes(whole[:500])
    with monkeypatch.context() as patch:
        quick_stand_in(patch)
        assert utils.load_cifar10(tmp_path).note == utils.STAND_IN
    assert "corrupted" in capsys.readouterr().out
    (archive / CIFAR10.filename).write_bytes(whole)
    assert utils.load_cifar10(tmp_path).note == ""


def answering(monkeypatch, reply):
    """A server that sends ``reply``, an iterable of bytes, to whoever calls, and hangs up."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve():
        connection, _ = listening.accept()
        connection.recv(1000)
        try:
            for part in reply:
                connection.sendall(part)
        except OSError:  # the other side has had enough
            pass
        connection.close()

    threading.Thread(target=serve, daemon=True).start()
    monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{listening.getsockname()[1]}/{CIFAR10.filename}")


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5000\r\nhalf of a chunk",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\na part",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n<html>Please log in to this network</html>",
        b"",
    ],
)
def test_however_a_download_fails_the_stand_in_takes_its_place_and_no_half_file_is_left(
    archive, tmp_path, monkeypatch, capsys, reply
):
    quick_stand_in(monkeypatch)
    answering(monkeypatch, [reply])
    assert utils.load_cifar10(tmp_path / "data").note == utils.STAND_IN
    assert "failed: " in capsys.readouterr().out
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("length", [b"Content-Length: 170498071\r\n", b""])
def test_a_test_gives_up_a_download_that_would_take_too_long(archive, tmp_path, monkeypatch, capsys, length):
    quick_stand_in(monkeypatch)
    monkeypatch.setattr(utils, "TIMEOUT", 0.5)

    def trickle():
        yield b"HTTP/1.1 200 OK\r\n" + length + b"\r\n"
        while True:
            time.sleep(0.05)
            yield 1000 * b"x"

    answering(monkeypatch, trickle())
    started = time.perf_counter()
    assert utils.load_cifar10(tmp_path).note == utils.STAND_IN
    assert time.perf_counter() - started < 5
    assert "kB s it would take a test too long" in re.sub(r"\W+", " ", capsys.readouterr().out)


def test_what_another_process_has_brought_in_the_meantime_is_used(server, tmp_path, monkeypatch):
    utils.load_cifar10(tmp_path / "other")

    def late(archive):
        (tmp_path / "other" / CIFAR10.base_folder).rename(tmp_path / "ours" / CIFAR10.base_folder)
        raise utils.DownloadError("too late")

    (tmp_path / "ours").mkdir()
    monkeypatch.setattr(utils, "_fetch", late)
    assert utils.load_cifar10(tmp_path / "ours").note == ""


def test_a_download_shows_its_progress(server, tmp_path, capsys):
    utils.load_cifar10(tmp_path)
    out, err = capsys.readouterr()
    assert out.startswith("Downloading CIFAR-10 (170 MB) to") and "100%|" in out and err == ""


def test_without_the_network_a_banner_announces_the_stand_in_and_the_reason(offline, tmp_path, capfd):
    data = utils.load_cifar10(tmp_path)
    out, err = capfd.readouterr()
    assert "NOT CIFAR-10: SYNTHETIC STAND-IN" in out and "refused" in out and str(tmp_path)[:40] in out
    assert out.endswith("synthetic stand-in (made here): 100 training and 20 test images\n")
    assert err == "" and data.note == "synthetic stand-in" and utils.mark() == "[synthetic stand-in]"


def test_files_damaged_and_no_network_still_ends_with_the_stand_in(server, tmp_path, monkeypatch):
    utils.load_cifar10(tmp_path)
    (tmp_path / CIFAR10.base_folder / "data_batch_1").write_bytes(b"")
    (tmp_path / CIFAR10.filename).unlink()
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:1/nothing.tar.gz")
    quick_stand_in(monkeypatch)
    assert utils.load_cifar10(tmp_path).note == utils.STAND_IN


def test_a_server_that_never_answers_is_left_after_the_time_out(offline, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(utils, "TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/{CIFAR10.filename}")
        started = time.perf_counter()
        assert utils.load_cifar10(tmp_path).note == utils.STAND_IN
    assert time.perf_counter() - started < 5
    assert "timed out" in capsys.readouterr().out
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO, errno.ESTALE])
def test_a_folder_that_cant_be_written_is_an_error_that_names_the_cure(archive, tmp_path, monkeypatch, code):
    def refuse(*args, **kwargs):
        raise OSError(code, "refused")

    monkeypatch.setattr(utils, "_fetch", refuse)
    with pytest.raises(OSError, match="refused.*CIFAR10_ROOT.*400 MB free") as error:
        utils.load_cifar10(tmp_path)
    assert error.value.errno == code


def test_a_file_where_the_data_folder_should_be_is_an_error_that_names_it(archive, tmp_path):
    (tmp_path / "data").write_text("a note of the user's", encoding="utf-8")
    with pytest.raises(OSError, match="CIFAR10_ROOT"):
        utils.load_cifar10(tmp_path / "data")
    assert (tmp_path / "data").read_text(encoding="utf-8") == "a note of the user's"


@pytest.mark.parametrize("name", [CIFAR10.filename, f"{CIFAR10.base_folder}/data_batch_1"])
def test_a_folder_where_a_file_should_be_is_no_failure_of_the_download(server, tmp_path, capsys, name):
    utils.load_cifar10(tmp_path / "whole")
    (tmp_path / "data").mkdir()
    (tmp_path / "whole" / CIFAR10.filename).rename(tmp_path / "data" / CIFAR10.filename)
    (tmp_path / "data" / name).unlink(missing_ok=True)
    (tmp_path / "data" / name).mkdir(parents=True)
    with pytest.raises(OSError, match="CIFAR10_ROOT"):
        utils.load_cifar10(tmp_path / "data")
    assert "NOT CIFAR-10" not in capsys.readouterr().out


def test_without_its_bar_a_slow_download_comes_all_the_same(server, tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "tqdm", functools.partial(utils.tqdm, disable=True))
    monkeypatch.setattr(utils, "TIMEOUT", 0)
    monkeypatch.setattr(utils.urllib.request, "urlopen", functools.partial(lambda f, url, timeout: f(url), urlopen))
    assert utils.load_cifar10(tmp_path).note == ""


def test_an_untrusted_certificate_is_no_missing_network(offline, tmp_path, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise ssl.SSLCertVerificationError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate has expired")

    monkeypatch.setattr(utils.urllib.request, "urlopen", refuse)
    utils.load_cifar10(tmp_path)
    assert "certificates up to date" in re.sub(r"\W+", " ", capsys.readouterr().out)


def test_whole_files_in_a_read_only_folder_are_used(server, tmp_path):
    utils.load_cifar10(tmp_path)
    for path in [tmp_path, tmp_path / CIFAR10.base_folder]:
        path.chmod(0o500)
    assert utils.load_cifar10(tmp_path).note == ""
    for path in [tmp_path, tmp_path / CIFAR10.base_folder]:
        path.chmod(0o700)


def test_the_stand_in_has_cifar10s_shapes_and_is_made_quickly_and_the_same_each_time():
    started = time.perf_counter()
    data = utils.stand_in()
    assert time.perf_counter() - started < 30  # under 10 s on an idle machine
    assert data.train_images.shape == (50_000, 3, 32, 32) and data.test_images.shape == (10_000, 3, 32, 32)
    assert data.train_images.dtype == torch.uint8 and data.train_labels.dtype == torch.int64
    assert data.train_labels.bincount().tolist() == 10 * [5_000]
    assert data.test_labels.bincount().tolist() == 10 * [1_000]
    assert torch.equal(data.test_images, utils.stand_in().test_images)


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


@settings(max_examples=20, deadline=None)
@given(images_strategy)
def test_augmentations_do_nothing_at_zero_strength(images):
    assert torch.equal(utils.random_flip(images, 0), images)
    assert torch.equal(utils.random_crop(images, 0), images)


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
    epochs = [torch.cat([y for _, y in small[0]]) for _ in range(2)]
    assert all(torch.equal(e.sort().values, small[0].labels.sort().values) for e in epochs)
    assert not torch.equal(*epochs)
    assert len(list(small[0])) == len(small[0]) == 6


def test_test_batches_are_never_augmented_or_shuffled(small):
    images = torch.cat([x for x, _ in small[1]])
    assert torch.equal(images, utils.normalize(small[1].images))
    assert not torch.equal(images, torch.cat([x for x, _ in small[0]]))


def test_a_last_batch_of_one_image_comes_out():
    batches = utils.Batches(torch.zeros(17, 3, 32, 32, dtype=torch.uint8), torch.zeros(17).long(), batch_size=16)
    assert [len(y) for _, y in batches] == [16, 1] and len(batches) == 2


def test_no_images_or_labels_that_do_not_match_are_refused():
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match="0 images"):
        utils.Batches(images[:0], torch.zeros(0).long())
    with pytest.raises(ValueError, match="4 images and 3 labels"):
        utils.Batches(images, torch.zeros(3).long())
