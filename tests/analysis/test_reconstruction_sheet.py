"""The rows of a sheet: what is pasted, whose error is measured, and that masks stay the same."""

import numpy as np
import pytest
import torch
from micro_pretraining import write_checkpoint, write_config

from mmcnx2.analysis.reconstruction_sheet import reconstruction_sheet
from mmcnx2.models.fcmae.masking import random_visible


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_checkpoint(write_config())


def pictures(num=3):
    return torch.rand(num, 3, 64, 96, generator=torch.Generator().manual_seed(0)).mul(255).round()


def rows_of(sheet):
    return {row.label: np.stack(row.pictures) for row in sheet.rows}


def test_error_is_the_loss_of_training(model):
    sheet = reconstruction_sheet(model, pictures(), [0.5], seed=7)
    images = model.data_preprocessor({'inputs': pictures(), 'data_samples': None})['inputs']
    visible = random_visible(3, (2, 3), 0.5, seeds=[7, 8, 9])
    expected = model.loss(images, visible=visible)['loss'].item()
    assert sheet.errors == [pytest.approx(expected, rel=1e-5)]
    assert f'{expected:.3f} at mask ratio 0.5' in sheet.caption


def test_masks_depend_on_the_picture_and_the_seed_alone(model):
    three, two = (rows_of(reconstruction_sheet(model, pictures(num), seed=1)) for num in (3, 2))
    assert all(np.array_equal(three[label][:2], two[label]) for label in ('input', 'masked'))
    other = rows_of(reconstruction_sheet(model, pictures(), seed=5))
    assert not np.array_equal(three['masked'], other['masked'])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    reconstruction_sheet(model, pictures())
    assert torch.equal(torch.get_rng_state(), before)  # a hook must not change the training


def test_what_the_encoder_saw_is_grey_where_hidden(model):
    rows = rows_of(reconstruction_sheet(model, pictures(), [0.5]))
    visible = random_visible(3, (2, 3), 0.5, seeds=[0, 1, 2]).repeat_interleave(32, 1).repeat_interleave(32, 2).numpy()
    assert np.array_equal(rows['masked'][visible], rows['input'][visible])
    assert (rows['masked'][~visible] == 128).all()
    for label in ('filled, own', 'filled, near'):
        assert np.array_equal(rows[label][visible], rows['input'][visible])
        assert not np.array_equal(rows[label][~visible], rows['input'][~visible])


def test_colours_are_shown_as_they_are(model):
    """The pictures come as BGR and the preprocessor turns them round; a model that sees BGR is turned for showing."""
    rgb = pictures().permute(0, 2, 3, 1).flip(-1).numpy().astype(np.uint8)
    assert np.array_equal(rows_of(reconstruction_sheet(model, pictures()))['input'], rgb)
    turned = rows_of(reconstruction_sheet(model, pictures(), shown_in_rgb=False))['input']
    assert np.array_equal(turned, rgb[..., ::-1])


def test_fills_choose_the_rows(model):
    labels = [row.label for row in reconstruction_sheet(model, pictures(), [0.5, 0.75], fills='own').rows]
    assert labels == ['input', 'masked 0.5', 'filled, own 0.5', 'masked 0.75', 'filled, own 0.75']
    with pytest.raises(ValueError, match="fills='median'"):
        reconstruction_sheet(model, pictures(), fills='median')
