"""Convert a checkpoint between the layouts of mmcnx2, the official code, timm, transformers and mmpretrain.

    python tools/convert_checkpoint.py fcmae.pth convnextv2.safetensors --source mmcnx2 --target timm --drop 'neck.*'
    'head.*'

Strict: a name that no rule knows, a wrong shape or a missing tensor stops it with one line and exit code 1, and OUT
is not written. OUT says where it comes from (source file, sha256, layouts, version, counts). Touch this file for the
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

from mmcnx2.checkpoint.convert import CheckpointError, convert_state_dict, detect_layout, without_dropped
from mmcnx2.checkpoint.key_rules import LAYOUTS
from mmcnx2.checkpoint.read import read_checkpoint
from mmcnx2.checkpoint.save import save_checkpoint_atomically
from mmcnx2.engine.user_errors import explain_errors
from mmcnx2.version import __version__


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source_path', metavar='IN', help='.pth, .pt or .safetensors')
    parser.add_argument('target_path', metavar='OUT', help='.pth, .pt or .safetensors; the ending says the format')
    parser.add_argument('--source', default='auto', choices=['auto', *LAYOUTS], help='layout of IN (default: detected)')
    parser.add_argument('--target', required=True, choices=list(LAYOUTS), help='layout of OUT')
    parser.add_argument('--drop', nargs='+', default=[], metavar='PATTERN',
                        help='names of IN to leave out, with * and ?')
    parser.add_argument('--expect-missing', nargs='+', default=[], metavar='PATTERN',
                        help='names of OUT that may be absent')
    parser.add_argument('--use-ema', action='store_true', help='take the averaged weights of IN')
    parser.add_argument('--verify', action='store_true',
                        help='read OUT back, run it in the library it is for and compare the outputs with our backbone')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    source_path, target_path = Path(args.source_path).expanduser(), Path(args.target_path).expanduser()
    if args.verify and args.expect_missing:
        raise CheckpointError('--verify runs whole models: it cannot be combined with --expect-missing')
    if not target_path.parent.is_dir():
        raise CheckpointError(f'the folder {target_path.parent} of OUT does not exist')
    checkpoint = read_checkpoint(source_path, args.use_ema)
    if target_path.exists() and target_path.samefile(source_path):
        raise CheckpointError('IN and OUT are the same file')
    kept = without_dropped(checkpoint['state_dict'], args.drop)
    source = detect_layout(kept) if args.source == 'auto' else args.source
    converted = convert_state_dict(kept, source=source, target=args.target, expect_missing=args.expect_missing)
    notes = []
    if args.verify:
        from mmcnx2.checkpoint.verify import verify_conversion
        notes = [f'{what} {difference:.1e}' for what, difference in
                 verify_conversion(kept, source, converted, args.target).items()]
    meta = provenance(source_path, source, args, len(checkpoint['state_dict']), len(converted))
    save_checkpoint_atomically(_container(converted, args.target, target_path, meta), target_path)
    print(f'{len(converted)} of {len(checkpoint["state_dict"])} tensors, {source} -> {args.target}, {target_path}')
    if notes:
        print('compared, difference / largest value: ' + ', '.join(notes))


def provenance(source_path: Path, source: str, args: argparse.Namespace, num_source: int,
               num_target: int) -> dict[str, str]:
    """What OUT says about itself, as text (a safetensors header holds nothing else)."""
    with open(source_path, 'rb') as file:
        sha256 = hashlib.file_digest(file, 'sha256').hexdigest()
    return {
        'format': 'pt', 'source_file': source_path.name, 'source_sha256': sha256, 'source_layout': source,
        'target_layout': args.target, 'source_tensors': str(num_source), 'target_tensors': str(num_target),
        'dropped': ' '.join(args.drop), 'expect_missing': ' '.join(args.expect_missing), 'averaged': str(args.use_ema),
        'mmcnx2_version': __version__,
    }


def _container(converted: dict, target: str, target_path: Path, meta: dict[str, str]) -> dict:
    """The official code looks for its weights under 'model', OpenMMLab under 'state_dict'; timm and transformers read
    either or the top level of a safetensors file."""
    if target_path.suffix != '.safetensors' and target in ('meta', 'meta-sparse'):
        return {'model': converted, 'meta': meta}
    return {'state_dict': converted, 'meta': meta}


if __name__ == '__main__':
    with explain_errors():
        main()
