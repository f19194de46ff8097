import errno
import os
import pathlib
import sys

import pytest

from maxfdl.bucket import BucketPath
from maxfdl.errors import UserError
from maxfdl.paths import as_path, fetched


def test_a_url_stays_one_through_every_way_of_making_paths():
    path = as_path("gs://bucket/a/b.json")
    assert str(path) == os.fspath(path) == "gs://bucket/a/b.json"
    assert str(path.parent / "c") == "gs://bucket/a/c"
    assert str(path.with_name("d")) == "gs://bucket/a/d"
    assert as_path(path) == path
    assert (path.scheme, path.bucket, path.key) == ("gs", "bucket", "a/b.json")
    assert str(as_path("s3://bucket")) == "s3://bucket"
    assert as_path("a:/b") == pathlib.Path("a:/b")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://host/a", "ftp://host/a must be .* begin with one of gs://, s3://"),
        ("gs://", "gs:// must name a bucket: gs://BUCKET/NAME"),
        ("gs://bucket/a/../b", "must not have '..' in it"),
        ("gs:/bucket/a", "two slashes to be in a bucket: gs://bucket/a"),
        ("~no-such-user/a", "begins with a home directory that is not known here"),
    ],
)
def test_a_path_of_another_kind_is_refused(url, words):
    with pytest.raises(UserError, match=words):
        as_path(url)


def test_a_missing_package_is_named(monkeypatch):
    from maxfdl import bucket

    bucket._file_system.cache_clear()
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"s3:// needs .* pip install 'maxfdl\[cloud\]"):
        as_path("s3://bucket/a").exists()


def test_objects_are_read_written_listed_and_removed(cloud):
    folder = cloud.root / "run"
    (folder / "a.txt").write_text("one")
    (folder / "in" / "b.txt").write_bytes(b"two")
    assert (folder / "a.txt").read_text() == "one"
    assert (folder / "in" / "b.txt").stat().st_size == 3
    assert (folder / "a.txt").is_file() and not (folder / "a.txt").is_dir()
    assert folder.is_dir() and not (folder / "none").exists()
    assert sorted(folder.iterdir()) == [folder / "a.txt", folder / "in"]
    assert [*folder.glob("*/b.txt")] == [folder / "in" / "b.txt"]
    assert folder.files() == [folder / "a.txt", folder / "in" / "b.txt"]
    (folder / "in").rename(folder / "out")
    assert sorted(cloud.store.objects) == ["run/a.txt", "run/out/b.txt"]
    (folder / "a.txt").unlink()
    folder.rmtree()
    folder.rmtree()
    assert not cloud.store.objects


def test_a_name_is_no_pattern(cloud):
    odd, other = cloud.root / "run[1] *", cloud.root / "run1 a" / "4" / "done"
    (odd / "4" / "done").write_text("")
    other.write_text("")
    assert [*odd.glob("*/done")] == [odd / "4" / "done"]
    odd.rename(cloud.root / "run?1 a")
    (cloud.root / "run?1 a").rmtree()
    assert sorted(cloud.store.objects) == ["run1 a/4/done"]


def test_failures_are_those_of_local_files(cloud):
    with pytest.raises(FileNotFoundError) as missing:
        (cloud.root / "a").read_bytes()
    assert missing.value.filename == f"{cloud.root}/a"
    with pytest.raises(OSError, match="there is no bucket nowhere") as nowhere:
        cloud.at("nowhere/a").write_text("x")
    assert nowhere.value.errno == errno.ENXIO
    for use in (BucketPath.exists, BucketPath.read_bytes, lambda x: x.write_text("x")):
        with pytest.raises(PermissionError, match="permission denied for .* closed"):
            use(cloud.at("closed/a"))


def test_an_object_is_not_copied_to_outside_of_its_folder(cloud):
    for name in ("model/a.txt", "model/../../../../../evil.txt"):
        cloud.store.put(name, b"a")
    with pytest.raises(UserError, match="evil.txt must not have '..' in it"):
        fetched(cloud.root / "model")


def test_a_folder_is_copied_once_and_follows_its_objects(cloud, capsys):
    folder = cloud.root / "model"
    for name in ("config.json", "a.safetensors", "deep/b.txt"):
        (folder / name).write_text(name)
    copy = fetched(folder, only=("config.json", "*.safetensors"))
    assert sorted(x.name for x in copy.iterdir()) == ["a.safetensors", "config.json"]
    assert f"copying {folder} to {copy}" in capsys.readouterr().err
    assert fetched(folder, only=("*.json",)) == copy
    assert not capsys.readouterr().err

    (folder / "config.json").write_text("changed")
    (folder / "a.safetensors").unlink()
    copy = fetched(folder)
    assert (copy / "config.json").read_text() == "changed"
    assert (copy / "deep" / "b.txt").is_file()
    assert not (copy / "a.safetensors").exists()
    assert fetched(folder / "deep" / "b.txt").read_text() == "deep/b.txt"
    assert not fetched(folder / "none").exists()
