"""The flags that name the place of an index, and the store that they name."""

import argparse

from video_search.index_reader import LocalStore
from video_search.indexing import Store

STORES = ("local", "qdrant")


def add_store_flags(parser: argparse.ArgumentParser) -> None:
    """`--index` of a local store, or `--store qdrant --url --collection`."""
    parser.add_argument("--index", default="runs/index", help="folder of the index")
    parser.add_argument("--store", choices=STORES, default="local", help="where the vectors lie")
    parser.add_argument("--url", help="of the Qdrant server, or the folder of its embedded mode")
    parser.add_argument("--collection", default="videos", help="in Qdrant")


def open_store(args: argparse.Namespace, for_writing: bool = False) -> Store:
    """The store that these flags name; `for_writing` makes it where it is missing.

    Raises OSError or ValueError where it cannot be opened.
    """
    if args.store == "local":
        return LocalStore.open_for_writing(args.index) if for_writing else LocalStore.open(args.index)
    if args.url is None:
        raise ValueError("--store qdrant needs --url: the address of a server, or a folder for the embedded mode")
    from video_search.qdrant_store import QdrantStore  # an optional package

    return QdrantStore.open(args.url, args.collection)
