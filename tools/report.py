"""One page about any runs: results, curves, cost, pictures, confused classes, and where their configs differ.

    python tools/report.py WORK_DIR [NAME=WORK_DIR ...] [-o report.html] [--draw N] [--evaluate] [--title TEXT]

WORK_DIR is the work dir of a training, or a folder that holds several (of the demo, of tools/transfer.py). Pretraining,
classification, detection and segmentation may be mixed; a run that was stopped and resumed is one run. What is damaged
or missing is named in the page. The page is one file: it opens from the disk, without a network, also on a phone.

--draw N draws N validation pictures per group of runs with the same validation set; --evaluate runs each last
checkpoint over its whole validation set and counts which classes are taken for which. Both need the data where the
stored configs look for them, and keep their results in WORK_DIR/report/, so that the next report has them at once.
Shown as well are the PNG files below WORK_DIR/reconstruction(s), WORK_DIR/analysis and WORK_DIR/collapse, with the
captions of JSON files of the same names, curves of WORK_DIR/collapse/epoch_N.json, which pretraining writes, and the
pictures of a folder without a run, such as the --out-dir of tools/analyze_collapse.py.

Curves need the package plotly (pip install "mmcnx2[report]"); without it they are still pictures.

Touch this file for options; what the page shows is in mmcnx2/analysis/run_report.py, its form in page.py. Guarded by
tests/test_report.py and tests/test_report_browser.py.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / 'mmcnx2' / '__init__.py').exists():  # run from a checkout; an installed copy is on the path already
    sys.path.insert(0, str(ROOT))

from mmcnx2.analysis import evaluation
from mmcnx2.analysis.page import Section, build_page, write_page
from mmcnx2.analysis.plotly_script import packed_plotly
from mmcnx2.analysis.provenance import provenance_now
from mmcnx2.analysis.run_facts import RunFacts, find_runs, read_facts, run_labels
from mmcnx2.analysis.run_report import (
    ANALYSES,
    RECONSTRUCTIONS,
    Extras,
    origin_section,
    pictures_of,
    problems_notice,
    run_sections,
    series_below,
)
from mmcnx2.engine.user_errors import explain_errors, one_line
from mmcnx2.given_path import given_path

RUNS_PER_SHEET = 6


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'work_dirs', nargs='+', metavar='[NAME=]WORK_DIR', help='work dirs of runs, or folders that hold some'
    )
    parser.add_argument('-o', '--out', type=given_path, default=Path('report.html'), help='default: %(default)s')
    parser.add_argument('--title', help='what stands at the top of the page')
    parser.add_argument('--draw', type=int, default=0, metavar='N', help='draw predictions on N validation pictures')
    parser.add_argument(
        '--evaluate', action='store_true', help='count which classes are taken for which, on the validation set'
    )
    parser.add_argument('--no-cost', action='store_true', help='leave out parameters and FLOPs, which build the models')
    parser.add_argument('--anew', action='store_true', help='draw and count again, for instance after the data changed')
    return parser.parse_args(argv)


@dataclass
class Problems:
    """Sentences on what could not be done; each is printed when it is met, and stands in the page."""

    sentences: list[str] = field(default_factory=list)

    def add(self, sentence: str) -> None:
        self.sentences.append(sentence)
        print(f'warning: {sentence}', file=sys.stderr, flush=True)

    def attempt(self, what: str, do: Callable[[], Any]) -> Any:
        """What `do` answers; None and a sentence when it fails: one run must not cost the report of the others."""
        try:
            return do()
        except Exception as error:
            if os.environ.get('MMCNX2_TRACEBACK') == '1':
                traceback.print_exc()
            self.add(f'{what}: {one_line(error)}')
            return None


def named_places(words: Sequence[str]) -> list[tuple[str, Path]]:
    """(name or '', folder) of each argument; a folder whose own name holds '=' is taken as it is."""
    places = []
    for word in words:
        name, equals, path = word.partition('=')
        places.append((name, Path(path)) if equals and not Path(word).exists() else ('', Path(word)))
    return places


def find_labelled(places: Sequence[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """(label, work dir) of every run, each folder once; runs below a named folder are called NAME/RUN."""
    found: dict[Path, str] = {}
    seen: set[Path] = set()
    for name, place in places:
        folders = find_runs(place)
        labels = [''] * len(folders) if not name else [name] if folders == [place] else run_labels(folders)
        for label, folder in zip(labels, folders, strict=True):
            if folder.resolve() not in seen:
                seen.add(folder.resolve())
                found[folder] = f'{name}/{label}' if name and label != name else label
    unnamed = [folder for folder, label in found.items() if not label]
    found.update(zip(unnamed, run_labels(unnamed), strict=True))
    labels = list(found.values())
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f'two runs would be called {label!r}; give names that differ: NAME=WORK_DIR')
    return [(label, folder) for folder, label in found.items()]


def without_files(places: Sequence[tuple[str, Path]], problems: Problems) -> list[tuple[str, Path]]:
    """The folders: `work_dirs/*` names also the files that lie there."""
    for _, place in places:
        if place.is_file():
            problems.add(f'{place} is a file, no work dir; it was left out')
    return [(name, place) for name, place in places if not place.is_file()]


def without_strangers(runs: Sequence[RunFacts], problems: Problems) -> list[RunFacts]:
    """The runs; a folder that holds nothing of one, nor pictures, is named."""
    for facts in runs:
        if facts.is_nothing and not series_below(facts.folder):
            problems.add(f'{facts.folder} holds no config, no log, no checkpoint and no picture; it was left out')
    return [facts for facts in runs if not facts.is_nothing]


def model_costs(runs: Sequence[RunFacts], problems: Problems) -> dict[Path, evaluation.ModelCost]:
    costs = {}
    for facts in runs:
        if facts.config:
            what = f'{facts.label}: parameters and FLOPs were not counted'
            costs[facts.folder] = problems.attempt(what, lambda facts=facts: evaluation.cost_of(facts))
    return {folder: cost for folder, cost in costs.items() if cost}


def confusions(runs: Sequence[RunFacts], anew: bool, problems: Problems) -> dict[Path, evaluation.Confusion]:
    counted = {}
    for facts in runs:
        if facts.checkpoint is not None and facts.task in evaluation.COUNTERS:
            print(f'evaluate {facts.label}', flush=True)
            what = f'{facts.label}: classes were not counted'
            counted[facts.folder] = problems.attempt(what, lambda facts=facts: evaluation.confusion_of(facts, anew))
    return {folder: each for folder, each in counted.items() if each}


def drawn_samples(
    runs: Sequence[RunFacts], num_pictures: int, anew: bool, problems: Problems
) -> dict[str, list[tuple[Path, str]]]:
    """Sheets by task. Runs with the same validation set share one; where that fails, each gets its own."""
    groups: dict[tuple[str, str], list[RunFacts]] = {}
    for facts in runs:
        if facts.checkpoint is not None and facts.task in ('detection', 'segmentation'):
            dataset = (facts.config.get('val_dataloader') or {}).get('dataset')
            groups.setdefault((facts.task, json.dumps(dataset, default=repr)), []).append(facts)
    sheets: dict[str, list[tuple[Path, str]]] = {}
    for (task, _), group in groups.items():
        for start in range(0, len(group), RUNS_PER_SHEET):
            mine = group[start : start + RUNS_PER_SHEET]
            names = ', '.join(facts.label for facts in mine)
            print(f'draw {names}', flush=True)
            draw = partial(evaluation.kept_samples, task, num_pictures=num_pictures, anew=anew)
            together = len(mine) > 1 and problems.attempt(f'{names}: not drawn on one sheet', partial(draw, mine))
            drawn = [together] if together else [
                problems.attempt(f'{facts.label}: no pictures were drawn', partial(draw, [facts])) for facts in mine
            ]  # fmt: skip
            sheets.setdefault(task, []).extend(sheet for sheet in drawn if sheet)
    return sheets


def pictures_of_folders(places: Sequence[tuple[str, Path]], runs: Sequence[RunFacts]) -> list[Section]:
    """Pictures that lie in a folder of several runs instead of in one of them, or in one that holds no run at all."""
    folders = [facts.folder.resolve() for facts in runs]
    pictures = []
    for _, place in places:
        if place.resolve() not in folders:
            has_runs = any(place.resolve() in folder.parents for folder in folders)
            pictures += pictures_of(place, (*RECONSTRUCTIONS, *ANALYSES) if has_runs else ('.',))
    return [Section('Analysis of several runs', pictures)] if pictures else []


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with explain_errors():
        if args.draw < 0:
            raise ValueError(f'--draw {args.draw}: give the number of pictures, 0 for none')
        problems = Problems()
        places = without_files(named_places(args.work_dirs), problems)
        runs = without_strangers([read_facts(label, folder) for label, folder in find_labelled(places)], problems)
        if not runs:
            raise ValueError(f'there is no run in {", ".join(args.work_dirs)}; give work dirs of tools/train.py')
        for facts in runs:
            for problem in facts.problems:
                problems.add(problem)
        extras = Extras(
            costs={} if args.no_cost else model_costs(runs, problems),
            confusions=confusions(runs, args.anew, problems) if args.evaluate else {},
            samples=drawn_samples(runs, args.draw, args.anew, problems) if args.draw else {},
        )
        title = args.title or (f'{len(runs)} runs' if len(runs) > 1 else runs[0].label)
        plotly = packed_plotly()
        if plotly is None:
            print('note: plotly is not installed, curves are still pictures: pip install plotly', file=sys.stderr)
        sections = [
            *problems_notice(problems.sentences),
            *run_sections(runs, extras),
            *pictures_of_folders(places, runs),
            origin_section(runs),
        ]
        command = shlex.join(['python', 'tools/report.py', *(sys.argv[1:] if argv is None else argv)])
        page = build_page(title, sections, footer=f'{provenance_now()} Command: {command}', plotly=plotly)
        write_page(page, args.out)
        print(f'{args.out}: {len(runs)} runs, {len(page.encode()) / 1e6:.1f} MB')


if __name__ == '__main__':
    main()
