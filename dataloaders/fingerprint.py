"""The content of a split: hashes of its captions and video files, by which a resumed run finds out what has changed."""

import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from dataloaders.annotations import Annotations, Caption

END_BYTES = 1 << 14  # read at each end of a file; a zip file's end holds the checksums of all its entries
READERS = 16  # a network disk answers many requests at once

FileContent = tuple[int, str]
"""Size in bytes, and SHA-256 of the first and the last `END_BYTES`; -1 and the reason if the file cannot be read."""


@dataclass(frozen=True)
class SplitContent:
    """The content of a split, wherever its files lie and whatever their times of modification are.

    Attributes:
        captions: a hash of id, text and time span of each caption in their order, int64 (A,).
        videos: the content of each video's file by video id.
    """

    captions: torch.Tensor
    videos: dict[str, FileContent]

    @classmethod
    def of(cls, annotations: Annotations) -> "SplitContent":
        """Hash the captions and the ends of the video files; a file that cannot be read has no content."""
        captions = torch.tensor([caption_hash(caption) for caption in annotations.captions], dtype=torch.int64)
        with ThreadPoolExecutor(READERS) as readers:
            contents = list(readers.map(file_content, annotations.video_paths.values()))
        return cls(captions, dict(zip(annotations.video_paths, contents, strict=True)))

    def state(self) -> dict:
        """Return the plain values and tensors of the content; `SplitContent(**state)` restores it."""
        return {"captions": self.captions, "videos": self.videos}

    def sha256(self) -> str:
        """Return one hash of everything."""
        digest = hashlib.sha256(self.captions.numpy().tobytes())
        digest.update(repr(sorted(self.videos.items())).encode())
        return digest.hexdigest()

    def changed_videos(self, now: "SplitContent") -> list[str]:
        """Return the ids of the videos in both contents whose files differ."""
        return [name for name, content in self.videos.items() if now.videos.get(name, content) != content]

    def differences(self, now: "SplitContent", annotations: Annotations) -> list[str]:
        """Describe in words the differences of captions and videos, with a first example; `annotations` are now's."""
        return [*self._caption_differences(now, annotations), *self._video_differences(now, annotations)]

    def _caption_differences(self, now: "SplitContent", annotations: Annotations) -> list[str]:
        before, after = self.captions.tolist(), now.captions.tolist()
        if before == after:
            return []
        left = Counter(before)
        left.subtract(after)
        if not any(left.values()):
            return [f"the order of its {len(after)} captions differs"]
        remaining, new = Counter(before), []
        for number, value in enumerate(after):
            remaining[value] -= 1
            if remaining[value] < 0:
                new.append(annotations.captions[number])
        removed = sum(count for count in left.values() if count > 0)
        line = f"{len(before)} captions became {len(after)}: {removed} removed, {len(new)} added"
        return [line + (f", the first for {new[0].video_id!r}: {new[0].text[:80]!r}" if new else "")]

    def _video_differences(self, now: "SplitContent", annotations: Annotations) -> list[str]:
        removed = [name for name in self.videos if name not in now.videos]
        added = [name for name in now.videos if name not in self.videos]
        lines = []
        if removed or added:
            line = f"{len(self.videos)} videos became {len(now.videos)}: {len(removed)} removed, {len(added)} added"
            lines.append(line + f", the first is {(removed or added)[0]!r}")
        changed = self.changed_videos(now)
        if changed:
            (size_before, _), (size, _) = self.videos[changed[0]], now.videos[changed[0]]
            sizes = f"{size} bytes" if size == size_before else f"{size_before} bytes before, {size} now"
            path = annotations.video_paths[changed[0]]
            lines.append(f"{len(changed)} video files have another content, the first is {str(path)!r} ({sizes})")
        return lines


def caption_hash(caption: Caption) -> int:
    """Return a signed 64-bit hash of a caption."""
    fields = (caption.video_id, caption.text, caption.start, caption.end)
    return int.from_bytes(hashlib.sha256(repr(fields).encode()).digest()[:8], "little", signed=True)


def file_content(path: str | Path) -> FileContent:
    """Return size and hash of a file's ends; a change between them that keeps the size goes unnoticed."""
    try:
        with Path(str(path)).open("rb") as file:
            digest = hashlib.sha256(file.read(END_BYTES))
            size = file.seek(0, 2)
            file.seek(max(END_BYTES, size - END_BYTES))
            digest.update(file.read())
    except OSError as error:
        return -1, error.strerror or str(error)
    return size, digest.hexdigest()
