"""Files are read without executing code and refused in one clear line each; a backbone is loaded completely or not at
all."""
import argparse
import os
import pickle
import stat
import zipfile

import numpy as np
import pytest
import torch
from checkpoint_cases import ARCH, cases, images, randomised, same_tensors
from safetensors.torch import save_file
from torch import nn

from mmcnx2.checkpoint import (
    CheckpointError,
    convert_state_dict,
    load_pretrained_backbone,
    read_checkpoint,
    save_checkpoint_atomically,
)
from mmcnx2.checkpoint.load import inflate_stem
from mmcnx2.models.backbones.convnext_v2 import ConvNeXtV2

WEIGHTS = {'layer.weight': torch.arange(6.).view(2, 3), 'layer.bias': torch.ones(2)}


def refuse(path, match, **options):
    with pytest.raises(CheckpointError, match=match) as caught:
        read_checkpoint(path, **options)
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 600


# ------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize('content', [
    WEIGHTS,
    {'state_dict': WEIGHTS, 'meta': {'epoch': 3}},
    {'model': WEIGHTS, 'args': argparse.Namespace(lr=1e-3), 'epoch': 3},
    {'module': WEIGHTS},
])
@pytest.mark.parametrize('old_format', [False, True])
def test_every_container_gives_its_weights(tmp_path, content, old_format):
    path = tmp_path / 'weights.pth'
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    checkpoint = read_checkpoint(path)
    assert same_tensors(checkpoint['state_dict'], WEIGHTS)
    assert isinstance(checkpoint['meta'], dict)
    assert 'model' not in checkpoint and ('args' in checkpoint) == ('args' in content)


def test_the_content_decides_about_the_format_not_the_ending(tmp_path):
    save_file(WEIGHTS, tmp_path / 'weights.pth', metadata={'origin': 'here'})
    checkpoint = read_checkpoint(tmp_path / 'weights.pth')
    assert same_tensors(checkpoint['state_dict'], WEIGHTS) and checkpoint['meta'] == {'origin': 'here'}
    torch.save(WEIGHTS, tmp_path / 'weights.safetensors')
    assert same_tensors(read_checkpoint(tmp_path / 'weights.safetensors')['state_dict'], WEIGHTS)


def test_averaged_weights_are_taken_on_request_only(tmp_path):
    path = tmp_path / 'weights.pth'
    averaged = {name: tensor + 1 for name, tensor in WEIGHTS.items()}
    torch.save({'model': WEIGHTS, 'model_ema': averaged}, path)
    assert same_tensors(read_checkpoint(path)['state_dict'], WEIGHTS)
    assert same_tensors(read_checkpoint(path, use_ema=True)['state_dict'], averaged)
    for content in ({'model': WEIGHTS}, WEIGHTS):
        torch.save(content, path)
        refuse(path, 'no averaged weights', use_ema=True)


def test_a_checkpoint_of_a_real_run_is_read(tmp_path):
    """mmengine pickles log histories, with their statistics functions, and NumPy values."""
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Model(BaseModel):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, inputs, mode='tensor'):
            return {'loss': self.layer(torch.stack(inputs)).square().mean()}

    class Data(torch.utils.data.Dataset):
        metainfo = {'classes': ('a', 'b'), 'palette': [(1, 2, 3)]}

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return {'inputs': torch.ones(2)}

    runner = Runner(Model(), str(tmp_path), experiment_name='a_real_run',
                    default_hooks={'logger': {'type': 'LoggerHook', 'interval': 1}},
                    train_dataloader={'dataset': Data(), 'batch_size': 2, 'sampler': {'type': 'DefaultSampler'}},
                    train_cfg={'by_epoch': True, 'max_epochs': 1}, custom_hooks=[{'type': 'EMAHook'}],
                    optim_wrapper={'optimizer': {'type': 'AdamW', 'lr': 1e-3}},
                    param_scheduler=[{'type': 'CosineAnnealingLR', 'T_max': 1}])
    runner.train()
    checkpoint = read_checkpoint(tmp_path / 'epoch_1.pth')
    assert set(checkpoint['state_dict']) == {'layer.weight', 'layer.bias'}
    assert {'optimizer', 'message_hub', 'param_schedulers', 'ema_state_dict'} <= set(checkpoint)
    assert len(checkpoint['message_hub']['log_scalars']['train/loss'].data[0]) == 2
    assert checkpoint['meta']['dataset_meta']['classes'] == ('a', 'b')


def test_numpy_values_are_read(tmp_path):
    torch.save({'state_dict': WEIGHTS, 'meta': {'best': np.float64(0.5), 'step': np.int64(7), 'curve': np.arange(3.)}},
               tmp_path / 'weights.pth')
    meta = read_checkpoint(tmp_path / 'weights.pth')['meta']
    assert (meta['best'], meta['step'], list(meta['curve'])) == (0.5, 7, [0, 1, 2])


# ------------------------------------------------------------------------------------------------- refusing


class LeavesAMark:
    """Unpickled carelessly, it creates a folder."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


class GetsAnything:
    """Asks for an attribute by name, as mmengine's histories do, but of something else."""

    def __init__(self, owner, name):
        self.owner, self.name = owner, name

    def __reduce__(self):
        return getattr, (self.owner, self.name)


@pytest.mark.parametrize('old_format', [False, True])
def test_code_in_a_pickle_is_named_and_not_run(tmp_path, old_format):
    torch.save({'state_dict': WEIGHTS, 'hook': LeavesAMark(tmp_path / 'mark')}, tmp_path / 'weights.pth',
               _use_new_zipfile_serialization=not old_format)
    refuse(tmp_path / 'weights.pth', r'was not read: it asks for the Python object (posix|nt)\.mkdir,')
    assert not (tmp_path / 'mark').exists()


def test_a_bare_pickle_with_code_is_not_run(tmp_path):
    (tmp_path / 'weights.pth').write_bytes(pickle.dumps(LeavesAMark(tmp_path / 'mark'), protocol=2))
    refuse(tmp_path / 'weights.pth', 'weights.pth (was not read|is damaged)')
    assert not (tmp_path / 'mark').exists()


@pytest.mark.parametrize(('owner', 'name'), [
    (np.ndarray, 'tofile'), (np.ndarray, 'min'), (np.dtype, '__class__'), (argparse.Namespace, '__init__')])
def test_getattr_gives_a_file_nothing_but_log_statistics(tmp_path, owner, name):
    torch.save({'state_dict': WEIGHTS, 'x': GetsAnything(owner, name)}, tmp_path / 'weights.pth')
    refuse(tmp_path / 'weights.pth', f'asks for the Python object getattr.*{name}')


def test_getattr_gives_no_other_attribute_of_a_history(tmp_path):
    from mmengine.logging import HistoryBuffer
    torch.save({'state_dict': WEIGHTS, 'x': GetsAnything(HistoryBuffer, '__init__')}, tmp_path / 'weights.pth')
    refuse(tmp_path / 'weights.pth', 'asks for the Python object getattr')


def _truncated(path, write, share=0.7):
    write(path)
    content = path.read_bytes()
    path.write_bytes(content[:int(len(content) * share)])


def _flipped(path):
    torch.save({'state_dict': {'a': torch.arange(4000.)}}, path)
    content = bytearray(path.read_bytes())
    content[content.index(b'data.pkl') + 60] ^= 0xff
    path.write_bytes(bytes(content))


def _zip_of_text(path):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('readme.txt', 'hello')


MALFORMED = {
    'missing': (lambda path: None, 'does not exist'),
    'folder': (lambda path: path.mkdir(), 'is a folder'),
    'empty': (lambda path: path.touch(), 'is an empty file'),
    'truncated zip': (lambda path: _truncated(path, lambda path: torch.save(WEIGHTS, path)), 'is truncated'),
    'truncated old format': (lambda path: _truncated(path, lambda path: torch.save(
        WEIGHTS, path, _use_new_zipfile_serialization=False)), 'is damaged'),
    'truncated safetensors': (lambda path: _truncated(path, lambda path: save_file(WEIGHTS, path)),
                              r'no complete safetensors file \(truncated or damaged\)'),
    'flipped bits': (_flipped, 'is damaged'),
    'other zip': (_zip_of_text, r'zip archive without weights \(readme.txt\)'),
    'text': (lambda path: path.write_text('hello, I am a text'), 'neither a torch file nor safetensors'),
    'web page': (lambda path: path.write_text('\n<!DOCTYPE html><html>404</html>'), 'is a web page'),
    'lfs pointer': (lambda path: path.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:0\n'),
                    'is a git-lfs pointer'),
    'no dict': (lambda path: torch.save(torch.zeros(2), path), 'holds a Tensor, not a dict'),
    'no tensors': (lambda path: torch.save({'epoch': 3, 'state_dict': {}}, path),
                   'no tensors; its entries: epoch, state_dict'),
    'two sets of weights': (lambda path: torch.save({'state_dict': WEIGHTS, 'model': WEIGHTS}, path),
                            'under state_dict and model'),
    'nan': (lambda path: torch.save({'a': torch.ones(2), 'b': torch.tensor([1., float('nan')])}, path),
            'NaN or Inf in 1 of 2 tensors: b'),
    'inf': (lambda path: save_file({'a': torch.tensor([float('inf')])}, path), 'NaN or Inf in 1 of 1 tensors: a'),
}


@pytest.mark.parametrize('kind', MALFORMED)
def test_each_malformed_file_has_its_own_message(tmp_path, kind):
    make, match = MALFORMED[kind]
    make(tmp_path / 'weights.pth')
    refuse(tmp_path / 'weights.pth', match)


def test_an_address_is_refused():
    refuse('https://example.org/weights.pth', 'is an address')


def test_no_damage_of_a_file_ends_without_a_message(tmp_path):
    """Bits flipped and ends cut at random: the file is read, or refused with a CheckpointError; nothing else comes
    out."""
    generator = np.random.default_rng(0)
    for suffix, write in (('pth', torch.save), ('safetensors', save_file)):
        whole = tmp_path / f'whole.{suffix}'
        write(WEIGHTS, whole)
        content, path = whole.read_bytes(), tmp_path / f'damaged.{suffix}'
        num_refused = 0
        for _ in range(100):
            damaged = bytearray(content)
            for position in generator.integers(0, len(damaged), size=3):
                damaged[position] ^= 1 << int(generator.integers(8))
            length = generator.integers(1, len(damaged)) if generator.random() < 0.3 else len(damaged)
            path.write_bytes(bytes(damaged[:length]))
            try:
                read_checkpoint(path)
            except CheckpointError as error:
                num_refused += 1
                assert '\n' not in str(error)
        assert num_refused > 30


# ------------------------------------------------------------------------------------------------- loading


def file_with(tmp_path, state_dict, name='weights.pth', container='state_dict'):
    torch.save({container: {key: tensor.detach().float() for key, tensor in state_dict.items()}}, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize(('layout', 'kind', 'num_tensors'), [
    ('meta', 'stored', 68), ('meta-sparse', 'fcmae', 66), ('meta', 'fcmae', 66), ('mmcnx2', 'fcmae', 66),
    ('mmcnx2', 'stored', 68), ('timm', 'classifier', 68), ('huggingface', 'classifier', 68),
    ('mmpretrain', 'classifier', 68)])
def test_any_layout_loads_into_a_classifiers_backbone(tmp_path, layout, kind, num_tensors):
    state_dict, _ = cases()[layout][kind]
    backbone = ConvNeXtV2(ARCH, gap_before_final_norm=True)
    report = load_pretrained_backbone(backbone, file_with(tmp_path, state_dict, container='model'))
    assert (report['layout'], report['num_tensors']) == (layout, num_tensors)
    assert report['fresh'] == ([] if num_tensors == 68 else ['norm3.weight', 'norm3.bias'])
    decoder = ('proj', 'pred', 'mask_token', 'decoder', 'neck', 'head.pred')
    drop = [name for name in state_dict if name.startswith(decoder)]
    expected = convert_state_dict(state_dict, source=layout, target='mmcnx2', drop=drop)
    for name, tensor in backbone.state_dict().items():
        if name not in report['fresh']:
            assert tensor.equal(expected[f'backbone.{name}'].float()), name


def test_a_pretraining_checkpoint_gives_a_dense_backbone_its_weights_and_fresh_norms(tmp_path, caplog):
    state_dict, _ = cases()['mmcnx2']['fcmae']
    backbone = randomised(ConvNeXtV2(ARCH, out_indices=(0, 1, 2, 3))).float()
    norms = {name: tensor.clone() for name, tensor in backbone.state_dict().items() if name.startswith('norm')}
    report = load_pretrained_backbone(backbone, file_with(tmp_path, state_dict))
    assert report['fresh'] == list(norms) and report['left_out'] == []
    assert all(backbone.state_dict()[name].equal(tensor) for name, tensor in norms.items())
    assert backbone.stages[2][1].grn.gamma.equal(state_dict['backbone.stages.2.1.grn.gamma'])


@pytest.mark.parametrize('keep', [False, True])
def test_a_classifiers_norm_goes_into_a_dense_norm3_on_request_only(tmp_path, keep):
    state_dict, _ = cases()['meta']['stored']
    backbone = ConvNeXtV2(ARCH, out_indices=(0, 1, 2, 3))
    report = load_pretrained_backbone(backbone, file_with(tmp_path, state_dict), keep_final_norm=keep)
    assert backbone.norm3.weight.equal(state_dict['norm.weight'] if keep else torch.ones(32))
    assert ('norm3.weight' in report['fresh']) != keep


def test_dense_norms_are_loaded_where_the_backbone_has_them(tmp_path):
    state_dict, _ = cases()['mmcnx2']['dense']
    backbone = ConvNeXtV2(ARCH, out_indices=(1, 3))
    report = load_pretrained_backbone(backbone, file_with(tmp_path, state_dict))
    assert report['fresh'] == []
    assert sorted(report['left_out']) == ['norm0.bias', 'norm0.weight', 'norm2.bias', 'norm2.weight']
    assert backbone.norm1.weight.equal(state_dict['backbone.norm1.weight'].float())
    # A norm that saw single positions is not the norm of pooled features.
    pooling = ConvNeXtV2(ARCH, gap_before_final_norm=True)
    assert load_pretrained_backbone(pooling, tmp_path / 'weights.pth')['fresh'] == ['norm3.weight', 'norm3.bias']


def test_a_backbone_is_taken_out_of_a_detector(tmp_path):
    state_dict = dict(cases()['mmcnx2']['dense'][0])
    around = {'neck.lateral_convs.0.conv.weight': torch.ones(2), 'rpn_head.rpn_conv.weight': torch.ones(2),
              'neck.reduce.depthwise_conv.conv.weight': torch.ones(2), 'decoder.0.weight': torch.ones(1)}
    backbone = ConvNeXtV2(ARCH, out_indices=(0, 1, 2, 3))
    report = load_pretrained_backbone(backbone, file_with(tmp_path, {**around, **state_dict}))
    assert report['layout'] == 'mmcnx2' and report['num_tensors'] == 74


def test_one_of_several_backbones_is_chosen_by_its_prefix(tmp_path):
    dense = {name.removeprefix('backbone.'): tensor for name, tensor in cases()['mmcnx2']['dense'][0].items()}
    both = {f'{who}.backbone.{name}': tensor + scale for who, scale in (('student', 0), ('teacher', 1))
            for name, tensor in dense.items()}
    path = file_with(tmp_path, both)
    backbone = ConvNeXtV2(ARCH, out_indices=(0, 1, 2, 3))
    with pytest.raises(CheckpointError, match=r"2 backbones, under 'student.backbone.', 'teacher"):
        load_pretrained_backbone(backbone, path)
    load_pretrained_backbone(backbone, path, prefix='teacher.backbone.')
    assert backbone.norm0.weight.equal((dense['norm0.weight'] + 1).float())
    with pytest.raises(CheckpointError, match='no name starts with'):
        load_pretrained_backbone(backbone, path, prefix='nobody.')


def test_init_cfg_loads_strictly_and_passes_its_options_on(tmp_path):
    path = str(file_with(tmp_path, cases()['meta']['stored'][0]))
    init_cfg = {'type': 'Pretrained', 'checkpoint': path, 'keep_final_norm': True}
    backbone = ConvNeXtV2(ARCH, out_indices=(0, 3), init_cfg=init_cfg)
    backbone.init_weights()
    assert backbone.norm3.weight.equal(cases()['meta']['stored'][0]['norm.weight'])


@pytest.mark.parametrize(('model', 'options', 'match'), [
    ({'arch': 'atto'}, {}, r"it is depths=\[1, 1, 2, 1\], .* the model is 'atto' \(depths=\[2, 2, 6, 2\]"),
    ({'arch': {'depths': [1, 1, 1, 1], 'channels': [8, 16, 24, 32]}}, {}, r'the model is depths=\[1, 1, 1, 1\]'),
    ({'in_channels': 5}, {}, r'with 3 input channels, the model has in_channels=5; choose inflate=mean\|copy\|zero'),
    ({'use_grn': False, 'layer_scale_init_value': 1e-6}, {}, 'V1 has layer scale and no GRN'),
    ({'layer_scale_init_value': 1e-6}, {}, r'only in the model: stages\.0\.0\.gamma, .*; only in the checkpoint: none'),
    ({}, {'inflate': 'magic'}, "inflate='magic' is not known"),
    ({}, {'source': 'keras'}, 'unknown source layout'),
    ({}, {'source': 'timm'}, 'not a timm checkpoint: there is no stem'),
])
def test_what_does_not_fit_is_refused_in_one_line_and_nothing_is_loaded(tmp_path, model, options, match):
    path = file_with(tmp_path, cases()['meta']['stored'][0])
    backbone = ConvNeXtV2(**{'arch': ARCH, **model})
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with pytest.raises(CheckpointError, match=match) as caught:
        load_pretrained_backbone(backbone, path, **options)
    assert '\n' not in str(caught.value)
    assert same_tensors(backbone.state_dict(), before)


def test_a_file_with_one_block_tensor_missing_loads_nothing(tmp_path):
    state_dict = dict(cases()['meta']['stored'][0])
    del state_dict['stages.3.0.grn.beta']
    backbone = ConvNeXtV2(ARCH)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with pytest.raises(CheckpointError, match=r'1 tensors are missing: backbone.stages.3.0.grn.beta'):
        load_pretrained_backbone(backbone, file_with(tmp_path, state_dict))
    assert same_tensors(backbone.state_dict(), before)


def test_one_line_says_what_was_loaded_and_zero_grn_is_warned_of(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr('mmcnx2.checkpoint.load.print_log',
                        lambda message, logger, level=20: lines.append((level, message)))
    state_dict, _ = cases()['meta-sparse']['fcmae']
    path = file_with(tmp_path, state_dict)
    load_pretrained_backbone(ConvNeXtV2(ARCH, out_norm=False), path)
    assert lines == [(20, f'66 tensors of layout meta-sparse from {path}')]
    file_with(tmp_path, {name: tensor * ('.grn.' not in name) for name, tensor in state_dict.items()})
    load_pretrained_backbone(ConvNeXtV2(ARCH, out_norm=False), path)
    assert lines[-1][0] == 30 and 'GRN does nothing' in lines[-1][1]


@pytest.mark.parametrize('inflate', ['mean', 'copy', 'zero'])
def test_other_input_channels_on_request(tmp_path, inflate):
    path = file_with(tmp_path, cases()['meta']['stored'][0])
    three, six = ConvNeXtV2(ARCH), ConvNeXtV2(ARCH, in_channels=6)
    load_pretrained_backbone(three, path)
    load_pretrained_backbone(six, path, inflate=inflate)
    grey = images().float()[:, :1]
    image = {'mean': grey.expand(-1, 3, -1, -1), 'copy': images().float(), 'zero': images().float()}[inflate]
    wide = torch.cat([image, image], dim=1)
    assert torch.allclose(six(wide)[0], three(image)[0], atol=1e-5)
    assert not torch.allclose(six(wide.flip(1) * 2)[0], three(image)[0], atol=1e-5)


def test_inflation_by_hand():
    weight = torch.tensor([1., 2., 6.]).view(1, 3, 1, 1)
    assert inflate_stem(weight, 1, 'mean').flatten().tolist() == [9]
    assert inflate_stem(weight, 6, 'copy').flatten().tolist() == [0.5, 1, 3, 0.5, 1, 3]
    assert inflate_stem(weight, 4, 'zero').flatten().tolist() == [1, 2, 6, 0]
    with pytest.raises(CheckpointError, match="only 'mean' can"):
        inflate_stem(weight, 1, 'zero')


# ------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize('name', ['a.pth', 'a.pt', 'a.safetensors'])
def test_what_is_saved_is_read_back(tmp_path, name):
    save_checkpoint_atomically({'state_dict': WEIGHTS, 'meta': {'origin': 'here'}}, tmp_path / name)
    checkpoint = read_checkpoint(tmp_path / name)
    assert same_tensors(checkpoint['state_dict'], WEIGHTS) and checkpoint['meta']['origin'] == 'here'
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize('step', ['os.fsync', 'os.replace'])
@pytest.mark.parametrize('name', ['a.pth', 'a.safetensors'])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, name, step, monkeypatch):
    save_checkpoint_atomically({'state_dict': WEIGHTS}, tmp_path / name)
    old = (tmp_path / name).read_bytes()

    def full(*args):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(step, full)
    with pytest.raises(CheckpointError, match=r'cannot write .*No space left on device'):
        save_checkpoint_atomically({'state_dict': {'other': torch.zeros(9)}}, tmp_path / name)
    assert (tmp_path / name).read_bytes() == old and os.listdir(tmp_path) == [name]


def test_views_and_shared_tensors_can_be_saved_as_safetensors(tmp_path):
    base = torch.arange(6.).view(2, 3)
    save_checkpoint_atomically({'state_dict': {'a': base, 'b': base, 'c': base.T}}, tmp_path / 'a.safetensors')
    assert read_checkpoint(tmp_path / 'a.safetensors')['state_dict']['c'].equal(base.T)


def test_a_saved_file_has_the_usual_permissions(tmp_path):
    (tmp_path / 'usual').touch()
    save_checkpoint_atomically({'state_dict': WEIGHTS}, tmp_path / 'a.pth')
    assert stat.S_IMODE((tmp_path / 'a.pth').stat().st_mode) == stat.S_IMODE((tmp_path / 'usual').stat().st_mode)


@pytest.mark.parametrize(('name', 'content', 'match'), [
    ('a.bin', {'state_dict': WEIGHTS}, 'ending says the format'),
    ('a.safetensors', {'state_dict': WEIGHTS, 'optimizer': {}}, 'not optimizer'),
    ('nowhere/a.pth', {'state_dict': WEIGHTS}, 'cannot write'),
])
def test_what_cannot_be_saved_is_refused(tmp_path, name, content, match):
    with pytest.raises(CheckpointError, match=match):
        save_checkpoint_atomically(content, tmp_path / name)
    assert not os.listdir(tmp_path)
