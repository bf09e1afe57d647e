"""runtime/paths.py: what can be written is known before any work, a folder is locked with or without fcntl,
and what a dead process has left is removed."""
import os
import platform
import subprocess
from types import SimpleNamespace

import pytest

from conftest import refused
from runtime import paths
from runtime.paths import lock, output_file, output_files, output_folder, remove_stale, temporary_name


def test_missing_folders_are_made_and_nothing_else(tmp_path):
    path = str(tmp_path / 'a b' / 'c' / 'd.json')
    assert output_file('--json', path) == path
    assert output_folder('--out', str(tmp_path / 'e' / 'f')) == str(tmp_path / 'e' / 'f')
    assert sorted(os.listdir(tmp_path)) == ['a b', 'e'] and os.listdir(tmp_path / 'a b' / 'c') == []


@pytest.mark.parametrize('check, path, word', [
    (output_file, 'folder', 'is a folder'), (output_file, 'new/', 'is a folder'), (output_file, '', 'empty'),
    (output_file, 'file/a.json', 'is a file'), (output_file, 'pipe', 'no regular file'),
    (output_file, '/proc/a.json', 'cannot be written'), (output_folder, 'file', 'is a file'),
    (output_folder, 'file/a', 'cannot be written'), (output_folder, '', 'empty'),
    (output_folder, '/proc/a', 'cannot be written')])
def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch, check, path, word):
    monkeypatch.chdir(tmp_path)
    os.makedirs('folder')
    open('file', 'w').close()
    os.mkfifo('pipe')
    text = refused(check, '--flag', path)
    assert word in text and text.startswith('--flag')
    assert sorted(os.listdir()) == ['file', 'folder', 'pipe']


def test_two_outputs_are_two_files(tmp_path):
    a = str(tmp_path / 'a.json')
    output_files({'--json': a, '--save': None, '--plot': str(tmp_path / 'b')})
    assert 'same file' in refused(output_files, {'--json': f'{tmp_path}/./a.json', '--save': a})


def test_a_file_that_is_write_protected_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / 'a.json'
    path.write_text('kept')
    monkeypatch.setattr(os, 'access', lambda path, mode: mode != os.W_OK)        # root may write everything
    assert 'is write-protected' in refused(output_file, '--json', str(path))


@pytest.mark.parametrize('name', ['best.pt', 'data.hdf5', 'u0.npy', 'config.json', 'log.csv'])
def test_what_is_no_result_is_not_overwritten(tmp_path, name):
    path = tmp_path / name
    output_files({'--json': str(path)})
    path.write_text('kept')
    assert 'no result' in refused(output_files, {'--json': str(path)})
    assert path.read_text() == 'kept'


# --- locks -------------------------------------------------------------------

def test_a_lock_is_held_by_one(tmp_path):
    with open(tmp_path / 'lock', 'w') as first, open(tmp_path / 'lock') as second:
        lock(first)
        with pytest.raises(BlockingIOError):
            lock(second)


def test_a_lock_of_windows(tmp_path, monkeypatch):
    held = []

    def locking(descriptor, mode, n_bytes):
        place = os.lseek(descriptor, 0, os.SEEK_CUR), n_bytes
        if place in held:
            raise PermissionError(13, 'Permission denied')
        held.append(place)

    monkeypatch.setattr(paths, 'fcntl', None)
    monkeypatch.setattr(paths, 'msvcrt', SimpleNamespace(locking=locking, LK_NBLCK=2))
    with open(tmp_path / 'lock', 'a+') as first, open(tmp_path / 'lock', 'a+') as second:
        lock(first)
        with pytest.raises(BlockingIOError):
            lock(second)
    assert held == [(paths.LOCKED_BYTE, 1)]                          # the text can be read


def test_a_system_without_locks_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paths, 'fcntl', None)
    with open(tmp_path / 'lock', 'w') as file:
        lock(file)
    assert 'not locked' in capsys.readouterr().out


# --- temporary files ---------------------------------------------------------

def test_only_files_of_dead_processes_are_removed(tmp_path):
    child = subprocess.Popen(['true'])
    child.wait()
    here = platform.node()
    stale = [f'a.hdf5.tmp.{here}.{child.pid}', f'b [1].npy.tmp.{here}.{child.pid}', f'c\nd.tmp.{here}.{child.pid}']
    kept = ['a.hdf5', f'a.hdf5.tmp.elsewhere.{child.pid}', f'a.tmp.{here}.x', f'held.tmp.{here}.{child.pid}',
            os.path.basename(temporary_name('a.hdf5')), f'a.tmp.{here}.{10 ** 30}']
    folder = tmp_path / '[1]'
    folder.mkdir()
    for name in [*stale, *kept]:
        (folder / name).write_bytes(b'x')
    with open(folder / kept[3]) as held:                             # by the same number in another container
        lock(held)
        remove_stale(str(folder))
    assert sorted(os.listdir(folder)) == sorted(kept)
