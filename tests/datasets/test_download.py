"""Guards mmcnx2/datasets/download.py against servers that break off, forget, refuse and lie, and against being killed.

Every server runs in this process, on the loopback address; it counts the bytes that it sends.
"""

import hashlib
import http.server
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from mmcnx2.datasets import download
from mmcnx2.datasets.download import Archive, check_free, fetch, unpack_zip

ROOT = Path(__file__).resolve().parents[2]
CONTENT = random.Random(0).randbytes(3_000_017)
NUM_BYTES = len(CONTENT)
MD5 = 'md5:' + hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves one content under every name; its settings say how badly."""

    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.content, self.etag = CONTENT, '"first"'
        self.ranges = True  # answers requests for a piece
        self.breaks_after = []  # bytes after which each of the next answers breaks off
        self.statuses = []  # of the next answers, instead of the content
        self.says_length, self.pause_s, self.other_piece = True, 0.0, False
        self.num_sent, self.requests = 0, []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, name='file.zip'):
        return f'http://127.0.0.1:{self.server_address[1]}/some/{name}'

    def handle_error(self, request, address):
        """Clients that end in the middle are what is tested here."""


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        wanted = self.headers.get('Range')
        server.requests.append(wanted)
        if server.statuses:
            self.send_response(server.statuses.pop(0))
            self.send_header('Content-Length', '0')
            self.end_headers()
            return
        begin = 0
        condition = self.headers.get('If-Range')  # weak tags never match, says RFC 9110
        unchanged = condition is None or (condition == server.etag and not condition.startswith('W/'))
        if wanted and server.ranges and unchanged:
            begin = int(wanted.removeprefix('bytes=').rstrip('-'))
            if begin >= len(server.content):
                self.send_response(416)
                self.send_header('Content-Range', f'bytes */{len(server.content)}')
                self.send_header('Content-Length', '0')
                self.end_headers()
                return
            self.send_response(206)
            begin += 7 if server.other_piece else 0
            self.send_header('Content-Range', f'bytes {begin}-{len(server.content) - 1}/{len(server.content)}')
        else:
            self.send_response(200)
        if server.says_length:
            self.send_header('Content-Length', str(len(server.content) - begin))
        if server.etag:
            self.send_header('ETag', server.etag)
        self.end_headers()
        end = begin + server.breaks_after.pop(0) if server.breaks_after else len(server.content)
        for start in range(begin, min(end, len(server.content)), 50_000):
            piece = server.content[start : min(start + 50_000, end)]
            self.wfile.write(piece)
            server.num_sent += len(piece)
            time.sleep(server.pause_s)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def get(server, tmp_path):
    """Fetches from the server: (path, lines told)."""

    def get(checksum=MD5, num_bytes=NUM_BYTES, **options):
        lines = []
        archive = Archive(server.url(), checksum, num_bytes)
        path = fetch(archive, tmp_path / 'new', tell=lines.append, first_pause_s=0.01, **options)
        return path, lines

    return get


def test_what_arrives_is_what_was_sent(get, server):
    seen = []
    path, lines = get(progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT and path.name == 'file.zip'
    assert os.listdir(path.parent) == ['file.zip'] and lines == []
    assert seen[-1] == (NUM_BYTES, NUM_BYTES) and (1 << 20, NUM_BYTES) in seen
    get()
    assert len(server.requests) == 1, 'what is there was fetched again'


def test_broken_connections_are_continued(get, server):
    server.breaks_after = [700_001, 400_000, 1, 900_000]
    path, lines = get()
    assert path.read_bytes() == CONTENT
    assert server.num_sent - NUM_BYTES < 4 * download.PIECE_BYTES, 'many bytes were fetched twice'
    begins = [int(wanted.removeprefix('bytes=').rstrip('-')) for wanted in server.requests[1:]]
    assert begins == [655_360, 1_048_576, 1_048_576, 1_900_544]
    assert len(lines) == 4 and lines[0].endswith('after 655,360 bytes; going on in 0.01 s')


def test_an_end_without_a_length_is_not_trusted(get, server):
    """A connection that ends looks complete when the server has not said how much there is."""
    server.says_length, server.breaks_after = False, [1_000_000]
    path, _ = get()
    assert path.read_bytes() == CONTENT and server.num_sent - NUM_BYTES < download.PIECE_BYTES


def test_server_without_ranges(get, server):
    server.ranges, server.breaks_after = False, [1_000_000, 2_000_000]
    path, _ = get()
    assert path.read_bytes() == CONTENT
    assert server.requests[1:] == ['bytes=983040-', 'bytes=1966080-']


def test_a_server_that_never_gets_further_is_given_up(get, server, tmp_path):
    server.ranges, server.breaks_after = False, [100_000] * 100
    with pytest.raises(OSError, match=r"8 attempts in a row brought nothing new .*65,536 bytes are kept in '.*\.part'"):
        get()
    assert len(server.requests) == 9
    assert (tmp_path / 'new/file.zip.part').stat().st_size == 65_536 and not (tmp_path / 'new/file.zip').exists()


def test_a_server_that_is_not_there(get, server):
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match=r'8 attempts in a row .*refused'):
        get()


def test_pauses_grow_and_begin_anew_after_progress(get, server, monkeypatch):
    pauses = []
    monkeypatch.setattr(download.time, 'sleep', lambda s: pauses.append(s) if threading.current_thread() is main else 0)
    main = threading.current_thread()
    server.statuses = [503, 429, 500]
    server.breaks_after = [100_000]
    path, lines = get()
    assert path.read_bytes() == CONTENT and pauses == [0.01, 0.02, 0.04, 0.01]
    assert '503' in lines[0] and '429' in lines[1]


@pytest.mark.parametrize('status', [401, 403, 404, 410])
def test_a_refusal_is_final(get, server, status, tmp_path):
    server.statuses = [status]
    with pytest.raises(ValueError, match=rf'/some/file.zip: the server answered {status}.*--archives.*--mirror'):
        get()
    assert len(server.requests) == 1 and not (tmp_path / 'new/file.zip').exists()


def test_wrong_bytes_are_put_aside(get, server, tmp_path):
    server.content = CONTENT[:-1] + b'x'
    with pytest.raises(ValueError, match=r'has md5 \w+ \(3,000,017 bytes\) instead of .*file.zip.corrupt'):
        get()
    assert sorted(os.listdir(tmp_path / 'new')) == ['file.zip.corrupt', 'file.zip.part.etag', 'file.zip.part.lock']
    server.content, server.etag = CONTENT, '"mended"'
    assert get()[0].read_bytes() == CONTENT


def test_a_file_that_lies_there_is_verified(get, tmp_path, server):
    (tmp_path / 'new').mkdir()
    (tmp_path / 'new/file.zip').write_bytes(b'something else')
    with pytest.raises(ValueError, match=r'file.zip. has md5 .* \(14 bytes\) instead of .*3,000,017 bytes'):
        get()
    assert server.requests == [] and os.listdir(tmp_path / 'new') == ['file.zip.corrupt']


def test_another_size_is_noticed_before_it_is_fetched(get, server):
    server.pause_s = 0.02  # else the whole file waits in buffers before the client can hang up
    with pytest.raises(ValueError, match='offers 3,000,017 bytes, the published file has 3,000,018'):
        get(num_bytes=NUM_BYTES + 1)
    assert server.num_sent < NUM_BYTES


@pytest.mark.parametrize('checksum', [MD5, 'sha1:' + hashlib.sha1(CONTENT).hexdigest(),
                                      'sha256:' + hashlib.sha256(CONTENT).hexdigest()])  # fmt: skip
def test_kinds_of_checksums(get, checksum):
    assert get(checksum)[0].read_bytes() == CONTENT


def test_without_a_checksum_the_first_one_counts(get, server, tmp_path):
    path, lines = get(checksum=None, num_bytes=None)
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert len(lines) == 1 and 'no published checksum is known' in lines[0] and digest in lines[0]
    assert (tmp_path / 'new/file.zip.sha256').read_text() == f'{digest}  file.zip\n'
    assert get(checksum=None)[1] == []
    path.write_bytes(b'changed')
    with pytest.raises(ValueError, match='has sha256'):
        get(checksum=None)


def test_a_file_that_changed_meanwhile_is_fetched_whole(get, server, tmp_path):
    """Two halves of different files would be neither; without a checksum nothing else would notice."""
    (tmp_path / 'new').mkdir()
    server.content, server.breaks_after = bytes(3_000_017), [1_000_000]
    changed = iter([lambda: setattr(server, 'content', CONTENT) or setattr(server, 'etag', '"second"')])

    def tell(line):
        if 'going on' in line:
            next(changed)()

    archive = Archive(server.url(), None, None)
    assert fetch(archive, tmp_path / 'new', tell=tell, first_pause_s=0.01).read_bytes() == CONTENT


@pytest.mark.parametrize('etag', ['', 'W/"weak"'])
def test_a_server_without_etags_that_say_enough(get, server, etag):
    server.etag, server.breaks_after = etag, [1_000_000]
    assert get()[0].read_bytes() == CONTENT and server.num_sent - NUM_BYTES < download.PIECE_BYTES


def test_a_wrong_piece_is_not_appended(get, server):
    server.other_piece, server.breaks_after = True, [1_000_000]
    path, _ = get()
    assert path.read_bytes() == CONTENT


def test_a_complete_part_needs_no_bytes(get, server, tmp_path):
    for num_bytes in (NUM_BYTES, None):
        (tmp_path / 'new').mkdir(exist_ok=True)
        (tmp_path / 'new/file.zip.part').write_bytes(CONTENT)
        assert get(num_bytes=num_bytes)[0].read_bytes() == CONTENT and server.num_sent == 0
        assert len(server.requests) == (num_bytes is None)
        (tmp_path / 'new/file.zip').unlink()


@pytest.mark.parametrize('num_bytes', [NUM_BYTES, None])
def test_a_part_that_is_too_long_starts_over(get, server, tmp_path, num_bytes):
    (tmp_path / 'new').mkdir()
    (tmp_path / 'new/file.zip.part').write_bytes(CONTENT + b'more')
    assert get(num_bytes=num_bytes)[0].read_bytes() == CONTENT
    assert server.requests == ([None] if num_bytes else ['bytes=3000021-', None])


def test_a_killed_process_is_continued(get, server, tmp_path):
    server.pause_s = 0.2
    script = (
        'import sys; from mmcnx2.datasets.download import *; '
        'fetch(Archive(sys.argv[1], sys.argv[2], int(sys.argv[3])), sys.argv[4])'
    )
    words = [sys.executable, '-c', script, server.url(), MD5, str(NUM_BYTES), str(tmp_path / 'new')]
    process = subprocess.Popen(words, cwd=ROOT)
    part = tmp_path / 'new' / 'file.zip.part'
    deadline = time.time() + 60
    while time.time() < deadline and not (part.exists() and part.stat().st_size > 1_000_000):
        time.sleep(0.01)
    assert server.num_sent < NUM_BYTES, 'nothing was on the disk before everything had arrived'
    with pytest.raises(OSError, match='another process is fetching'):
        get()
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(5 * server.pause_s)  # until the server has noticed; it counts what it sends
    kept = part.stat().st_size
    assert 1_000_000 < kept < NUM_BYTES
    server.pause_s, server.num_sent = 0.0, 0
    assert get()[0].read_bytes() == CONTENT
    assert server.requests[-1] == f'bytes={kept}-' and server.num_sent <= NUM_BYTES - kept


def test_full_disk_is_noticed_beforehand(get, server, monkeypatch, tmp_path):
    usage = download.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download.shutil, 'disk_usage', lambda path: usage._replace(free=10**6))
    with pytest.raises(OSError, match=r"rest of 'file.zip' needs 0.0 GB, .* has 0.0 GB free.*--root, --archives"):
        get()
    with pytest.raises(OSError, match=r'needs 20\.0 GB'):
        check_free(tmp_path, 20 * 10**9, 'it')


# ---- unpacking


@pytest.fixture
def zipped(tmp_path):
    def zipped(members: dict, **kinds) -> Path:
        path = tmp_path / 'some.zip'
        with zipfile.ZipFile(path, 'w') as archive:
            for name, content in members.items():
                info = zipfile.ZipInfo(name)
                info.external_attr = kinds.get('mode', stat.S_IFREG | 0o644) << 16
                archive.writestr(info, content)
        return path

    return zipped


def files_below(folder: Path) -> dict:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_unpacking_takes_what_is_missing(zipped, tmp_path):
    path, out = (
        zipped({'a/': b'', 'a/1.jpg': b'one', 'a/b/2.jpg': b'two', '__MACOSX/a/._1.jpg': b'x'}),
        tmp_path / 'out',
    )
    seen = []
    assert unpack_zip(path, out, progress=lambda *numbers: seen.append(numbers)) == 2
    assert files_below(out) == {'a/1.jpg': b'one', 'a/b/2.jpg': b'two'} and seen == [(0, 2), (1, 2), (2, 2)]
    (out / 'a/b/2.jpg').write_bytes(b'cut')  # the same size: taken for complete, as each is written whole
    (out / 'a/1.jpg').write_bytes(b'on')
    assert unpack_zip(path, out) == 1
    assert files_below(out) == {'a/1.jpg': b'one', 'a/b/2.jpg': b'cut'}


def test_a_first_folder_can_be_left_out(zipped, tmp_path):
    path = zipped({'Top/a/1.jpg': b'one', 'Top/2.txt': b'two', 'other/3': b'three'})
    unpack_zip(path, tmp_path / 'out', strip='Top')
    assert set(files_below(tmp_path / 'out')) == {'a/1.jpg', '2.txt', 'other/3'}


@pytest.mark.parametrize('name', ['../evil', '/tmp/evil', 'a/../../evil', '..\\evil'])
def test_members_outside_the_folder_are_refused(zipped, tmp_path, name):
    path = zipped({'good.jpg': b'1', name: b'2'})
    with pytest.raises(ValueError, match=r'reach outside the folder.*nothing was unpacked'):
        unpack_zip(path, tmp_path / 'out')
    assert files_below(tmp_path / 'out') == {}


def test_links_are_refused(zipped, tmp_path):
    with pytest.raises(ValueError, match='reach outside'):
        unpack_zip(zipped({'link': b'/etc/passwd'}, mode=stat.S_IFLNK | 0o777), tmp_path / 'out')


def test_damaged_zip_file(zipped, tmp_path):
    path = zipped({'a.jpg': b'one' * 1000})
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"some\.zip' is no zip file, or a damaged one"):
        unpack_zip(path, tmp_path / 'out')
    assert files_below(tmp_path / 'out') == {}
    path.write_bytes(b'no zip at all')
    with pytest.raises(ValueError, match=r"some\.zip' is no zip file"):
        unpack_zip(path, tmp_path / 'out')


def test_room_for_what_is_unpacked(zipped, tmp_path, monkeypatch):
    usage = download.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download.shutil, 'disk_usage', lambda path: usage._replace(free=download.SPARE_BYTES + 5))
    assert unpack_zip(zipped({'a': b'12345'}), tmp_path / 'out') == 1
    with pytest.raises(OSError, match=r"unpacking '.*some.zip' needs"):
        unpack_zip(zipped({'b': b'123456'}), tmp_path / 'out')
