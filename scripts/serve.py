"""Serve the search page: `python -m scripts.serve --index DIR [--init_model CKPT]`, then open http://127.0.0.1:8000/

The server has no passwords: everyone who can reach it may search and watch the indexed videos. Without --host it
listens on this machine only. Ctrl-C ends it.
"""

import argparse
import contextlib
import ipaddress
import os
import socket
import sys

from modules.standard_streams import open_standard_streams, printable
from video_search.search import VideoSearch
from video_search.store_flags import add_store_flags, open_store

LOOPBACK_NAMES = ("localhost",)


def is_loopback(host: str) -> bool:
    """Return True for an address that only this machine can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in LOOPBACK_NAMES


def url_host(host: str) -> str:
    """Return the host as part of a URL: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def is_unspecified(host: str) -> bool:
    """Return True for the address that stands for all addresses of this machine: 0.0.0.0 or ::"""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def reachable_hosts(host: str) -> list[str]:
    """Return the hosts by which a server that listens on `host` is reached: of this machine and of others."""
    if not is_unspecified(host):
        return [host]
    # Connecting a datagram socket sends nothing; it only chooses the address of this machine that faces the network.
    routes = [("127.0.0.1", socket.AF_INET, "192.0.2.1")]
    if ":" in host:
        routes.append(("::1", socket.AF_INET6, "2001:db8::1"))
    hosts = [local for local, _, _ in routes]
    for _, family, outside in routes:
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((outside, 9))
            hosts.append(probe.getsockname()[0])
    return hosts


def open_socket(host: str, port: int) -> socket.socket:
    """Return a bound socket that does not listen yet. Raises OSError with the address and the reason."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"cannot listen on {url_host(host)}:{port}: {reason}; choose another --host or --port") from error
    return listener


def load_server():
    """Import the modules that serve. Raises SystemExit if the framework is not installed."""
    try:
        import uvicorn  # noqa: F401 - what is missing is named, whichever module imports it first

        from video_search.web import app, connections
    except ModuleNotFoundError as error:
        if error.name not in ("cachetools", "fastapi", "starlette", "pydantic", "uvicorn"):
            raise
        sys.exit(f"serve: {error.name} is not installed: pip install fastapi uvicorn cachetools")
    return app, connections


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_store_flags(parser)
    parser.add_argument("--init_model", help="checkpoint, if it is no longer at the path recorded in the index")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; needed for access from other machines"
    )
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0: any free port")
    parser.add_argument(
        "--allowed_hosts", nargs="*", default=[], metavar="NAME",
        help="further host names of this server, such as that of a reverse proxy",
    )  # fmt: skip
    parser.add_argument(
        "--media_root", action="extend", nargs="+", default=[], metavar="FOLDER",
        help="further folders whose videos may be shown when links in the indexed folder lead there",
    )  # fmt: skip
    parser.add_argument("--max_upload_mb", type=int, default=64, help="size limit of an example video")
    parser.add_argument("--decoding_seconds", type=int, default=60, help="time limit for the frames of a video")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ValueError for a flag out of range."""
    if not 0 <= args.port < 1 << 16:
        raise ValueError(f"--port {args.port} must be from 0 to 65535")
    if args.max_upload_mb < 1:
        raise ValueError(f"--max_upload_mb {args.max_upload_mb} must be at least 1")
    if args.decoding_seconds < 1:
        raise ValueError(f"--decoding_seconds {args.decoding_seconds} must be at least 1")
    for name in args.allowed_hosts:
        if "*" in name or "/" in name:
            raise ValueError(f"--allowed_hosts {name} must be a name or an address, such as search.example.org")
    for folder in args.media_root:
        if not os.path.isdir(folder):
            raise ValueError(f"--media_root {folder} is not a folder")


def serve(args: argparse.Namespace) -> None:
    """Answer requests until the process ends."""
    check_arguments(args)
    web, connections = load_server()
    with open_socket(args.host, args.port) as listener, contextlib.closing(open_store(args)) as store:
        search = VideoSearch.open(store=store, init_model=args.init_model)
        is_open = is_unspecified(args.host)
        hosts = [*web.LOCAL_HOSTS, args.host, url_host(args.host), *args.allowed_hosts]
        app = web.create_app(
            search, allowed_hosts=[*hosts, socket.gethostname()] if is_open else hosts, any_address=is_open,
            media_roots=args.media_root, max_upload_bytes=args.max_upload_mb << 20,
            decoding_seconds=args.decoding_seconds,
        )  # fmt: skip
        listener.listen()  # before the address is printed, so that its reader can connect at once
        port = listener.getsockname()[1]
        addresses = " ".join(f"http://{url_host(host)}:{port}/" for host in reachable_hosts(args.host))
        print(f"serve: {len(store)} videos at {addresses} ; Ctrl-C ends it", flush=True)
        if not is_loopback(args.host):
            print(
                f"serve: WARNING: --host {args.host} can be reached from other machines, and there are no passwords; "
                "names other than this need --allowed_hosts",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        connections.make_server(app).run(sockets=[listener])


def main(argv: list[str] | None = None) -> None:
    open_standard_streams()
    args = build_parser().parse_args(argv)
    try:
        serve(args)
    except (OSError, ValueError) as error:
        sys.exit(printable(f"serve: {error}"))
    except KeyboardInterrupt:
        print("serve: ended")


if __name__ == "__main__":
    main()
