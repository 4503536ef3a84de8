"""The pages of docs/ as a site (Sphinx with MyST): navigation, formulas, titles of code blocks, API reference.

The pages are plain Markdown, so that they read well on a code host too. What Sphinx needs beyond that is added here
when it reads them: the navigation on the first page, captions of code blocks, the directives of the API reference.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator

project = "edue-lightning"
author = "The edue-lightning developers"
release = importlib.metadata.version("edue-lightning")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
templates_path = ["_templates"]

# Markdown
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3
smartquotes = False
html_math_renderer = "mathml"

# the API reference
default_role = "py:obj"
autodoc_member_order = "groupwise"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"

# the site: nothing is fetched from elsewhere, and it opens from a folder
html_theme = "pydata_sphinx_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_js_files = ["search_in_folder.js"]
# dark or light as the reader's system
html_context = {"default_mode": "auto"}
html_sidebars = {"**": ["pages.html"]}
html_copy_source = False
html_show_copyright = False
html_use_index = True
html_theme_options: dict[str, Any] = {
    "navbar_center": [],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": [],
    "footer_end": [],
    "show_toc_level": 2,
}

NAVIGATION = {
    "Use it": "own-data choose-a-method train sweeps report calibration predict export cluster extend",
    "Reference": "data methods metrics api/index",
    "Results": "results",
}
"""Pages by the caption that they stand under in the sidebar."""

PACKAGE = "edue_lightning"
DOORS = ("train", "evaluate", "predict", "report", "check", "convert", "export")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the additions (called by Sphinx)."""
    app.add_html_math_renderer("mathml", (_inline_formula, None), (_formula, None))
    app.connect("source-read", _complete_page)
    # before napoleon, which takes the sections of a docstring apart
    app.connect("autodoc-process-docstring", _escape_docstring, priority=400)
    app.connect("html-page-context", _list_parameters)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _complete_page(_: Sphinx, name: str, source: list[str]) -> None:
    """Add to a page what plain Markdown has no word for."""
    source[0] = re.sub(r'^```(\w+) title="(.+)"$', r"```{code-block} \1\n:caption: \2\n", source[0], flags=re.MULTILINE)
    if name == root_doc:
        source[0] += "".join(_toctree(pages.split(), caption) for caption, pages in NAVIGATION.items())
    elif name == "api/index":
        source[0] += _toctree(sorted(path.stem for path in Path(__file__).parent.glob("api/[!i]*.md")))
    elif name.startswith("api/"):
        room = name.removeprefix("api/")
        modules = "\n".join(_automodule(module, room) for module in documented_modules(room))
        source[0] += f"\n```{{eval-rst}}\n{modules}\n```\n"


def _list_parameters(_app: Sphinx, _page: str, _template: str, context: dict[str, Any], _tree: Any) -> None:
    """Make lists of the parameters of long signatures, which Sphinx writes as definitions without a term."""
    definitions = re.compile(r"<dl>\n(<dd>.*?)</dl>", re.DOTALL)
    parts = definitions.split(context.get("body", ""))
    for number in range(1, len(parts), 2):
        items = parts[number].replace("<dd>", "<li>").replace("</dd>", "</li>")
        parts[number] = f'<ul class="parameters">\n{items}</ul>'
    context["body"] = "".join(parts)


def _toctree(pages: list[str], caption: str = "") -> str:
    return "\n".join(["\n```{toctree}", ":hidden:", f":caption: {caption}" if caption else "", "", *pages, "```\n"])


def documented_modules(room: str) -> list[str]:
    """Return the modules that a page of the API reference shows.

    A room with a list of public names (`__all__`) shows those, another one the public names of each of its modules.
    """
    if room == "commands":
        return [PACKAGE, *(f"{PACKAGE}.{door}" for door in DOORS)]
    package = importlib.import_module(f"{PACKAGE}.{room}")
    if hasattr(package, "__all__"):
        return [package.__name__]
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    return sorted(module.name for module in found if not module.ispkg)


def _automodule(name: str, room: str) -> str:
    module = importlib.import_module(name)
    listed = "   :imported-members:\n" if hasattr(module, "__path__") else ""
    heading = name.removeprefix(f"{PACKAGE}.")
    title = "" if heading == room else f"{heading}\n{'-' * len(heading)}\n\n"
    return f"{title}.. automodule:: {name}\n   :members:\n{listed}"


def _escape_docstring(*arguments: Any) -> None:
    """Make reStructuredText of docstrings, which are plain text with code in backquotes and indented code blocks."""
    lines: list[str] = arguments[-1]
    for number, line in enumerate(lines):
        if line.lstrip().startswith(">>>"):
            continue
        pieces = re.split(r"(`[^`]*`)", line)
        lines[number] = "".join(
            piece if piece.startswith("`") else re.sub(r"([*|]|(?<=\w)_(?!\w))", r"\\\1", piece) for piece in pieces
        )
        before = lines[number - 2] if number > 1 and not lines[number - 1] else ""
        if before.endswith(":") and not before.endswith("::") and _indent(line) > _indent(before):
            lines[number - 2] += ":"


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _inline_formula(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(_mathml(node, block=False))
    _skip_content()


def _formula(translator: HTML5Translator, node: nodes.math_block) -> None:
    # the theme lets the keyboard scroll its boxes for tables
    translator.body.append(f'<div class="math pst-scrollable-table-container">{_mathml(node, block=True)}</div>\n')
    _skip_content()


def _skip_content() -> None:
    from docutils.nodes import SkipNode

    raise SkipNode


def _mathml(node: nodes.Element, block: bool) -> str:
    """Return a formula as MathML, which a browser shows without a script; warn of what is no formula."""
    from docutils.utils.math import MathError
    from docutils.utils.math.latex2mathml import tex2mathml
    from sphinx.util.logging import getLogger

    formula = node.astext()
    try:
        # LaTeX reads \frac15 as a fifth, docutils as 15 above what follows
        if found := re.search(r"\\frac\s*\d\d", formula):
            raise MathError(f"write {found[0]} with braces")
        return tex2mathml(formula, as_block=block)
    except MathError as error:
        getLogger(__name__).warning("%s in the formula %s", error, formula, location=node)
        return ""
