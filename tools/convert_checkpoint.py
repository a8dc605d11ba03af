"""Convert a checkpoint between the layouts of mmcnx2, the official code, timm, transformers and mmpretrain.

    python tools/convert_checkpoint.py fcmae.pth convnextv2.safetensors --source mmcnx2 --target timm --drop 'neck.*'
    'head.*'
    python tools/convert_checkpoint.py official:convnextv2_atto_1k_224_fcmae atto_4.pth --target mmcnx2
    --in-channels 4 --inflate zero

Strict: a name that no rule knows, a wrong shape or a missing tensor stops it with one line and exit code 1, and OUT
is not written. OUT says where it comes from (source file, sha256, layouts and their tables, version, counts). IN may be
the name of published weights (`--list-official` prints them; they are under CC-BY-NC 4.0). Touch this file for the
command line only; what converts stands in mmcnx2/checkpoint/. Guarded by tests/test_convert_checkpoint.py.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / 'mmcnx2' / '__init__.py').exists():  # run from a checkout; an installed copy is on the path already
    sys.path.insert(0, str(ROOT))

from mmcnx2.checkpoint.convert import INFLATIONS, CheckpointError, convert_state_dict, detect_layout, without_dropped
from mmcnx2.checkpoint.key_rules import LAYOUTS, TENSORS
from mmcnx2.checkpoint.official_weights import LICENCE, LICENCE_URL, local_file, official_weights, table
from mmcnx2.checkpoint.read import read_checkpoint
from mmcnx2.checkpoint.save import save_checkpoint_atomically
from mmcnx2.engine.user_errors import explain_errors
from mmcnx2.version import __version__


class ListOfficial(argparse.Action):
    """Prints the published weights and ends, whatever else is given or not."""

    def __call__(self, parser, *ignored) -> None:
        print(table())
        parser.exit()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source_path', metavar='IN', help='.pth, .pt, .safetensors, or official:NAME')
    parser.add_argument('target_path', metavar='OUT', help='.pth, .pt or .safetensors; the ending says the format')
    parser.add_argument('--source', default='auto', choices=['auto', *LAYOUTS], help='layout of IN (default: detected)')
    parser.add_argument('--target', required=True, choices=list(LAYOUTS), help='layout of OUT')
    parser.add_argument(
        '--drop', nargs='+', default=[], metavar='PATTERN', help='names of IN to leave out, with * and ?'
    )
    parser.add_argument(
        '--expect-missing', nargs='+', default=[], metavar='PATTERN', help='names of OUT that may be absent'
    )
    parser.add_argument('--in-channels', type=int, metavar='N', help='input channels of OUT, where IN has others')
    parser.add_argument(
        '--inflate',
        choices=INFLATIONS,
        help=(
            'filters for --in-channels: the mean filter for each, copies in order (both times old / new channels), or '
            'zeros behind the old ones'
        ),
    )
    parser.add_argument('--use-ema', action='store_true', help='take the averaged weights of IN')
    parser.add_argument(
        '--unsafe-load',
        action='store_true',
        help='read IN even if it holds more than tensors and plain values; such a file can run any code',
    )
    parser.add_argument(
        '--verify',
        action='store_true',
        help='read OUT back, run it in the library it is for and compare the outputs with our backbone',
    )
    parser.add_argument('--list-official', nargs=0, action=ListOfficial, help='print the published weights and end')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    target_path = Path(args.target_path).expanduser()
    if args.verify and args.expect_missing:
        raise CheckpointError('--verify runs whole models: it cannot be combined with --expect-missing')
    if (args.in_channels is None) != (args.inflate is None):
        raise CheckpointError('--in-channels and --inflate belong together: how many, and how they are made')
    if not target_path.parent.is_dir():
        raise CheckpointError(f'the folder {target_path.parent} of OUT does not exist')
    source_path = local_file(args.source_path)
    checkpoint = read_checkpoint(source_path, args.use_ema, unsafe_load=args.unsafe_load)
    source_path = Path(source_path).expanduser()
    if target_path.exists() and target_path.samefile(source_path):
        raise CheckpointError('IN and OUT are the same file')
    kept = without_dropped(checkpoint['state_dict'], args.drop)
    source = detect_layout(kept) if args.source == 'auto' else args.source
    stem = {'in_channels': args.in_channels, 'inflate': args.inflate}
    converted = convert_state_dict(kept, source=source, target=args.target, expect_missing=args.expect_missing, **stem)
    notes = []
    if args.verify:
        from mmcnx2.checkpoint.verify import verify_conversion

        original = convert_state_dict(kept, source=source, target=source, **stem) if args.inflate else kept
        notes = [
            f'{what} {difference:.1e}'
            for what, difference in verify_conversion(original, source, converted, args.target).items()
        ]
    meta = provenance(source_path, source, args, checkpoint, len(converted))
    save_checkpoint_atomically(_container(converted, args.target, target_path, meta), target_path)
    inflated = f', now {args.in_channels} input channels ({args.inflate})' if args.inflate else ''
    counts = f'{len(converted)} of {len(checkpoint["state_dict"])} tensors'
    print(f'{counts}, {source} -> {args.target}{inflated}, {target_path}')
    if notes:
        print('compared, difference / largest value: ' + ', '.join(notes))


def provenance(
    source_path: Path, source: str, args: argparse.Namespace, checkpoint: dict, num_target: int
) -> dict[str, str]:
    """What OUT says about itself, as text (a safetensors header holds nothing else)."""
    with open(source_path, 'rb') as file:
        sha256 = hashlib.file_digest(file, 'sha256').hexdigest()
    tables = repr((TENSORS, LAYOUTS[source], LAYOUTS[args.target]))
    meta = {
        'format': 'pt',
        'source_file': source_path.name,
        'source_sha256': sha256,
        'source_layout': source,
        'target_layout': args.target,
        'rules_sha256': hashlib.sha256(tables.encode()).hexdigest(),
        'source_tensors': str(len(checkpoint['state_dict'])),
        'target_tensors': str(num_target),
        'dropped': ' '.join(args.drop),
        'expect_missing': ' '.join(args.expect_missing),
        'averaged': str(args.use_ema),
        'mmcnx2_version': __version__,
    }
    if args.inflate:
        meta |= {'in_channels': str(args.in_channels), 'inflate': args.inflate}
    if 'licence' in checkpoint['meta']:  # of a file that was converted before
        meta['licence'] = str(checkpoint['meta']['licence'])
    official = official_weights(args.source_path)
    if official:
        meta |= {'source_url': official.url, 'licence': f'{LICENCE}, no commercial use: {LICENCE_URL}'}
    return meta


def _container(converted: dict, target: str, target_path: Path, meta: dict[str, str]) -> dict:
    """The official code looks for its weights under 'model', OpenMMLab under 'state_dict'; timm and transformers read
    either or the top level of a safetensors file."""
    if target_path.suffix != '.safetensors' and target in ('meta', 'meta-sparse'):
        return {'model': converted, 'meta': meta}
    return {'state_dict': converted, 'meta': meta}


if __name__ == '__main__':
    with explain_errors():
        main()
