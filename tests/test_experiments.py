"""What a user relies on in the experiments: they compare what they name, and go on where they were
stopped."""

import csv
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from unittest.mock import Mock

import PIL.Image
import pytest
import torch
import torch.nn.functional as F

import utils
from experiments import ablation, harness, published, readme, stall, tuning
from experiments.harness import Setting, build, read, run_all, values


def test_the_steps_differ_by_one_change_each_and_the_variants_from_ours_or_from_one_another():
    pairs = [*zip(ablation.LADDER, ablation.LADDER[1:]), (ablation.STALLED, ablation.RESIDUAL)]
    pairs += [
        (ablation.OURS, other) for other in (ablation.BARE, ablation.STALLED, ablation.LINEAR)
    ]
    for before, after in pairs:
        changed = {
            f for f in Setting.__dataclass_fields__ if getattr(before, f) != getattr(after, f)
        } - {"name"}
        assert len(changed) == 1 or changed == {"batch_size", "max_lr"}, (
            after.name
        )  # a batch wants its own rate


@pytest.mark.parametrize(
    "field, name", [("head", "Residual"), ("stem", "blur"), ("init", "pytorch"), ("augment", "")]
)
def test_a_setting_with_an_unknown_name_is_refused(field, name):
    with pytest.raises(ValueError, match=f"x: {field} '{name}' is none of "):
        Setting("x", **{field: name})


def test_networks_are_what_their_settings_say_and_new_blocks_are_the_linear_map():
    assert len(build(ablation.BARE).blocks) == 0
    torch.manual_seed(0)
    ours = build(ablation.OURS)
    torch.manual_seed(0)
    linear, x = build(ablation.LINEAR), 1e-3 * torch.randn(4, 48)
    torch.testing.assert_close(linear.blocks(x), ours.blocks(x), atol=1e-5, rtol=0.01)
    assert torch.equal(linear.fc.weight, ours.fc.weight)
    for setting in (ablation.STALLED, ablation.RESIDUAL):
        assert build(setting).blocks[0].query.weight.std() > 0.05, "PyTorch's; ours are zero"
    for block in build(ablation.RESIDUAL).blocks:
        torch.testing.assert_close(block(x), x + block.out(block.attend(x)[1]))


def test_blurs_are_the_filter_1_2_1_and_untrained_blocks_are_changed_as_named():
    x, row = torch.randn(2, 16, 31, 31), torch.tensor([1.0, 2.0, 1.0]) / 4
    expected = F.conv2d(
        x, torch.outer(row, row).repeat(16, 1, 1, 1), stride=2, padding=1, groups=16
    )
    torch.testing.assert_close(build(ablation.FLIPPED).stem[0].average(x), expected)
    images, x = torch.randn(64, 3, 32, 32), torch.randn(5, 48)
    block, uniform = (
        stall.network(name, images).blocks[0] for name in (stall.NO_SOFTMAX, stall.UNIFORM)
    )
    torch.testing.assert_close(block(x), block.out(block.value(x) / 8**0.5))
    torch.testing.assert_close(uniform.attend(x)[0], torch.full((5, 8, 8), 8**-1.5))
    kept = stall.network(ablation.RESCALED.name, images)
    assert utils.remaining_variance(kept, images) == pytest.approx(5 * [1], rel=1e-3)


def test_each_image_draws_its_own_crop_and_flip():
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8).expand(2000, -1, -1, -1)
    for name, count in {"crop by 2": 25, "crop by 3": 49, "crop by 2 and flip": 2 * 25}.items():
        assert len({draw.numpy().tobytes() for draw in harness.AUGMENTATIONS[name](image)}) == count


def test_the_validation_split_is_the_last_5000_of_a_fixed_shuffle_and_never_the_test_set():
    training, test = torch.arange(50_000), torch.arange(50_000, 60_000)
    data = utils.Data(training, training, test, test)
    (used, _), (held_out, _) = harness.splits(data, validation=True)
    assert len(used) == 45_000 and torch.equal(torch.cat([used, held_out]).sort().values, training)
    assert torch.equal(held_out, harness.splits(data, validation=True)[1][0])
    assert torch.equal(harness.splits(data, validation=False)[1][0], test)


@pytest.fixture
def tiny(monkeypatch):
    """In place of CIFAR-10, 500 training and 200 test images of the stand-in."""
    data = utils.Data(*(part[:size] for part, size in zip(utils.stand_in(), (500, 500, 200, 200))))
    monkeypatch.setattr(utils, "load_cifar10", lambda: data)
    monkeypatch.setattr(harness, "EPOCHS", 2)


def test_a_run_trains_its_setting_and_its_row_tells_the_setting_and_the_results(tiny, monkeypatch):
    setting = Setting("x", batch_size=20, max_lr=0.02, block_rate=0.3, augment="none")
    (_, _, batches, optimizer, _), _ = harness.prepare(setting, seed=1)
    assert batches.batch_size == 20 and torch.equal(
        batches.transform(batches.images), batches.images
    )
    assert [group["max_lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.006])
    splits = Mock(wraps=harness.splits)
    monkeypatch.setattr(harness, "splits", splits)
    harness.run(setting, seed=1, validation=True)
    row = harness.run(setting, seed=1)
    assert [call.args[1] for call in splits.call_args_list] == [True, False]
    assert harness.job({name: str(value) for name, value in row.items()}) == (setting, 1)
    assert (
        harness.run(setting, seed=1) == row
        and harness.run(setting, seed=2)["curve"] != row["curve"]
    )
    assert (
        row["mirrored"] == row["accuracy"] == float(row["curve"].split()[1]) > 20
    )  # X is of both, left and right
    single = harness.run(replace(setting, mirror=False), seed=1)
    assert single["mirrored"] != single["accuracy"] and 1 <= single["effective_rank"] <= 8
    utils.on_stand_in = True
    with pytest.raises(RuntimeError, match="real CIFAR-10"):
        harness.prepare(setting, seed=1)


def run(setting, seed, validation):
    if setting.name == "too large" and seed == 1:
        raise MemoryError
    return asdict(setting) | {"seed": seed, "accuracy": 50.0 + seed}


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "ProcessPoolExecutor", lambda *_, **options: ThreadPoolExecutor(1))
    monkeypatch.setattr(harness, "run", run)
    return tmp_path / "table.csv"


def test_a_stopped_experiment_resumes_with_the_runs_that_its_table_lacks(table, capsys):
    jobs = [(Setting(name, block_rate=1), seed) for name in "ab" for seed in (1, 2)]
    run_all(table, jobs[:3], validation=True)
    run_all(
        table,
        [*jobs, (Setting("a", block_rate=1.0), 1), (Setting("a", max_lr=0.5), 1)],
        validation=True,
    )
    assert "3 runs, 2 to do" in capsys.readouterr().out
    with pytest.raises(MemoryError):  # after all others, whose rows are kept
        run_all(table, [(Setting("too large"), seed) for seed in (1, 2)], validation=True)
    rows = sorted((row["name"], row["seed"]) for row in read(table))
    assert rows == [("a", "1"), ("a", "1"), ("a", "2"), ("b", "1"), ("b", "2"), ("too large", "2")]


def test_a_table_of_before_a_field_or_a_column_keeps_its_rows_and_values(table):
    table.write_text("name,max_lr,seed,accuracy\na,0.5,1,60.0\n")
    harness.append(table, [asdict(Setting("b")) | dict(seed=1, accuracy=70.0, time=3)])
    old, new = read(table)
    assert harness.job(old) == (Setting("a", max_lr=0.5), 1) and (old["accuracy"], old["time"]) == (
        "60.0",
        "",
    )
    assert harness.job(new) == (Setting("b"), 1) and (new["accuracy"], new["time"]) == ("70.0", "3")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("No space left on device")])
def test_after_ctrl_c_or_on_a_full_disk_no_queued_run_starts_and_what_is_written_stays(
    table, monkeypatch, error
):
    run_all(table, [(Setting("b"), 1)], validation=True)
    started = Mock(wraps=run)
    monkeypatch.setattr(harness, "run", started)
    monkeypatch.setattr(csv.DictWriter, "writerows", Mock(side_effect=error))
    with pytest.raises(type(error)):
        run_all(table, [(Setting("a"), seed) for seed in range(9)], validation=True)
    assert len(read(table)) == 1 and started.call_count <= torch.get_num_threads()


def test_the_committed_figures_are_drawn_from_the_committed_tables(tmp_path):
    ablation.draw(tmp_path)
    published.draw(tmp_path)
    for path in tmp_path.iterdir():
        comments = [
            PIL.Image.open(folder / path.name).text["Comment"]
            for folder in (tmp_path, ablation.IMAGES)
        ]
        assert comments[0] == comments[1] and len(comments[0]) > 100, (
            f"{path.name}: run python -m experiments.readme"
        )
    assert len(list(tmp_path.iterdir())) == 3


def test_the_committed_tables_hold_every_run_of_their_scripts_and_no_other():
    for path, jobs in {ablation.CSV: ablation.JOBS, tuning.CSV: tuning.JOBS}.items():
        assert sorted(map(str, map(harness.job, read(path)))) == sorted(map(str, jobs)), path
    assert [row["name"] for row in read(stall.CSV)] == 5 * [*stall.NETWORKS]


def test_claim_the_blocks_lose_with_pytorchs_initialisation_less_with_ours_and_gain_with_residuals():
    rows = read(ablation.CSV)
    compared = (ablation.STALLED, ablation.OURS, ablation.RESIDUAL, ablation.LINEAR)
    stalled, ours, residual, linear = (
        readme.difference(rows, setting, ablation.BARE) for setting in compared
    )
    assert (
        stalled[0] + 3 * stalled[1] < ours[0]
        and ours[0] + 3 * ours[1] < 0 < residual[0] - 2.5 * residual[1]
    )
    assert ours[0] < linear[0] < -2.5 * linear[1], (
        "eight directions cost accuracy without attention, too"
    )
    assert max(values(rows, ablation.RESCALED.name)) < min(values(rows, ablation.OURS.name)), (
        "variance is not enough"
    )


def test_claims_of_the_validation_images_pytorchs_initialisation_loses_ten_points_and_a_higher_rate_collapses():
    means = {
        setting: statistics.mean(values(read(tuning.CSV), setting.name))
        for setting in tuning.SETTINGS
    }
    assert max(means, key=means.get).name == "none", "a change of ours has a higher mean"
    default = [mean for setting, mean in means.items() if setting.init == "default"]
    assert max(default) < min(values(read(tuning.CSV), "none")) - 10
    tenth, full = (
        values(read(tuning.CSV), f"max_lr 0.03{end}") for end in ("", ", blocks at max_lr")
    )
    assert len(tenth) == len(full) == 3 and min(tenth) > 60 and max(full) < 20


def test_claim_uniform_rows_pass_one_direction_pytorchs_no_more_and_ours_loses_variance_in_the_first_block_only():
    rows = read(stall.CSV)
    for name, low, high in (
        (stall.UNIFORM, 1, 1),
        (ablation.STALLED.name, 1, 1),
        (stall.NO_SOFTMAX, 5, 8),
    ):
        assert (
            low
            <= min(values(rows, name, "directions"))
            <= max(values(rows, name, "directions"))
            <= high
        ), name
    after = [values(rows, ablation.OURS.name, f"after block {number}") for number in (1, 4)]
    assert after[0] == pytest.approx(after[1], rel=0.05)
