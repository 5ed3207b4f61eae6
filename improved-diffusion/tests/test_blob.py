"""Files by path: whole or not at all, here and in cloud storage (a stand-in maps gs:// to a folder)."""

import os
import subprocess
import sys

import pytest
from improved_diffusion import blob
from improved_diffusion.mirror import Mirror, watch_deletions


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Let blobfile's functions take gs://bucket/x for <tmp_path>/cloud/bucket/x, and return that folder."""
    from cloud_stand_in import install

    (tmp_path / "cloud" / "bucket").mkdir(parents=True)
    install(tmp_path / "cloud", monkeypatch.setattr)
    return tmp_path / "cloud" / "bucket"


@pytest.mark.parametrize("remote", [False, True])
def test_text_and_bytes_come_back_and_append_adds(remote, bucket, tmp_path):
    folder = "gs://bucket/run" if remote else str(tmp_path / "run")
    blob.make_dirs(folder)
    text, data = blob.join(folder, "log.txt"), blob.join(folder, "deep", "a.bin")
    blob.make_dirs(blob.dirname(data))
    with blob.open_file(text, "w") as file:
        file.write("größer\n")
    with blob.open_file(text, "a") as file:
        file.write("second\n")
    with blob.open_file(data, "wb") as file:
        file.write(b"\x00\x01")
    with blob.open_file(text) as file:
        assert file.read() == "größer\nsecond\n"
    with blob.open_file(data, "rb") as file:
        assert file.read() == b"\x00\x01"
    assert blob.list_folder(folder) == ["deep", "log.txt"]
    assert list(blob.find_files(folder)) == blob.list_files(folder) == [data, text]
    assert blob.isdir(folder)
    assert not blob.isdir(text)
    assert blob.stat(data)[0] == 2
    assert (bucket / "run").is_dir() == remote


@pytest.mark.parametrize("remote", [False, True])
def test_interrupted_write_leaves_the_former_file(remote, bucket, tmp_path):
    path = "gs://bucket/model.pt" if remote else str(tmp_path / "model.pt")
    with blob.open_file(path, "wb") as file:
        file.write(b"former")

    def interrupted():
        with blob.open_file(path, "wb") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with blob.open_file(path, "rb") as file:
        assert file.read() == b"former"
    assert not [name for name in os.listdir(bucket if remote else tmp_path) if name.startswith(".")]


@pytest.mark.parametrize(("source", "target"), [("gs://bucket/a", "here/a"), ("here/b", "gs://bucket/x/b")])
def test_files_are_copied_to_and_from_the_cloud(source, target, bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blob.make_dirs("here")
    with blob.open_file(source, "w") as file:
        file.write("words")
    blob.copy(source, target)
    with blob.open_file(target) as file:
        assert file.read() == "words"


def test_what_is_not_there_is_said(bucket, tmp_path):
    for path in ("gs://bucket/none.pt", str(tmp_path / "none.pt")):
        assert not blob.exists(path)
        with pytest.raises(FileNotFoundError, match="none"), blob.open_file(path, "rb"):
            pass
        with pytest.raises(FileNotFoundError, match="none"):
            list(blob.find_files(path))


def test_hidden_files_are_not_found(tmp_path):
    for name in ("b.png", ".a.png", ".thumbnails/c.png", "d/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(blob.find_files(str(tmp_path))) == [str(tmp_path / "b.png"), str(tmp_path / "d" / "e.png")]


def test_links_to_what_is_not_there_are_not_found(tmp_path):
    (tmp_path / "set" / "d").mkdir(parents=True)
    (tmp_path / "a.png").write_bytes(b"abc")
    for name, target in (("a.png", "../a.png"), ("gone.png", "../gone.png"), ("d/gone.png", "gone")):
        (tmp_path / "set" / name).symlink_to(target)
    link = str(tmp_path / "set" / "a.png")
    assert blob.list_files(str(tmp_path / "set")) == [link]
    assert {path: size for path, (size, _) in blob.find_files(str(tmp_path / "set")).items()} == {link: 3}


def test_file_that_goes_while_a_folder_is_listed_is_left_out(tmp_path, monkeypatch):
    def vanish(path):
        if path.endswith("b.pt"):
            os.unlink(path)
        return os.stat(path).st_size, 0

    for name in ("a.pt", "b.pt"):
        (tmp_path / name).touch()
    monkeypatch.setattr(blob, "stat", vanish)
    assert list(blob.find_files(str(tmp_path))) == [str(tmp_path / "a.pt")]


def test_without_blobfile_a_remote_path_says_what_is_missing_and_local_ones_work(tmp_path):
    code = (
        "import sys; sys.modules['blobfile'] = None\n"
        "from improved_diffusion import blob\n"
        f"with blob.open_file({str(tmp_path / 'a')!r}, 'w') as file: file.write('x')\n"
        "try: blob.exists('gs://bucket/a')\n"
        "except ImportError as error: print(error)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "gs://bucket/a: a remote path needs the package blobfile (pip install blobfile)",
        "False",
    ]
    assert (tmp_path / "a").read_text() == "x"


@pytest.mark.parametrize(
    ("path", "mode", "message"),
    [
        ("https://example.com/model.pt", "rb", "only those of Azure"),
        ("gs://bucket/a", "r+", "mode must be one of"),
    ],
)
def test_unusable_paths_and_modes_are_refused(path, mode, message):
    with pytest.raises(ValueError, match=message), blob.open_file(path, mode):
        pass


def test_mirror_brings_a_run_here_and_sends_what_changes(bucket, tmp_path):
    (bucket / "run" / "tb").mkdir(parents=True)
    (bucket / "run" / "log.txt").write_text("old\n")
    (bucket / "run" / "tb" / "events").write_text("e")
    mirror = Mirror("gs://bucket/run/", str(tmp_path / "here"))
    assert mirror.download() == 2
    assert mirror.upload() == 0
    with open(tmp_path / "here" / "log.txt", "a") as file:
        file.write("new\n")
    assert Mirror("gs://bucket/run", str(tmp_path / "here")).upload() == 1
    assert (bucket / "run" / "log.txt").read_text() == "old\nnew\n"
    assert Mirror("gs://bucket/run", str(tmp_path / "here")).download() == 0


def test_mirror_sends_a_checkpoint_so_that_it_counts_last_and_deletes_it_so_first(bucket, tmp_path):
    mirror = Mirror("gs://bucket/run", str(tmp_path / "here"))
    names = ["opt000010.pt", "ema_0.9_000010.pt", "model000010.pt", "progress.csv"]
    for name in names:
        (tmp_path / "here" / name).write_text(name)
    watch_deletions(str(tmp_path / "here"))
    mirror.upload()
    sent = [line.split("/")[-1] for line in calls(bucket) if line.startswith("copy")]
    assert sent == ["ema_0.9_000010.pt", "model000010.pt", "progress.csv", "opt000010.pt"]
    for name in names[:3]:
        (tmp_path / "here" / name).unlink()
    mirror.upload()
    deleted = [line.split("/")[-1] for line in calls(bucket) if line.startswith("remove")]
    assert deleted == ["opt000010.pt", "model000010.pt", "ema_0.9_000010.pt"]
    assert os.listdir(bucket / "run") == ["progress.csv"]


def test_mirror_that_was_left_behind_follows_and_one_that_parted_is_an_error(bucket, tmp_path):
    here, there = Mirror("gs://bucket/run", str(tmp_path / "a")), Mirror("gs://bucket/run", str(tmp_path / "b"))
    (tmp_path / "a" / "log.txt").write_text("one")
    here.upload()
    there.download()
    (tmp_path / "b" / "log.txt").write_text("two by b")
    there.upload()
    here.download()
    assert (tmp_path / "a" / "log.txt").read_text() == "two by b"
    (tmp_path / "b" / "log.txt").write_text("three by b, sent")
    there.upload()
    (tmp_path / "a" / "log.txt").write_text("three by a")
    with pytest.raises(OSError, match=r"gs://bucket/run/log\.txt: changed there and in .*a since"):
        here.download()
    assert (tmp_path / "a" / "log.txt").read_text() == "three by a"


def test_only_what_a_watched_process_deletes_is_deleted_there(bucket, tmp_path):
    here = tmp_path / "here"
    mirror = Mirror("gs://bucket/run", str(here))
    for name in ("a.pt", "b.pt", "c.pt", "d.pt"):
        (here / name).write_text(name)
    mirror.upload()
    (here / "a.pt").unlink()  # not watched yet
    watch_deletions(str(here))
    (here / "b.pt").unlink()
    (here / "c.pt").unlink()
    delete_elsewhere(here / "d.pt")
    (bucket / "run" / "c.pt").write_text("written anew by another machine")
    assert Mirror(None, str(here)).download() == 3
    assert sorted(os.listdir(bucket / "run")) == ["a.pt", "b.pt", "c.pt", "d.pt"]
    assert sorted(path.name for path in here.glob("*.pt")) == ["a.pt", "c.pt", "d.pt"]
    for name in ("a.pt", "c.pt", "d.pt"):
        delete_elsewhere(here / name)
    Mirror(None, str(here)).upload()
    assert sorted(os.listdir(bucket / "run")) == ["a.pt", "c.pt", "d.pt"]


def test_deleted_file_that_another_machine_wrote_anew_stays_there(bucket, tmp_path):
    here = tmp_path / "here"
    mirror = Mirror("gs://bucket/run", str(here))
    (here / "a.pt").write_text("mine")
    mirror.upload()
    watch_deletions(str(here))
    (here / "a.pt").unlink()
    (bucket / "run" / "a.pt").write_text("of the other machine")
    mirror.upload()
    assert (bucket / "run" / "a.pt").is_file()
    assert mirror.download() == 1


def test_file_that_vanishes_there_as_soon_as_it_is_sent_is_sent_again(bucket, tmp_path, monkeypatch):
    mirror = Mirror("gs://bucket/run", str(tmp_path / "here"))
    (tmp_path / "here" / "a.pt").touch()
    with monkeypatch.context() as patch:
        patch.setattr(blob, "copy", lambda source, target: None)
        assert mirror.upload() == 1
    assert mirror.upload() == 1
    assert (bucket / "run" / "a.pt").is_file()
    assert mirror.upload() == 0


def test_mirror_of_another_folder_is_refused(bucket, tmp_path):
    Mirror("gs://bucket/run", str(tmp_path / "a")).upload()
    with pytest.raises(ValueError, match="the copy of gs://bucket/run, not of gs://bucket/other"):
        Mirror("gs://bucket/other", str(tmp_path / "a"))


def delete_elsewhere(path):
    """Delete a file as the user does, outside this process."""
    subprocess.run([sys.executable, "-c", "import os, sys; os.unlink(sys.argv[1])", path], check=True)


def calls(bucket):
    return (bucket.parent / "calls.txt").read_text().splitlines()
