"""LSMDC: a tab-separated file without a header for each split; a clip and a sentence per row."""

from dataloaders.annotation_files import read_lines
from dataloaders.annotations import Annotations, Caption, locate_captions, require_path
from dataloaders.data_config import DataConfig

FILE_NAMES = {
    "train": "LSMDC16_annos_training.csv",
    "val": "LSMDC16_annos_val.csv",
    "test": "LSMDC16_challenge_1000_publictect.csv",
}
FIELDS = ("clip id", "start aligned", "end aligned", "start extracted", "end extracted", "sentence")


def read_split(config: DataConfig, subset: str) -> Annotations:
    """Read the subset's file in the folder `--data_path`.

    The four times in a row are the clip's place in the film; they are not used, since each clip is a file of its own.
    Its name is its id, as in `3086_UGLY_TRUTH_00.23.23.000-00.23.28.886.avi`, with or without a folder per film.

    Raises:
        FileNotFoundError: a file, video or folder is missing.
        ValueError: a file does not have the published form.
    """
    source = require_path(config.data_path, "--data_path", folder=True) / FILE_NAMES[subset]
    captions = []
    for number, line in read_lines(source, "--data_path"):
        fields = line.split("\t")
        if len(fields) != len(FIELDS):
            raise ValueError(
                f"{source} (--data_path), line {number}: {len(fields)} fields between tabs, not the {len(FIELDS)}: "
                f"{', '.join(FIELDS)}"
            )
        captions.append(Caption(fields[0].strip(), fields[-1].strip()))
    return locate_captions(captions, config.features_path, source=source, flag="--data_path", exclude=config.exclude)
