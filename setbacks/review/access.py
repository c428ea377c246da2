"""Access to the page: by a token in the URL, then a cookie; posts from other sites are rejected.

The token is a secret in the run's folder. The cookie and the forms' tokens are derived from it, so
an open page stays usable after the server is restarted.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from setbacks.files import write_atomic

# Only the page's own files; no frames, no plugins, forms only to itself.
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
    """Return the token of a run's page; the first call creates it.

    Args:
        folder: the run's `review` folder.
    """
    path = folder / "token"
    if not path.exists() or not path.read_text(encoding="utf-8").strip():
        write_atomic(path, (secrets.token_urlsafe(24) + "\n").encode())
    return path.read_text(encoding="utf-8").strip()


class Keys:
    """Secrets that are derived from the token, and checks against them in constant time.

    Args:
        token: the page's secret.
    """

    def __init__(self, token: str) -> None:
        self._token = token
        # Browsers store cookies by host, not by port: two pages must not share them.
        self.cookie_name = f"setbacks_review_{self._derive('name')[:8]}"
        self.cookie = self._derive("cookie")
        self.form = self._derive("form")

    def opens(self, token: str | None) -> bool:
        """Return whether this is the token."""
        return _equal(token, self._token)

    def remembers(self, cookies: Mapping[str, str]) -> bool:
        """Return whether a browser has used the token before."""
        return _equal(cookies.get(self.cookie_name), self.cookie)

    def issued(self, form: str | None) -> bool:
        """Return whether a form came from this page."""
        return _equal(form, self.form)

    def _derive(self, purpose: str) -> str:
        return hmac.new(self._token.encode(), purpose.encode(), "sha256").hexdigest()


def own_site(headers: Mapping[str, str]) -> bool:
    """Return whether a request comes from the page's own site, according to the browser."""
    origin = headers.get("origin")
    if origin is not None:
        return urlsplit(origin).netloc == headers.get("host")
    return headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")


def _equal(value: str | None, secret: str) -> bool:
    return value is not None and hmac.compare_digest(value.encode(), secret.encode())
