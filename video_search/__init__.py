"""Search your own videos by a text or by an example video: `from video_search import VideoSearch`."""

__all__ = ["VideoSearch"]


def __getattr__(name: str):
    """Import `VideoSearch` on first use: stores and the page need no model, whose imports take seconds."""
    if name == "VideoSearch":
        from video_search.search import VideoSearch

        return VideoSearch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
