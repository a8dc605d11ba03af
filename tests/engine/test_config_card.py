"""The card of a config: its fields, and which of its figures count as published."""

from pathlib import Path

import pytest

from mmcnx2.engine.config_card import FIGURES, ConfigCard, read_card

CONFIGS = Path(__file__).parents[2] / 'configs'
CARD = '''"""A detector.

Run:    bash tools/dist_train.sh configs/coco/x.py 8 \\
            --cfg-options a.b=1
Needs:  data/coco
Expect: box AP 52.9, mask AP 46.6 (published: paper, Table 6; another code reports
        52.9 / 46.4); with our code not run yet
Source: a paper: its appendix
"""
raise RuntimeError('reading a card does not run the file')
'''


def card_expecting(text: str) -> ConfigCard:
    return ConfigCard('A title.', 'run', 'needs', text, 'source')


def test_fields_come_out_as_single_lines(tmp_path):
    path = tmp_path / 'x.py'
    path.write_text(CARD)
    card = read_card(path)
    assert card.title == 'A detector.'
    assert card.run == 'bash tools/dist_train.sh configs/coco/x.py 8 --cfg-options a.b=1'
    assert card.needs == 'data/coco'
    assert card.expect.endswith('another code reports 52.9 / 46.4); with our code not run yet')
    assert card.source == 'a paper: its appendix'
    assert read_card(str(path)) == card
    assert card.published == {'box AP': 52.9, 'mask AP': 46.6}


@pytest.mark.parametrize(
    ('expect', 'published'),
    [
        (
            'mIoU 52.1 with the multi-scale test (122M params, 1170G FLOPs; published: paper, Table 7); not run yet',
            {'mIoU': 52.1},
        ),
        ('76.7% ImageNet-1K top-1 after fine-tuning (published: paper, Table 4); not run yet', {'top-1': 76.7}),
        ('top-1 88.9 (published: paper)', {'top-1': 88.9}),
        ('box AP 52 (published: paper, which gives no mask AP)', {'box AP': 52.0}),
        ('not run yet; another model: box AP 52.7, mask AP 45.6 (published: its repository)', {}),
        ('box AP 40.1, mask AP 36.2 (made up; published: nowhere); or mIoU 50.1', {'box AP': 40.1, 'mask AP': 36.2}),
        ('box AP 0.351 and mask AP 0.394 from scratch (make demo, 2 cores)', {}),
        ('not run yet; the paper published no number for this size', {}),
    ],
)  # fmt: skip
def test_only_published_figures_of_this_config_count(expect, published):
    assert card_expecting(expect).published == published


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('model = dict()', 'has no card'),
        ('"""A title.\n"""', 'has the fields none'),
        (CARD.replace('Needs:  data/coco\n', ''), 'has the fields Run, Expect, Source'),
        (CARD.replace('data/coco', ''), 'has nothing after Needs'),
        ('def', 'is no Python file'),
    ],
)
def test_a_file_without_a_whole_card_is_refused(text, message, tmp_path):
    path = tmp_path / 'y.py'
    path.write_text(text)
    with pytest.raises(ValueError, match=rf'y\.py.*{message}|{message}'):
        read_card(path)


def test_every_config_that_says_published_states_a_figure_that_is_found():
    found = {}
    for path in CONFIGS.glob('[a-z]*/**/*.py'):
        card = read_card(path)
        found.update(card.published)
        figure_first = card.expect.split('(')[0].strip()[:1].isdigit() or card.expect.startswith(tuple(FIGURES))
        assert bool(card.published) == (figure_first and 'published' in card.expect), f'{path.name}: {card.expect}'
    assert set(found) == set(FIGURES)
