"""Serve the search page: `python -m scripts.serve --index DIR [--init_model CKPT]`, then open http://127.0.0.1:8000/

The server has no passwords: everyone who can reach it may search and watch the indexed videos. Without --host it
listens on this machine only. Ctrl-C ends it.
"""

import argparse
import ipaddress
import socket
import sys
from contextlib import closing

from video_search.search import VideoSearch
from video_search.store_flags import add_store_flags, open_store

LOOPBACK_NAMES = ("localhost",)
SHUTDOWN_SECONDS = 3  # for answers in progress, such as a long video


def is_loopback(host: str) -> bool:
    """Return True for an address that only this machine can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in LOOPBACK_NAMES


def url_host(host: str) -> str:
    """Return the host as part of a URL: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


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
        import uvicorn

        from video_search.web import app as web
    except ModuleNotFoundError as error:
        if error.name not in ("cachetools", "fastapi", "starlette", "pydantic", "uvicorn"):
            raise
        sys.exit(f"serve: {error.name} is not installed: pip install fastapi uvicorn cachetools")
    return uvicorn, web


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
    parser.add_argument("--max_upload_mb", type=int, default=64, help="size limit of an example video")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ValueError for a flag out of range."""
    if not 0 <= args.port < 1 << 16:
        raise ValueError(f"--port {args.port} must be from 0 to 65535")
    if args.max_upload_mb < 1:
        raise ValueError(f"--max_upload_mb {args.max_upload_mb} must be at least 1")
    for name in args.allowed_hosts:
        if "*" in name or "/" in name:
            raise ValueError(f"--allowed_hosts {name} must be a name or an address, such as search.example.org")


def serve(args: argparse.Namespace) -> None:
    """Answer requests until the process ends."""
    check_arguments(args)
    uvicorn, web = load_server()
    with open_socket(args.host, args.port) as listener, closing(open_store(args)) as store:
        search = VideoSearch.open(store=store, init_model=args.init_model)
        hosts = [*web.LOCAL_HOSTS, args.host, url_host(args.host), *args.allowed_hosts]
        app = web.create_app(search, allowed_hosts=hosts, max_upload_bytes=args.max_upload_mb << 20)
        settings = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, proxy_headers=False,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )  # fmt: skip
        listener.listen()  # before the address is printed, so that its reader can connect at once
        port = listener.getsockname()[1]
        print(f"serve: {len(store)} videos at http://{url_host(args.host)}:{port}/ ; Ctrl-C ends it", flush=True)
        if not is_loopback(args.host):
            print(
                f"serve: WARNING: --host {args.host} can be reached from other machines, and there are no passwords; "
                "names other than this need --allowed_hosts",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        uvicorn.Server(settings).run(sockets=[listener])


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    try:
        serve(args)
    except (OSError, ValueError) as error:
        sys.exit(f"serve: {error}")
    except KeyboardInterrupt:
        print("serve: ended")


if __name__ == "__main__":
    main()
