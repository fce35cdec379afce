"""An answer as it was meant: Markdown as HTML, and nothing in it that could act."""

from __future__ import annotations

from functools import lru_cache
from html import escape

import mistune

_LINKS = ("http://", "https://", "mailto:")


class _Harmless(mistune.HTMLRenderer):
    """Tags are shown as letters; links are followed on a click alone; no picture is fetched."""

    def __init__(self) -> None:
        super().__init__(escape=True)

    def link(self, text: str, url: str, title: str | None = None) -> str:
        if not url.lower().startswith(_LINKS):
            return f"{text} ({escape(url)})"
        return f'<a href="{escape(url)}" target="_blank" rel="noopener noreferrer">{text}</a>'

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return f"[picture: {text}, {escape(url)}]"

    def softbreak(self) -> str:
        return "<br>\n"  # a line that the model ended is ended

    def heading(self, text: str, level: int, **_: object) -> str:
        return f"<p><strong>{text}</strong></p>\n"  # the page's outline is the notebook's

    def block_code(self, code: str, info: str | None = None) -> str:
        return f'<pre tabindex="0"><code>{escape(code)}</code></pre>\n'


_render = mistune.create_markdown(renderer=_Harmless(), plugins=["table", "strikethrough"])


@lru_cache(256)  # while an answer comes, the earlier ones are shown again at each token
def markdown(text: str) -> str:
    """Markdown as HTML that is safe to show, whoever wrote it."""
    return _render(text)
