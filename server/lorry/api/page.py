"""The page at `/` and its files: playground, adapters and live figures in a browser.

The files are static (`lorry/ui`) and contain no data, so they need no key. Everything that the page
shows comes from the same routes as for any other client, with the key that its user types in.

The browser is told to run nothing but these files and to talk to nobody but this server. So text of
an adapter or an answer that reached the page as markup could neither run nor send anything.
"""

from __future__ import annotations

import html
from importlib.resources import files

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from lorry.api.prefix import prefix_of

PAGE = "/"
FILES = "/ui"

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'self'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # The files change with the installed version; an ETag makes asking cheap.
    "Cache-Control": "no-cache",
}


def is_open(method: str, path: str) -> bool:
    """Return whether the request is for the page or one of its files."""
    return method in ("GET", "HEAD") and (path == PAGE or path.startswith(f"{FILES}/"))


def install(app: Starlette) -> None:
    """Serve the page."""
    folder = files("lorry") / "ui"
    text = (folder / "index.html").read_text()

    async def page(request: Request) -> Response:
        # A page at /llm without a final slash would look for its files beside /llm.
        base = html.escape(prefix_of(request.scope) + "/")
        content = text.replace('<base href="/"', f'<base href="{base}"')
        return Response(content, media_type="text/html", headers=HEADERS)

    app.add_route(PAGE, page, methods=["GET"], include_in_schema=False)
    app.router.routes.append(Mount(FILES, _Files(directory=str(folder)), name="ui"))


class _Files(StaticFiles):
    """Static files with the page's headers."""

    def file_response(self, *args: object, **more: object) -> Response:
        response = super().file_response(*args, **more)  # type: ignore[arg-type]
        response.headers.update(HEADERS)
        return response
