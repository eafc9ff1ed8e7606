"""The pages to try the service from a browser: files of our own, nothing fetched from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from sandfork.dialects.base import Reply

NO_CHANGES: Mapping[bytes, bytes] = MappingProxyType({})


def try_it_page() -> Reply:
    """Return the page that runs programs by our own API."""
    return _page("page.html")


def reference_page(document: str) -> Reply:
    """Return the page that shows the OpenAPI document at the path `document` and sends its requests."""
    return _page("reference.html", {b"{{document}}": html.escape(document).encode()})


def _page(name: str, changes: Mapping[bytes, bytes] = NO_CHANGES) -> Reply:
    """Return a page whose policy lets only its own script and style run, and only this server be called."""
    page = Path(__file__).with_name(name).read_bytes()
    for mark, text in changes.items():
        page = page.replace(mark, text)
    script = _hash_of(rb"<script>(.*?)</script>", page)
    style = _hash_of(rb"<style>(.*?)</style>", page)
    policy = (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = (
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
    )
    return Reply(page, content_type=b"text/html; charset=utf-8", headers=headers)


def _hash_of(element: bytes, page: bytes) -> str:
    """Return the hash by which a content security policy names an inline element (CSP 3, 2.3.1)."""
    match = re.search(element, page, re.DOTALL)
    assert match is not None
    return "sha256-" + base64.b64encode(hashlib.sha256(match[1]).digest()).decode()
