"""The door between the flags and the loaders: defaults, checks, and that nothing else of the namespace is read."""

import dataclasses
from types import SimpleNamespace

import pytest

from dataloaders.data_config import DataConfig
from engine.flags import FLAGS
from main_task_retrieval import get_args


def test_names_and_defaults_are_those_of_the_flags():
    for field in dataclasses.fields(DataConfig):
        assert field.default == FLAGS[field.name].default, field.name
    assert DataConfig.from_namespace(get_args(["--do_train", "--output_dir", "x"])) == DataConfig()


def test_a_missing_attribute_takes_the_default_and_others_are_left_unread():
    namespace = SimpleNamespace(max_frames=7, seed=None, lr=0.1)
    assert DataConfig.from_namespace(namespace) == DataConfig(max_frames=7)
    assert DataConfig.from_namespace(DataConfig(max_frames=7)) == DataConfig(max_frames=7)
    assert DataConfig.from_namespace(DataConfig(frame_sampling="time")).frame_sampling == "time"
    with pytest.raises(dataclasses.FrozenInstanceError):
        DataConfig().seed = 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_words": 0}, "--max_words 0 must be at least 1"),
        ({"max_words": 1}, "--max_words 1 leaves no room for the start and the end token"),
        ({"max_frames": 0}, "--max_frames 0 must be at least 1"),
        ({"feature_framerate": 0}, "--feature_framerate 0 must be at least 1"),
        ({"num_thread_reader": -1}, "--num_thread_reader -1 must not be negative"),
        ({"batch_size": 0}, "--batch_size 0 must be at least 1"),
        ({"slice_framepos": 3}, "--slice_framepos 3 is unknown; choose from 0, 1, 2"),
        ({"frame_sampling": "frames"}, "--frame_sampling 'frames' is unknown; choose from published, time"),
        ({"eval_frame_order": "0"}, "--eval_frame_order '0' is unknown; choose from 0, 1, 2"),
        ({"bad_videos": "ignore"}, "--bad_videos 'ignore' is unknown; choose from fail, skip"),
        ({"frame_cache_format": "png"}, "--frame_cache_format 'png' is unknown; choose from exact, jpeg"),
        ({"seed": -1}, "--seed -1 must be in [0, 4294967295]"),
        ({"seed": 2**32}, "--seed 4294967296 must be in [0, 4294967295]"),
        ({"holdout": 1}, "--holdout 1 must be at least 2 videos, or 0 for none"),
        ({"holdout": -2}, "--holdout -2 must be at least 2 videos, or 0 for none"),
    ],
)
def test_a_value_that_is_not_valid_is_named(values, message):
    with pytest.raises(ValueError) as error:
        DataConfig(**values)
    assert str(error.value) == message


def test_samples_per_step():
    assert DataConfig(batch_size=24, gradient_accumulation_steps=2).samples_per_step(world_size=4) == 3
    with pytest.raises(ValueError, match=r"--batch_size 20 is not divisible .*\(4 \* 2\)"):
        DataConfig(batch_size=20, gradient_accumulation_steps=2).samples_per_step(world_size=4)
