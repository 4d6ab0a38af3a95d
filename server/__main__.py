"""`python -m server`: the same as `stylus serve`, without the command line's other imports."""

import argparse
import sys

from server.app import run
from server.results import ImageResponses
from stylus.errors import StylusError
from stylus.settings import Settings


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m server", description="Serve the tools of Stylus to MCP clients.")
    parser.add_argument("--http", action="store_true", help="streamable HTTP at /mcp instead of stdio")
    parser.add_argument("--host", default="127.0.0.1", help="others than loopback need tokens")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--image-responses", type=ImageResponses, choices=list(ImageResponses), default="thumbnail")
    options = parser.parse_args()
    try:
        settings, shown = Settings.read(), options.image_responses
        run(settings, http=options.http, host=options.host, port=options.port, shown=shown)
    except StylusError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
