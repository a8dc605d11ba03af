"""A whole run whose losses are not finite ends through mmcnx2.NonFiniteGuardHook, part of each runtime config."""

import full_disk


def test_a_learning_rate_that_explodes_ends_the_run_with_one_line(call, tmp_path, monkeypatch):
    """The weights stay sound, the log holds no NaN, the images are named; and an option switches it off."""
    monkeypatch.chdir(tmp_path)
    full_disk.write_images(tmp_path / 'images')
    (tmp_path / 'config.py').write_text(full_disk.CONFIG)
    options = [
        'optim_wrapper.optimizer.lr=1e20', 'param_scheduler=None', 'train_cfg.max_epochs=1',
        'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False',
    ]  # fmt: skip
    code, out, err = call('train', 'config.py', '--work-dir', 'run', '--cfg-options', *options)
    assert code == 1
    lines = [line for line in err.splitlines() if line.startswith('error')]
    assert len(lines) == 1 and 'Traceback (most recent' not in err
    assert '5 steps in a row' in lines[0] and 'learning rate (now 1e+20' in lines[0]
    assert 'run/non_finite/*.json' in lines[0]
    dumps = list((tmp_path / 'run/non_finite').glob('*.json'))
    assert len(dumps) == 5 and '"img_path": "images/' in dumps[0].read_text()
    assert 'loss: nan' not in out and 'loss: inf' not in out
    off = 'default_hooks.non_finite_guard.enabled=False'
    code, out, err = call('train', 'config.py', '--work-dir', 'off', '--cfg-options', *options, off)
    assert code == 0 and 'loss: nan' in out and not (tmp_path / 'off/non_finite').exists()
