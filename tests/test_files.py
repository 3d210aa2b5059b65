"""Folders and files: refused before the work, written in one piece, read as data."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mano_op import InputError
from mano_op.files import check_folder, make_folder, read_tensors, write_file


def test_checking_a_folder_makes_nothing(tmp_path: Path) -> None:
    assert check_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert not (tmp_path / "a").exists()
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_file_is_refused_as_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "within"):
        with pytest.raises(InputError, match=r"cannot be a folder for results, .*file is a file"):
            check_folder(path)


def test_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(InputError, match="no permission to write to"):
        check_folder(tmp_path / "new")


def test_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    write_file(path, "old")

    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(KeyboardInterrupt):
            write_file(path, "new")
    assert path.read_text() == "old"
    write_file(path, b"new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


class Malicious:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("it_ran"),)


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_code_is_not_run(protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.pt").write_bytes(pickle.dumps(Malicious(), protocol=protocol))
    torch.save({"a": Malicious()}, "zip.pt")
    for name in ("bad.pt", "zip.pt"):
        with pytest.raises(InputError, match=r"more than tensors and plain values|cannot be read as tensors"):
            read_tensors(name)
    assert not Path("it_ran").exists()


def test_another_kind_of_content_is_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(InputError, match="holds a list, expected a dictionary"):
        read_tensors(tmp_path / "list.pt")
    with pytest.raises(InputError, match=r"absent.pt does not exist; give the path"):
        read_tensors(tmp_path / "absent.pt")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tensors") / "whole.pt"
    torch.save({"weight": torch.arange(12.0).reshape(3, 4), "bias": torch.ones(3)}, path)
    return path


@given(data=st.data())
def test_file_cut_short_is_refused(data: st.DataObject, saved: Path) -> None:
    content = saved.read_bytes()
    cut = saved.with_name("cut.pt")
    cut.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(InputError, match=r"cannot be read as tensors|more than tensors"):
        read_tensors(cut)


def test_link_to_a_file_stays_a_link(tmp_path):
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "numbers.json", tmp_path / "link.json"
    link.symlink_to(target)
    for content in ("first", "second"):
        write_file(link, content)
        assert link.is_symlink() and target.read_text() == content
    assert [path.name for path in target.parent.iterdir()] == ["numbers.json"]
