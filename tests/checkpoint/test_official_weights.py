"""Published weights by name: the table, the folder, one download for all processes, checksums, the licence said aloud.

The server runs in this process, on the loopback address, in place of the publishers' addresses.
"""

import hashlib
import http.server
import multiprocessing
import os
import threading

import pytest
import torch
from checkpoint_cases import ARCH, cases, same_tensors

from mmcnx2.checkpoint import CheckpointError, load_pretrained_backbone, official_weights
from mmcnx2.checkpoint.official_weights import OFFICIAL_WEIGHTS, OfficialWeights, local_file, num_parameters, table
from mmcnx2.models.backbones.convnext_v2 import ARCHS, ConvNeXtV2

ATTO = 'official:convnextv2_atto_1k_224_fcmae'


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.paths.append(self.path)
        content = self.server.files.get(self.path)
        self.send_response(404 if content is None else 200)
        self.send_header('Content-Length', str(len(content or b'')))
        self.end_headers()
        self.wfile.write(content or b'')


@pytest.fixture
def server(monkeypatch):
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.daemon_threads, server.files, server.paths = True, {}, []
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    for publisher in official_weights.BASE_URLS:
        address = f'http://127.0.0.1:{server.server_address[1]}/{publisher}/'
        monkeypatch.setitem(official_weights.BASE_URLS, publisher, address)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv('MMCNX2_CHECKPOINTS', str(tmp_path / 'weights'))
    return tmp_path / 'weights'


@pytest.fixture
def warnings(monkeypatch):
    found = []
    monkeypatch.setattr(
        official_weights, 'print_log', lambda message, logger, level=20: found.append(message) if level == 30 else None
    )
    return found


def stored_bytes(tmp_path):
    """The official micro model as a published file looks: the weights under 'model'."""
    state_dict = {name: tensor for name, tensor in cases()['meta']['fcmae'][0].items() if name.startswith('encoder.')}
    torch.save({'model': state_dict}, tmp_path / 'micro.pt')
    return (tmp_path / 'micro.pt').read_bytes()


# ------------------------------------------------------------------------------------------------------ the table


def test_the_files_are_those_of_the_official_readme():
    meta = [weights for weights in OFFICIAL_WEIGHTS.values() if weights.publisher == 'meta']
    expected = [f'pt_only/convnextv2_{size}_1k_224_fcmae.pt' for size in official_weights._META]
    expected += [f'im1k/convnextv2_{size}_1k_224_ema.pt' for size in official_weights._META]
    expected += [
        f'im22k/convnextv2_{size}_22k_{px}_ema.pt' for size in ('nano', 'tiny', 'base', 'large') for px in (224, 384)
    ]
    expected += [f'im22k/convnextv2_huge_22k_{px}_ema.pt' for px in (384, 512)]
    assert sorted(weights.path for weights in meta) == sorted(expected) and len(meta) == 26
    assert OFFICIAL_WEIGHTS['convnextv2_atto_1k_224_fcmae'].url == (
        'https://dl.fbaipublicfiles.com/convnext/convnextv2/pt_only/convnextv2_atto_1k_224_fcmae.pt'
    )


def test_mmpretrains_copies_answer_them_one_by_one():
    by_publisher = [
        sorted(
            (weights.size, weights.trained, weights.image_size)
            for weights in OFFICIAL_WEIGHTS.values()
            if weights.publisher == publisher
        )
        for publisher in ('meta', 'mmpretrain')
    ]
    assert by_publisher[0] == by_publisher[1]
    copies = [weights for weights in OFFICIAL_WEIGHTS.values() if weights.publisher == 'mmpretrain']
    assert len({weights.sha256_start for weights in copies}) == len(copies) == 26
    assert all(len(weights.sha256_start) == 8 and int(weights.sha256_start, 16) for weights in copies)
    huge = OFFICIAL_WEIGHTS['convnext-v2-huge_fcmae-in21k-pre_3rdparty_in1k-512px']
    assert huge.url == (
        'https://download.openmmlab.com/mmclassification/v0/convnext-v2/'
        'convnext-v2-huge_fcmae-in21k-pre_3rdparty_in1k-512px_20230104-ce32e63c.pth'
    )


def test_both_publishers_report_nearly_the_same_accuracy():
    """A row that slipped would differ by more: mmpretrain evaluated the same weights anew."""
    accuracies = {}
    for weights in OFFICIAL_WEIGHTS.values():
        accuracies.setdefault((weights.size, weights.trained, weights.image_size), []).append(weights.top1)
    for key, (official, copy) in accuracies.items():
        assert (official is None and copy is None) or abs(official - copy) < 0.11, key


@pytest.mark.parametrize(
    ('size', 'millions'),
    [('atto', 3.71), ('femto', 5.23), ('pico', 9.07), ('nano', 15.62), ('tiny', 28.64), ('base', 88.72)]
    + [('large', 197.96), ('huge', 660.29)],
)
def test_parameter_counts_are_the_published_ones(size, millions):
    """Published by mmpretrain, with classifier; without it the count is that of the model which FCMAE pretrains."""
    assert round(num_parameters(size, True) / 1e6, 2) == millions
    head = (ARCHS[size]['channels'][-1] + 1) * 1000 + 2 * ARCHS[size]['channels'][-1]
    assert num_parameters(size, False) == num_parameters(size, True) - head


def test_the_printed_table_names_every_file_and_the_licence():
    printed = table()
    assert all(f'\n{name} ' in printed for name in OFFICIAL_WEIGHTS)
    assert 'CC-BY-NC 4.0' in printed and 'NO COMMERCIAL USE' in printed
    assert max(map(len, printed.splitlines())) <= 140


# ------------------------------------------------------------------------------------------------- from name to file


def test_weights_are_fetched_once_into_the_folder_and_loaded(tmp_path, server, folder, warnings):
    server.files['/meta/pt_only/convnextv2_atto_1k_224_fcmae.pt'] = stored_bytes(tmp_path)
    backbones = [ConvNeXtV2(ARCH, init_cfg={'type': 'Pretrained', 'checkpoint': ATTO}) for _ in range(2)]
    for backbone in backbones:
        backbone.init_weights()
    assert len(server.paths) == 1
    file = folder / 'convnextv2_atto_1k_224_fcmae.pt'
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (folder / f'{file.name}.sha256').read_text().split() == [sha256, file.name]
    assert backbones[0].stages[1][0].grn.gamma.equal(cases()['mmcnx2']['fcmae'][0]['backbone.stages.1.0.grn.gamma'])
    assert same_tensors(backbones[0].state_dict(), backbones[1].state_dict())
    assert len(warnings) == 2  # at each load
    assert all('CC-BY-NC 4.0' in line and 'NO COMMERCIAL USE' in line for line in warnings)


def test_a_file_that_is_there_is_not_fetched_and_its_checksum_is_kept(server, folder, warnings):
    folder.mkdir()
    file = folder / 'convnextv2_atto_1k_224_fcmae.pt'
    file.write_bytes(b'put here by hand')
    assert local_file(ATTO) == file and not server.paths
    assert (folder / f'{file.name}.sha256').is_file()
    file.write_bytes(b'something else')
    with pytest.raises(CheckpointError, match=r'is not the file that was recorded first.*Delete it') as caught:
        local_file(ATTO)
    assert '\n' not in str(caught.value) and file.read_bytes() == b'something else'


def test_mmpretrains_digits_are_compared(server, folder, warnings, monkeypatch):
    content = b'weights'
    start = hashlib.sha256(content).hexdigest()[:8]
    for name, digits in (('right', start), ('wrong', '00000000')):
        weights = OfficialWeights(name, 'mmpretrain', f'{name}.pth', 'atto', 'FCMAE', 224, None, digits)
        monkeypatch.setitem(OFFICIAL_WEIGHTS, name, weights)
        server.files[f'/mmpretrain/{name}.pth'] = content
    assert local_file('official:right').read_bytes() == content
    for _ in range(2):  # the second time it is there already
        with pytest.raises(CheckpointError, match=rf'begins with {start}, the published one with 00000000'):
            local_file('official:wrong')


def test_a_read_only_folder_is_good_enough_for_a_file_that_is_there(server, folder, warnings, monkeypatch):
    folder.mkdir()
    file = folder / 'convnextv2_atto_1k_224_fcmae.pt'
    file.write_bytes(b'put here by an administrator')

    def refuse(*args, **options):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(official_weights, 'write_atomically', refuse)
    assert local_file(ATTO) == file and os.listdir(folder) == [file.name]


def test_without_a_folder_of_ones_own_it_is_that_of_torch_hub(monkeypatch, tmp_path):
    monkeypatch.delenv('MMCNX2_CHECKPOINTS', raising=False)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr('torch.hub._hub_dir', None)
    assert official_weights.weights_folder() == tmp_path / 'hub' / 'checkpoints'
    monkeypatch.setenv('MMCNX2_CHECKPOINTS', '~/weights')
    assert str(official_weights.weights_folder()) == os.path.expanduser('~/weights')


def _ask(queue):
    queue.put(str(local_file(ATTO)))


def test_processes_that_ask_at_the_same_time_share_one_download(server, folder):
    server.files['/meta/pt_only/convnextv2_atto_1k_224_fcmae.pt'] = os.urandom(1 << 20)
    context = multiprocessing.get_context('fork')
    queue = context.Queue()
    processes = [context.Process(target=_ask, args=(queue,)) for _ in range(3)]
    for process in processes:
        process.start()
    files = {queue.get(timeout=20) for _ in processes}
    for process in processes:
        process.join()
    assert files == {str(folder / 'convnextv2_atto_1k_224_fcmae.pt')} and len(server.paths) == 1


# ------------------------------------------------------------------------------------------------------- mistakes


def test_an_unknown_name_is_answered_with_near_ones():
    with pytest.raises(CheckpointError, match=r'near it: .*convnextv2_atto_1k_224_fcmae.*--list-official'):
        local_file('official:convnextv2_ato_1k_224_fcmae')


def test_a_file_that_the_server_lacks_is_explained_in_one_line(server, folder, warnings):
    with pytest.raises(
        CheckpointError, match=r'answered 404 Not Found\. Fetch http.* another way and put it'
    ) as caught:
        load_pretrained_backbone(ConvNeXtV2(ARCH), ATTO)
    assert '\n' not in str(caught.value) and '--mirror' not in str(caught.value)
    assert 'MMCNX2_CHECKPOINTS' in str(caught.value)


def test_an_address_is_still_refused_as_such():
    with pytest.raises(CheckpointError, match=r'https://example\.org/a\.pth is an address'):
        load_pretrained_backbone(ConvNeXtV2(ARCH), 'https://example.org/a.pth')
