"""What all drawings share: colours, and what makes an SVG document whole."""

from html import escape
from typing import Final

INK: Final = "#1c2733"
FAINT_INK: Final = "#55606d"
LINE: Final = "#8491a0"
FRAME: Final = "#c3cad2"
SHADE: Final = "#f3f5f7"
PAPER: Final = "#ffffff"
LIGHT_BLUE: Final = "#d9e8f8"
BLUE: Final = "#2a72b5"
DARK_BLUE: Final = "#1f4468"
# Told apart from the blues by those who see few colours, too.
LIGHT_ORANGE: Final = "#fad9b4"
ORANGE: Final = "#cd6c10"
DARK_ORANGE: Final = "#7a3800"

FONTS: Final = "Helvetica,Arial,sans-serif"


def printable(text: str) -> str:
    """A text without the characters that XML cannot hold."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def shortened(text: str, characters: int) -> str:
    """A text of at most that many characters; longer ones lose their middle."""
    if len(text) <= characters:
        return text
    half = characters // 2
    return f"{text[: half - 1]}…{text[-half:]}"


def standalone(svg: str, title: str) -> str:
    """An SVG document without the address of SVG's DTD, that tells what it shows."""
    tag, rest = svg[svg.index("<svg") :].split(">", 1)
    return f'{tag} role="img">\n<title>{escape(printable(title))}</title>{rest}'
