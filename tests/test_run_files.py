"""metrics.json and ranks.csv: numbers by eye, the history and the pick, hashes, versions, and files that are none."""

import csv
import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from dataloaders.annotations import Annotations, Caption
from dataloaders.unreadable import UnreadableVideos
from engine import provenance, run_files
from engine.arguments import build_parser, get_args
from engine.evaluation import Evaluation
from engine.flags import FLAGS
from engine.provenance import configuration_hash
from engine.record import RunRecord
from engine.run_files import Ranking, read_metrics, read_ranks

TEXT_TO_VIDEO = Ranking.of(
    "text-to-video",
    np.array([[0.5, 0.25], [0.75, 0.5], [0.25, 1.0]]),
    [0, 1, 1],
    ["a dog", "a, cat", "no"],
    ["v7", "v8"],
)
VIDEO_TO_TEXT = Ranking.of("video-to-text", np.array([[0.5, 0.75], [0.25, 1.0]]), [0, 1], ["v7", "v8"], ["v7", "v8"])


RESUMING = ("--init_model", "m", "--resume_model", "o")


def flags(output_dir, *more: str) -> Namespace:
    return get_args(["--do_train", "--output_dir", str(output_dir), *more])


def evaluation(raw, processed=(), post_process=None, split="test", seconds=1.5) -> Evaluation:
    return Evaluation(split, raw, list(processed), post_process, UnreadableVideos(split, "fail", 2), None, seconds)


def add(record: RunRecord, split="test", epoch=0, right=(True, True), post_process=None) -> None:
    """An evaluation of two texts of which those that are `right` rank first."""
    similarity = [[1.0, 0.0 if right[0] else 2.0], [0.0 if right[1] else 2.0, 1.0]]
    ranking = Ranking.of("text-to-video", similarity, [0, 1], ["a", "b"], ["v", "w"])
    raw = [ranking, Ranking.of("video-to-text", np.eye(2), [0, 1], ["v", "w"], ["v", "w"])]
    record.add(evaluation(raw, raw[:1], post_process, split), epoch, f"m.bin.{epoch}")


def test_a_summary_by_eye():
    """Ranks 1, 2 and 1 of two videos."""
    summary = TEXT_TO_VIDEO.summary()
    intervals = summary.pop("intervals_95")
    assert summary == {
        "R1": pytest.approx(200 / 3), "R5": 100.0, "R10": 100.0, "R50": 100.0, "MdR": 1.0, "MnR": pytest.approx(4 / 3),
        "queries": 3, "gallery": 2,
    }  # fmt: skip
    assert intervals["R1"] == (0.0, 100.0)  # (1/3)^3 = 3.7 % of the resamples have no hit, 30 % have all three
    assert intervals["R5"] == (100.0, 100.0)


def test_files_of_one_evaluation(tmp_path):
    record = RunRecord.from_flags(flags(tmp_path, "--seed", "7"), processes=2)
    method = {"method": "dsl", "assumes": "much", "temperature": 3.0}
    found = evaluation([TEXT_TO_VIDEO, VIDEO_TO_TEXT], [TEXT_TO_VIDEO], method, seconds=2.25)
    record.add(found, 4, Path("x") / "m.bin.4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "ranks.csv", "ranks_dsl.csv"]
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert list(content) == [
        "split", "epoch", "checkpoint", "bad_videos", "text_to_video", "video_to_text", "post_processed", "protocol",
        "best", "seed", "processes", "configuration_sha256", "configuration_sha256_without_seed", "code_version",
        "torch_version", "holdout", "seconds", "history",
    ]  # fmt: skip
    assert (content["split"], content["epoch"], content["checkpoint"]) == ("test", 4, "x/m.bin.4")
    assert (content["seed"], content["processes"], content["seconds"]) == (7, 2, 2.25)
    assert content["protocol"] == {"captions_per_video": "several", "epoch_picked_on": "test"}
    assert content["text_to_video"]["R1"] == pytest.approx(200 / 3)
    assert (content["text_to_video"]["queries"], content["text_to_video"]["gallery"]) == (3, 2)
    assert content["video_to_text"]["R1"] == 50.0
    assert content["best"] == {"epoch": 4, "checkpoint": "x/m.bin.4", "R1": content["text_to_video"]["R1"]}
    assert content["post_processed"]["assumes"] == "much" and "video_to_text" not in content["post_processed"]
    assert len(content["history"]) == 1
    with (tmp_path / "ranks.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][:6] == ["direction", "query", "true_video", "rank", "top1", "score1"]
    assert rows[2] == ["text-to-video", "a, cat", "v8", "2", "v7", "0.75", "v8", "0.5", "", "", "", "", "", ""]
    assert rows[4][:4] == ["video-to-text", "v7", "v7", "2"]
    assert all(len(row) == 14 for row in rows)
    assert read_metrics(tmp_path) == content
    assert read_ranks(tmp_path, "text-to-video") == {("a dog", "v7", 0): 1, ("a, cat", "v8", 0): 2, ("no", "v8", 0): 1}


def test_equal_queries_are_counted(tmp_path):
    ranking = Ranking.of("text-to-video", [[1.0, 0.0], [0.0, 1.0]], [0, 0], ["same", "same"], ["v", "w"])
    run_files.write_ranks(tmp_path / "ranks.csv", [ranking])
    assert read_ranks(tmp_path, "text-to-video") == {("same", "v", 0): 1, ("same", "v", 1): 2}


def test_the_last_evaluation_overwrites_and_the_history_grows(tmp_path):
    record = RunRecord.from_flags(flags(tmp_path))
    for epoch, right in enumerate([(True, False), (True, True), (True, True), (False, False)]):
        add(record, epoch=epoch, right=right)
    content = read_metrics(tmp_path)
    assert content["text_to_video"]["R1"] == 0.0
    assert [entry["text_to_video"]["R1"] for entry in content["history"]] == [50.0, 100.0, 100.0, 0.0]
    assert content["epoch"] == 3
    assert content["best"] == {"epoch": 2, "checkpoint": "m.bin.2", "R1": 100.0}  # the later of equal ones


def test_nothing_but_the_picking_split_picks(tmp_path):
    holdout = Annotations([Caption("v2", "a"), Caption("v1", "b"), Caption("v2", "c")], {})
    record = RunRecord.from_flags(flags(tmp_path, "--holdout", "2"), holdout=holdout)
    record.begin()
    add(record, "holdout", 0, (True, False))
    add(record, "holdout", 1, (False, False))
    add(record, "test", 1, (True, True))
    assert record.best()["epoch"] == 0
    assert (tmp_path / "holdout.txt").read_text() == "v1\nv2\n"
    content = read_metrics(tmp_path)
    # printf 'v1\nv2\n' | sha256sum
    assert content["holdout"] == {
        "videos": 2, "captions": 3, "sha256": "105b2c8d7bdd46426f2067ec234b1208c89b21bd3a1bd1c1d4c780264ab019b5",
    }  # fmt: skip
    assert content["protocol"]["epoch_picked_on"] == "holdout"
    assert content["best"] == {"epoch": 0, "checkpoint": "m.bin.0", "R1": 50.0}


def test_an_evaluation_alone_picks_nothing(tmp_path):
    record = RunRecord.from_flags(get_args(["--do_eval", "--output_dir", str(tmp_path)]))
    add(record, epoch=None)
    content = read_metrics(tmp_path)
    assert content["protocol"] == {"captions_per_video": "one", "epoch_picked_on": None}
    assert content["best"] is None


def test_a_resumed_run_keeps_the_epochs_before(tmp_path):
    first = RunRecord.from_flags(flags(tmp_path))
    for epoch, right in enumerate([(True, True), (True, False), (False, False)]):
        add(first, epoch=epoch, right=right)
    resumed = RunRecord.from_flags(flags(tmp_path / "other"))
    resumed.continue_from(tmp_path / "pytorch_opt.bin.1", 2)
    assert [entry["epoch"] for entry in resumed.history] == [0, 1]
    assert resumed.best()["epoch"] == 0
    resumed.continue_from(tmp_path / "nowhere" / "pytorch_opt.bin.1", 2)  # a run of CLIP4Clip has left no record

    holdout = Annotations([Caption("v1", "a"), Caption("v2", "b")], {})
    with pytest.raises(ValueError, match=r"--resume_model .*held out None, this one .*--holdout"):
        RunRecord.from_flags(flags(tmp_path, "--holdout", "2"), holdout=holdout).continue_from(
            tmp_path / "pytorch_opt.bin.1", 2
        )


def test_an_evaluation_in_the_resumed_folder_is_no_epoch(tmp_path):
    add(RunRecord.from_flags(get_args(["--do_eval", "--output_dir", str(tmp_path)])), epoch=None)
    resumed = RunRecord.from_flags(flags(tmp_path))
    resumed.continue_from(tmp_path / "pytorch_opt.bin.1", 2)
    assert resumed.history == []


def test_a_refused_resume_leaves_the_list_of_the_held_out(tmp_path):
    """Also where the run has ended before its first evaluation, with `holdout.txt` alone."""
    given = flags(tmp_path, "--holdout", "2")
    resuming = flags(tmp_path, *RESUMING, "--holdout", "2")
    same, other = (
        Annotations([Caption(video_id, "a") for video_id in video_ids], {})
        for video_ids in (("v1", "v2"), ("v3", "v4"))
    )
    first, optimizer = RunRecord.from_flags(given, holdout=same), tmp_path / "pytorch_opt.bin.0"
    first.begin()
    for evaluated in (False, True):
        if evaluated:
            add(first, "holdout")
        for holdout in (other, None):
            with pytest.raises(ValueError, match=r"its run held out .*'videos': 2.* give the same --holdout"):
                RunRecord.from_flags(resuming, holdout=holdout).continue_from(optimizer, 1)
            assert (tmp_path / "holdout.txt").read_text() == "v1\nv2\n"
        resumed = RunRecord.from_flags(flags(tmp_path / "on", *RESUMING, "--holdout", "2"), holdout=same)
        (tmp_path / "on").mkdir(exist_ok=True)
        resumed.continue_from(optimizer, 1)
        assert (tmp_path / "on" / "holdout.txt").read_text() == "v1\nv2\n"
        assert len(resumed.history) == evaluated


def test_files_of_an_earlier_run_do_not_stay(tmp_path):
    stale = ("ranks_dsl.csv", "ranks_qb_norm.csv", "holdout.txt")
    kept = ("ranks_mine.csv", "my_holdout.txt")
    evaluation = ["--do_eval", "--output_dir", str(tmp_path)]
    for args, post_process, left in (
        (get_args(evaluation), None, {"holdout.txt"}),
        (flags(tmp_path, *RESUMING), {"method": "dsl"}, {"holdout.txt", "ranks_dsl.csv"}),
        (flags(tmp_path), {"method": "qb_norm"}, {"ranks_qb_norm.csv"}),
    ):
        for name in (*stale, *kept):
            (tmp_path / name).write_text("of an earlier run")
        record = RunRecord.from_flags(args)
        assert {path.name for path in tmp_path.iterdir()} >= {*stale, *kept}  # a constructor deletes nothing
        if not args.resume_model:
            record.begin()
        add(record, post_process=post_process)
        assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "ranks.csv", *kept, *left}
        for name in left - {"holdout.txt"}:
            assert "earlier" not in (tmp_path / name).read_text()


def test_what_the_hash_counts(tmp_path):
    def hash_of(*more, processes=1, without=()):
        return configuration_hash(flags("runs/a", *more), processes, without)

    assert hash_of() == hash_of("--n_display", "7", "--num_thread_reader", "3", "--batch_size_val", "9", "--fp16")
    assert hash_of() == configuration_hash(flags("runs/b"), 1)
    assert hash_of("--train_csv", "/here/x.csv") == hash_of("--train_csv", "/there/x.csv") != hash_of()
    for more in (["--lr", "1e-3"], ["--seed", "1"], ["--sim_header", "wti"], ["--holdout", "5"], ["--init_model", "m"]):
        assert hash_of(*more) != hash_of(), more
    assert hash_of(processes=2) != hash_of()
    assert hash_of("--init_model", "m", "--resume_model", "o") == hash_of()
    assert hash_of("--seed", "1", without=("seed",)) == hash_of("--seed", "2", without=("seed",)) != hash_of()
    assert hash_of("--lr", "1", without=("seed",)) != hash_of(without=("seed",))


def test_evaluations_of_the_checkpoints_of_several_seeds_are_a_group(tmp_path):
    def hashes(seed, *mode):
        args = get_args([*mode, "--output_dir", str(tmp_path), "--seed", seed, "--init_model", f"seed{seed}.bin"])
        common = RunRecord.from_flags(args).source
        return common["configuration_sha256"], common["configuration_sha256_without_seed"]

    (first, first_group), (second, second_group) = hashes("1", "--do_eval"), hashes("2", "--do_eval")
    assert first != second and first_group == second_group
    assert hashes("1", "--do_train")[1] != hashes("2", "--do_train")[1]  # two starts of training are no seeds


def test_a_file_of_clip_weights_counts_by_its_name(tmp_path):
    def hash_of(name):
        return configuration_hash(Namespace(do_train=False, pretrained_clip_name=str(name)), 1)

    files = [tmp_path / "a" / "clip.pt", tmp_path / "b" / "clip.pt", tmp_path / "b" / "other.pt"]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert hash_of(files[0]) == hash_of(files[1]) != hash_of(files[2])
    assert hash_of("ViT-B/32") != hash_of("32")  # no file of this name is here


@pytest.mark.parametrize(
    ("flags", "processes", "expected"),
    [
        ("--do_train --output_dir x", 1, "23b63fd32b77673d4c77b519d060800eae1d86fd1aae26ad245f6c41f0139dd7"),
        (
            "--do_eval --output_dir y --init_model m.bin --sim_header wti --max_words 32 --max_frames 12 "
            "--slice_framepos 2",
            1,
            "0026065c9d56e167a1a9a1b768c3387e7ede05fa48f52f5721495e04659a5a60",
        ),
        (
            "--do_train --output_dir x --sim_header wti --data_path a/b.json --features_path /v/w --cdcr 3 "
            "--save_steps 5 --fp16 --frame_cache c --frame_cache_format jpeg --bad_videos skip",
            4,
            "5c898a30391a870c29a196548d802056263c66b3698e93490930af3990151cc6",
        ),
    ],
)
def test_the_hash_of_a_configuration_stays(flags, processes, expected):
    """Computed at commit 4c10ad0: metrics.json files of different versions can be compared."""
    assert configuration_hash(get_args(flags.split()), processes) == expected


def test_flags_that_nothing_reads_decide_nothing():
    parsers_flags = {action.dest for action in build_parser()._actions if action.dest != "help"}
    assert parsers_flags == FLAGS.keys()
    unread = {action.dest for action in build_parser()._actions if type(action).__name__ == "UnreadFlag"}
    assert unread == {name for name, flag in FLAGS.items() if not flag.is_read}
    assert not any(FLAGS[name].decides_numbers for name in unread)


def test_code_version_never_fails(tmp_path, monkeypatch):
    assert provenance.code_version().startswith(("git ", "version "))
    monkeypatch.setattr(provenance, "REPOSITORY", tmp_path)
    assert provenance.code_version() == "unknown"
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "3.2.1"\n')
    assert provenance.code_version() == "version 3.2.1"
    monkeypatch.setenv("PATH", "")
    assert provenance.code_version() == "version 3.2.1"


def test_a_clone_gives_commit_and_changes(tmp_path, monkeypatch):
    def git(*command):
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
        return provenance.subprocess.run(
            ["git", *identity, *command], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    (tmp_path / "file").write_text("one")
    git("init")
    git("add", "file")
    git("commit", "-m", "first")
    monkeypatch.setattr(provenance, "REPOSITORY", tmp_path.resolve())
    assert provenance.code_version() == f"git {git('rev-parse', 'HEAD')}"
    (tmp_path / "untracked").touch()
    assert "dirty" not in provenance.code_version()
    (tmp_path / "file").write_text("two")
    assert provenance.code_version().endswith(" dirty")
    # files that merely lie inside a clone are not what it holds
    (tmp_path / "inner").mkdir()
    monkeypatch.setattr(provenance, "REPOSITORY", (tmp_path / "inner").resolve())
    assert provenance.code_version() == "unknown"


def test_a_failed_write_keeps_the_file_before(tmp_path):
    path = tmp_path / "ranks.csv"
    run_files.write_ranks(path, [TEXT_TO_VIDEO])
    before = path.read_bytes()
    with pytest.raises(UnicodeEncodeError):
        run_files.write_ranks(path, [Ranking.of("text-to-video", np.eye(2), [0, 1], ["\ud800", ""], ["v", "w"])])
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"text_to_video": {}}'])
def test_a_file_that_is_no_result_is_named(tmp_path, content):
    with pytest.raises(FileNotFoundError, match=r"metrics\.json"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(ValueError, match=r"metrics\.json is not what"):
        read_metrics(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"ranks\.csv"):
        read_ranks(tmp_path, "text-to-video")
    (tmp_path / "ranks.csv").write_text("direction,query,true_video,rank\ntext-to-video,a,b,first\n")
    with pytest.raises(ValueError, match=r"ranks\.csv is not what"):
        read_ranks(tmp_path, "text-to-video")


@pytest.mark.parametrize(
    "path",
    [
        ("text_to_video", "R50"), ("video_to_text", "MnR"), ("video_to_text", "intervals_95", "R1"), ("video_to_text",),
        ("protocol", "epoch_picked_on"), ("best", "epoch"), ("configuration_sha256_without_seed",), ("split",),
    ],
)  # fmt: skip
def test_a_result_that_lacks_what_is_read_is_named(tmp_path, path):
    add(RunRecord.from_flags(flags(tmp_path)))
    content = read_metrics(tmp_path)
    *above, last = path
    part = content
    for key in above:
        part = part[key]
    del part[last]
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"metrics\.json is not what .*KeyError"):
        read_metrics(tmp_path)
