"""What a user relies on in the experiments: they compare what they name, and go on where they were stopped."""

from concurrent.futures import Future
from dataclasses import replace

import ablation
import harness
import pytest
import torch
from harness import Setting, build, run_all


def test_the_rows_of_the_ablation_differ_by_one_change_each():
    for before, after in zip(ablation.LADDER, ablation.LADDER[1:]):
        changed = [f for f in Setting.__dataclass_fields__ if getattr(before, f) != getattr(after, f)]
        assert len(set(changed) - {"name"}) == 1, after.name
    names = {setting.name for setting in ablation.ORDER}
    assert len(ablation.ORDER) == len(names) and set(ablation.SEEDS) <= names


def test_networks_are_what_their_settings_say():
    counts = [sum(p.numel() for p in build(s).parameters()) for s in ablation.ORDER]
    assert counts == [25_978] * len(ablation.LADDER) + [19_546, 20_370, 21_154, 22_762, 24_370, 25_978]
    for setting, side in ((ablation.MIXED, 32), (ablation.VARIED, 4), (ablation.OURS, 8)):
        assert build(setting).stem(torch.randn(1, 3, 32, 32)).shape == (1, 48, side, side)


def test_only_attention_across_the_batch_mixes_its_images():
    for setting, mixes in ((ablation.MIXED, True), (ablation.PER_IMAGE, False), (ablation.OURS, False)):
        torch.manual_seed(0)
        net, images = build(setting).eval(), 5 * torch.randn(6, 3, 32, 32)
        with torch.no_grad():
            inputs = net.features(images)
            together, alone = net.blocks[0](inputs), net.blocks[0](inputs[:1])
        assert (together[0] - alone[0]).abs().max().gt(1e-5).item() is mixes


def test_the_linear_bottleneck_is_what_ours_starts_as():
    bottleneck = next(s for s in ablation.ORDER if s.bottleneck)
    torch.manual_seed(0)
    linear = build(bottleneck)
    torch.manual_seed(0)
    ours, x = build(ablation.OURS), 1e-3 * torch.randn(4, 48)
    torch.testing.assert_close(linear.blocks(x), ours.blocks(x), atol=1e-5, rtol=0.01)
    assert torch.equal(linear.fc.weight, ours.fc.weight)


def test_a_rows_directions_are_those_of_its_head():
    images = torch.randn(8, 3, 32, 32)
    for blocks, directions in ((0, 9), (4, 8)):
        torch.manual_seed(0)
        spectrum = harness.utils.head_spectrum(build(replace(ablation.OURS, blocks=blocks)), images)
        assert len(spectrum) == 10 and spectrum == sorted(spectrum, reverse=True)
        assert sum(value > 0.01 * spectrum[0] for value in spectrum) == directions


def test_residual_blocks_add_their_input():
    torch.manual_seed(0)
    block, x = build(replace(ablation.OURS, residual=True)).blocks[0], torch.randn(2, 48)
    block.out.weight.data.zero_()
    torch.testing.assert_close(block(x), x)


def test_the_validation_split_is_the_last_5000_of_a_fixed_shuffle_and_never_the_test_set():
    class Data:
        train_images = train_labels = torch.arange(50_000)
        test_images = test_labels = torch.arange(50_000, 60_000)

    (training, _), (held_out, _) = harness.splits(Data, validation=True)
    assert len(training) == 45_000 and len(held_out) == 5_000
    assert torch.cat([training, held_out]).sort().values.tolist() == list(range(50_000))
    assert torch.equal(held_out, harness.splits(Data, validation=True)[1][0])
    assert torch.equal(harness.splits(Data, validation=False)[1][0], Data.test_images)


def test_a_stopped_experiment_goes_on_with_the_runs_that_its_table_lacks(tmp_path, monkeypatch, capsys):
    class Pool:  # in this process, where the stand-in for the training is
        def __init__(self, *args, **kwargs):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

        def submit(self, function, *args, **kwargs):
            future = Future()
            future.set_result(function(*args, **kwargs))
            return future

    def run(setting, seed, stop):
        return {"name": setting.name, "seed": seed, "accuracy": 50.0 + seed}

    monkeypatch.setattr(harness, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(harness, "run", run)
    monkeypatch.setattr(harness, "estimate", lambda jobs, options: 60.0 * len(jobs))
    path = tmp_path / "table.csv"
    jobs = [(Setting(name), seed) for name in "ab" for seed in (1, 2)]
    run_all(path, jobs[:3], stop=1)
    assert "3 to do" in capsys.readouterr().out
    run_all(path, jobs, stop=1)
    assert "3 runs done, 1 to do" in capsys.readouterr().out
    rows = sorted((row["name"], row["seed"]) for row in harness.read(path))
    assert rows == [("a", "1"), ("a", "2"), ("b", "1"), ("b", "2")]


def test_the_experiments_refuse_the_stand_in(monkeypatch):
    stand_in = harness.utils.Cifar10(None, None, None, None, harness.utils.STAND_IN)
    monkeypatch.setattr(harness.utils, "load_cifar10", lambda: stand_in)
    with pytest.raises(RuntimeError, match="real CIFAR-10.*CIFAR10_ROOT"):
        harness.prepare(ablation.OURS, seed=1)
