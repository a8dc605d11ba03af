"""Fetching and unpacking published archives: what was fetched stays fetched, what is in place is right.

URL --> NAME.part (grows, also after a break or a kill) --> checksum --> NAME --> members that are not there yet

`requests` and urllib3 carry the connection. None of the packages that we keep resumes a download in public code (torch
and torchvision start over, huggingface_hub's http_get is internal), so the loop around `requests` that asks for the
rest stands here. Touch this file for how bytes arrive; not for which archives a data set has (coco_files.py,
ade20k_files.py, imagenet_files.py). Guarded by tests/datasets/test_download.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import requests

from mmcnx2.atomic_write import open_atomically, write_atomically

CHUNK_BYTES = 1 << 20  # of files
PIECE_BYTES = 1 << 16  # of what arrives; when a connection breaks, an unfinished piece is lost
TIMEOUT_S = (20, 60)  # to connect; without a byte
# Attempts that bring nothing new, one after the other, until we give up; the pauses between them double.
NUM_ATTEMPTS = 8
LONGEST_PAUSE_S = 60.0
WORTH_ANOTHER_TRY = (408, 425, 429, 500, 502, 503, 504)
SPARE_BYTES = 256 << 20  # left free on the disk

Progress = Callable[[int, int | None], None]  # bytes (or members) done, and of how many
Tell = Callable[[str], None]  # a line for the user


@dataclass(frozen=True)
class Archive:
    """A published file: where it is, and how it is recognised.

    `checksum` is 'md5:...', 'sha1:...' or 'sha256:...'; None when none is published: then the SHA-256 of what came
    first is written beside the archive, and compared from then on.
    """

    url: str
    checksum: str | None = None
    num_bytes: int | None = None

    @property
    def name(self) -> str:
        return self.url.rsplit('/', 1)[-1]


def no_progress(done: int, total: int | None) -> None:
    pass


def fetch(
    archive: Archive,
    folder: str | Path,
    progress: Progress = no_progress,
    tell: Tell = print,
    first_pause_s: float = 1.0,
) -> Path:
    """The path of the archive in `folder`, complete and with the right checksum.

    An archive that is there is verified, not fetched. A partial file `NAME.part` is continued, whoever left it.

    Args:
        archive: what to fetch.
        folder: made when it is not there.
        progress: called with the bytes there so far, and how many there will be (None: the server does not say).
        tell: takes a line about a break or a checksum.
        first_pause_s: before the second attempt; it doubles up to a minute.

    Raises:
        ValueError: the server refuses, or the bytes are not those of the archive (they are kept as NAME.corrupt).
        OSError: the connection keeps breaking, the disk is full, or another process is fetching the same file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / archive.name, folder / f'{archive.name}.part'
    if path.is_file():
        verify(path, archive, progress, tell)
        return path
    with _only_we_write(part):
        if path.is_file():  # another process has just finished
            return path
        _fetch_part(archive, part, progress, tell, first_pause_s)
        verify(part, archive, progress, tell)
        os.replace(part, path)
        for beside in (_etag_file(part), _lock_file(part)):
            beside.unlink(missing_ok=True)
    return path


def verify(path: Path, archive: Archive, progress: Progress = no_progress, tell: Tell = print) -> None:
    """Compares a file with the archive's size and checksum.

    Raises:
        ValueError: it is another file; it is moved out of the way, to NAME.corrupt.
    """
    recorded = path.with_name(f'{archive.name}.sha256')
    expected = archive.checksum
    if expected is None and recorded.is_file():
        expected = f'sha256:{recorded.read_text().split()[0]}'
    algorithm, _, wanted = (expected or 'sha256:').partition(':')
    found = _checksum(path, algorithm, progress)
    if not wanted:
        write_atomically(recorded, f'{found}  {archive.name}\n'.encode())
        tell(f'{archive.name}: no published checksum is known; recorded what came, sha256 {found}, in {recorded}')
    elif found != wanted:
        corrupt = path.with_name(f'{archive.name}.corrupt')
        num_bytes = path.stat().st_size
        os.replace(path, corrupt)
        size = f', {archive.num_bytes:,} bytes' if archive.num_bytes else ''
        raise ValueError(
            f"'{path}' has {algorithm} {found} ({num_bytes:,} bytes) instead of {wanted}{size}: it was damaged on the "
            f"way, or is another file. It is kept as '{corrupt}'; run the command again to fetch it anew."
        )


def _fetch_part(archive: Archive, part: Path, progress: Progress, tell: Tell, first_pause_s: float) -> None:
    """Lets `part` grow until it is complete."""
    most = _size(part)
    fruitless, pause_s = 0, first_pause_s
    while True:
        try:
            if _fetch_rest(archive, part, progress):
                return
            reason = 'the connection ended early'
        except requests.RequestException as error:
            reason = _short(error)
        if _size(part) > most:
            most, fruitless, pause_s = _size(part), 0, first_pause_s
        else:
            fruitless += 1
            if fruitless >= NUM_ATTEMPTS:
                raise OSError(
                    f'{archive.url}: {fruitless} attempts in a row brought nothing new (the last: {reason}). '
                    f"{_size(part):,} bytes are kept in '{part}'; run the command again to go on from there."
                )
        tell(f'{archive.name}: {reason} after {_size(part):,} bytes; going on in {pause_s:g} s')
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _fetch_rest(archive: Archive, part: Path, progress: Progress) -> bool:
    """One request for what `part` lacks; True when it is complete then."""
    have = _size(part)
    if archive.num_bytes is not None and have == archive.num_bytes:
        return True
    if archive.num_bytes is not None and have > archive.num_bytes:
        part.unlink()
        have = 0
    headers = {'Accept-Encoding': 'identity'}  # the bytes as they are stored
    if have:
        headers['Range'] = f'bytes={have}-'
        with contextlib.suppress(FileNotFoundError):
            headers['If-Range'] = _etag_file(part).read_text()  # another file by now: the server sends it whole
    with requests.get(archive.url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        if response.status_code == 416:  # nothing behind what we have
            if response.headers.get('Content-Range') == f'bytes */{have}':
                return True
            part.unlink()
            return False
        if response.status_code not in (200, 206):
            _refused(archive, response)
        if response.status_code == 206 and not response.headers.get('Content-Range', '').startswith(f'bytes {have}-'):
            part.unlink()  # not the piece that was asked for
            return False
        _check_total(archive, _total(response))
        total = _total(response) or archive.num_bytes
        begin = have if response.status_code == 206 else 0  # 200: the server does not resume
        check_free(part.parent, (total or 0) - begin, f"the rest of '{archive.name}'")
        if begin == 0:
            _remember_etag(part, response.headers.get('ETag', ''))
        with open(part, 'ab' if begin else 'wb', buffering=0) as file:  # a kill loses nothing that has arrived
            for chunk in response.iter_content(PIECE_BYTES):
                file.write(chunk)
                begin += len(chunk)
                progress(begin, total)
    return total is None or begin == total


def _refused(archive: Archive, response: requests.Response) -> None:
    status = f'{response.status_code} {response.reason}'
    if response.status_code in WORTH_ANOTHER_TRY:
        raise requests.ConnectionError(f'the server answered {status}')
    raise ValueError(
        f'{archive.url}: the server answered {status}. Look whether the address still holds, fetch {archive.name} '
        'another way and put it into the folder of archives (--archives), or name a mirror (--mirror).'
    )


def _check_total(archive: Archive, total: int | None) -> None:
    if total is not None and archive.num_bytes is not None and total != archive.num_bytes:
        raise ValueError(
            f'{archive.url}: the server offers {total:,} bytes, the published file has {archive.num_bytes:,}. It is '
            'another file; name a mirror of the published one (--mirror).'
        )


def _total(response: requests.Response) -> int | None:
    """Bytes of the whole file, as the answer to a request says."""
    if response.status_code == 206:
        total = response.headers['Content-Range'].rpartition('/')[2]
        return int(total) if total.isdigit() else None
    length = response.headers.get('Content-Length', '')
    return int(length) if length.isdigit() else None


def check_free(folder: str | Path, num_bytes: int, what: str) -> None:
    """Raises OSError when the disk has no room for `num_bytes` more."""
    free = shutil.disk_usage(folder).free
    if num_bytes + SPARE_BYTES > free:
        raise OSError(
            f"{what} needs {num_bytes / 1e9:.1f} GB, and the disk of '{folder}' has {free / 1e9:.1f} GB free. Make "
            'room, or choose other folders (--root, --archives).'
        )


def _checksum(path: Path, algorithm: str, progress: Progress) -> str:
    digest, total, done = hashlib.new(algorithm), path.stat().st_size, 0
    with open(path, 'rb') as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            progress(done, total)
    return digest.hexdigest()


@contextlib.contextmanager
def _only_we_write(part: Path) -> Iterator[None]:
    """Holds a lock that ends with the process, however that ends."""
    with open(_lock_file(part), 'wb') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(
                f"another process is fetching '{part}'. Wait for it, or end it and run the command again."
            ) from None
        yield


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _etag_file(part: Path) -> Path:
    return part.with_name(f'{part.name}.etag')


def _lock_file(part: Path) -> Path:
    return part.with_name(f'{part.name}.lock')


def _remember_etag(part: Path, etag: str) -> None:
    """Writes down which version of the file `part` is; weak tags do not say that."""
    if etag.startswith('"'):
        write_atomically(_etag_file(part), etag.encode())
    else:
        _etag_file(part).unlink(missing_ok=True)


def _short(error: Exception) -> str:
    """The innermost reason: requests wraps urllib3's errors, which wrap the system's."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return ' '.join(str(error).split())[:200] or type(error).__name__


# ---- unpacking


def unpack_zip(path: str | Path, folder: str | Path, strip: str = '', progress: Progress = no_progress) -> int:
    """Puts the members of a zip file below `folder`; the number of those that were not there yet.

    A member that is there with its size is left alone: each is written whole or not at all.

    Args:
        path: of the zip file.
        folder: made when it is not there.
        strip: a first folder of the members' names that is left out.
        progress: called with the members done, and of how many.

    Raises:
        ValueError: no zip file, a damaged one, or one with a member outside the folder; nothing is written then.
        OSError: the disk is full.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(path) as archive:
            members = [(info, folder / _safe_name(path, info, strip)) for info in archive.infolist() if _is_file(info)]
            left = [(info, target) for info, target in members if not _is_there(target, info.file_size)]
            check_free(folder, sum(info.file_size for info, _ in left), f"unpacking '{path}'")
            progress(len(members) - len(left), len(members))
            for number, (info, target) in enumerate(left, start=1):
                with archive.open(info) as source, open_atomically(target) as file:
                    shutil.copyfileobj(source, file, CHUNK_BYTES)
                progress(len(members) - len(left) + number, len(members))
    except zipfile.BadZipFile as error:
        raise ValueError(f"'{path}' is no zip file, or a damaged one ({error}); fetch it anew.") from error
    return len(left)


def _is_file(info: zipfile.ZipInfo) -> bool:
    name = PurePosixPath(info.filename)
    return not info.is_dir() and name.parts[:1] != ('__MACOSX',) and name.name != '.DS_Store'


def _safe_name(path: str | Path, info: zipfile.ZipInfo, strip: str) -> PurePosixPath:
    name = PurePosixPath(info.filename.replace('\\', '/'))
    if name.is_absolute() or '..' in name.parts or stat.S_ISLNK(info.external_attr >> 16):
        raise ValueError(
            f"'{path}' holds '{info.filename}', which would reach outside the folder. This is not the published "
            'archive; nothing was unpacked.'
        )
    return PurePosixPath(*name.parts[1:]) if strip and name.parts[0] == strip and len(name.parts) > 1 else name


def _is_there(path: Path, num_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == num_bytes
