"""The release that runs now, kept aside until the next one is trusted. Uses nothing but the standard library.

`keep` copies the files of some distributions out of an environment, `put_back` puts them where they were and removes
what has come in their place. A copy of this very file is kept with them, so that ``python put_back.py`` in that folder
brings the old release back even where the new one cannot be imported at all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution
from pathlib import Path

MANIFEST = "manifest.json"
SCRIPT = "put_back.py"


def installed(purelib: Path) -> list[tuple[str, Path]]:
    """The distributions that are in `purelib` itself: canonical names and the folders of their metadata."""
    found = sorted(purelib.glob("*-*.dist-info"))
    return [(canonical(folder.name.removesuffix(".dist-info").rpartition("-")[0]), folder) for folder in found]


def canonical(name: str) -> str:
    """The name of a distribution in its one spelling."""
    return re.sub(r"[-_.]+", "-", name).lower()


def files_of(metadata: Path, within: Path) -> Iterator[Path]:
    """The files of a distribution, as its record lists them. What lies outside of `within` is nobody's to touch."""
    held = Distribution.at(metadata)
    for file in held.files or ():
        found = Path(os.path.normpath(metadata.parent / file))
        if found.is_relative_to(within):
            yield found


def keep(
    prefix: Path,
    purelib: Path,
    names: Iterable[str] | None,
    folder: Path,
    *,
    arriving: Iterable[str] = (),
    extra: Iterable[Path] = (),
) -> frozenset[str]:
    """Copy the distributions `names` of `purelib`, or all that are there, and the `extra` files, into `folder`.

    Which distributions were there is returned.

    `arriving` names distributions that will be there afterwards, so that they can be taken away again. The folder is
    of use once its manifest is there, which is written last.
    """
    wanted = None if names is None else {canonical(name) for name in names}
    chosen = [(name, metadata) for name, metadata in installed(purelib) if wanted is None or name in wanted]
    files = [file for _, metadata in chosen for file in files_of(metadata, prefix)]
    kept: dict[str, str] = {}
    (folder / "files").mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(dict.fromkeys([*files, *extra])):
        if file.is_file() and "__pycache__" not in file.parts:
            shutil.copy2(file, folder / "files" / str(number))
            kept[str(file.relative_to(prefix))] = str(number)
    shutil.copy2(__file__, folder / SCRIPT)
    manifest = {
        "prefix": str(prefix),
        "purelib": str(purelib),
        "replaced": None if wanted is None else sorted(wanted | {canonical(name) for name in arriving}),
        "files": kept,
    }
    temporary = folder / f"{MANIFEST}.part"
    with temporary.open("w") as stream:
        json.dump(manifest, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(folder / MANIFEST)
    return frozenset(name for name, _ in chosen)


def put_back(folder: Path) -> None:
    """Make the environment what it was. May be repeated after it was cut off."""
    manifest = json.loads((folder / MANIFEST).read_text())
    prefix, purelib = Path(manifest["prefix"]), Path(manifest["purelib"])
    kept = {prefix / name: folder / "files" / number for name, number in manifest["files"].items()}
    # First what was there, so that being cut off here leaves more of the old release and not less.
    for file, copy in kept.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.back")
        shutil.copy2(copy, temporary)
        temporary.replace(file)
        _forget_compiled(file)
    stay = {file.parent for file in kept}
    for name, metadata in installed(purelib):
        if metadata in stay or (manifest["replaced"] is not None and name not in manifest["replaced"]):
            continue
        for file in [*files_of(metadata, prefix), *metadata.iterdir()]:
            if file not in kept and file.is_file():
                file.unlink()
                _forget_compiled(file)
                _prune(file.parent, purelib)
        shutil.rmtree(metadata, ignore_errors=True)
    _sweep(purelib, {file.relative_to(purelib).parts[0] for file in kept if file.is_relative_to(purelib)})


def _sweep(purelib: Path, tops: set[str]) -> None:
    """Remove what pip had moved out of its way when it was cut off: while that lies there, pip overlooks the rest."""
    for left in purelib.glob("~*"):
        rest = left.name.lstrip("-~.=%0123456789")  # it replaces the beginning of a name by these
        if any(len(top) == len(left.name) and top.endswith(rest) for top in tops):
            shutil.rmtree(left, ignore_errors=True)


def _forget_compiled(file: Path) -> None:
    """What was compiled from another text of this file must not be taken for it."""
    for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
        compiled.unlink(missing_ok=True)


def _prune(folder: Path, top: Path) -> None:
    """Remove folders that nothing is left in."""
    while folder != top and folder.is_relative_to(top):
        if {child.name for child in folder.iterdir()} - {"__pycache__"}:
            return
        shutil.rmtree(folder)
        folder = folder.parent


if __name__ == "__main__":
    put_back(Path(__file__).resolve().parent)
    sys.stdout.write("the release that was there before is back\n")
