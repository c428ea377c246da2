"""Who may use the page: a token in the URL, then a cookie; and no posts from other sites.

The token is a secret of the run's folder. The cookie and the forms' tokens are derived from it, so
a page that is open stays usable when the server is started again.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from setbacks.files import write_atomic

# Nothing but the page's own files; no frames, no plugins, forms to itself alone.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not "no-referrer": browsers would then send forms with the origin "null".
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}


def token_of(folder: Path) -> str:
    """Return the token of a run's page; it is made on the first call.

    Args:
        folder: the run's `review` folder.
    """
    path = folder / "token"
    if not path.exists() or not path.read_text(encoding="utf-8").strip():
        write_atomic(path, (secrets.token_urlsafe(24) + "\n").encode())
    return path.read_text(encoding="utf-8").strip()


class Keys:
    """What is derived from the token, and the checks against it, in constant time.

    Args:
        token: the page's secret.
    """

    def __init__(self, token: str) -> None:
        self._token = token
        # Browsers keep cookies by host, not by port: two pages must not take each other's.
        self.cookie_name = f"setbacks_review_{self._derive('name')[:8]}"
        self.cookie = self._derive("cookie")
        self.form = self._derive("form")

    def opens(self, token: str | None) -> bool:
        """Whether this is the token."""
        return _equal(token, self._token)

    def remembers(self, cookies: Mapping[str, str]) -> bool:
        """Whether a browser has been here with the token."""
        return _equal(cookies.get(self.cookie_name), self.cookie)

    def made(self, form: str | None) -> bool:
        """Whether a form came from this page."""
        return _equal(form, self.form)

    def _derive(self, purpose: str) -> str:
        return hmac.new(self._token.encode(), purpose.encode(), "sha256").hexdigest()


def own_site(headers: Mapping[str, str]) -> bool:
    """Whether a request comes from the page's own site, as far as the browser says."""
    origin = headers.get("origin")
    if origin is not None:
        return urlsplit(origin).netloc == headers.get("host")
    return headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")


def _equal(told: str | None, secret: str) -> bool:
    return told is not None and hmac.compare_digest(told.encode(), secret.encode())
