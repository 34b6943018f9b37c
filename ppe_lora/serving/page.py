"""The page at `/`: one file, and a content security policy that lets only its own script and style work."""

import base64
import hashlib
import re
from importlib.resources import files
from typing import NamedTuple


class Page(NamedTuple):
    """The HTML and the header that goes with it."""

    html: str
    policy: str


def load_page() -> Page:
    """The page, with a policy made from its inline script and style: everything else is forbidden."""
    html = (files("ppe_lora.serving") / "page.html").read_text(encoding="utf-8")
    script, style = (
        "'sha256-" + base64.b64encode(hashlib.sha256(found.encode()).digest()).decode() + "'"
        for tag in ("script", "style")
        for found in re.findall(rf"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
    )
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Page(html, policy)
