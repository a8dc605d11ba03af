"""What is said about disks, folders and images; tests/test_tools.py has the rest of mmcnx2/engine/user_errors.py."""

import errno
import logging
import os

import pytest
from mmcv.transforms import LoadImageFromFile
from torch._utils import ExceptionWrapper

from mmcnx2.engine import user_errors
from mmcnx2.engine.user_errors import explain_errors, is_user_error, one_line, what_to_do


def from_worker(error: Exception) -> Exception:
    """The error as a data loader's worker sends it; through a real one torch 2.12 waits for 5 s at the end."""
    try:
        raise error
    except Exception:
        sent = ExceptionWrapper(where='in DataLoader worker process 0')
    with pytest.raises(type(error), match='Original Traceback') as caught:
        sent.reraise()
    return caught.value


def said(error: Exception, folder=None) -> str:
    return one_line(error) + what_to_do(error, folder)


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_named_with_its_room(tmp_path, number):
    line = said(OSError(number, os.strerror(number)), tmp_path)
    assert line.startswith(f'{os.strerror(number)}. The disk of {tmp_path} has ') and line.endswith(
        'MB left. Make room'
    )
    (tmp_path / 'epoch_1.pth').touch()
    line = said(OSError(number, os.strerror(number)), tmp_path)
    assert line.endswith('Make room; the checkpoints that are there are whole, --resume goes on from the newest')
    assert 'Make room' in said(OSError(number, os.strerror(number), 'x.pth'), tmp_path / 'not there')


def test_a_folder_that_cannot_be_written_names_the_option(tmp_path, monkeypatch):
    error = OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / 'a/b'))
    assert said(error, tmp_path) == f'Read-only file system: {tmp_path}/a/b'  # the work dir is another one
    monkeypatch.setattr(user_errors.os, 'access', lambda path, mode: False)
    assert said(error, tmp_path / 'a').endswith(f'Nothing can be written to {tmp_path}/a: choose another folder with '
                                                '--work-dir')  # fmt: skip


def test_a_work_dir_below_a_folder_that_may_not_be_searched(tmp_path, monkeypatch, capsys):
    closed, stat = tmp_path / 'closed', os.stat
    closed.mkdir()

    def refuse_below(path, **options):  # root may search everything
        if str(path).startswith(f'{closed}/'):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, 'stat', refuse_below)
    monkeypatch.setattr(os, 'access', lambda path, mode: str(path) != str(closed) or not mode & os.X_OK)
    monkeypatch.setattr(user_errors, 'write_atomically', lambda path, content: os.stat(path))
    for error, says in (
        (PermissionError(errno.EACCES, 'Permission denied', str(closed / 'run')), 'choose another folder with --work-'),
        (FileNotFoundError(errno.ENOENT, 'No such file or directory', str(closed / 'run/x')), f'ends at {closed}'),
        (ValueError('wrong'), 'error: wrong'),
    ):
        with pytest.raises(SystemExit), explain_errors(lambda: closed / 'run'):
            raise error
        assert says in capsys.readouterr().err
    assert not user_errors._rank_zero_explains(closed / 'run', 0.0, patience_s=0.1)


def test_a_file_in_the_place_of_the_work_dir_is_named(tmp_path):
    (tmp_path / 'run').touch()
    with pytest.raises(OSError) as caught:
        os.makedirs(tmp_path / 'run', exist_ok=True)
    assert said(caught.value, tmp_path / 'run') == (
        f'File exists: {tmp_path}/run. {tmp_path}/run is a file: choose a folder with --work-dir'
    )


@pytest.mark.parametrize('wrap', [lambda error: error, from_worker])
def test_a_file_whose_folder_has_gone(tmp_path, wrap):
    error = wrap(FileNotFoundError(2, 'No such file or directory', str(tmp_path / 'gone/deep/x.jpg')))
    assert said(error).replace("'", '') == (
        f'No such file or directory: {tmp_path}/gone/deep/x.jpg. Its folder is not there either; the path ends at '
        f'{tmp_path}'
    )
    assert said(wrap(FileNotFoundError(2, 'No such file or directory', str(tmp_path / 'x.jpg')))).endswith(('jpg', "'"))


@pytest.mark.parametrize('wrap', [lambda error: error, from_worker])
def test_an_image_that_mmcv_cannot_decode_is_a_users_error(wrap):
    error = wrap(AssertionError('failed to load image: a/b.jpg'))
    assert is_user_error(error) and said(error).startswith('failed to load image: a/b.jpg: it is damaged or no picture')
    other = wrap(AssertionError('x is not y'))
    assert not is_user_error(other) and said(other) == 'x is not y'


def test_what_mmcv_says_of_a_damaged_and_of_a_missing_image(tmp_path):
    (tmp_path / 'x.jpg').write_bytes(b'\xff\xd8\xff\xe0 cut off')
    for name, start in (
        ('x.jpg', f'failed to load image: {tmp_path}/x.jpg: it is damaged'),
        ('y/z.jpg', 'No such file'),
    ):
        with pytest.raises((AssertionError, OSError)) as caught:
            LoadImageFromFile()(dict(img_path=str(tmp_path / name)))
        assert is_user_error(caught.value) and said(caught.value).startswith(start)


def test_non_finite_steps_are_a_users_error():
    assert is_user_error(FloatingPointError('5 steps in a row'))


def test_a_log_on_a_full_disk_prints_no_tracebacks(tmp_path, capsys):
    class Full(logging.Handler):
        def emit(self, record):
            try:
                raise OSError(errno.ENOSPC, 'No space left on device')
            except OSError:
                self.handleError(record)

    with pytest.raises(SystemExit) as caught, explain_errors(lambda: tmp_path):
        Full().handle(logging.makeLogRecord(dict(msg='lost')))
        raise OSError(errno.ENOSPC, 'No space left on device')
    assert caught.value.code == 1 and logging.raiseExceptions
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith('error: No space left on device. ')


def test_no_half_written_traceback_is_left(tmp_path, monkeypatch, capsys):
    def fails(source, target):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, 'replace', fails)
    with pytest.raises(SystemExit), explain_errors(lambda: tmp_path):
        raise ValueError('something')
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err == 'error: something\n'
