"""What may happen to a run of days, with real processes: it ends with the bits of a run that nothing happened to.

Every random point has a fixed seed. `kill` is SIGKILL: the process gets no word in.
"""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from modules.checkpoint import model_path, optimizer_path
from modules.resume import FILES, MANIFEST, TrainingCheckpoints
from tests.helpers.fault_worker import Ranks
from tests.helpers.tiny_run import write_tiny_run
from tests.test_resume import assert_equal, command, outcome

pytestmark = pytest.mark.faults

SETTINGS = {
    "dropout": ("--sim_header", "tightTransf"),
    "gradient cache": ("--sim_header", "tightTransf", "--grad_cache_chunk", "2"),
    "workers": ("--sim_header", "wti", "--agg_module", "seqTransf", "--num_thread_reader", "2"),
    "frame cache": ("--sim_header", "meanP", "--num_thread_reader", "1", "--train_frame_order", "2"),
}
KILL = {"action": signal.SIGKILL}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny_run(tmp_path_factory.mktemp("faults"))


def flags_of(folder: Path, output: Path, name: str, *more: str) -> list[str]:
    cache = ("--frame_cache", str(output / "cache")) if name == "frame cache" else ()
    return command(folder, output, "--save_steps", "1", *SETTINGS[name], *cache, *more)


@pytest.fixture(scope="module")
def undisturbed(folder):
    """By setting: what two ranks end with to which nothing happened, and the seconds they took."""
    Ranks(0, ["--help"], folder / "logs of the first process").wait()  # which waits for the imports
    known = {}

    def run(name: str):
        if name not in known:
            output, started = folder / f"undisturbed {name}", time.monotonic()
            ranks = Ranks(2, flags_of(folder, output, name), folder / "logs" / name)
            assert ranks.wait() == [0, 0], ranks.text()
            known[name] = outcome(output), time.monotonic() - started
        return known[name]

    return run


def assert_resumes(folder: Path, output: Path, name: str, expected) -> str:
    """`--resume auto` ends with the bits of the undisturbed run; returns what was printed."""
    ranks = Ranks(2, flags_of(folder, output, name, "--resume", "auto"), output / "logs of the resumed run")
    assert ranks.wait() == [0, 0], ranks.text()
    assert_equal(outcome(output), expected)
    return ranks.text()


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(4, 12))])
def test_a_kill_at_a_random_time(folder, tmp_path, undisturbed, seed):
    """All ranks at once, as a machine goes down, or one of them; every run is killed twice."""
    chance = random.Random(seed)
    name = list(SETTINGS)[seed % len(SETTINGS)]
    expected, seconds = undisturbed(name)
    for attempt in range(2):
        ranks = Ranks(2, flags_of(folder, tmp_path, name, "--resume", "auto"), tmp_path / f"logs {attempt}")
        time.sleep(chance.uniform(0, seconds))
        ranks.signal(signal.SIGKILL, chance.choice([None, 0, 1]))
        ranks.wait()
    assert_resumes(folder, tmp_path, name, expected)


# by name: what a rank does when it is killed
MOMENTS = {
    "before the group": {"target": "util.setup_logging", "rank": 1},
    "first step": {"target": "engine.training.back_propagate", "rank": 0},
    "in the middle of an epoch": {"target": "engine.training.back_propagate", "call": 3, "rank": 1},
    "last step": {"target": "engine.training.back_propagate", "call": 8, "rank": 0},
    "weights of a point": {"target": "modules.resume.describe_file", "call": 4},
    "optimizer of a point": {"target": "modules.resume.describe_file", "call": 8},
    "all but the manifest": {"target": "modules.resume.describe_file", "call": 9, "when": "after"},
    "a point not on the disk": {"target": "modules.resume.sync", "call": 6},
    "before a point's rename": {"target": "os.replace", "match": "step-", "call": 3},
    "after a point's rename": {"target": "os.replace", "match": "step-", "call": 3, "when": "after"},
    "an older point removed": {"target": "os.unlink", "match": "run.bin", "call": 1, "when": "after"},
    "the last point of an epoch": {"target": "os.replace", "match": "step-00000004", "call": 1},
    "an epoch's weights shared": {"target": "os.link", "call": 1, "when": "after"},
    "an epoch's optimizer shared": {"target": "os.link", "call": 4},
    "weights written": {"target": "os.replace", "match": "pytorch_model.bin"},
    "weights renamed": {"target": "os.replace", "match": "pytorch_model.bin", "call": 2, "when": "after"},
    "optimizer written": {"target": "os.replace", "match": "pytorch_opt.bin"},
    "evaluation": {"target": "engine.evaluation.similarity_of_split", "rank": 1},
    "last evaluation": {"target": "engine.evaluation.similarity_of_split", "call": 2, "rank": 0},
    "ranks written": {"target": "os.replace", "match": "ranks.csv", "when": "after"},
    "metrics written": {"target": "os.replace", "match": "metrics.json", "call": 2},
    "points that are written while the ranks leave": {"target": "engine.run.Run.finish", "rank": 1},
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_a_named_moment(folder, tmp_path, undisturbed, moment):
    """One rank is killed; what the other then does must do no harm."""
    name = list(SETTINGS)[list(MOMENTS).index(moment) % len(SETTINGS)]
    fault = KILL | MOMENTS[moment]
    ranks = Ranks(2, flags_of(folder, tmp_path, name), tmp_path / "logs", fault)
    codes = ranks.wait()
    assert codes[fault.get("rank", 0)] == -signal.SIGKILL, f"{codes}\n{ranks.text()}"
    assert_resumes(folder, tmp_path, name, undisturbed(name)[0])


# Damage


def stop_run(folder: Path, output: Path) -> Path:
    """Stop a run after step 6 of 8, which leaves the points of steps 5 and 6; returns its folder."""
    fault = {"target": "engine.training.back_propagate", "call": 6, "action": signal.SIGTERM}
    ranks = Ranks(2, flags_of(folder, output, "dropout"), output / "logs", fault)
    assert ranks.wait() == [75, 75], ranks.text()
    return output


@pytest.fixture(scope="module")
def stopped(folder) -> Path:
    return stop_run(folder, folder / "stopped")


@pytest.mark.parametrize("seed", range(20))
def test_a_random_damage_is_found_and_the_point_before_is_taken(stopped, tmp_path, caplog, seed):
    """A bit flipped, or the end cut off, in any file of the newest point."""
    chance = random.Random(seed)
    shutil.copytree(stopped / "resume", tmp_path / "resume")
    file = tmp_path / "resume" / "step-00000006" / chance.choice([*FILES, MANIFEST])
    content = bytearray(file.read_bytes())
    place = chance.randrange(len(content))
    if chance.random() < 0.5:
        content[place] ^= 1 << chance.randrange(8)
    else:
        del content[place:]
    file.write_bytes(content)
    assert TrainingCheckpoints(tmp_path).newest()["run.bin"]["global_step"] == 5
    assert "step-00000006 is damaged" in caplog.text and file.name in caplog.text


@pytest.mark.parametrize("seed", range(3))
def test_a_run_goes_on_from_the_point_before_a_damaged_one(folder, tmp_path, undisturbed, seed):
    chance = random.Random(seed)
    output = stop_run(folder, tmp_path / "run")
    for name in (*FILES, MANIFEST)[seed : seed + 2]:
        file = output / "resume" / "step-00000006" / name
        content = bytearray(file.read_bytes())
        content[chance.randrange(len(content))] ^= 128
        file.write_bytes(content)
    text = assert_resumes(folder, output, "dropout", undisturbed("dropout")[0])
    assert "step-00000006 is damaged" in text and "Resumed after step 5, in epoch 2" in text


def test_a_damaged_point_is_not_kept_in_place_of_a_whole_one(stopped, tmp_path):
    """It would be none to fall back on."""
    shutil.copytree(stopped / "resume", tmp_path / "resume")
    (tmp_path / "resume" / "step-00000006" / "run.bin").write_bytes(b"")
    points = TrainingCheckpoints(tmp_path)
    contents = points.newest()
    points.save(9, contents, wait=True)
    assert sorted(path.name for path in (tmp_path / "resume").iterdir()) == ["step-00000005", "step-00000009"]


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_checkpoint_of_an_epoch_is_an_error_with_its_name(folder, stopped, tmp_path, seed):
    """Cut anywhere; of the weights by `--init_model`, of the optimizer by `--resume_model`."""
    chance = random.Random(seed)
    output = shutil.copytree(stopped, tmp_path / "run")
    file = (model_path if seed % 2 else optimizer_path)(output, 0)
    os.truncate(file, chance.randrange(file.stat().st_size))
    more = ("--init_model", str(model_path(output, 0)))
    if seed % 2 == 0:
        more += ("--resume_model", str(optimizer_path(output, 0)))
    ranks = Ranks(2, flags_of(folder, tmp_path / "other", "dropout", *more), tmp_path / "logs")
    assert any(ranks.wait())
    assert str(file) in ranks.text()


# Disks


def test_a_full_disk_keeps_the_last_point_and_the_run_goes_on_when_there_is_room(
    folder, tmp_path, small_disk, undisturbed
):
    """A point takes 20 MB, and so do the files of an epoch: there is room for two points and no more."""
    output = small_disk("44m") / "run"
    flags = flags_of(folder, output, "dropout")
    ranks = Ranks(2, flags, tmp_path / "logs")
    codes = ranks.wait()
    text = ranks.text()
    assert all(codes), text
    assert "no training checkpoint could be written" in text and "the run goes on" in text
    assert str(model_path(output, 0)) in ranks.logs[0].read_text().splitlines()[-1], text
    assert not list(output.glob("*.partial"))
    assert TrainingCheckpoints(output).newest()["run.bin"]["global_step"] >= 2
    small_disk("200m", "remount")
    assert_resumes(folder, output, "dropout", undisturbed("dropout")[0])


def test_a_folder_that_takes_no_points_is_a_warning(folder, tmp_path, undisturbed):
    """A file in the place of the folder: to root no folder is read-only."""
    (tmp_path / "resume").write_text("a file")
    ranks = Ranks(2, flags_of(folder, tmp_path, "dropout"), tmp_path / "logs")
    assert ranks.wait() == [0, 0]
    assert ranks.text().count("no training checkpoint could be written") >= 8
    assert_equal(outcome(tmp_path), undisturbed("dropout")[0])


# Numbers that are not finite


@pytest.mark.parametrize("rank", [0, 1])
def test_a_loss_that_is_not_finite_stops_both_ranks_before_the_optimizer(folder, tmp_path, undisturbed, rank):
    fault = {"target": "modules.modeling.CLIP4Clip.forward", "call": 3, "action": "poison", "rank": rank}
    flags = flags_of(folder, tmp_path, "dropout")
    ranks = Ranks(2, flags, tmp_path / "logs", fault)
    assert ranks.wait() == [1, 1], ranks.text()
    content = torch.load(tmp_path / f"nonfinite_batch3_rank{rank}.pt", weights_only=True)
    for log in ranks.logs:
        last = log.read_text().splitlines()[-1]
        assert "the loss is inf in epoch 1, batch 3 of 4" in last and f"on rank {rank}" in last
        assert all(video in last for video in content["videos"]) and len(content["videos"]) == 3
    assert not (tmp_path / f"nonfinite_batch3_rank{1 - rank}.pt").exists()
    assert TrainingCheckpoints(tmp_path).newest()["run.bin"]["global_step"] == 2


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_that_is_left_out_is_followed_by_others(folder, tmp_path, precision):
    fault = {"target": "modules.modeling.CLIP4Clip.forward", "call": 3, "action": "poison"}
    flags = flags_of(folder, tmp_path, "dropout", "--skip_nonfinite", "1", "--precision", precision)
    ranks = Ranks(2, flags, tmp_path / "logs", fault)
    assert ranks.wait() == [0, 0], ranks.text()
    assert ranks.text().count("the step is left out (--skip_nonfinite)") == 1
