"""Files and folders that are there whole, or not at all."""

import os
import signal
import stat
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_unlearn.storage.files import replaced_folder, write_whole


@given(content=st.text() | st.binary() | st.lists(st.binary()))
def test_what_is_written_is_what_is_read_and_nothing_else_is_left(content, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for _ in range(2):  # also over an older file
        write_whole(folder / "file", content)
        expected = content.encode() if isinstance(content, str) else content
        assert (folder / "file").read_bytes() == (expected if isinstance(expected, bytes) else b"".join(expected))
        assert list(folder.iterdir()) == [folder / "file"]


@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_permissions_are_those_that_were_asked_for_and_before_that_the_owners(mode, tmp_path, monkeypatch):
    seen = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (seen.append(os.fstat(file).st_mode), sync(file)))
    write_whole(str(tmp_path / "file"), "text", mode=mode)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
    assert [stat.S_IMODE(before) for before in seen] == [0o600]


def parts_that_break_off():
    yield b"half"
    raise OSError("disk full")


@pytest.mark.parametrize("step", ["writing", "fsync", "chmod", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(step, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    path = tmp_path / "of-ada-lovelace.json"
    write_whole(path, "old")
    seen = []
    if step == "writing":
        content = parts_that_break_off()
    else:
        content = "new"
        monkeypatch.setattr(os, step, lambda *a: (seen.extend(os.listdir(tmp_path)), fail()))
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, content)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    assert not [name for name in seen if "lovelace" in name and name != path.name]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "none" / "file", "text")


def filled(path) -> dict[str, str]:
    return {file.name: file.read_text() for file in path.iterdir()}


def test_a_folder_takes_the_place_of_an_older_one_at_the_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "model"
    for content in ("old", "new"):
        with replaced_folder("model/") as folder:
            (folder / content).write_text(content)
            assert content == "old" or filled(place) == {"old": "old"}
        assert filled(place) == {content: content} and list(tmp_path.iterdir()) == [place]
    assert stat.S_IMODE(place.stat().st_mode) == 0o755


def test_an_error_leaves_the_older_folder_and_nothing_else(tmp_path, monkeypatch):
    place = tmp_path / "model"
    with replaced_folder(place) as folder:
        (folder / "file").write_text("old")
    with pytest.raises(KeyboardInterrupt), replaced_folder(place) as folder:
        (folder / "file").write_text("new")
        raise KeyboardInterrupt
    assert filled(place) == {"file": "old"} and list(tmp_path.iterdir()) == [place]
    # Also where the older one has been put aside already.
    rename = type(place).rename
    monkeypatch.setattr(type(place), "rename", lambda self, to: 1 / 0 if self.name == "new" else rename(self, to))
    with pytest.raises(ZeroDivisionError), replaced_folder(place) as folder:
        (folder / "file").write_text("new")
    assert filled(place) == {"file": "old"} and list(tmp_path.iterdir()) == [place]


def test_a_folder_replaces_no_file(tmp_path):
    (tmp_path / "model").write_text("a file")
    with pytest.raises(NotADirectoryError), replaced_folder(tmp_path / "model"):
        pass
    assert filled(tmp_path) == {"model": "a file"}


WRITER = """
import sys
from hf_unlearn.storage.files import replaced_folder, write_whole

path, kind = sys.argv[1:]
print("writing", flush=True)
while True:
    for letter in (b"a", b"b"):
        if kind == "file":
            write_whole(path, (letter * 100_000 for _ in range(50)))
            continue
        with replaced_folder(path) as folder:
            for name in "123":
                (folder / name).write_bytes(letter * 1_000_000)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_writer_that_is_killed_leaves_all_of_the_old_or_all_of_the_new(kind, tmp_path):
    path = tmp_path / kind
    for k in range(5):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, path, kind], stdout=subprocess.PIPE, text=True)
        try:
            assert writer.stdout.readline() == "writing\n"
            while not path.exists():
                time.sleep(0.01)
            time.sleep(0.003 * k)
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        if kind == "file":
            assert path.stat().st_size == 5_000_000 and len(set(path.read_bytes())) == 1
        elif path.exists():  # the one moment without it is that between two renames
            assert sorted(filled(path)) == ["1", "2", "3"]
            assert len({file.read_bytes() for file in path.iterdir()}) == 1
            assert len((path / "1").read_bytes()) == 1_000_000
        assert all(name == kind or name.endswith(".incomplete") for name in os.listdir(tmp_path))
