"""Each check on what it is there to find: a healthy run passes, and one fault fails the check that names it."""

import copy
from pathlib import Path

import pytest
import torch
from micro_pretraining import CONFIG, write_config, write_pictures
from PIL import Image

from mmcnx2.engine import pretraining_checks as checks
from mmcnx2.engine.pretraining_checks import FAIL, OK, WARNING, check_pretraining
from mmcnx2.models.fcmae.masking import random_visible
from mmcnx2.registry import MODELS

# wide enough to learn eight pictures by heart within 40 steps
LONG = (
    CONFIG.replace('max_epochs=2', 'max_epochs=200')
    .replace('decoder_channels=16', 'decoder_channels=128')
    .replace('[4, 8, 12, 16]', '[8, 16, 32, 64]')
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pictures(num=12)
    return tmp_path


def verdicts(cfg, **options):
    """{check: Finding} of a whole run."""
    return {
        finding.check: finding for finding in check_pretraining(cfg, num_steps=options.pop('num_steps', 40), **options)
    }


@pytest.fixture
def parts(folder):
    """A model as training starts it, eight images and a mask."""
    cfg = write_config(LONG)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.interpolate(torch.randn(8, 3, 4, 4, generator=generator), 64, mode='bicubic')
    return model, images, random_visible(8, (2, 2), 0.5, seeds=range(8))


# ---- whole runs


def test_a_healthy_run_passes(folder):
    cfg = write_config(LONG)
    found = verdicts(cfg)
    assert list(found) == [
        'pictures', 'normalisation', 'cells', 'targets', 'mask leak', 'first loss', 'gradients',
        'overfitting one batch', 'learning rate', 'schedule',
    ]  # fmt: skip
    bad = {name: str(one) for name, one in found.items() if one.verdict != OK}
    assert list(bad) == ['cells'], bad  # 64 px are few cells for a patch of 32
    assert found['cells'].verdict == WARNING
    assert all(bool(one.remedy) == (one.verdict != OK) for one in found.values())
    assert found['pictures'].numbers['in_set'] == 12


def test_nothing_global_changes(folder):
    torch.manual_seed(5)
    twice = [verdicts(write_config(LONG), num_steps=3)['overfitting one batch'].numbers['losses'] for _ in range(2)]
    assert twice[0] == twice[1]


@pytest.mark.parametrize(
    ('change', 'check', 'words'),
    [
        (("source='pictures'", "source='nowhere'"), 'pictures', 'nowhere'),
        (
            ('mean=[123.675, 116.28, 103.53],', 'mean=[2000.0, 0.5, 0.5],'),
            'normalisation',
            'model.data_preprocessor.mean',
        ),
        (('std=[58.395, 57.12, 57.375]', 'std=[0.2, 0.2, 0.2]'), 'normalisation', 'model.data_preprocessor.mean'),
        (('scale=64', 'scale=80'), 'cells', 'multiples of 32'),
        (('mask_ratio=0.5', 'mask_ratio=0.8'), 'cells', 'keeps int(4'),
        ((", dict(type='RandomResizedCrop', scale=64)", ''), 'sizes', 'RandomResizedCrop'),
        (('lr=1e-3', 'lr=1e3'), 'learning rate', 'too high'),
        (('batch_size=2', 'batch_size=16'), 'schedule', 'no step'),
        (('max_epochs=200', 'max_epochs=1'), 'schedule', 'warmup'),
    ],
)
def test_a_fault_is_named_with_a_remedy(folder, change, check, words):
    assert change[0] in LONG
    if check == 'sizes':
        write_pictures('pictures/others', num=1, width=96)
    found = verdicts(write_config(LONG.replace(*change)), num_steps=2)
    assert found[check].verdict == FAIL and words in str(found[check]), found[check]
    assert found[check].remedy and '\n' not in str(found[check])


def test_pictures_that_show_nothing(folder):
    paths = sorted(Path('pictures').rglob('*.png'))
    for number, path in enumerate(paths[:2]):
        Image.new('RGB', (64, 64), (10 * number, 0, 0)).save(path)
    paths[2].write_text('broken')
    cfg = write_config(LONG.replace("source='pictures',", "source='pictures', max_bad_share=0.5,"))
    finding = verdicts(cfg, num_steps=2)['pictures']
    assert finding.verdict == WARNING
    assert finding.numbers['constant'] == 2 and finding.numbers['broken'] == 1 and str(paths[2]) in finding.said
    for path in paths:
        Image.new('RGB', (64, 64), (90, 90, 90)).save(path)
    found = verdicts(cfg, num_steps=2)
    assert found['pictures'].verdict == FAIL and found['targets'].verdict == FAIL


def test_another_model_is_refused(folder):
    cfg = write_config(LONG)
    cfg.model = dict(type='mmcnx2.ConvNeXtV2', arch='atto')
    with pytest.raises(ValueError, match='not an FCMAE'):
        list(check_pretraining(cfg))


# ---- single checks


def test_targets_count_flat_cells(parts):
    model, images, _ = parts
    images[:, :, :32] = 0.3
    finding = checks.check_targets(model, images)
    assert finding.numbers['flat_share'] == 0.5 and finding.verdict == WARNING and 'norm_pix=False' in finding.remedy


@pytest.mark.parametrize('layout', ['visible', 'dense'])
@pytest.mark.parametrize('grn_over', ['image', 'batch'])
def test_no_leak_where_there_is_none(parts, layout, grn_over):
    model, images, visible = parts
    model.layout, model.grn_over = layout, grn_over
    finding = checks.check_mask_leak(model, images, visible)
    assert finding.verdict == OK and finding.numbers['largest_change'] == 0


@pytest.mark.parametrize('step', ['conv', 'to_map'])
def test_a_leak_is_found(parts, monkeypatch, step):
    """A convolution, or the map that goes to the decoder, that does not hide."""
    from mmcnx2.models.layers import layout

    model, images, visible = parts
    model.layout = 'dense'
    leaking = dict(
        conv=lambda self, x, module: layout._conv_channels_last(x, module),
        to_map=lambda self, x: x.permute(0, 3, 1, 2).contiguous(),
    )
    monkeypatch.setattr(layout.DenseLayout, step, leaking[step])
    finding = checks.check_mask_leak(model, images, visible)
    assert finding.verdict == FAIL and finding.numbers['largest_change'] > 1e-3 and "layout='dense'" in finding.remedy


def test_a_leak_into_grn_is_found(parts, monkeypatch):
    """GRN adds nothing in a fresh model: what reaches its norms shows with other weights only."""
    from mmcnx2.models.layers.layout import DenseLayout

    model, images, visible = parts
    model.layout = 'dense'
    norms, from_images, means = DenseLayout.channel_norms, DenseLayout.from_images, []

    def remembering(self, images):
        means.append(images.mean())
        return from_images(self, images)

    monkeypatch.setattr(DenseLayout, 'from_images', remembering)
    monkeypatch.setattr(DenseLayout, 'channel_norms', lambda self, x: norms(self, x) + means[-1].abs())
    hidden = ~visible.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, None]
    with torch.no_grad():
        fresh = [model.encode(one, visible) for one in (images, images + hidden)]
    assert torch.equal(*fresh) and means[0] != means[1]
    assert checks.check_mask_leak(model, images, visible).verdict == FAIL


def test_a_leak_into_the_decoder_is_found(parts):
    model, images, visible = parts
    encode = model.encode
    model.encode = lambda images, visible: encode(images, visible) + 1e-6 * images.mean()
    assert checks.check_mask_leak(model, images, visible).verdict == FAIL


def test_first_loss(parts):
    model, images, visible = parts
    finding = checks.check_first_loss(model, images, visible)
    assert finding.verdict == OK and finding.numbers['loss'] == pytest.approx(1, abs=0.02)
    large = copy.deepcopy(model)
    for parameter in large.parameters():  # as the second initialisation of the official code
        torch.nn.init.normal_(parameter, std=1) if parameter.ndim > 1 else None
    assert checks.check_first_loss(large, images, visible).verdict == FAIL
    model.head.norm_pix = False
    finding = checks.check_first_loss(model, 3 * images, visible)  # about the variance of the images then
    assert finding.verdict == OK and finding.numbers['loss'] > 2
    model.reconstruct = lambda images, visible: 0.5 * checks.cells_from_images(images, 32)
    finding = checks.check_first_loss(model, images, visible)
    assert finding.verdict == WARNING and 'leaked' in finding.remedy
    model.reconstruct = lambda images, visible: torch.full((8, 4, 3072), float('nan'))
    assert checks.check_first_loss(model, images, visible).verdict == FAIL


def test_gradients(parts, monkeypatch):
    model, images, visible = parts
    finding = checks.check_gradients(model, images, visible)
    assert finding.verdict == OK and finding.numbers['num_parameters'] == len(list(model.parameters()))
    assert all(parameter.grad is None for parameter in model.parameters())  # the model itself is left alone
    model.forgotten = torch.nn.Linear(2, 2)
    finding = checks.check_gradients(model, images, visible)
    assert finding.verdict == FAIL and finding.numbers['without_gradient'] == ['forgotten.weight', 'forgotten.bias']
    model.forgotten.requires_grad_(False)
    assert checks.check_gradients(model, images, visible).verdict == WARNING
    del model.forgotten
    scales = dict.fromkeys(dict(model.named_parameters()), 1) | {'neck.mask_token': 0}
    monkeypatch.setattr(
        type(model),
        'loss',
        lambda self, images, visible: dict(
            loss=sum(scales[name] * parameter.sum() for name, parameter in self.named_parameters())
        ),
    )
    finding = checks.check_gradients(model, images, visible)
    assert finding.verdict == FAIL and finding.numbers['without_gradient'] == ['neck.mask_token']
    scales['neck.mask_token'] = float('nan')
    finding = checks.check_gradients(model, images, visible)
    assert finding.verdict == FAIL and finding.numbers['not_finite'] == ['neck.mask_token']


def test_overfitting(parts):
    model, images, visible = parts
    before = copy.deepcopy(model.state_dict())
    finding = checks.check_overfitting(model, images, visible, 40)
    losses = finding.numbers['losses']
    assert finding.verdict == OK and len(losses) == 41
    reached = finding.numbers['reached_at_step']
    assert losses[reached] < 0.3 * losses[0] <= losses[reached - 1] and f'at step {reached}' in finding.said
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    short = checks.check_overfitting(model, images, visible, 10)
    assert short.verdict == FAIL and '--steps' in short.remedy
    model.requires_grad_(False)
    model.neck.mask_token.requires_grad_()
    stuck = checks.check_overfitting(model, images, visible, 10)
    assert stuck.verdict == FAIL and 'fault is in the model' in stuck.remedy


def test_learning_rate_is_the_configs_own(parts):
    model, images, visible = parts
    cfg = write_config(LONG.replace('lr=1e-3', 'lr=2e-3'))
    finding = checks.check_learning_rate(model, cfg, images, visible)
    assert finding.verdict == OK and finding.numbers['rate'] == 2e-3
    cfg = write_config(LONG.replace('lr=1e-3', 'lr=1e-9'))
    finding = checks.check_learning_rate(model, cfg, images, visible)
    assert finding.verdict == WARNING and 'too low' in finding.remedy and 'lr=1e-08' in finding.remedy


def schedule(text=LONG, num_images=100, num_processes=1, **options):
    cfg = write_config(text)
    cfg.merge_from_dict(options)
    return checks.check_schedule(cfg, num_images, num_processes)


def test_schedule_by_hand(folder):
    """100 pictures in batches of 2: 50 a round, 10,000 in 200; 1e-3 over 9,975 (without half of the warmup), halved."""
    numbers = schedule().numbers
    assert numbers['steps'] == 10_000 and numbers['images_per_step'] == 2 and numbers['warmup_iterations'] == 50
    assert numbers['sum_of_rates'] == pytest.approx(1e-3 * 9975 / 2)
    assert numbers['rate_of_the_paper'] == pytest.approx(1.5e-4 * 2 / 256)
    four = schedule(num_processes=4, **{'optim_wrapper.accumulative_counts': 3}).numbers  # floor(100 / 8) = 12
    assert four['steps'] == 2400 // 3 and four['images_per_step'] == 24
    assert schedule(num_images=101).numbers['steps'] == 10_000  # drop_last
    assert schedule(LONG.replace('drop_last=True, ', ''), num_images=101).numbers['steps'] == 10_200
    scaled = schedule(auto_scale_lr=dict(enable=True, base_batch_size=8)).numbers
    assert scaled['rate'] == pytest.approx(1e-3 / 4)
    by_iter = schedule(
        LONG.replace("type='EpochBasedTrainLoop', max_epochs=200", "type='IterBasedTrainLoop', max_iters=70")
    )
    assert by_iter.numbers['steps'] == 70


def test_schedule_verdicts(folder):
    assert schedule().verdict == OK
    slow = schedule(num_images=40, **{'optim_wrapper.optimizer.lr': 2e-6})
    assert slow.verdict == WARNING and 'higher rate' in slow.remedy
    warm = schedule(**{'param_scheduler.0.end': 200})
    assert warm.verdict == FAIL and 'warmup of 10,000' in warm.said
    assert schedule(num_images=1).verdict == FAIL
    for_eight = schedule(auto_scale_lr=dict(enable=False, base_batch_size=16))
    assert for_eight.verdict == WARNING and 'accumulative_counts=8, or auto_scale_lr.enable=True' in for_eight.remedy
    assert schedule(auto_scale_lr=dict(enable=False, base_batch_size=16), num_processes=8).verdict == OK
    assert schedule(auto_scale_lr=dict(enable=True, base_batch_size=16)).verdict == OK
    assert schedule(train_cfg=None).verdict == checks.SKIPPED
