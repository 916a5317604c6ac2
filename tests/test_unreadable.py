"""Videos that give no frames, through data set, loader, training and evaluation: what is read instead, and told."""

import csv
import json
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import main_task_retrieval
from dataloaders import video_loader
from dataloaders.annotations import Annotations, Caption
from dataloaders.data_dataloaders import DATALOADER_DICT, evaluation_loader, evaluation_loaders
from dataloaders.rawvideo_util import VideoReadError
from dataloaders.retrieval_dataset import RetrievalDataset
from dataloaders.unreadable import DamagedVideo, TooManyUnreadableVideosError, UnreadableVideo, UnreadableVideos
from dataloaders.video_damage import report_damage
from dataloaders.video_loader import EpochSampler, VideoLoader
from engine.record import RunRecord
from engine.run_files import read_metrics, read_ranks
from tests.helpers.fault_worker import Ranks
from tests.helpers.launch import launcher, run_python
from tests.helpers.tiny_run import data_flags, write_tiny_run
from tests.test_dataloaders import WordTokenizer


class NumberedExtractor:
    """Video `path` is one frame of that brightness; those in `unreadable` cannot be read."""

    size = 2

    def __init__(self, unreadable: set[int]):
        self.unreadable = unreadable

    def read_frames(self, path, max_frames, **_):
        if path in self.unreadable:
            raise VideoReadError(path, "cut off")
        return np.full((1, 3, 2, 2), path, dtype=np.uint8)


class DamagedExtractor(NumberedExtractor):
    """Video 3 loses a frame."""

    def read_frames(self, path, max_frames, **_):
        if path == 3:
            report_damage("1 frame could not be decoded")
        return super().read_frames(path, max_frames)


def numbered(videos: int, unreadable: set[int], captions_per_video: int = 1, **arguments) -> RetrievalDataset:
    """Videos v0, v1, ... with the captions "n" of video n."""
    captions = [Caption(f"v{number}", str(number)) for number in range(videos) for _ in range(captions_per_video)]
    paths = {f"v{number}": number for number in range(videos)}
    return RetrievalDataset(
        Annotations(captions, paths),
        WordTokenizer(),
        NumberedExtractor(unreadable),
        max_words=3,
        max_frames=2,
        **arguments,
    )


def sample_number(sample) -> int:
    """The number of the caption of a sample, which must be that of its video."""
    input_ids, _, _, video, video_mask = sample
    assert video_mask.tolist() == [[1, 0]]
    assert input_ids[0, 1] == video.max() and video[0, 1].max() == 0
    return int(input_ids[0, 1])


def test_another_sample_takes_the_place_reproducibly():
    dataset = numbered(50, unreadable={7, 8, 9}, seed=5)
    view = dataset.samples(replace_unreadable=True)
    chosen = {}
    for epoch in range(20):
        dataset.set_epoch(epoch)
        for index in (0, 7, 8):
            sample, unreadable = view[index]
            chosen[epoch, index] = sample_number(sample)
            if index == 0:
                assert (chosen[epoch, 0], unreadable) == (0, [])
            else:
                assert unreadable[0] == UnreadableVideo(index, str(index), "cut off")
                assert {video.item for video in unreadable} <= {7, 8, 9}
    replacements = [number for (_, index), number in chosen.items() if index]
    assert not {7, 8, 9} & set(replacements)
    assert len(set(replacements)) > 10  # of 40 draws from 47: no favourite takes every place
    dataset.set_epoch(3)
    assert sample_number(view[7][0]) == chosen[3, 7]


def test_a_replacement_is_the_sample_that_its_own_index_gives():
    """With a caption drawn in each epoch: the same caption as where that sample stands."""
    dataset = numbered(30, unreadable={4}, captions_per_video=3, every_caption=False)
    sample, (video,) = dataset.samples(replace_unreadable=True)[4]
    assert video.item == 4
    for part, expected in zip(sample, dataset[sample_number(sample)], strict=True):
        np.testing.assert_array_equal(part, expected)


def test_nothing_but_unreadable_videos_ends():
    with pytest.raises(VideoReadError, match="cut off"):
        numbered(3, unreadable={0, 1, 2}).samples(replace_unreadable=True)[1]


def test_in_evaluation_the_text_stays_and_the_video_is_blank():
    dataset = numbered(4, unreadable={2})
    (*text, video, video_mask), unreadable = dataset.samples(replace_unreadable=False)[2]
    assert [part.tolist() for part in text] == [part.tolist() for part in dataset.captions_only()[2]]
    assert text[0][0, 1] == 2
    assert (video.max(), video_mask.max(), video.shape, video.dtype) == (0, 0, (1, 2, 1, 3, 2, 2), np.uint8)
    assert unreadable == [UnreadableVideo(2, "2", "cut off")]
    (video, video_mask), unreadable = dataset.videos_only()[2]
    assert (video.max(), video_mask.max(), unreadable) == (0, 0, [UnreadableVideo(2, "2", "cut off")])
    assert dataset.videos_only()[1][1] == []


def test_a_plain_sample_raises():
    with pytest.raises(VideoReadError, match="2: cut off"):
        numbered(4, unreadable={2})[2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_under_fail_the_loader_raises_here_with_path_and_reason(num_workers):
    loader = evaluation_loader(numbered(6, unreadable={4}), batch_size=2, num_workers=num_workers)
    with pytest.raises(VideoReadError) as error:
        list(loader)
    assert (error.value.path, error.value.reason) == ("4", "cut off")


def test_each_pass_counts_for_itself():
    loader = evaluation_loader(numbered(200, unreadable={4, 5}), "test", "skip", batch_size=64)
    for _ in range(2):
        assert len(list(loader)) == 4
        assert sorted(loader.unreadable.by_item) == [4, 5] and loader.unreadable.samples == 2
    loader.dataset.extractor.unreadable = set()
    assert len(list(loader)) == 4 and loader.unreadable.by_item == {}


def test_two_ranks_find_their_own_and_know_all():
    loader = evaluation_loader(numbered(200, unreadable={10, 190}), "test", "skip", batch_size=64)
    records = []
    for rank in range(2):
        _, videos = evaluation_loaders(loader, rank, 2)
        masks = torch.cat([mask for _, mask in videos])
        assert (masks.sum(dim=(1, 2)) == 0).nonzero().tolist() == [[10], [90]][rank : rank + 1]
        records.append(videos.unreadable)
    assert [sorted(record.by_item) for record in records] == [[10], [190]]
    for record in records:
        record.merge([*map(copy_of, records)] if record is records[0] else [records[0], record])
    assert sorted(records[0].by_item) == sorted(records[1].by_item) == [10, 190]


def copy_of(record: UnreadableVideos) -> UnreadableVideos:
    copy = UnreadableVideos(record.split, record.policy, record.files)
    copy.report(record.by_item.values())
    return copy


def videos_of(*items: int) -> list[UnreadableVideo]:
    return [UnreadableVideo(item, f"{item}.mp4", "torn") for item in items]


def test_one_per_cent_may_be_skipped_and_no_more():
    record = UnreadableVideos("train", "skip", files=300)
    record.report(videos_of(1, 2))
    record.report(videos_of(2, 3, 3, 1))
    assert (len(record.by_item), record.samples) == (3, 6)
    with pytest.raises(
        TooManyUnreadableVideosError, match=r"4 of 300 video files of the train split .* 1% .*4\.mp4 \(torn\)"
    ):
        record.report(videos_of(4))


def test_ids_that_share_an_unreadable_file_count_once():
    record = UnreadableVideos("test", "skip", files=100)
    record.report([UnreadableVideo(1, "a.mp4", "torn"), UnreadableVideo(2, "a.mp4", "torn")])
    assert record.paths() == {"a.mp4": "torn"} and sorted(record.by_item) == [1, 2]


def test_samples_of_all_ranks_are_counted_and_the_choice_of_a_reason_is_the_same():
    ranks = [UnreadableVideos("train", "skip", files=300) for _ in range(2)]
    ranks[0].report(videos_of(1, 1))
    ranks[1].report([UnreadableVideo(1, "1.mp4", "changed"), *videos_of(2)])
    for merged, order in (
        (UnreadableVideos("train", "skip", files=300), 1),
        (UnreadableVideos("train", "skip", files=300), -1),
    ):
        merged.merge(ranks[::order])
        assert merged.samples == 4
        assert merged.paths() == {"1.mp4": "changed", "2.mp4": "torn"}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_pass_that_goes_on_has_the_rest_of_the_samples_and_all_that_was_found(num_workers):
    """250 videos of which two are unreadable, interrupted after every second batch."""
    dataset = numbered(250, unreadable={20, 140})

    def build():
        sampler = EpochSampler(dataset, num_replicas=1, rank=0, seed=3)
        sampler.set_epoch(1)
        return VideoLoader(
            dataset, dataset.samples(replace_unreadable=True), partial(UnreadableVideos, "train", "skip", 250),
            batch_size=50, num_workers=num_workers, sampler=sampler,
        )  # fmt: skip

    whole, batches, states = build(), [], []
    for batch in whole:
        batches.append(batch)
        states.append(whole.unreadable.state())
    assert states[-1]["samples"] == 2
    for done in (2, 4):
        loader = build()
        loader.start_at(done, states[done - 1])
        rest = list(loader)
        assert len(rest) == 5 - done
        for batch, expected in zip(rest, batches[done:], strict=True):
            assert all(torch.equal(part, other) for part, other in zip(batch, expected, strict=True))
        assert loader.unreadable.state() == states[-1]
        assert len(list(loader)) == 5  # the next pass is whole


def test_waiting_is_the_time_of_the_loader_alone(monkeypatch):
    """A clock that ticks once for each look at it: one tick of waiting for each batch, one of computing."""
    ticks = iter(range(100))
    monkeypatch.setattr(video_loader.time, "perf_counter", lambda: next(ticks))
    loader = evaluation_loader(numbered(6, unreadable=set()), batch_size=2)
    assert len(list(loader)) == 3
    assert loader.seconds_waited == 3


def test_what_no_rank_may_skip_alone_stops_all():
    ranks = [UnreadableVideos("train", "skip", files=100) for _ in range(2)]
    ranks[0].report(videos_of(1))
    ranks[1].report(videos_of(2))
    with pytest.raises(TooManyUnreadableVideosError, match="2 of 100"):
        ranks[0].merge(ranks)


# From the command line


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """100 training and 100 test videos, of which one each is cut, and a tiny CLIP."""
    folder = write_tiny_run(tmp_path_factory.mktemp("bad"), 100, 100, captions_per_video=2)
    for path in (video_of(folder, "MSRVTT_train.csv", 3), video_of(folder, "MSRVTT_test.csv", 5)):
        path.write_bytes(path.read_bytes()[:300])
    return folder


def video_of(folder: Path, name: str, row: int) -> Path:
    with (folder / "data" / name).open(newline="") as file:
        video_id = list(csv.DictReader(file))[row]["video_id"]
    return folder / "data" / "videos" / f"{video_id}.mp4"


def flags(folder: Path, output: Path, *more: str) -> list[str]:
    return [
        "--output_dir", str(output), *data_flags(folder), "--max_frames", "2", "--batch_size_val", "16",
        "--epochs", "2", "--batch_size", "10", "--lr", "1e-3", "--sim_header", "wti", "--num_thread_reader", "2", *more,
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_skips_lists_and_counts(folder, tmp_path, processes):
    command = flags(folder, tmp_path, "--do_train", "--bad_videos", "skip", "--post_process", "dsl")
    ranks = Ranks(processes if processes > 1 else 0, command, tmp_path / "logs")
    assert ranks.wait() == [0] * processes, ranks.text()
    train, test = video_of(folder, "MSRVTT_train.csv", 3), video_of(folder, "MSRVTT_test.csv", 5)
    with (tmp_path / "bad_videos.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["split", "video_id", "path", "reason", "epoch"]
    assert [(row[0], row[1], row[2], row[4]) for row in rows[1:]] == [
        ("train", train.stem, str(train), "0"), ("test", test.stem, str(test), "0"),
    ]  # fmt: skip
    log = (tmp_path / "log.txt").read_text()
    assert (
        len(re.findall(rf"1 of 100 video files cannot be read; other samples took the place of 1: {train} \(.+\)", log))
        == 2
    )
    assert (
        len(re.findall(rf"1 of 100 video files cannot be read, and their items count as misses: {test} \(.+\)", log))
        == 2
    )
    content = read_metrics(tmp_path)
    assert content["bad_videos"] == 1
    assert (content["text_to_video"]["queries"], content["text_to_video"]["gallery"]) == (100, 100)
    for direction in ("text-to-video", "video-to-text"):
        (rank,) = (rank for (_, video, _), rank in read_ranks(tmp_path, direction).items() if video == test.stem)
        assert rank == 100
    assert content["post_processed"]["text_to_video"]["MnR"] > 1
    assert json.dumps(content).find("NaN") == -1


@pytest.mark.slow
def test_the_others_ranks_are_those_without_the_unreadable_video(folder, tmp_path):
    """Evaluated with a checkpoint: a gallery of 100 with an unreadable video, and one of the 99 others."""
    weights = tmp_path / "train"
    clean = tmp_path / "clean"
    shutil.copytree(folder, clean)
    test = video_of(clean, "MSRVTT_test.csv", 5)
    pairs = clean / "data" / "MSRVTT_test.csv"
    lines = pairs.read_text().splitlines(keepends=True)
    train = video_of(clean, "MSRVTT_train.csv", 3)
    shutil.copy(video_of(clean, "MSRVTT_train.csv", 4), train)
    main_task_retrieval.main(flags(folder, weights, "--do_train", "--bad_videos", "skip", "--epochs", "1"))
    evaluation = ["--do_eval", "--init_model", str(weights / "pytorch_model.bin.0"), "--bad_videos", "skip"]
    main_task_retrieval.main(flags(folder, tmp_path / "with", *evaluation))
    pairs.write_text("".join(line for line in lines if test.stem not in line.split(",")))
    main_task_retrieval.main(flags(clean, tmp_path / "without", *evaluation))
    for direction in ("text-to-video", "video-to-text"):
        ranks, others = (read_ranks(tmp_path / name, direction) for name in ("with", "without"))
        assert len(ranks) == len(others) + 1
        lost = {ranks[key] - rank for key, rank in others.items()}
        # the caption of the unreadable video stays among what a video may find; no text can find the unreadable video
        assert lost == {0} if direction == "text-to-video" else lost == {0, 1}


@pytest.mark.slow
def test_under_fail_a_run_of_two_processes_stops_with_the_path(folder, tmp_path):
    finished = run_python(
        *launcher("torchrun", 2), "main_task_retrieval.py", *flags(folder, tmp_path, "--do_train"), timeout=120
    )
    assert finished.returncode != 0
    assert f"VideoReadError: {video_of(folder, 'MSRVTT_train.csv', 3)}: " in finished.stderr
    assert not (tmp_path / "bad_videos.csv").exists()


@pytest.mark.slow
def test_a_video_that_vanishes_between_the_epochs_is_unreadable(folder, tmp_path, monkeypatch):
    """Deleted before the second epoch, of a training that skips: replaced and listed with that epoch."""
    shutil.copytree(folder, tmp_path / "copy")
    shutil.copy(video_of(folder, "MSRVTT_train.csv", 4), video_of(tmp_path / "copy", "MSRVTT_train.csv", 3))
    gone = video_of(tmp_path / "copy", "MSRVTT_train.csv", 40)
    set_epoch = RetrievalDataset.set_epoch

    def delete_then_set_epoch(dataset, epoch):
        if epoch == 1:
            gone.unlink()
        set_epoch(dataset, epoch)

    monkeypatch.setattr(RetrievalDataset, "set_epoch", delete_then_set_epoch)
    main_task_retrieval.main(flags(tmp_path / "copy", tmp_path / "run", "--do_train", "--bad_videos", "skip"))
    with (tmp_path / "run" / "bad_videos.csv").open(newline="") as file:
        rows = {row["video_id"]: row for row in csv.DictReader(file)}
    assert rows[gone.stem]["epoch"] == "1" and "No such file" in rows[gone.stem]["reason"]


# Workers


@pytest.mark.parametrize("every_caption", [False, True])
def test_samples_depend_on_neither_workers_nor_the_way_to_an_epoch(folder, every_caption):
    """Random captions, frame orders and replacements: 0, 1 and 2 workers, that stay, and a fresh start in epoch 2."""

    def epochs(workers: int, first: int) -> dict[int, list]:
        args = main_task_retrieval.get_args(
            flags(
                folder, Path("unused"), "--do_train", "--bad_videos", "skip", "--num_thread_reader", str(workers),
                "--train_frame_order", "2", *["--expand_msrvtt_sentences"] * every_caption,
            )
        )  # fmt: skip
        loader, _, sampler = DATALOADER_DICT["msrvtt"]["train"](args, WordlessTokenizer(), image_resolution=8)
        read = {}
        for epoch in range(first, 3):
            sampler.set_epoch(epoch)
            read[epoch] = list(loader)
        return read

    expected = epochs(0, 0)
    assert not torch.equal(expected[0][0][0], expected[1][0][0])
    for workers, first in ((1, 0), (2, 0), (2, 2)):
        for epoch, batches in epochs(workers, first).items():
            for batch, other in zip(batches, expected[epoch], strict=True):
                assert all(torch.equal(part, same) for part, same in zip(batch, other, strict=True))


class WordlessTokenizer(WordTokenizer):
    """Any text is its length and its first letter."""

    def tokenize(self, text):
        return [str(len(text)), str(ord(text[0]))]


def test_workers_stay_from_epoch_to_epoch(folder):
    args = main_task_retrieval.get_args(flags(folder, Path("unused"), "--do_train", "--bad_videos", "skip"))
    loader, _, sampler = DATALOADER_DICT["msrvtt"]["train"](args, WordlessTokenizer(), image_resolution=8)
    workers = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        assert len(list(loader)) == 10
        workers.append({worker.pid for worker in loader._loader._iterator._workers})
    assert workers[0] == workers[1] and len(workers[0]) == 2
    assert loader.seconds_waited > 0


@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_a_damaged_video_is_used_and_listed(tmp_path, policy):
    dataset = numbered(6, unreadable=set())
    dataset.extractor = DamagedExtractor(set())
    expected = DamagedVideo(3, "3", "1 frame could not be decoded")
    record = UnreadableVideos("train", policy, files=6)
    for view in (dataset.samples(replace_unreadable=True), dataset.samples(replace_unreadable=False)):
        sample, found = view[3]
        assert (sample_number(sample), found) == (3, [expected])
        assert view[2][1] == []
        record.report(found)
    assert dataset.videos_only()[3][1] == [expected]
    restored = UnreadableVideos("train", policy, files=6)
    restored.restore(record.state())
    other = UnreadableVideos("train", policy, files=6)
    other.merge([other, restored])
    assert (other.damaged, other.by_item, other.samples) == ({3: expected}, {}, 0)
    assert other.damage_listing() == (
        "1 of 6 video files are damaged, and used without what is lost: 3 (1 frame could not be decoded)"
    )
    run = RunRecord(tmp_path, {})
    run.list_unreadable(dataset, other, epoch=2)
    content = "split,video_id,path,reason,epoch\ntrain,v3,3,1 frame could not be decoded,2\n"
    assert (tmp_path / "damaged_videos.csv").read_text().replace("\r", "") == content
    assert not (tmp_path / "bad_videos.csv").exists()
    resumed = RunRecord(tmp_path, {})
    resumed.restore(run.state())
    assert resumed.damaged == run.damaged
    RunRecord(tmp_path, {}).begin()
    assert not (tmp_path / "damaged_videos.csv").exists()
