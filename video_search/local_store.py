"""`LocalStore`: the reader and the writer of an index folder under one name, for scripts that import it."""

from video_search.index_reader import IndexReader
from video_search.index_writer import IndexWriter


class LocalStore:
    """Open an index: `LocalStore.open(folder)` to read it, `LocalStore.open_for_writing(folder)` to update it."""

    open = staticmethod(IndexReader.open)
    open_for_writing = staticmethod(IndexWriter.open)
