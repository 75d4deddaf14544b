"""How this program was installed, and so who may update it. Pure: the evidence is an argument, `detect` gathers it.

What was said by whoever installed a file is weak (pipx lets uv install for it), so the tools' own records come first.
Only three layouts are updated from here: an environment of pip's, and the tools pipx and uv through their own command.
Everything else belongs to somebody who has a say in it: a developer, a distribution, a lock file, an image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct

NAME: Final = "inbetweenies"  # what the distribution is called

Kind: TypeAlias = Literal[
    "pip",
    "pip_file",
    "editable",
    "vcs",
    "uv_pip",
    "uv_project",
    "uv_tool",
    "pipx",
    "tool_file",
    "distribution",
    "conda",
    "container",
    "frozen",
    "unknown",
]


class Evidence(Struct, frozen=True, kw_only=True):
    """What can be seen from inside.

    Attributes:
        installer: the content of ``INSTALLER``.
        direct_url: ``direct_url.json`` (PEP 610); None without one.
        virtual: it is a virtual environment.
        pipx, uv_tool, conda: the tool's own record is in the environment.
        externally_managed: the base installation belongs to a package manager (PEP 668).
        container: everything here goes when the container does.
        bundled: a frozen program or a zip file.
        lock_file: the lock file of the project that the environment belongs to, such as ``uv.lock``.
        writable: this user can write to where packages are.
        has_pip: pip is there.
    """

    installer: str = ""
    direct_url: Mapping[str, Any] | None = None
    virtual: bool = False
    pipx: bool = False
    uv_tool: bool = False
    conda: bool = False
    externally_managed: bool = False
    container: bool = False
    bundled: bool = False
    lock_file: str = ""
    writable: bool = True
    has_pip: bool = True


class Layout(Struct, frozen=True, kw_only=True):
    """How this program is installed.

    Attributes:
        kind: one of the rows.
        what: that in words, as "by pipx".
        how: the command or the step that updates it, to be typed or done by a person.
        automatic: this program may do it by itself.
        why_not: why not, if not.
    """

    kind: Kind
    what: str
    how: str
    why_not: str = ""

    @property
    def automatic(self) -> bool:
        return not self.why_not


def classify(seen: Evidence) -> Layout:
    """Which row of the table this is."""
    return next(layout for fits, layout in ROWS if fits(seen))


def _url(seen: Evidence) -> Mapping[str, Any]:
    return seen.direct_url or {}


def _editable(seen: Evidence) -> bool:
    folder = _url(seen).get("dir_info")
    return isinstance(folder, dict) and folder.get("editable") is True


#: The table. The first row that fits counts, and the order is the point.
ROWS: Final[tuple[tuple[Callable[[Evidence], bool], Layout], ...]] = (
    (
        lambda seen: seen.bundled,
        Layout(
            kind="frozen",
            what="as one file with its own Python",
            how="download the new file from where this one came from",
            why_not="a single file is replaced by whoever put it there",
        ),
    ),
    (
        lambda seen: seen.container,
        Layout(
            kind="container",
            what="in a container",
            how=f"build the image anew with `pip install --upgrade {NAME}`, and start it",
            why_not="what is changed in a container is gone when it is made anew",
        ),
    ),
    (
        _editable,
        Layout(
            kind="editable",
            what="from a folder that is being worked on",
            how="`git pull` in that folder",
            why_not="it belongs to whoever works on it",
        ),
    ),
    (
        lambda seen: (seen.pipx or seen.uv_tool) and bool(_url(seen)),
        Layout(
            kind="tool_file",
            what="as a tool, from one file or place",
            how=f"`pipx upgrade {NAME}` or `uv tool upgrade {NAME}`",
            why_not="where the next file comes from is not known",
        ),
    ),
    (
        lambda seen: seen.pipx,
        Layout(kind="pipx", what="by pipx", how=f"`pipx upgrade {NAME}`"),
    ),
    (
        lambda seen: seen.uv_tool,
        Layout(kind="uv_tool", what="by uv, as a tool", how=f"`uv tool upgrade {NAME}`"),
    ),
    (
        lambda seen: seen.conda,
        Layout(
            kind="conda",
            what="by conda",
            how=f"`conda update {NAME}`",
            why_not="conda keeps account of what it installed",
        ),
    ),
    (
        lambda seen: seen.externally_managed and not seen.virtual,
        Layout(
            kind="distribution",
            what="by the operating system",
            how=f"update `python3-{NAME}` with the system's package manager, such as apt or dnf",
            why_not="the system keeps account of what it installed",
        ),
    ),
    (
        lambda seen: "vcs_info" in _url(seen),
        Layout(
            kind="vcs",
            what="from a version control system",
            how=f"`pip install --upgrade '{NAME} @ git+...'` with its address",
            why_not="which commit comes next is for whoever chose this one",
        ),
    ),
    (
        lambda seen: bool(seen.lock_file),
        Layout(
            kind="uv_project",
            what="in a project with a lock file",
            how=f"`uv lock --upgrade-package {NAME}` and `uv sync`, or what your tool calls these",
            why_not="the lock file says which release it is",
        ),
    ),
    (
        lambda seen: bool(_url(seen)),
        Layout(
            kind="pip_file",
            what="from one file",
            how=f"`pip install` with the new file, or `pip install --upgrade {NAME}`",
            why_not="where the next file comes from is not known",
        ),
    ),
    (
        lambda seen: seen.virtual and seen.installer == "uv",
        Layout(
            kind="uv_pip",
            what="by uv",
            how=f"`uv pip install --upgrade {NAME}`",
            why_not="the environment is uv's",
        ),
    ),
    (
        lambda seen: seen.virtual and seen.installer == "pip" and seen.has_pip and seen.writable,
        Layout(kind="pip", what="by pip", how=f"`pip install --upgrade {NAME}`"),
    ),
    (
        lambda _: True,
        Layout(
            kind="unknown",
            what="in a way that is not known",
            how=f"`pip install --upgrade {NAME}` with the Python that runs it",
            why_not="nothing says that this program may change it",
        ),
    ),
)
