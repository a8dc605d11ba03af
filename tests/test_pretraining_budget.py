"""The driver of the budget experiment: its plan by hand, its runs with stubs, one real pretraining of a few steps."""

import json
import math
import sys
from pathlib import Path

import pytest

from mmcnx2.datasets.demo_files import write_demo
from mmcnx2.engine import run_commands
from mmcnx2.engine.config_options import read_options

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools' / 'benchmark'))

import pretraining_budget  # noqa: E402
from pretraining_budget import (  # noqa: E402
    Budget,
    Point,
    order_of_transfers,
    plan_budget,
    plan_fractions,
    plan_parts,
    pretraining_options,
)

# In place of the real commands. A pretraining is interrupted once when the file `interrupt` exists.
STUB_DATA = """
import pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])
(out / 'unlabelled').mkdir(parents=True)
for i in range(int(sys.argv[sys.argv.index('--unlabelled') + 1])):
    (out / 'unlabelled' / f'{i}.jpg').touch()
(out / 'meta.json').touch()
"""
STUB_TRAIN = """
import json, pathlib, sys
args = sys.argv[1:]
work = pathlib.Path(args[args.index('--work-dir') + 1])
log = work / f'attempt{len(list(work.glob("attempt*")))}' / 'vis_data' / 'scalars.json'
log.parent.mkdir(parents=True)
log.write_text(json.dumps(dict(lr=1, loss=0.75, step=1)))
(work / 'config.py').touch()
(work / 'iter_1.pth').write_text(str(work))
with open('trained', 'a') as file:
    file.write(' '.join(args) + chr(10))
if pathlib.Path('interrupt').exists():
    pathlib.Path('interrupt').unlink()
    sys.exit(75)
(work / 'last_checkpoint').write_text(str(work / 'iter_1.pth'))
"""
# A table as tools/transfer.py writes it: seed s has 10 s, a pretrained row 0.5 + s / 4 more, the second point 2 more
STUB_TRANSFER = """
import json, pathlib, sys
args = sys.argv[1:]
def words(name):
    start = args.index(name) + 1
    return [word for word in args[start:next((i for i in range(start, len(args)) if args[i][:2] == '--'), None)]]
inits = [args[i + 1] for i, word in enumerate(args) if word == '--init']
options = words('--cfg-options') if '--cfg-options' in args else []
rows = []
for fraction in map(float, words('--fractions')):
    for init in inits:
        name, _, checkpoint = init.partition('=')
        assert name == 'scratch' or name in pathlib.Path(checkpoint).read_text()
        values = {str(s): 10 * s + (0.5 + s / 4 if checkpoint else 0) + (2 if 'lr=2' in options else 0)
                  for s in range(int(words('--seeds')[0]))}
        rows.append(dict(init=name, fraction=fraction, tasks=dict(seg=dict(metrics=dict(mIoU=values)))))
out = pathlib.Path(words('--work-dir')[0])
out.mkdir(parents=True, exist_ok=True)
task = dict(label='seg', config='c.py', metrics=['mIoU'], schedule='9 iterations', images_per_step=8)
(out / 'results.json').write_text(json.dumps(dict(rows=rows, tasks=[task])))
with open('transferred', 'a') as file:
    file.write(' '.join(args) + chr(10))
"""
ARGS = ('--pictures', 3000, '--labelled', 8, '--labels', 4, '--seeds', 3, '--work-dir', 'work', '--data', 'data')


@pytest.fixture
def call_driver(tmp_path, monkeypatch, capfd):
    """Runs the driver with the stubs in a folder of its own: (exit code, stdout, stderr)."""
    for name, text in (('prepare_data', STUB_DATA), ('train', STUB_TRAIN), ('transfer', STUB_TRANSFER)):
        (tmp_path / f'{name}.py').write_text(text)
    for module in (pretraining_budget, run_commands):
        monkeypatch.setattr(module, 'tool', lambda name: str(tmp_path / name))
    monkeypatch.chdir(tmp_path)

    def run(*args):
        code = pretraining_budget.main([*map(str, ARGS), *map(str, args)])
        return code, *capfd.readouterr()

    return run


def lines_of(path):
    return path.read_text().splitlines() if path.exists() else []


# ---- the plan


def test_a_budget_is_steps_with_a_warmup_of_a_tenth():
    # 100,000 / 64 = 1562.5, halves up
    assert plan_budget(1e5, 64) == Budget(100000, 1563, 156, 64)
    assert plan_budget(1e5, 64).views == 100032 and plan_budget(1e5, 64).name == '0.1M'
    assert plan_budget(128, 64) == Budget(128, 2, 1, 64)  # at least one step of each
    assert plan_budget(1e7, 4096).name == '10M'
    for wrong in (127, 0, -1e5, 1000.5, math.inf, math.nan):
        with pytest.raises(ValueError, match='whole number of image views, at least two steps of 64'):
            plan_budget(wrong, 64)


def test_labels_become_shares_of_the_labelled_pictures():
    assert plan_fractions([10, 40, 200], 200) == {10: 0.05, 40: 0.2, 200: 1.0}
    assert plan_fractions([1], 3) == {1: 0.333333333333}  # as it stands on the command line
    for wrong in ([0], [201], [10, 10]):
        with pytest.raises(ValueError, match='from 1 to --labelled, which is 200'):
            plan_fractions(wrong, 200)


def test_scenes_come_in_parts_of_other_seeds():
    first = {'unlabelled': 2000, 'train': 200, 'val': 100, 'seed': 0}
    rest = {'train': 0, 'val': 0}
    assert plan_parts(4500, 200) == [
        first, {'unlabelled': 2000, **rest, 'seed': 1}, {'unlabelled': 500, **rest, 'seed': 2},
    ]  # fmt: skip
    assert plan_parts(4000, 200) == [first, {'unlabelled': 2000, **rest, 'seed': 1}]
    assert plan_parts(0, 8) == [{'unlabelled': 0, 'train': 8, 'val': 100, 'seed': 0}]  # own pictures for pretraining


def test_every_point_has_a_seed_before_any_has_two():
    a, b = Point('a'), Point('b', ('lr=1',))
    assert order_of_transfers([a, b], 2) == [(1, a), (1, b), (2, a), (2, b)]


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--budgets', '1e5', '100000'], 'the same budget twice'),
        (['--budgets', '100'], 'at least two steps of 64'),
        (['--labels', '9'], 'from 1 to --labelled, which is 8'),
        (['--seeds', '0'], 'at least one run per cell'),
        (['--pictures', '0'], 'at least 1 picture'),
        (['--point', 'a', '--point', 'a', 'x=1'], 'a name of its own'),
        (['--point', 'lr=1'], 'a name of its own'),
        (['--pretrain-options', 'lr'], 'write KEY=VALUE'),
        (['--pretrain', 'demo/upernet_convnextv2-atto_demo.py'], 'LinearLR and CosineAnnealingLR'),
        (['--report'], 'nothing has been measured yet'),
    ],
)
def test_user_errors_are_one_line(call_driver, words, message):
    code, _, err = call_driver(*words)
    assert code == 1 and message in err and err.startswith('error: ') and err.count('\n') == 1


# ---- the runs


def test_from_pictures_to_the_sentence(call_driver, tmp_path):
    grid = ('--point', 'slow', 'lr=1', '--point', 'fast', 'lr=2')
    code, out, err = call_driver('--budgets', '1e5', '1e4', *grid, '--task-options', 'x=3')
    assert code == 0, err
    results = json.loads((tmp_path / 'work' / 'results.json').read_text())
    # all seeds prefer 'fast'; the gains are 0.5, 0.75 and 1: mean 0.75, standard error 0.25 / sqrt(3)
    [series] = results['series']
    assert series['chosen']['scratch'] == {'0': ['fast', 2], '1': ['fast', 12], '2': ['fast', 22]}
    gain = series['gains']['10000']
    assert gain['gain'] == pytest.approx(0.75) and gain['standard_error'] == pytest.approx(0.25 / 3**0.5)
    assert series['starts_at'] == 10000 and 'the gain starts at 0.01 million' in out
    budgets = {entry['name']: entry for entry in results['budgets']}
    assert list(budgets) == ['0.01M', '0.1M']
    assert [entry['distinct_pictures'] for entry in budgets.values()] == [3000, 3000]
    assert budgets['0.1M']['views'] == 100032 and budgets['0.1M']['loss'] == 0.75
    pictures = lines_of(tmp_path / 'work' / 'pictures.txt')
    assert len(set(pictures)) == 3000 and str(tmp_path / 'data' / 'part-1' / 'unlabelled' / '999.jpg') in pictures
    small, large = lines_of(tmp_path / 'trained')  # from small to large
    assert 'train_cfg.max_iters=156' in small and 'train_cfg.max_iters=1563' in large
    assert f'dataset.source={tmp_path}/work/pictures.txt' in small
    transfers = lines_of(tmp_path / 'transferred')
    assert [line.split('--seeds ')[1][0] for line in transfers] == list('112233')
    assert ['lr=2' in line for line in transfers] == [False, True] * 3
    assert all(line.count('--init') == 3 and '--cfg-options x=3 lr=' in line for line in transfers)
    assert all('--data data/demo=data/part-0' in line and '--fractions 0.5' in line for line in transfers)
    assert (tmp_path / 'work' / 'gain.png').stat().st_size > 0
    before = (tmp_path / 'work' / 'results.md').read_text().split('## Pretraining')
    assert call_driver('--budgets', '1e5', '1e4', *grid, '--task-options', 'x=3', '--report')[0] == 0
    after = (tmp_path / 'work' / 'results.md').read_text().split('## Pretraining')
    assert after[0] == before[0] and '--report' not in after[1] and len(lines_of(tmp_path / 'transferred')) == 6


def test_what_is_done_stays_when_a_budget_and_a_seed_are_added(call_driver, tmp_path):
    assert call_driver('--budgets', '1e4', '--seeds', 1)[0] == 0
    code, out, _ = call_driver('--budgets', '1e4', '--seeds', 1)
    assert code == 0 and out.count(': complete (') == 4  # two parts, a pretraining, a transfer
    assert len(lines_of(tmp_path / 'trained')) == len(lines_of(tmp_path / 'transferred')) == 1
    assert call_driver('--budgets', '1e4', '2e4', '--seeds', 2)[0] == 0
    trained = lines_of(tmp_path / 'trained')
    assert len(trained) == 2 and 'pretrain-0.02M' in trained[1]
    assert 'starts_at' in json.loads((tmp_path / 'work' / 'results.json').read_text())['series'][0]
    assert len(lines_of(tmp_path / 'transferred')) == 3
    assert call_driver('--budgets', '1e4', '2e4', '--seeds', 2, '--labels', 4, 8)[0] == 0  # it replaces the tables
    transfers = lines_of(tmp_path / 'transferred')
    assert len(transfers) == 5 and all('--fractions 0.5 1' in line for line in transfers[3:])
    results = json.loads((tmp_path / 'work' / 'results.json').read_text())
    assert [series['labels'] for series in results['series']] == [4, 8]


def test_an_interrupted_pretraining_goes_on(call_driver, tmp_path):
    (tmp_path / 'interrupt').touch()
    code, _, err = call_driver('--budgets', '1e4')
    assert code == 1 and 'stage pretrain-0.01M ended with exit code 75' in err
    assert not (tmp_path / 'transferred').exists()
    code, _, err = call_driver('--budgets', '1e4')
    assert code == 0, err
    first, second = lines_of(tmp_path / 'trained')
    assert '--resume' not in first and '--resume' in second
    [entry] = json.loads((tmp_path / 'work' / 'results.json').read_text())['budgets']
    assert entry['attempts'] == 2


def test_own_pictures_are_taken_instead_of_scenes(call_driver, tmp_path):
    folder = tmp_path / 'photos'
    folder.mkdir()
    (folder / 'a.jpg').touch()
    assert call_driver('--budgets', '1e4', '--images', 'photos')[0] == 0
    assert lines_of(tmp_path / 'work' / 'pictures.txt') == [str(folder / 'a.jpg')]
    assert not list((tmp_path / 'data' / 'part-0' / 'unlabelled').iterdir())  # the labelled ones are still drawn


def test_a_dry_run_runs_nothing(call_driver, tmp_path):
    code, out, _ = call_driver('--budgets', '1e4', '--dry-run')
    assert code == 0 and '(pretrain-0.01M): to be run' in out and not (tmp_path / 'data').exists()


def test_options_and_folders_reach_the_pretraining_as_they_were_given(tmp_path):
    photos = tmp_path / 'photos'
    write_demo(photos, 2, 0, 0, 64, 0, 1, False)
    given = ['train_dataloader.dataset.crop_size=32,64', 'optim_wrapper.optimizer.betas=(0.9,0.95)']
    args = pretraining_budget.parse_args(
        ['--budgets', '1e4', '--images', str(photos), '--work-dir', str(tmp_path / 'my work, (1)'), '--data', 'data']
        + ['--pretrain-options', *given]
    )
    pretraining_budget.check_args(args)
    [stage] = [each for each in pretraining_budget.build_stages(args).values() if each.name.startswith('pretrain')]
    words = stage.commands[0](False)
    read = read_options(words[words.index('--cfg-options') + 1 :])
    assert read['train_dataloader.dataset.source'] == str(tmp_path / 'my work, (1)' / 'pictures.txt')
    assert read['train_dataloader.dataset.crop_size'] == [32, 64]
    assert read['optim_wrapper.optimizer.betas'] == (0.9, 0.95) and read['train_cfg.max_iters'] == 156


def test_real_schedule_warms_up_and_ends_at_zero(call, tmp_path):
    write_demo(tmp_path / 'demo', 3, 1, 1, 64, 0, 1, False)  # fewer than a batch: epochs run into each other
    options = pretraining_options(
        Budget(40, 10, 2, 4),
        {
            'train_dataloader.batch_size': '4',
            'train_dataloader.num_workers': '0',
            'train_dataloader.persistent_workers': 'False',
            'train_dataloader.dataset.source': str(tmp_path / 'demo' / 'unlabelled'),
            'model.neck.decoder_channels': '16',
            'default_hooks.logger.interval': '1',
        },
    )
    work = tmp_path / 'run'
    words = run_commands.option_words(options)
    code, _, err = call(
        'train', ROOT / 'configs' / pretraining_budget.PRETRAIN, '--work-dir', work, '--cfg-options', *words
    )
    assert code == 0, err
    [path] = work.glob('*/vis_data/scalars.json')
    logged = [json.loads(line) for line in path.read_text().splitlines()]
    # warmup over 2 steps from a thousandth, then half a cosine over 8: 0 comes after the last step
    expected = [1e-3, 1.0, *((1 + math.cos(math.pi * step / 8)) / 2 for step in range(8))]
    assert [line['lr'] / 1.5e-3 for line in logged] == pytest.approx(expected, abs=2e-3)
    assert [line['step'] for line in logged] == list(range(1, 11)) and (work / 'iter_10.pth').exists()
