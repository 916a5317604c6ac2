"""Samples of a data set: shapes, padding, the text rule by hand, and what is random and what is not."""

import pickle

import numpy as np
import pytest

from dataloaders.annotations import Annotations, Caption
from dataloaders.retrieval_dataset import RetrievalDataset
from modules.tokenization_clip import SimpleTokenizer
from tests.helpers.reader_cases import calls_of

START, END = 900, 901


class WordTokenizer:
    """A word is a token, and its id is its number: "5 6" is [5, 6]."""

    def __init__(self):
        self.tokenized = []

    def tokenize(self, text: str) -> list[str]:
        self.tokenized.append(text)
        return text.split()

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
        special = {"<|startoftext|>": START, "<|endoftext|>": END}
        return [special[token] if token in special else int(token) for token in tokens]


class FakeExtractor:
    """Gives `path["frames"]` frames of brightness 1, 2, 3, ... and remembers how it was asked."""

    size = 4

    def __init__(self):
        self.calls = []

    def read_frames(self, path, max_frames, slice_framepos, frame_order, start_time, end_time, random_generator):
        self.calls.append((path, slice_framepos, frame_order, start_time, end_time))
        frames = np.ones((min(path["frames"], max_frames), 3, 4, 4), dtype=np.uint8)
        frames *= np.arange(1, len(frames) + 1, dtype=np.uint8)[:, None, None, None]
        return frames[random_generator.permutation(len(frames))] if frame_order == 2 else frames


PATHS = {"a": {"frames": 2}, "b": {"frames": 9}}


def build(captions: list[Caption], **arguments) -> RetrievalDataset:
    arguments = {"max_words": 5, "max_frames": 3, **arguments}
    return RetrievalDataset(Annotations(captions, PATHS), WordTokenizer(), FakeExtractor(), **arguments)


def test_a_sample_by_hand():
    dataset = build([Caption("b", "7"), Caption("a", "5 6")], slice_framepos=1)
    input_ids, input_mask, segment_ids, video, video_mask = dataset[1]
    assert input_ids.tolist() == [[START, 5, 6, END, 0]]
    assert input_mask.tolist() == [[1, 1, 1, 1, 0]]
    assert segment_ids.tolist() == [[0, 0, 0, 0, 0]]
    assert video.shape == (1, 3, 1, 3, 4, 4)
    assert video[0, :, 0, :, :, :].reshape(3, -1).max(axis=1).tolist() == [1, 2, 0]
    assert video[0, :2].min() == 1
    assert video_mask.tolist() == [[1, 1, 0]]
    assert [array.dtype for array in (input_ids, input_mask, segment_ids, video_mask)] == [np.int64] * 4
    assert video.dtype == np.uint8
    assert dataset.extractor.calls == [(PATHS["a"], 1, 0, None, None)]


@pytest.mark.parametrize(
    ("text", "max_words", "expected"),
    [
        ("", 4, [START, END, 0, 0]),
        ("1", 4, [START, 1, END, 0]),
        ("1 2", 4, [START, 1, 2, END]),
        ("1 2 3", 4, [START, 1, 2, END]),
        ("1 2 3 4 5 6 7 8 9", 4, [START, 1, 2, END]),
        ("1 2", 2, [START, END]),
    ],
)
def test_texts_are_cut_to_leave_room_for_the_end_token(text, max_words, expected):
    input_ids, input_mask, *_ = build([Caption("a", text)], max_words=max_words)[0]
    assert input_ids.tolist() == [expected]
    assert input_mask.tolist() == [[int(token > 0) for token in expected]]


def test_texts_equal_the_reference_with_the_real_tokenizer(golden_small):
    tokenizer = SimpleTokenizer()
    for case in golden_small["tokens"]:
        annotations = Annotations([Caption("a", case["text"])], PATHS)
        dataset = RetrievalDataset(annotations, tokenizer, FakeExtractor(), case["max_words"], max_frames=1)
        input_ids, input_mask, _ = dataset.captions_only()[0]
        if "<|endoftext|>" in case["text"]:
            # Plain text to us, where the reference takes it for the end of the sentence.
            assert input_mask.sum() > len(case["ids"]) and (input_ids == 49407).sum() == 1
            continue
        padding = [0] * (case["max_words"] - len(case["ids"]))
        assert input_ids.tolist() == [case["ids"] + padding]
        assert input_mask.tolist() == [[1] * len(case["ids"]) + padding]


def test_distinct_videos_are_counted_by_id_and_span():
    captions = [
        Caption("b", "1"),
        Caption("a", "2", 0, 5),
        Caption("b", "3"),
        Caption("a", "4", 5, 9),
        Caption("a", "5", 0, 5),
    ]
    dataset = build(captions)
    assert len(dataset) == 5
    assert dataset.video_ids == ["b", "a", "a"]
    assert dataset.video_index.tolist() == [0, 1, 0, 2, 1]
    assert dataset.video_index.dtype == np.int64

    texts, videos = dataset.captions_only(), dataset.videos_only()
    assert (len(texts), len(videos)) == (5, 3)
    for number, row in enumerate(dataset.video_index):
        for whole, part in zip(dataset[number], (*texts[number], *videos[int(row)][0]), strict=True):
            np.testing.assert_array_equal(whole, part)
    dataset.extractor.calls.clear()
    assert [videos[row][0][1].sum() for row in range(3)] == [3, 2, 2]
    assert [call[3:] for call in dataset.extractor.calls] == [(None, None), (0, 5), (5, 9)]
    assert len(list(videos)) == 3


def test_one_caption_per_video_is_drawn_anew_each_epoch_and_from_its_own():
    captions = [Caption("a", str(number)) for number in range(1, 7)] + [Caption("b", "50")]
    dataset = build(captions, every_caption=False, seed=3)
    assert len(dataset) == 2
    drawn = []
    for epoch in range(30):
        dataset.set_epoch(epoch)
        assert dataset[1][0][0, 1] == 50
        drawn.append(int(dataset[0][0][0, 1]))
        assert int(dataset[0][0][0, 1]) == drawn[-1]
    assert set(drawn) == set(range(1, 7))

    same, other = (build(captions, every_caption=False, seed=seed) for seed in (3, 4))
    redrawn = {3: [], 4: []}
    for epoch in range(30):
        for copy in (same, other):
            copy.set_epoch(epoch)
            redrawn[copy.seed].append(int(copy[0][0][0, 1]))
    assert redrawn[3] == drawn
    assert redrawn[4] != drawn


def test_shuffled_frames_depend_on_seed_epoch_and_index_only():
    dataset = build([Caption("b", "1"), Caption("b", "2")], max_frames=9, frame_order=2)

    def order(index: int, epoch: int) -> list[int]:
        dataset.set_epoch(epoch)
        return dataset[index][3][0, :, 0, 0, 0, 0].tolist()

    orders = [order(index, epoch) for epoch in range(3) for index in range(2)]
    assert orders == [order(index, epoch) for epoch in range(3) for index in range(2)]
    assert len({tuple(each) for each in orders}) == 6
    assert all(sorted(each) == list(range(1, 10)) for each in orders)


def test_indices_behave_as_a_list_does():
    dataset = build([Caption("a", "1"), Caption("b", "2")])
    assert dataset[-1][0][0, 1] == 2
    for view in (dataset, dataset.captions_only(), dataset.videos_only()):
        with pytest.raises(IndexError):
            view[2]


def test_a_data_set_and_its_views_survive_pickling():
    dataset = build([Caption("a", "1"), Caption("b", "2")])
    copy = pickle.loads(pickle.dumps(dataset.captions_only()))
    assert copy[1][0].tolist() == dataset[1][0].tolist()


@pytest.mark.parametrize("arguments", [{"max_words": 1}, {"max_frames": 0}, {"seed": -1}])
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        build([Caption("a", "1")], **arguments)


def test_no_caption_is_tokenized_before_it_is_asked_for():
    """A data set of 180,000 captions is ready at once."""
    captions = [Caption("a" if number % 2 else "b", "1 2 3") for number in range(10_000)]
    built = []
    calls = calls_of(lambda: built.append(build(captions, max_words=77)))
    assert built[0].tokenizer.tokenized == []
    assert calls < 5 * len(captions)
