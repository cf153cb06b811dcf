"""Lists the image files in a folder or zip, each once, and other files of interest beside them.

- Hidden files and folders, and those that systems leave behind (`__MACOSX`, `@eaDir`), are not data.
- A picture with several names (links, hard links) is taken once: from a held-out split's folder if it has a
  name there, so that no picture is used for both training and testing.
- Links that lead out of the folder are followed only on request; a folder is walked once, so loops end.
- Names with an image suffix but no readable image (dangling links, pipes, unreadable files) stay in the list: whoever
  reads them reports them as broken.
"""

import os
import stat
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from aigc.data.captions import METADATA, WORDS
from aigc.errors import UserError
from aigc.files.names import ENDINGS, is_hidden, is_image, split_of, zip_name
from aigc.wording import counted, shown, told

Identity = tuple[int, int]                          # device and inode of a file: the same for all its names


@dataclass
class Listing:
    """The content of a folder or a zip.

    Attributes:
        path: of the folder or zip.
        names: image files, sorted; relative, with forward slashes.
        beside: files that may hold captions.
        outer: such files beside the zip itself.
        zips: zips in the folder itself.
        left_out: names of files left out, by reason.
        unreadable: folders that could not be read, with the reason.
        plain: those of `names` that are regular files, safe to open.
    """

    path: Path
    names: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)
    outer: list[str] = field(default_factory=list)
    zips: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    plain: list[str] = field(default_factory=list)

    def leave_out(self, names: Iterable[str], reason: str) -> None:
        """Removes names from the list, for a reason."""
        gone = set(names)
        if gone:
            self.left_out.setdefault(reason, []).extend(sorted(gone))
            self.names = [name for name in self.names if name not in gone]
            self.plain = [name for name in self.plain if name not in gone]


def look(path: Path, option: str, *, follow_links: bool = False) -> Listing:
    """Lists a folder or a zip; `option` names it in errors.

    Raises:
        UserError: it is missing, unreadable, or neither.
    """
    try:
        if path.is_dir():
            return _Walk(path, follow_links).listing
        if path.is_file() and zipfile.is_zipfile(path):
            return _in_zip(path)
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{option}={shown(str(path))} cannot be read ({reason}): check it") from error
    if os.path.lexists(path):
        raise UserError(f"{option}={shown(str(path))} is neither a folder nor an intact zip: give one of them")
    raise UserError(f"{option}={shown(str(path))} does not exist: name a folder or a zip of images")


def refuse_unreadable(listing: Listing, option: str, *, skip: bool = False) -> None:
    """Refuses a folder with unreadable subfolders; with `skip` they are left out.

    Raises:
        UserError: names them.
    """
    if listing.unreadable and skip:
        listing.left_out["folders that cannot be read"] = sorted(listing.unreadable)
    elif listing.unreadable:
        name, reason = next(iter(listing.unreadable.items()))
        raise UserError(f"{option}={shown(str(listing.path))} holds {counted(len(listing.unreadable), 'folder')} that "
                        f"cannot be read, such as {shown(name)} ({reason}): allow reading it, or remove it")


def refuse_empty(listing: Listing, option: str) -> None:
    """Refuses a folder without images.

    Raises:
        UserError: says what was left out.
    """
    if listing.names:
        return
    but = told(listing.left_out)
    kinds = " ".join(ENDINGS)
    found = f" except those left out: {'; '.join(but)}" if but else f" ({kinds})"
    raise UserError(f"{option}={shown(str(listing.path))} holds no images{found}; name another folder or zip")


def list_images(path: Path, option: str, *, follow_links: bool = False) -> list[str]:
    """Sorted names of all image files in a folder or a zip, relative to it; `option` names it in errors.

    Raises:
        UserError: it is missing or unreadable, or holds no images.
    """
    listing = look(path, option, follow_links=follow_links)
    refuse_unreadable(listing, option)
    refuse_empty(listing, option)
    return listing.names


def _in_zip(path: Path) -> Listing:
    listing = Listing(path)
    with zipfile.ZipFile(path) as archive:
        names = {zip_name(entry.filename) for entry in archive.infolist() if not entry.is_dir()}
    hidden = {name for name in names if any(map(is_hidden, name.split("/")))}
    for name in sorted(names - hidden):
        _sort_in(listing, name)
    listing.names = listing.plain = [name for name in sorted(names - hidden) if is_image(name)]
    if gone := sorted(name for name in hidden if is_image(name)):
        listing.left_out["hidden files"] = gone
    return listing


def _sort_in(listing: Listing, name: str) -> None:
    """Notes a file that is not an image, if it may describe one."""
    base = name.rsplit("/", 1)[-1].lower()
    if base in METADATA or base.endswith(WORDS):
        listing.beside.append(name)
    elif base.endswith(".zip") and "/" not in name:
        listing.zips.append(name)


class _Walk:
    """A walk over a folder and the targets of its links."""

    def __init__(self, root: Path, follow_links: bool):
        self.listing = Listing(root)
        self.root = os.path.realpath(root)
        self.follow = follow_links
        self.walked: set[Identity] = set()
        self.names_of: dict[Identity, list[tuple[bool, str]]] = {}   # of image files: (whether by a link, name)
        self.links: list[str] = []
        self.folder("", os.fspath(root))
        while self.links:                                # real folders first, then those behind links
            links, self.links = sorted(self.links), []
            for link in links:
                self.link(link)
        self.choose()

    def left(self, name: str, reason: str) -> None:
        self.listing.left_out.setdefault(reason, []).append(name)

    def folder(self, name: str, path: str) -> None:
        """Walks a folder and its subfolders once; links wait."""
        waiting = [(name, path)]
        while waiting:
            name, path = waiting.pop()
            try:
                if not self.is_new(os.stat(path)):
                    continue
                with os.scandir(path) as entries:
                    found = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                if not name:
                    raise
                self.listing.unreadable[name] = error.strerror or str(error)
                continue
            for entry in found:
                full = f"{name}/{entry.name}" if name else entry.name
                is_folder = entry.is_dir(follow_symlinks=False)
                if is_hidden(entry.name):
                    if is_image(entry.name) and not is_folder:
                        self.left(full, "hidden files")
                elif entry.is_symlink():
                    self.links.append(full)
                elif is_folder:
                    waiting.append((full, entry.path))
                elif is_image(entry.name):
                    self.image(full, entry.stat(follow_symlinks=False), linked=False)
                else:
                    _sort_in(self.listing, full)

    def is_new(self, found: os.stat_result) -> bool:
        """Whether a folder has not been walked yet; marks it as walked."""
        identity = (found.st_dev, found.st_ino)
        if found.st_ino and identity in self.walked:     # some network file systems have no inodes
            return False
        self.walked.add(identity)
        return True

    def image(self, name: str, found: os.stat_result, *, linked: bool) -> None:
        if not stat.S_ISREG(found.st_mode):
            self.listing.names.append(name)
        elif found.st_ino:
            self.names_of.setdefault((found.st_dev, found.st_ino), []).append((linked, name))
        else:
            self.listing.names.append(name)
            self.listing.plain.append(name)

    def link(self, name: str) -> None:
        path = os.path.join(self.listing.path, name)
        try:
            found = os.stat(path)
        except OSError:                                  # dangling, or a loop
            if is_image(name):
                self.listing.names.append(name)
            elif "." not in os.path.basename(name):
                self.left(name, "dangling links")
            return
        real, is_folder = os.path.realpath(path), stat.S_ISDIR(found.st_mode)
        if not (is_folder or is_image(name)):
            if _within(real, self.root) or self.follow:
                _sort_in(self.listing, name)
        elif is_folder and (_within(self.root, real) or (found.st_dev, found.st_ino) in self.walked):
            self.left(name, "links to folders that were read already or contain this one")
        elif not _within(real, self.root) and not self.follow:
            self.left(name, "links out of the folder, which data.follow_links=true follows")
        elif is_folder:
            self.folder(name, path)
        else:
            self.image(name, found, linked=True)

    def choose(self) -> None:
        """Chooses one name per image: one in a held-out split, else the file's own, else the first."""
        for names in self.names_of.values():
            if len(names) > 1:
                names.sort(key=lambda found: (
                    not any(split_of(part) not in (None, "train") for part in found[1].split("/")[:-1]), found))
                for _, name in names[1:]:
                    self.left(name, "duplicate names of images already taken")
            self.listing.names.append(names[0][1])
            self.listing.plain.append(names[0][1])
        for part in (self.listing.names, self.listing.plain, *self.listing.left_out.values()):
            part.sort()


def _within(path: str, folder: str) -> bool:
    """Whether a real path is a folder or lies in it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
