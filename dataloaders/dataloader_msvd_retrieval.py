"""MSVD: a list names the videos of a split, one pickle holds the captions of all videos as lists of words."""

import pickle
from pathlib import Path
from reprlib import repr as shorten  # and safe for what nests too deeply to be written out

from dataloaders.annotation_files import read_ids, texts_of_split
from dataloaders.annotations import Annotations, Caption, locate_captions, require_path


def read_split(args, subset: str) -> Annotations:
    """Reads `{train,val,test}_list.txt` and `raw-captions.pkl` in the folder `--data_path`; every caption counts.

    Raises FileNotFoundError for a missing file, video or folder, and ValueError for a file of another form.
    """
    folder = require_path(args.data_path, "--data_path", folder=True)
    listing, source = folder / f"{subset}_list.txt", folder / "raw-captions.pkl"
    video_ids = read_ids(listing, "--data_path")
    texts = texts_of_split(video_ids, read_captions(source), listing, source)
    captions = [Caption(video_id, text) for video_id, found in texts.items() for text in found]
    return locate_captions(captions, args.features_path, source=f"{listing} with {source}", flag="--data_path")


def read_captions(path: Path) -> dict[str, list[str]]:
    """Captions by video id from a pickle of `{id: [[word, ...], ...]}`; it can run no code.

    Raises ValueError, naming the class where it asks for one, for a pickle of anything but dicts, lists and strings.
    """
    place = f"{path} (--data_path)"
    with require_path(path, "--data_path").open("rb") as file:
        try:
            content = PlainUnpickler(file, encoding="utf-8").load()
        except Exception as error:  # damaged bytes make pickle raise nearly anything
            raise ValueError(f"{place} is no pickle of plain dicts, lists and strings: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{place} must hold a dict of captions by video id, not a {type(content).__name__}")
    texts = {}
    for video_id, captions in content.items():
        if not (isinstance(video_id, str) and isinstance(captions, list) and all(map(_is_word_list, captions))):
            raise ValueError(
                f"{place}: a video id (str) needs a list of lists of words; {shorten(video_id)} has {shorten(captions)}"
            )
        texts[video_id] = [" ".join(words) for words in captions]
    return texts


class PlainUnpickler(pickle.Unpickler):
    """Builds what pickle builds by itself; importing anything, the way to run code, is an error."""

    def find_class(self, module: str, name: str):
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _is_word_list(words) -> bool:
    return isinstance(words, list | tuple) and all(isinstance(word, str) for word in words)
