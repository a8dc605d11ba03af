"""The script that draws a page's charts, packed to lie in the page: plotly.js as the Python package plotly carries it.

Unpacked it has 4.8 MB, packed 2 MB; the page unpacks it when the first chart comes near. It is the whole library: the
package carries none of the smaller bundles of plotly.js, and a second source for one would be one more thing to pin.
plotly is optional (the extra `report`): without it pages show their charts as still pictures. This is the only file
that imports it. Guarded by tests/analysis/test_page.py and tests/test_report_browser.py.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class PackedScript:
    """`packed`: gzip in base64. `digest`: 'sha256-...' of the unpacked text, by which a page's policy allows it."""

    packed: str
    digest: str


def script_digest(text: str) -> str:
    """What a Content-Security-Policy calls a script of this text."""
    return 'sha256-' + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')


@functools.cache
def packed_plotly() -> PackedScript | None:
    """plotly.js; None where the package is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        return None
    text = get_plotlyjs()
    packed = gzip.compress(text.encode(), compresslevel=9, mtime=0)
    return PackedScript(base64.b64encode(packed).decode('ascii'), script_digest(text))
