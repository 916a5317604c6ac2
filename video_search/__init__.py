"""Search over one's own videos, by a text or by an example: `from video_search import VideoSearch`."""

__all__ = ["VideoSearch"]


def __getattr__(name: str):
    """`VideoSearch` when it is asked for: stores and pages work without a model, whose imports take seconds."""
    if name == "VideoSearch":
        from video_search.search import VideoSearch

        return VideoSearch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
