"""The flags that name the place of an index, and the store that they name."""

import argparse

from video_search.index_reader import IndexReader
from video_search.index_writer import IndexWriter
from video_search.qdrant_store import QdrantStore
from video_search.stores import SearchableStore, WritableStore

STORES = ("local", "qdrant")


def add_store_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--index` for a local store, and `--store qdrant --url --collection`."""
    parser.add_argument("--index", default="runs/index", help="folder of the index")
    parser.add_argument("--store", choices=STORES, default="local", help="where the vectors are stored")
    parser.add_argument("--url", help="address of the Qdrant server, or the folder of its embedded mode")
    parser.add_argument("--collection", default="videos", help="collection in Qdrant")


def open_store(args: argparse.Namespace) -> SearchableStore:
    """Return the store that the flags name, open for a search.

    Raises: OSError or ValueError if it cannot be opened.
    """
    return IndexReader.open(args.index) if args.store == "local" else open_qdrant(args)


def open_store_for_writing(args: argparse.Namespace) -> WritableStore:
    """Return the store that the flags name, open for an update; a missing one is created.

    Raises: OSError or ValueError if it cannot be opened.
    """
    return IndexWriter.open(args.index) if args.store == "local" else open_qdrant(args)


def open_qdrant(args: argparse.Namespace) -> QdrantStore:
    if args.url is None:
        raise ValueError("--store qdrant needs --url: the address of a server, or a folder for the embedded mode")
    return QdrantStore.open(args.url, args.collection)
