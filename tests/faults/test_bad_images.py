"""A small run of tests/faults/bad_images.py: each kind of bad image trains or is skipped and reported, as it should."""

import bad_images


def test_each_kind_trains_or_is_reported(call, tmp_path):
    kinds = bad_images.write_images(tmp_path / 'images', 2 * len(bad_images.KINDS), 96)
    config = tmp_path / 'config.py'
    config.write_text(bad_images.CONFIG)
    code, out, err = call(
        'train', config, '--work-dir', tmp_path / 'run', '--cfg-options',
        f'train_dataloader.dataset.source={tmp_path}/images', 'train_dataloader.num_workers=1',
    )  # fmt: skip
    assert code == 0, out[-2000:] + err[-2000:]
    assert (tmp_path / 'run/epoch_2.pth').exists()
    skipped = bad_images.read_report(tmp_path / 'run')
    assert not bad_images.differences(kinds, skipped)
    assert len(skipped) == 8
    assert '8 of 120 pictures could not be used, others took their places: ' in out
    assert all(f'2 {kind}' in out for kind in ('damaged', 'empty', 'too large', 'not a picture'))
