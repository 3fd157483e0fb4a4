"""Which images a folder or a tar has, and of which classes, whatever else lies there."""

import io
import os
import random
import tarfile

import pytest
from folders import encoded, make_folder, make_tar

from octaveconv.data.datasets import CorruptImage, open_dataset
from octaveconv.data.listing import natural, numbered
from octaveconv.errors import UsageError


@pytest.fixture
def folder(tmp_path):
    """3 cats, 2 dog10, 4 dog2."""
    make_folder(tmp_path / "set")
    return tmp_path / "set"


def labels(dataset):
    """The class name of each file."""
    return {dataset.filename(i): dataset.classes[dataset.reader[i][1]] for i in range(len(dataset))}


def note(dataset, start):
    """The rest of the one note that starts so."""
    start = f"{dataset.source}: {start}: "
    found = [text.removeprefix(start) for text in dataset.notes if text.startswith(start)]
    assert len(found) == 1, dataset.notes
    return found[0]


def put(path, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(number))


@pytest.mark.parametrize("target", [".", "..", "../..", "../cat", "/"], ids=["self", "root", "above", "class", "all"])
def test_a_loop_is_not_followed(folder, target):
    before = labels(open_dataset(folder))
    (folder / "cat" / "loop").symlink_to(target)
    (folder / "loop").symlink_to("." if target == "." else "..")  # not a class
    dataset = open_dataset(folder)
    assert labels(dataset) == before
    assert dataset.classes == ["cat", "dog2", "dog10"]
    assert note(dataset, "not followed, because they lead to a folder that is read already") == "cat/loop, loop"


def test_links_to_each_other_are_followed_once(folder, tmp_path):
    for name in "ab":
        put(tmp_path / name / f"{name}.png")
    (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a")
    (folder / "cat" / "more").symlink_to(tmp_path / "a")
    dataset = open_dataset(folder)
    assert len(dataset) == 9 + 2
    assert note(dataset, "followed 2 links") == "cat/more, cat/more/to_b"
    assert note(dataset, "not followed, because they lead to a folder that is read already") == "cat/more/to_b/to_a"


def test_links_to_other_places_are_followed(folder, tmp_path):
    put(tmp_path / "elsewhere" / "owls" / "0.png")
    put(tmp_path / "elsewhere" / "1.png")
    (folder / "owl").symlink_to(tmp_path / "elsewhere" / "owls")
    (folder / "cat" / "link.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    dataset = open_dataset(folder)
    assert len(dataset) == 11
    assert labels(dataset)[f"{folder}/owl/0.png"] == "owl"
    assert note(dataset, "followed 2 links") == "cat/link.png, owl"


def test_a_file_with_several_names_is_one_image(folder):
    (folder / "cat" / "a.png").symlink_to("0.png")
    os.link(folder / "cat" / "1.png", folder / "cat" / "b.png")
    (folder / "cat" / "deep").mkdir()
    (folder / "cat" / "deep" / "c.png").symlink_to("../2.png")
    dataset = open_dataset(folder)
    assert len(dataset) == 9
    assert note(dataset, "counted once: 3 further names of the same files") == "cat/a.png, cat/b.png, cat/deep/c.png"


def test_copies_are_images(folder):
    put(folder / "cat" / "copy.png", 0)
    assert len(open_dataset(folder)) == 10


@pytest.mark.parametrize("kind", ["symbolic", "hard", "folder"])
def test_a_file_in_two_classes_is_refused(folder, kind):
    if kind == "hard":
        os.link(folder / "cat" / "0.png", folder / "dog2" / "x.png")
    elif kind == "symbolic":
        (folder / "dog2" / "x.png").symlink_to("../cat/0.png")
    else:
        (folder / "dog2" / "x").symlink_to("../cat")
    with pytest.raises(UsageError, match=r"cat/0\.png and dog2/x.* are one file in two classes: remove one of them"):
        open_dataset(folder)


def test_inodes_that_a_file_system_invents_are_not_believed(folder, monkeypatch):
    real = os.scandir

    class Entry:
        def __init__(self, entry):
            self.entry = entry

        def __getattr__(self, name):
            return getattr(self.entry, name)

        def inode(self):
            return 0xFFFFFFFF  # what FUSE gives if it does not know

    class Listing:
        def __init__(self, path):
            self.entries = real(path)

        def __enter__(self):
            return map(Entry, self.entries)

        def __exit__(self, *_):
            self.entries.close()

    monkeypatch.setattr(os, "scandir", Listing)
    assert len(open_dataset(folder)) == 9


def test_what_is_no_image_is_left_out_and_said(folder):
    for name in ("Thumbs.db", ".DS_Store", "._0.png", ".hidden.jpg", "noending", "notes.txt", "x.png.part"):
        (folder / "cat" / name).write_bytes(b"")
    put(folder / ".ipynb_checkpoints" / "0.png")
    put(folder / "cat" / ".cache" / "0.png")
    (folder / "README").write_text("")
    os.mkfifo(folder / "cat" / "pipe.png")  # opening it would wait for ever
    (folder / "cat" / "device.png").symlink_to("/dev/zero")
    dataset = open_dataset(folder)
    assert (len(dataset), dataset.classes) == (9, ["cat", "dog2", "dog10"])
    said = next(text for text in dataset.notes if "left out" in text)
    assert "left out: 12 that are hidden, or not files ending in .bmp, .gif, " in said
    assert said.endswith(": .ipynb_checkpoints, README, cat/.DS_Store and 9 more")
    assert len(dataset.notes) == 1


def test_nothing_is_said_of_a_clean_folder(folder):
    assert open_dataset(folder).notes == ()


@pytest.mark.parametrize("ending", ["JPG", "jpeg", "PNG", "gif", "bmp", "webp", "tif", "TIFF", "ppm", "pgm"])
def test_endings(tmp_path, ending):
    put(tmp_path / "set" / "a" / f"0.{ending}")
    assert open_dataset(tmp_path / "set")[0][1] == 0


def test_a_dangling_link_is_an_image_that_cannot_be_read(folder):
    (folder / "cat" / "lost.png").symlink_to("nowhere")
    (folder / "cat" / "self.png").symlink_to("self.png")
    dataset = open_dataset(folder)
    assert len(dataset) == 11
    for i, why in ((3, "No such file"), (4, "Too many levels of symbolic links")):
        with pytest.raises(CorruptImage, match=why):
            dataset[i]


def test_all_below_a_class_belongs_to_it(folder):
    put(folder / "cat" / "tabby" / "young" / "0.png")
    put(folder / "dog2" / "tabby" / "0.png")
    dataset = open_dataset(folder)
    assert dataset.classes == ["cat", "dog2", "dog10"]
    assert labels(dataset)[f"{folder}/cat/tabby/young/0.png"] == "cat"
    assert labels(dataset)[f"{folder}/dog2/tabby/0.png"] == "dog2"


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_an_empty_class_has_its_number(folder, tmp_path, kind):
    (folder / "bird").mkdir()
    (folder / "cow").mkdir()
    (folder / "cow" / "notes.txt").write_text("")
    dataset = open_dataset(folder if kind == "folder" else make_tar(tmp_path / "a.tar", folder))
    assert (dataset.num_classes, dataset.classes) == (5, ["bird", "cat", "cow", "dog2", "dog10"])
    assert {label for _, label in dataset} == {1, 3, 4}
    assert note(dataset, "classes without images, which have a number as well") == "bird, cow"


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_classes_keep_the_numbers_of_others(folder, tmp_path, kind):
    (folder / "bird").mkdir()
    source = folder if kind == "folder" else make_tar(tmp_path / "a.tar", folder)
    dataset = open_dataset(source, classes=["zebra", "dog10", "dog2", "cat", "ape"])
    assert (dataset.num_classes, dataset.classes) == (5, ["zebra", "dog10", "dog2", "cat", "ape"])
    assert [dataset[i][1] for i in range(9)] == [3, 3, 3, 2, 2, 2, 2, 1, 1]
    assert note(dataset, "classes without images, which have a number as well") == "zebra, ape"
    assert note(dataset, "left out: folders without images, of classes that are not expected") == "bird"
    with pytest.raises(
        UsageError, match=r"images of classes that are not among the 1 expected ones \(cat\): dog10, dog2"
    ):
        open_dataset(source, classes=["cat"])


def test_the_order_never_depends_on_chance():
    """Of names that differ in case or in leading zeros alone, too: a set of text has another order in each process."""
    names = ["001", "01", "1", "a1b9", "a1b10", "CAT", "Cat", "cat", "\u00b2"]
    for seed in range(20):
        assert numbered("x", random.Random(seed).sample(names, len(names))) == names


def test_any_names_can_be_sorted():
    names = ["".join(random.Random(i).choices("ab1\u00b2\u0663/ .", k=i % 7)) for i in range(500)]
    assert sorted({*names}, key=natural) == sorted(sorted({*names}, reverse=True), key=natural)
    assert sorted(["9" * 5000, "1" * 5000], key=natural) == ["1" * 5000, "9" * 5000]


def test_names_of_classes(tmp_path):
    names = ["a\nb", "\x1b[31mred", "\u202eabc", "na\u00efve", "\u732b", "[bold]", "x" * 255, " "]
    for name in names:
        put(tmp_path / "set" / name / "0.png")
    dataset = open_dataset(tmp_path / "set")
    assert {*dataset.classes} == {*names}
    assert len({dataset[i][1] for i in range(len(names))}) == len(names)


def test_one_class_in_two_forms_of_unicode(tmp_path):
    """Composed and decomposed, as Linux and macOS write it."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    put(tmp_path / "train" / composed / "0.png")
    put(tmp_path / "val" / decomposed / "0.png")
    put(tmp_path / "val" / "a" / "0.png")
    train = open_dataset(tmp_path, "train")
    assert open_dataset(tmp_path, "val", classes=["a", *train.classes])[1][1] == 1
    put(tmp_path / "train" / decomposed / "0.png")
    with pytest.raises(UsageError, match="has two class folders caf\u00e9, of other Unicode forms: merge them"):
        open_dataset(tmp_path, "train")


def test_a_name_that_is_not_unicode(folder):
    os.mkdir(os.fsencode(folder) + b"/caf\xe9")
    with pytest.raises(UsageError, match=r"the name of the class folder caf.* is not UTF-8: rename it"):
        open_dataset(folder)
    os.rmdir(os.fsencode(folder) + b"/caf\xe9")
    with open(os.fsencode(folder) + b"/cat/\xe9.png", "wb") as file:
        file.write(b"no image")
    with pytest.raises(CorruptImage) as caught:
        open_dataset(folder)[3]
    assert str(caught.value).endswith(r"cat/\udce9.png cannot be read: it is not an image that Pillow knows")


def test_a_folder_that_cannot_be_read(folder, monkeypatch):
    real = os.scandir

    def scandir(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)  # root may read all
    with pytest.raises(UsageError, match=r"the folder .*/cat cannot be read \(Permission denied\): give access to it"):
        open_dataset(folder)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_folder_without_classes_says_what_is_expected(tmp_path, split):
    put(tmp_path / "flat" / "0.png")
    path = tmp_path / "flat"
    message = f"there is no folder '{split}' in {path}: it has no folders; expected {path}/{split}/CLASS/*.jpg"
    with pytest.raises(UsageError) as caught:
        open_dataset(path, split)
    assert str(caught.value) == message
    with pytest.raises(UsageError) as caught:
        open_dataset(path)
    assert str(caught.value) == (
        f"there are images directly in {path}: put each in a folder named after its class, as in {path}/CLASS/0.png"
    )


def test_tars(folder, tmp_path):
    """With a folder around all, hidden files, a later member of the same name, links, and a tar in it."""
    with tarfile.open(tmp_path / "inner.tar", "w") as inner:
        inner.add(folder / "cat" / "0.png", "x/0.png")
        inner.add(folder / "cat" / "1.png", "1.png")
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(folder, "top")
        tar.add(folder / "cat" / "1.png", "./top/cat/0.png")
        for name in ("._0.png", ".DS_Store", "notes.txt"):
            tar.addfile(tarfile.TarInfo(f"top/cat/{name}"), io.BytesIO())
        link = tarfile.TarInfo("top/cat/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "0.png"
        tar.addfile(link)
        tar.add(tmp_path / "inner.tar", "top/owl.tar")
    dataset = open_dataset(path)
    assert (len(dataset), dataset.classes) == (11, ["cat", "dog2", "dog10", "owl"])
    named = {dataset.filename(i).removeprefix(f"{path}: "): dataset[i] for i in range(11)}
    assert named["top/owl/x/0.png"][1] == named["top/owl/1.png"][1] == 3
    assert named["./top/cat/0.png"][0].tobytes() == named["top/owl/1.png"][0].tobytes()
    assert note(dataset, "counted once") == "1 members that a later one of the same name replaces"
    assert ": top/cat/.DS_Store, top/cat/._0.png, top/cat/link.png and 1 more" in "".join(dataset.notes)


def test_files_are_listed_without_asking_for_each(tmp_path, monkeypatch):
    """So that 50,000 take about a second, and a million on a server not an hour."""
    for name in map(str, range(3)):
        (tmp_path / name).mkdir()
        for i in range(500):
            os.close(os.open(tmp_path / name / f"{i}.jpg", os.O_CREAT))
    asked, real = [], os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: (asked.append(path), real(path, **options))[1])
    assert len(open_dataset(tmp_path)) == 1500
    assert len(asked) < 100
