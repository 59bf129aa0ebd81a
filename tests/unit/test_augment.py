"""Augmentations against what they say they do, sample by sample, and the gradient that goes through them."""

import pytest
import torch

from lightning_decgan.gan import DCGANDiscriminator, DCGANGenerator, DecentralizedGANModule
from lightning_decgan.gan.augment import AUGMENTATIONS, DiffAugment, get_augment


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_brightness_adds_one_number_to_each_image_uniformly():
    images = torch.randn(2000, 3, 2, 2, dtype=torch.float64)
    added = AUGMENTATIONS["brightness"](images) - images
    torch.testing.assert_close(added, added[:, :1, :1, :1].expand_as(added), rtol=0, atol=1e-14)
    numbers = added[:, 0, 0, 0]
    assert float(numbers.abs().max()) <= 0.5
    assert float(numbers.mean()) == pytest.approx(0, abs=0.03)
    assert float(numbers.var()) == pytest.approx(1 / 12, rel=0.1)


@pytest.mark.parametrize(("name", "dims", "high"), [("saturation", (1,), 2.0), ("contrast", (1, 2, 3), 1.5)])
def test_distances_to_the_mean_are_multiplied_and_the_mean_stays(name, dims, high):
    images = torch.randn(500, 3, 4, 4, dtype=torch.float64)
    after = AUGMENTATIONS[name](images)
    mean = images.mean(dims, keepdim=True)
    torch.testing.assert_close(after.mean(dims, keepdim=True), mean, rtol=0, atol=1e-12)
    factors = ((after - mean) / (images - mean)).flatten(1)
    torch.testing.assert_close(factors, factors[:, :1].expand_as(factors), rtol=1e-6, atol=1e-6)
    assert 2 - high <= float(factors.min()) < float(factors.max()) <= high
    assert float(factors[:, 0].mean()) == pytest.approx(1, abs=0.1)
    assert float(factors[:, 0].std()) == pytest.approx((2 * high - 2) / 12**0.5, rel=0.1), "uniform, to both ends"


def test_an_image_is_shifted_by_whole_pixels_and_zero_comes_in():
    images = torch.arange(1.0, 257.0).view(1, 1, 16, 16).expand(300, 2, 16, 16)
    after, seen = AUGMENTATIONS["translation"](images), set()
    padded = torch.nn.functional.pad(images[0], (2, 2, 2, 2))
    for image in after:
        shifts = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if torch.equal(image, padded[:, 2 - down : 18 - down, 2 - right : 18 - right])
        ]
        assert len(shifts) == 1
        seen.add(shifts[0])
    assert len(seen) == 25


@pytest.mark.parametrize("size", [8, 9])
def test_a_rectangle_of_half_the_size_is_cut_out(size):
    after, half = AUGMENTATIONS["cutout"](torch.ones(400, 3, size, size)), int(size / 2 + 0.5)
    cut = after == 0
    assert bool((cut.any(1) == cut.all(1)).all()), "all channels at once"
    heights, widths = cut[:, 0].any(2).sum(1), cut[:, 0].any(1).sum(1)
    assert torch.equal(cut[:, 0].sum((1, 2)), heights * widths), "rectangles"
    assert int(heights.max()) == int(widths.max()) == half
    assert int(heights.min()) >= half // 2


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_samples_are_not_mixed_and_the_gradient_is_that_of_what_was_done(name):
    images = torch.randn(4, 3, 6, 6, dtype=torch.float64, requires_grad=True)

    def augmented(images):
        torch.manual_seed(7)
        return AUGMENTATIONS[name](images)

    (slope,) = torch.autograd.grad(augmented(images)[0].square().sum(), images)
    assert slope[0].abs().max() > 0
    assert not slope[1:].any()
    assert torch.autograd.gradcheck(augmented, images[:2].detach().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shape_and_dtype_stay(dtype):
    images = torch.randn(3, 1, 28, 28).to(dtype)
    assert DiffAugment()(images).shape == images.shape
    assert DiffAugment()(images).dtype == dtype


def test_policies():
    assert get_augment(None) is None
    assert get_augment(torch.tanh) is torch.tanh
    assert repr(get_augment("color, cutout")) == "DiffAugment('color,cutout')"
    with pytest.raises(ValueError, match=r"augment must be names of color, .* found 'blur'"):
        get_augment("blur")
    with pytest.raises(ValueError, match="found ''"):
        get_augment("")
    with pytest.raises(TypeError, match="found 3"):
        get_augment(3)


def test_a_policy_may_be_a_list_of_names():
    assert repr(DiffAugment(["color", "cutout"])) == "DiffAugment('color,cutout')"
    assert repr(get_augment(("color", "cutout"))) == "DiffAugment('color,cutout')"
    with pytest.raises(ValueError, match=r"augment must be names of color, .*, found \['blur'\]"):
        get_augment(["blur"])


def test_a_policy_given_as_a_list_is_a_setting_that_a_checkpoint_keeps():
    networks = DCGANGenerator(latent_dim=2), DCGANDiscriminator()
    for given in ("color,cutout", ["color", "cutout"]):
        assert DecentralizedGANModule(*networks, augment=given).hparams.augment == "color,cutout"
