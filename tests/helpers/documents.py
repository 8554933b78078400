"""Code blocks of the documents."""

import re
from pathlib import Path

from helpers.models import CONFIGS

ROOT = CONFIGS.parents[2]
# a fence with its language, or lines with four spaces after an empty one
BLOCK = re.compile(
    r"^```(?P<language>\w*)\n(?P<fenced>.*?)^```|(?<=\n\n)(?P<indented>(?:    [^\n]*\n|\n(?=    ))+)",
    re.MULTILINE | re.DOTALL,
)


def code_blocks(text):
    """Yield language, code and the text before it, of each code block of a page."""
    for match in BLOCK.finditer(text):
        code = match["fenced"] or re.sub("^    ", "", match["indented"], flags=re.MULTILINE)
        yield match["language"] or guess_language(code), code, text[: match.start()]


def guess_language(code):
    languages = {"python": ("from ", "import "), "json": ("{",), "folders": ("$DETECTRON2_DATASETS/", "/data/")}
    return next((name for name, starts in languages.items() if code.startswith(starts)), "bash")


def documented_files(text):
    """Python files that a page shows, by the path that the text before them gives last."""
    for language, code, before in code_blocks(text):
        if language == "python" and (paths := re.findall(r"`((?:projects|configs)/[\w/]+\.py)`", before[-400:])):
            path = Path(paths[-1])
            yield (path if path.parts[0] == "projects" else Path("projects/CLoCKDistill") / path), code
