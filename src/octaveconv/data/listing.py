"""Which files in a folder or a tar are images, and which class each belongs to; each is listed once.

Classes are the folders at the top, as for torchvision's ``ImageFolder``: all that lies below one belongs to it, and one
without images has its number too, so that train and val agree. What is left out or counted once is noted.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from .._text import counted, some
from ..errors import UsageError

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class File(NamedTuple):
    """An image: its name in messages, the folders above it (from the class on), and where a tar has it."""

    name: str
    folders: tuple[str, ...]
    place: tuple[int, int] | None = None  # start and size
    same: tuple[int, int] | None = None  # device and inode, by which to find two names of one file


@dataclass
class Listing:
    """The images of a folder or a tar.

    Attributes:
        files: in natural order of their paths.
        folders: paths of all folders, as names from the top.
        notes: lines about what was left out, followed or counted once.
    """

    files: list[File] = field(default_factory=list)
    folders: set[tuple[str, ...]] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def tops(self) -> set[str]:
        """The folders at the top."""
        return {folders[0] for folders in self.folders}

    def below(self, top: str) -> Listing:
        """What lies in one of the folders at the top."""
        files = [file._replace(folders=file.folders[1:]) for file in self.files if file.folders[:1] == (top,)]
        folders = {folders[1:] for folders in self.folders if folders[0] == top and len(folders) > 1}
        return Listing(files, folders, self.notes)

    def finished(self, left_out: list[str]) -> Listing:
        """This listing in order, with a note of what was left out."""
        self.files.sort(key=lambda file: natural(file.name))
        if left_out:
            self.notes.append(
                f"left out: {len(left_out):,} that are hidden, or not files ending in {', '.join(ENDINGS)}: "
                f"{some(sorted(left_out))}"
            )
        return self


def natural(name: str) -> tuple[list[int | str], str]:
    """A key that sorts numbers in names as numbers, and never leaves two names equal."""
    parts = re.split(r"(\d{1,400})", name.lower())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def numbered(source: str, names: Iterable[str]) -> list[str]:
    """The classes in the order of their numbers, in Unicode's composed form, which macOS does not keep.

    Raises:
        UsageError: two names look the same, or one is not Unicode.
    """
    classes: dict[str, str] = {}
    for name in sorted(names):
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"the name of the class folder {name} in {source} is not UTF-8: rename it") from error
        if (composed := composed_form(name)) in classes:
            raise UsageError(f"{source} has two class folders {composed}, of other Unicode forms: merge them")
        classes[composed] = name
    return sorted(classes, key=natural)


def composed_form(name: str) -> str:
    """One form for the several that Unicode has for letters with accents."""
    return unicodedata.normalize("NFC", name)


def is_image(name: str) -> bool:
    """Whether a file is an image by its name: by its ending, and not hidden (as macOS's ``._0.jpg``)."""
    return name.lower().endswith(ENDINGS) and not name.startswith(".")


def list_folder(path: Path, once: bool = True) -> Listing:
    """All images below a folder.

    A link to a file or folder is followed, except to a folder that leads back, or that the class has already; of
    several names of one file in a class, one is listed, or with ``once=False`` each.

    Raises:
        UsageError: a folder cannot be read, or one file has names in two classes (and ``once``).
    """
    return _Walk(path).listing(once)


class _Walk:
    """Walks a folder, each class by itself: so no folder is read more than once for each class."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = os.path.realpath(path)
        self.found = Listing()
        self.left_out: list[str] = []
        self.links: list[str] = []  # that were followed
        self.loops: list[str] = []  # links that were not

    def listing(self, once: bool) -> Listing:
        for name, is_link in self._read(()):
            self._walk_class(name, is_link)
        found = self.found.finished(self.left_out)
        if once:
            found.files = _once(self.path, found)
        if self.links:
            found.notes.append(f"followed {counted(len(self.links), 'link')}: {some(sorted(self.links))}")
        if self.loops:
            found.notes.append(
                f"not followed, because they lead to a folder that is read already: {some(sorted(self.loops))}"
            )
        return found

    def _walk_class(self, top: str, is_link: bool) -> None:
        seen: set[str] = set()
        folders: list[tuple[tuple[str, ...], bool]] = []
        links = folders.copy()
        (links if is_link else folders).append(((top,), is_link))
        while folders or links:  # links last, so that a file has its own name
            parts, is_link = (folders or links).pop()
            real = os.path.realpath(self.path.joinpath(*parts))
            if real in seen or f"{self.root}{os.sep}".startswith(f"{real.rstrip(os.sep)}{os.sep}"):
                self.loops.append("/".join(parts))
                continue
            seen.add(real)
            if is_link:
                self.links.append("/".join(parts))
            self.found.folders.add(parts)
            for name, is_link in sorted(self._read(parts), reverse=True):
                (links if is_link else folders).append(((*parts, name), is_link))

    def _read(self, parts: tuple[str, ...]) -> list[tuple[str, bool]]:
        """List the images of one folder; return the folders in it, and whether they are links."""
        folder, above = self.path.joinpath(*parts), []
        try:
            device = os.stat(folder).st_dev
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = "/".join((*parts, entry.name))
                    kind = _kind(entry)
                    if kind is None:
                        self.left_out.append(name)
                    elif kind == "folder":
                        above.append((entry.name, entry.is_symlink()))
                    else:
                        if entry.is_symlink():
                            self.links.append(name)
                        self.found.files.append(File(name, parts, same=_identity(entry, device)))
        except OSError as error:
            raise UsageError(f"the folder {folder} cannot be read ({error.strerror}): give access to it") from error
        return sorted(above)


def _kind(entry: os.DirEntry[str]) -> str | None:
    """Whether it is a ``folder`` or an ``image``; None for what is left out, such as a pipe."""
    if entry.name.startswith("."):
        return None
    try:
        if entry.is_dir():
            return "folder"
        is_file = entry.is_file() or not os.path.exists(entry.path)  # a dangling link is an image that cannot be read
    except OSError:  # a link to itself
        is_file = True
    return "image" if is_file and is_image(entry.name) else None


def _identity(entry: os.DirEntry[str], device: int) -> tuple[int, int] | None:
    if not entry.is_symlink():
        return device, entry.inode()  # known without asking the disk about each file
    try:
        found = entry.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _once(path: Path, found: Listing) -> list[File]:
    """The files without further names of the same ones."""
    first: dict[tuple[int, int] | None, File] = {}
    kept, more = [], []
    for file in found.files:
        other = first.setdefault(file.same, file)
        if file.same is None or other is file or not _is_same(path / other.name, path / file.name):
            kept.append(file)
        elif other.folders[:1] != file.folders[:1]:
            raise UsageError(f"{path}: {other.name} and {file.name} are one file in two classes: remove one of them")
        else:
            more.append(file.name)
    if more:
        found.notes.append(f"counted once: {len(more):,} further names of the same files: {some(more)}")
    return kept


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file; some file systems invent inodes, so the links to it count as well."""
    found = os.stat(one)
    is_linked = found.st_nlink > 1 or os.path.realpath(one) == os.path.realpath(other)
    return is_linked and os.path.samestat(found, os.stat(other))


def list_tar(path: Path) -> Listing:
    """All images in a tar, and in the tars in it, whose names count as folders; of several members with one name, the
    last, which would replace the others.

    Raises:
        UsageError: the file is not a complete, uncompressed tar.
    """
    found, left_out = Listing(), list[str]()
    files: dict[str, File] = {}
    more = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for name, parts, member, start in _members(tar):
                found.folders |= {parts[:i] for i in range(1, len(parts) + member.isdir())}
                if member.isreg() and not member.issparse() and is_image(parts[-1]) and not _is_hidden(parts):
                    key = "/".join(parts)
                    more += key in files
                    files[key] = File(name, parts[:-1], (start, member.size))
                elif not member.isdir():
                    left_out.append(name)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UsageError(f"{path} is not a complete, uncompressed tar file ({error}): pack it again") from error
    found.files = [*files.values()]
    found.folders = {parts for parts in found.folders if not _is_hidden(parts)}
    if more:
        found.notes.append(f"counted once: {more:,} members that a later one of the same name replaces")
    return found.finished(left_out)


def _is_hidden(parts: tuple[str, ...]) -> bool:
    return any(part.startswith(".") for part in parts)


def _members(
    tar: tarfile.TarFile, above: str = "", offset: int = 0
) -> Iterator[tuple[str, tuple[str, ...], tarfile.TarInfo, int]]:
    """Name, path, header and start of each member; a tar among them is replaced by its members."""
    for member in forward(tar):
        name = f"{above}{member.name}"
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        start = offset + member.offset_data
        if member.isreg() and name.lower().endswith(".tar") and (inner := tar.extractfile(member)):
            with tarfile.open(fileobj=inner, mode="r:") as nested:
                yield from _members(nested, f"{name[:-4]}/", start)
        elif parts:
            yield name, parts, member, start


def forward(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of a tar; ReadError if one leads back, where tarfile goes round for ever (CVE-2025-8194)."""
    last = -1
    for member in tar:
        if member.size < 0 or member.offset <= last:
            raise tarfile.ReadError(f"the member at byte {member.offset} ends before it begins")
        last = member.offset
        yield member


class Files:
    """Listed images with their class numbers, as a reader for `octaveconv.data.Images`.

    Args:
        path: the folder or the tar that was listed.
        files: images in it.
        class_to_idx: the number of each class.
    """

    def __init__(self, path: Path, files: list[File], class_to_idx: dict[str, int]) -> None:
        self.path, self.files, self.class_to_idx = path, files, class_to_idx
        self.labels = [class_to_idx[composed_form(file.folders[0])] for file in files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[IO[bytes], int]:
        file, label = self.files[i], self.labels[i]
        if file.place is None:
            return open(self.path / file.name, "rb"), label
        with open(self.path, "rb") as tar:  # a handle that stays open has a position, which forked workers would share
            tar.seek(file.place[0])
            return io.BytesIO(tar.read(file.place[1])), label

    def filename(self, i: int) -> str:
        """The path in the folder or the tar."""
        return self.files[i].name
