"""What a user relies on in the experiments: they compare what they name, and go on where they were stopped."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

import utils
from experiments import ablation, harness, heads, published, stall, tuning
from experiments.harness import Setting, build, run_all


def test_the_rows_of_the_ablation_differ_by_one_change_each():
    for before, after in zip(ablation.LADDER, ablation.LADDER[1:]):
        changed = {f for f in Setting.__dataclass_fields__ if getattr(before, f) != getattr(after, f)} - {"name"}
        assert len(changed) == 1 or changed == {"batch_size", "max_lr"}, after.name  # a batch wants its own rate


def test_networks_are_what_their_settings_say_and_new_blocks_are_the_linear_map():
    expected = {"published solution rebuilt": 25_776, "no blocks": 19_546}
    expected |= {"one block": 21_154, "two blocks": 22_762, "three blocks": 24_370}
    expected |= {"linear 48 > 8 > 48": 20_370, "MLP 48 > 64 > 8 > 48": 23_762, "MLP 48 > 64 > 48": 25_930}
    for setting in [*ablation.ORDER, *tuning.SETTINGS, *heads.HEADS.values()]:
        count = sum(p.numel() for p in build(setting).parameters())
        assert count == expected.get(setting.name, 25_978), setting.name
    biased = {type(m).__name__ for m in build(ablation.PUBLISHED).modules() if getattr(m, "bias", None) is not None}
    assert biased == {"Conv2d", "BatchNorm2d"}
    for setting, side in ((ablation.PUBLISHED, 32), (ablation.PER_IMAGE, 32), (ablation.OURS, 8)):
        assert build(setting).stem(torch.randn(1, 3, 32, 32)).shape == (1, 48, side, side)
    nets, x = [], 1e-3 * torch.randn(4, 48)
    for setting in (ablation.LINEAR, ablation.OURS, ablation.OVER_I):
        torch.manual_seed(0)
        nets.append(build(setting))
        torch.testing.assert_close(nets[0].blocks(x), nets[-1].blocks(x), atol=1e-5, rtol=0.01)
        assert torch.equal(nets[0].fc.weight, nets[-1].fc.weight)
    over_i, _ = nets[2].blocks[0].attend(x)
    torch.testing.assert_close(over_i.sum(1), torch.full((4, 8), 8**-0.5))


def test_only_the_published_training_cycles_beta1_and_none_takes_the_stand_in(monkeypatch):
    images, labels = torch.zeros(50_000, 1, 1, 1, dtype=torch.uint8), torch.zeros(50_000, dtype=torch.int64)
    monkeypatch.setattr(utils, "load_cifar10", lambda: utils.Images(images, labels, images, labels))
    for setting, betas in ((ablation.PUBLISHED, (0.95, 0.85)), (ablation.BIASES, (0.9, 0.9))):
        (_, _, _, optimizer, scheduler), _ = harness.prepare(setting, seed=1, device=torch.device("cpu"))
        seen = []
        for _ in range(24 * 98 - 1):
            seen.append(optimizer.param_groups[0]["betas"][0])
            optimizer.step()
            scheduler.step()
        assert (seen[0], min(seen)) == pytest.approx(betas, abs=1e-3)
    utils.on_stand_in = True
    with pytest.raises(RuntimeError, match="real CIFAR-10"):
        harness.prepare(ablation.OURS, seed=1)


def test_the_augmentations_draw_their_own_for_each_image():
    torch.manual_seed(0)
    images = torch.full((2000, 3, 32, 32), 200, dtype=torch.uint8)
    out = harness.published_augmentation(images)
    assert out.shape == images.shape and out.dtype == torch.uint8
    holes = (out == 0).all(1).flatten(1).sum(1)  # black pixels of each image
    assert 0.85 < (holes > 0).float().mean() < 0.95 and (holes == 64).float().mean() > 0.1
    assert 0.75 < (out == 156).any(3).any(2)[:, 0].float().mean() < 1  # the grey border, 255 (0.4914 + 0.247 x 0.4914)
    assert ((out != 200) & (out != 156) & (out != 0))[:, 0].any(2).any(1).float().mean() > 0.1  # turned ones
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    flipped = harness.random_flip(image.expand(200, -1, -1, -1)).eq(image.flip(3)).flatten(1).all(1).sum()
    covered = harness.cutout(torch.zeros(999, 3, 32, 32, dtype=torch.uint8)).ne(0).all(1)
    down, right = covered.any(2).sum(1), covered.any(1).sum(1)
    assert 60 < flipped < 140 and torch.equal(covered.sum((1, 2)), down * right)
    assert {*down.tolist(), *right.tolist()} == {4, 5, 6, 7, 8}


def test_attention_across_the_batch_mixes_its_images_and_without_the_mirror_image_x_changes_with_it():
    net, images = build(ablation.PLAIN).eval(), 5 * torch.randn(6, 3, 32, 32)
    x = net.features(images)
    assert (net.blocks[0](x)[0] - net.blocks[0](x[:1])[0]).abs().max() > 1e-5
    assert (net.features(images.flip(3)) - x).abs().max() > 1e-5


def test_blurs_are_the_filter_1_2_1_a_block_without_softmax_passes_on_its_values_and_a_residual_one_adds_its_input():
    net, features = build(ablation.STALLED), torch.randn(5, 48)
    straight = utils.without_softmax(net).blocks[0](features)
    assert torch.equal(straight, net.blocks[0].out(net.blocks[0].value(features) / 8**0.5))
    residual = build(ablation.RESIDUAL).blocks[0]
    assert torch.equal(residual(features), features + residual.forward(features))  # forward alone runs no hook
    x, row = torch.randn(2, 16, 31, 31), torch.tensor([1.0, 2.0, 1.0]) / 4
    expected = F.conv2d(x, torch.outer(row, row).repeat(16, 1, 1, 1), stride=2, padding=1, groups=16)
    torch.testing.assert_close(build(ablation.FLIPPED).stem[0].average(x), expected)


def test_the_validation_split_is_the_last_5000_of_a_fixed_shuffle_and_never_the_test_set():
    training, test = torch.arange(50_000), torch.arange(50_000, 60_000)
    data = utils.Images(training, training, test, test)
    (used, _), (held_out, _) = harness.splits(data, validation=True)
    assert len(used) == 45_000 and torch.equal(torch.cat([used, held_out]).sort().values, training)
    assert torch.equal(held_out, harness.splits(data, validation=True)[1][0])
    assert torch.equal(harness.splits(data, validation=False)[1][0], test)


def test_a_stopped_experiment_resumes_with_the_runs_that_its_table_lacks(tmp_path, monkeypatch, capsys):
    def run(setting, seed, validation):
        if setting.name == "too large" and seed == 1:
            raise MemoryError
        return harness.asdict(setting) | {"seed": seed, "accuracy": 50.0 + seed}

    monkeypatch.setattr(harness, "ProcessPoolExecutor", lambda *_, **options: ThreadPoolExecutor(1))
    monkeypatch.setattr(harness, "run", run)
    path, jobs = tmp_path / "table.csv", [(Setting(name), seed) for name in "ab" for seed in (1, 2)]
    run_all(path, jobs[:3], validation=True)
    run_all(path, [*jobs, (Setting("a", max_lr=0.5), 1)], validation=True)
    assert "3 rows, 2 runs to do" in capsys.readouterr().out
    with pytest.raises(MemoryError):  # after all others, whose rows are kept
        run_all(path, [(Setting("too large"), seed) for seed in (1, 2)], validation=True)
    rows = sorted((row["name"], row["seed"]) for row in harness.read(path))
    assert rows == [("a", "1"), ("a", "1"), ("a", "2"), ("b", "1"), ("b", "2"), ("too large", "2")]


@pytest.mark.parametrize("draw", [ablation.draw, published.draw])
def test_every_figure_is_drawn_anew_from_the_committed_tables(draw, tmp_path):
    draw(tmp_path)
    (figure,) = tmp_path.iterdir()
    assert figure.stat().st_size > 5_000 and (ablation.IMAGES / figure.name).exists()


def test_the_committed_tables_hold_every_run_of_their_scripts_and_no_other_and_the_curves_end_as_theirs_do():
    for path, jobs in {ablation.CSV: ablation.JOBS, tuning.CSV: tuning.JOBS}.items():
        runs = [harness.known(row) for row in harness.read(path)]
        jobs = [harness.known(harness.asdict(setting) | {"seed": seed}) for setting, seed in jobs]
        assert sorted(runs) == sorted(jobs), path
    told = [[row[key] for key in ("source", "seed", "name", "head_seed")] for row in harness.read(heads.CSV)]
    new = [(*job[::-1], *head) for job in heads.JOBS for head in [(heads.OWN, job[0]), *heads.NEW]]
    assert sorted(told) == sorted([str(value) for value in row] for row in new)
    assert [row["name"] for row in harness.read(stall.CSV)] == 5 * [*stall.NETWORKS]
    for row in harness.read(ablation.CSV):  # older rows have no curve
        assert row["curve"].split()[-1:] in ([], [f"{float(row['accuracy']):.2f}"])
