"""A folder of images: which files count, what their labels are, how pixels are read, and what is refused."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_decgan.data import ImageFolderDataModule, read_image


def paint(path, colour, size=(20, 30), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def classes(tmp_path):
    for number in range(6):
        paint(tmp_path / "red" / f"{number}.png", "red")
        paint(tmp_path / "blue" / "deeper" / f"{number}.PNG", "blue")
    return tmp_path


def test_sub_folders_are_classes_in_sorted_order_and_their_images_carry_their_label(classes):
    module = ImageFolderDataModule(classes, batch_size=2, image_size=16, validation_fraction=0.25)
    assert (module.num_classes, module.class_names) == (2, ("blue", "red"))
    module.setup()
    assert (len(module.train_dataset), len(module.val_dataset)) == (9, 3)
    colours = torch.tensor([[-1.0, -1.0, 1.0], [1.0, -1.0, -1.0]])
    for images, labels in module.train_dataloader():
        assert images.shape == (2, 3, 16, 16)
        assert labels.dtype == torch.int64
        torch.testing.assert_close(images[:, :, 8, 8], colours[labels])


def test_a_folder_without_sub_folders_has_no_labels(tmp_path):
    for number, ending in enumerate(("png", "jpg", "jpeg", "webp", "bmp")):
        paint(tmp_path / f"{number}.{ending}", "red")
    for left_out in ("notes.txt", "._0.png", "animation.gif"):
        (tmp_path / left_out).write_text("not an image")
    module = ImageFolderDataModule(tmp_path, batch_size=2, image_size=8)
    module.setup()
    assert (module.num_classes, module.class_names) == (None, None)
    assert len(module.train_dataset) + len(module.val_dataset) == 5
    assert {label.item() for _, labels in module.train_dataloader() for label in labels} == {0}


def test_images_beside_sub_folders_need_a_word_from_the_user(classes):
    paint(classes / "cover.png", "green")
    with pytest.raises(ValueError, match=r"1 image\(s\) beside its sub-folders and 12 in them.*labels=False"):
        ImageFolderDataModule(classes)
    module = ImageFolderDataModule(classes, labels=False)
    assert module.num_classes is None
    assert len(module.load()) == 13


def test_the_middle_square_is_kept(tmp_path):
    pixels = np.zeros((8, 24), np.uint8)
    pixels[:, 8:16] = 255
    Image.fromarray(pixels).save(tmp_path / "band.png")
    assert read_image(tmp_path / "band.png", 8, channels=1).eq(1).all()


def test_resizing_is_antialiased_and_stays_in_range(tmp_path):
    pixels = np.zeros((64, 64), np.uint8)
    pixels[:, ::2] = 255
    Image.fromarray(pixels).save(tmp_path / "stripes.png")
    image = read_image(tmp_path / "stripes.png", 8, channels=1)
    assert image.shape == (1, 8, 8)
    assert image[:, :, 1:-1].abs().max() < 0.15


def test_channels_convert_grey_and_colour(tmp_path):
    paint(tmp_path / "red.png", (255, 0, 0))
    paint(tmp_path / "grey.png", 51, mode="L")
    assert read_image(tmp_path / "red.png", 8, channels=1).unique().item() == pytest.approx(76 / 127.5 - 1)
    assert read_image(tmp_path / "grey.png", 8, channels=3).unique().item() == pytest.approx(51 / 127.5 - 1)


def test_transparent_pixels_are_white_and_sixteen_bits_are_scaled(tmp_path):
    Image.new("RGBA", (9, 9), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png", 8, channels=3).eq(1).all()
    Image.fromarray(np.full((9, 9), 257 * 51, np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png", 8, channels=1).unique().item() == pytest.approx(51 / 127.5 - 1)


def test_photographs_are_turned_upright(tmp_path):
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:, :8] = 255  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown, turn a quarter clockwise: left becomes top
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    image = read_image(tmp_path / "turned.png", 16, channels=1)
    assert image[0, :8].eq(1).all()
    assert image[0, 8:].eq(-1).all()


def test_an_unreadable_image_is_an_error_naming_the_file(classes):
    victim = classes / "red" / "3.png"
    content = victim.read_bytes()
    for damaged in (b"", b"no image at all", content[: len(content) // 2], content[:30] + b"\xff" * 20 + content[50:]):
        victim.write_bytes(damaged)
        with pytest.raises(ValueError, match="cannot read image") as caught:
            read_image(victim, 16, channels=3)
        assert str(victim) in str(caught.value)


def test_huge_images_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    paint(tmp_path / "huge.png", "red", size=(40, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1199)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ValueError, match=r"huge.png: 40 x 30 pixels, allowed are 1199"),
    ):
        read_image(tmp_path / "huge.png", 8, channels=3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1200)
    assert read_image(tmp_path / "huge.png", 8, channels=3).shape == (3, 8, 8)


def test_a_folder_without_images_is_an_error_naming_it_and_the_extensions(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(FileNotFoundError, match=r"no image in .*\.png, \.jpg, \.jpeg, \.webp, \.bmp") as caught:
        ImageFolderDataModule(tmp_path)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ImageFolderDataModule(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match=r"notes\.txt"):
        ImageFolderDataModule(tmp_path / "notes.txt")


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_only_grey_and_colour_exist(classes, channels):
    with pytest.raises(ValueError, match=f"channels must be .*found {channels}"):
        ImageFolderDataModule(classes, channels=channels)


def test_the_order_does_not_depend_on_the_file_system_and_pickling_keeps_it(classes):
    module = ImageFolderDataModule(classes, batch_size=2, image_size=8)
    module.setup()
    copy = pickle.loads(pickle.dumps(module))
    assert module.load().paths == sorted(module.load().paths)
    assert copy.load().paths == module.load().paths
    assert copy.val_dataset.indices == module.val_dataset.indices
    assert copy.fingerprint() == module.fingerprint()


def test_the_fingerprint_sees_changed_bytes_of_equal_length(classes):
    def fingerprint():
        module = ImageFolderDataModule(classes, image_size=8)
        module.setup()
        return module.fingerprint()

    before = fingerprint()
    assert fingerprint() == before
    paint(classes / "red" / "3.png", (254, 0, 0))
    assert fingerprint() != before


def test_the_files_are_read_once_for_the_fingerprint(classes, monkeypatch):
    module = ImageFolderDataModule(classes, image_size=8)
    module.setup()
    before = module.fingerprint()
    monkeypatch.setattr(type(module.load()), "fingerprint", lambda self: pytest.fail("read again"))
    assert module.fingerprint() == before


def test_the_name_comes_from_the_folder_or_the_user(classes, tmp_path):
    paint(tmp_path / "My Photos-2" / "a.png", "red")
    assert ImageFolderDataModule(tmp_path / "My Photos-2").name == "my_photos_2"
    assert ImageFolderDataModule(tmp_path / "My Photos-2", name="faces").name == "faces"


def test_loader_processes_decode_the_same_images(classes):
    alone = ImageFolderDataModule(classes, batch_size=4, image_size=8, validation_fraction=0.5)
    helped = ImageFolderDataModule(classes, batch_size=4, image_size=8, validation_fraction=0.5, num_workers=1)
    alone.setup()
    helped.setup()
    for mine, theirs in zip(alone.val_dataloader(), helped.val_dataloader(), strict=True):
        assert torch.equal(mine[0], theirs[0])
