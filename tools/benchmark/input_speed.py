"""Pictures per second and core that the input of pretraining delivers, in every way that was considered, side by side.

    python tools/benchmark/input_speed.py FOLDER --sizes 0 375 2000 --out tools/benchmark/results/input_speed

FOLDER holds photographs. Size 0 takes them as they are; another size makes copies whose shorter side has so many
pixels, with grain so that a pixel takes about as many bytes as in a camera's file, in a temporary folder. Each way
delivers the same crops (224 px, 20% to 100% of the area), mirrored and packed, through mmcnx2.UnlabelledImages: one
process, one thread, files in the page cache, the ways taking turns. Prints Markdown: pictures per second (median of the
rounds), the cores that a GPU needs at --target pictures per second, bytes on disk, and by how much the pixels differ
from those of mmcnx2.LoadImage and mmpretrain's RandomResizedCrop. With `--out` table and settings go into files.

simplejpeg and webdataset are compared where they are installed; the project needs neither.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import math
import mmap
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import mmpretrain.datasets  # noqa: F401  (registers its transforms)
import numpy as np
import torch
import torchvision
from mmengine.registry import TRANSFORMS
from PIL import Image, features
from torchvision.transforms import v2

from mmcnx2.analysis.provenance import machine, provenance, versions
from mmcnx2.atomic_write import write_atomically
from mmcnx2.datasets import LoadRandomResizedCrop, SeededIndex, UnlabelledImages
from mmcnx2.datasets.load_random_resized_crop import draw_crop, resized
from mmcnx2.datasets.orientation import Crop
from mmcnx2.datasets.seeding import derive_seed
from mmcnx2.engine.user_errors import explain_errors

SIDE, AREAS, RATIOS = 224, (0.2, 1.0), (3 / 4, 4 / 3)
NUM_PICTURES = {0: 600, 375: 120, 2000: 20}  # at most; fewer of the larger ones
GRAIN = 6  # standard deviation, of 255
CROP = dict(
    type='mmpretrain.RandomResizedCrop', scale=SIDE, crop_ratio_range=AREAS, backend='pillow', interpolation='bicubic'
)
TAIL = [dict(type='mmcv.RandomFlip', prob=0.5), dict(type='mmpretrain.PackInputs')]
REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
BEFORE = 'LoadImage, RandomResizedCrop: all pixels decoded, Pillow resizes'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path)
    parser.add_argument(
        '--sizes', type=int, nargs='+', default=[0, 375, 2000], help='shorter sides in px; 0: as they are'
    )
    parser.add_argument('--num', type=int, default=0, help='pictures of each size (default: 600, 120, 20)')
    parser.add_argument('--rounds', type=int, default=5, help='counted rounds, after one warm-up')
    parser.add_argument('--target', type=int, default=2000, help='pictures per second of a GPU (2000)')
    parser.add_argument('--out', type=Path, help='writes OUT_cpu_DATE.md and .json')
    return parser.parse_args()


# ---- pictures


def write_photographs(sources: list[Path], shorter_side: int, folder: Path) -> list[Path]:
    """Photographs of the given shorter side in px, grainy, JPEG."""
    generator = np.random.default_rng(0)
    paths = []
    for source in sources:
        with Image.open(source) as image:
            small = image.convert('RGB')
        large = enlarged(small, shorter_side)
        grain_HW1 = generator.normal(0, GRAIN, (large.height, large.width, 1))
        pixels = (np.asarray(large) + grain_HW1).clip(0, 255).astype(np.uint8)
        paths.append(folder / f'{source.stem}.jpg')
        Image.fromarray(pixels).save(paths[-1], quality=95 if shorter_side < 1000 else 90)
    return paths


def enlarged(image: Image.Image, shorter_side: int) -> Image.Image:
    """Or reduced."""
    factor = shorter_side / min(image.size)
    size = round(image.width * factor), round(image.height * factor)
    return image.resize(size, Image.Resampling.BICUBIC)


def write_copies(paths: list[Path], shorter_side: int, folder: Path) -> list[Path]:
    """JPEG copies whose shorter side is at most the given one; what is small already is copied as it is."""
    folder.mkdir()
    copies = []
    for path in paths:
        copies.append(folder / path.name)
        with Image.open(path) as image:
            if min(image.size) <= shorter_side:
                copies[-1].write_bytes(path.read_bytes())
            else:
                enlarged(image.convert('RGB'), shorter_side).save(copies[-1], quality=95)
    return copies


# ---- ways: each is the first transform of a pipeline, img_path -> img of 224 px, B, G, R


def random_crop(height: int, width: int) -> tuple[slice, slice]:
    crop = draw_crop(height, width, AREAS, RATIOS)
    return slice(crop.top, crop.top + crop.height), slice(crop.left, crop.left + crop.width)


def bgr(image_HWC: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image_HWC, cv2.COLOR_RGB2BGR)


def reduction_of(rows: slice, columns: slice, oversampling: float) -> int:
    """The greatest of 1, 2, 4, 8 that leaves the crop `oversampling` times the pixels of the result."""
    room = min(rows.stop - rows.start, columns.stop - columns.start) / (oversampling * SIDE)
    return next((reduction for reduction in (8, 4, 2) if room >= reduction), 1)


def way(load: Callable[[bytes], np.ndarray]) -> Callable[[dict], dict]:
    """A transform from a function of the file's bytes."""

    def transform(results: dict) -> dict:
        results['img'] = load(Path(results['img_path']).read_bytes())
        return results

    return transform


def pillow_draft(oversampling: float) -> Callable[[bytes], np.ndarray]:
    def load(content: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(content))
        rows, columns = random_crop(image.height, image.width)
        reduction = reduction_of(rows, columns, oversampling)
        if reduction > 1:
            image.draft('RGB', (image.width // reduction, image.height // reduction))
        edges = [edge / reduction for edge in (columns.start, rows.start, columns.stop, rows.stop)]
        edges[2:] = min(edges[2], image.width), min(edges[3], image.height)
        return bgr(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=edges)))

    return load


def opencv_reduced(content: bytes) -> np.ndarray:
    width, height = Image.open(io.BytesIO(content)).size
    rows, columns = random_crop(height, width)
    reduction = reduction_of(rows, columns, 2.0)
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), REDUCED[reduction])
    rows, columns = (slice(round(part.start / reduction), round(part.stop / reduction)) for part in (rows, columns))
    return resized(decoded[rows, columns], (SIDE, SIDE))


def torchvision_v2(content: bytes) -> np.ndarray:
    encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    image_CHW = torchvision.io.decode_jpeg(encoded, mode=torchvision.io.ImageReadMode.RGB)
    rows, columns = random_crop(*image_CHW.shape[1:])
    crop = rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start
    small = v2.functional.resized_crop(image_CHW, *crop, [SIDE, SIDE], v2.InterpolationMode.BICUBIC, antialias=True)
    return bgr(np.ascontiguousarray(small.permute(1, 2, 0).numpy()))


def simplejpeg_scaled(content: bytes) -> np.ndarray:
    import simplejpeg

    height, width, _, _ = simplejpeg.decode_jpeg_header(content)
    rows, columns = random_crop(height, width)
    room = min(rows.stop - rows.start, columns.stop - columns.start) / (2 * SIDE)
    factor = max(1.0, room)  # libjpeg-turbo has every eighth between 1/8 and 1
    least = dict(min_height=math.ceil(height / factor), min_width=math.ceil(width / factor)) if factor > 1 else {}
    decoded = simplejpeg.decode_jpeg(content, 'BGR', **least)
    factors = decoded.shape[0] / height, decoded.shape[1] / width
    rows, columns = (
        slice(round(part.start * factor), round(part.stop * factor))
        for part, factor in zip((rows, columns), factors, strict=True)
    )
    return resized(decoded[rows, columns], (SIDE, SIDE))


class FromBytes(LoadRandomResizedCrop):
    """mmcnx2.LoadRandomResizedCrop of JPEG bytes that some store gives for the number of a picture.

    Crops of smaller copies are drawn on the picture's own size, (height, width), so that all ways show the same.
    """

    def __init__(self, bytes_of: Callable[[int], bytes], sizes: list[tuple[int, int]] | None = None) -> None:
        super().__init__(SIDE, AREAS)
        self.bytes_of, self.sizes, self.size = bytes_of, sizes, None

    def transform(self, results: dict) -> dict:
        number = results['sample_idx']
        self.size = self.sizes[number] if self.sizes else None
        results['ori_shape'], results['img'] = self._crop_of_jpeg(self.bytes_of(number))
        return results

    def _draw(self, height: int, width: int) -> Crop:
        return scaled_crop(self.size or (height, width), (height, width))


def scaled_crop(drawn_on: tuple[int, int], wanted: tuple[int, int]) -> Crop:
    """A random crop of a picture of one size, in the coordinates of a copy of another."""
    crop = draw_crop(*drawn_on, AREAS, RATIOS)
    rows, columns = wanted[0] / drawn_on[0], wanted[1] / drawn_on[1]
    top, bottom = round(crop.top * rows), round((crop.top + crop.height) * rows)
    left, right = round(crop.left * columns), round((crop.left + crop.width) * columns)
    return Crop(top, left, bottom - top, right - left)


def tar_shard(paths: list[Path], folder: Path) -> tuple[Callable[[int], bytes], Path]:
    """One tar file, read through a memory map and an index of its members."""
    shard = folder / 'shard.tar'
    with tarfile.open(shard, 'w') as tar:
        for number, path in enumerate(paths):
            tar.add(path, f'{number:08d}.jpg')
    with tarfile.open(shard) as tar:
        places = [(member.offset_data, member.size) for member in tar]
    mapped = mmap.mmap(os.open(shard, os.O_RDONLY), 0, prot=mmap.PROT_READ)
    return lambda number: mapped[places[number][0] : sum(places[number])], shard


def webdataset_shard(shard: Path) -> Callable[[int], bytes]:
    """The same tar file through the package webdataset, from the front to the back."""
    import webdataset

    def forever() -> Iterator[bytes]:
        while True:
            for sample in webdataset.WebDataset(str(shard), shardshuffle=False, empty_check=False):
                yield sample['jpg']

    contents = forever()
    return lambda number: next(contents)


def raw_shard(paths: list[Path], shard: Path, sizes: list[tuple[int, int]]) -> Callable[[dict], dict]:
    """Pixels of pictures one behind the other in a file, read through a memory map: nothing is decoded."""
    places, start = [], 0
    with open(shard, 'wb') as file:
        for path in paths:
            pixels = cv2.imread(str(path))
            places.append((start, pixels.shape))
            start += file.write(pixels.tobytes())
    mapped = np.memmap(shard, np.uint8, 'r+')

    def transform(results: dict) -> dict:
        start, shape = places[results['sample_idx']]
        image_HWC = mapped[start : start + math.prod(shape)].reshape(shape)
        crop = scaled_crop(sizes[results['sample_idx']], shape[:2])
        part_HWC = image_HWC[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        results['img'] = resized(np.asarray(part_HWC), (SIDE, SIDE))
        return results

    return transform


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def ways(paths: list[Path], folder: Path) -> dict[str, tuple[list, list[Path]]]:
    """{name: (the first transforms of the pipeline, the files that they read)}"""
    shard_bytes, shard = tar_shard(paths, folder)
    crop = dict(type='mmcnx2.LoadRandomResizedCrop', scale=SIDE, crop_ratio_range=AREAS)
    found = {
        BEFORE: ([dict(type='mmcnx2.LoadImage'), CROP], paths),
        '**LoadRandomResizedCrop**': ([crop], paths),
        'the same, oversampling=1': ([dict(crop, oversampling=1)], paths),
        'the same, always decoded completely': ([dict(crop, oversampling=float('inf'))], paths),
        'Pillow, draft mode, Pillow resizes': ([way(pillow_draft(2.0))], paths),
        'OpenCV, IMREAD_REDUCED_COLOR, torch resizes': ([way(opencv_reduced)], paths),
        'torchvision decode_jpeg, v2 transforms': ([way(torchvision_v2)], paths),
        'LoadRandomResizedCrop from a tar file, memory-mapped': ([FromBytes(shard_bytes)], [shard]),
    }
    if installed('simplejpeg'):
        found['simplejpeg (libjpeg-turbo at every eighth), torch resizes'] = [way(simplejpeg_scaled)], paths
    if installed('webdataset'):
        found['LoadRandomResizedCrop from a tar file, webdataset'] = [FromBytes(webdataset_shard(shard))], [shard]
    sizes = [Image.open(path).size[::-1] for path in paths]
    smallest = min(min(size) for size in sizes)
    for side in (512, 256):
        if smallest <= side:
            continue
        copies = write_copies(paths, side, folder / f'copies_{side}')
        (folder / f'tar_{side}').mkdir()
        copy_bytes, copy_shard = tar_shard(copies, folder / f'tar_{side}')
        pixels = folder / f'pixels_{side}.bin'
        from_files = FromBytes(lambda number, copies=copies: copies[number].read_bytes(), sizes)
        found[f'LoadRandomResizedCrop of copies, shorter side {side} px, JPEG files'] = [from_files], copies
        from_tar = FromBytes(copy_bytes, sizes)
        found[f'the same copies in a tar file, memory-mapped ({side} px)'] = [from_tar], [copy_shard]
        found[f'their pixels in one memory-mapped file ({side} px)'] = [raw_shard(copies, pixels, sizes)], [pixels]
    if smallest <= 256:
        pixels = folder / 'pixels.bin'
        found['pixels in one memory-mapped file'] = [raw_shard(paths, pixels, sizes)], [pixels]
    return found


# ---- measuring


class Timed:
    """A transform that adds up its seconds."""

    def __init__(self, transform: Callable[[dict], dict]) -> None:
        self.transform, self.seconds = transform, 0.0

    def __call__(self, results: dict) -> dict:
        started = time.perf_counter()
        results = self.transform(results)
        self.seconds += time.perf_counter() - started
        return results


def dataset_of(paths: list[Path], transforms: list, folder: Path) -> UnlabelledImages:
    listed = folder / 'list.txt'
    listed.write_text(''.join(f'{path}\n' for path in paths))
    pipeline = [TRANSFORMS.build(one) if isinstance(one, dict) else one for one in [*transforms, *TAIL]]
    return UnlabelledImages(listed, pipeline)


def one_round(dataset: UnlabelledImages, number: int) -> float:
    """Pictures per second over the whole set; `number` seeds the crops."""
    started = time.perf_counter()
    for index in range(len(dataset)):
        dataset[SeededIndex(index, derive_seed(number, index))]
    return len(dataset) / (time.perf_counter() - started)


def delivered(dataset: UnlabelledImages) -> list[torch.Tensor]:
    """The crops of one round."""
    return [dataset[SeededIndex(index, derive_seed(0, index))]['inputs'] for index in range(len(dataset))]


def difference(ours: list[torch.Tensor], reference: list[torch.Tensor]) -> tuple[float, float]:
    """Mean absolute difference of the pixels, of 255, and the peak signal to noise ratio in dB."""
    delta = torch.stack(ours).float() - torch.stack(reference).float()
    mean_squared = delta.double().square().mean().item()
    return delta.abs().mean().item(), 10 * math.log10(255**2 / mean_squared) if mean_squared else math.inf


def where_time_goes(paths: list[Path], transforms: list, folder: Path, rounds: int) -> dict[str, float]:
    """Milliseconds per picture of each transform, and of what is around them (seeds, the dataset)."""
    dataset = dataset_of(paths, transforms, folder)
    timed = dataset.pipeline.transforms = [Timed(transform) for transform in dataset.pipeline.transforms]
    spent: list[list[float]] = []
    for number in range(rounds + 1):
        for one in timed:
            one.seconds = 0.0
        whole = len(paths) / one_round(dataset, number)
        parts = [one.seconds for one in timed]
        spent.append([1000 * seconds / len(paths) for seconds in (*parts, whole - sum(parts))])
    names = [type(one.transform).__name__ for one in timed] + ['seeds, dataset']
    return {name: statistics.median(values) for name, values in zip(names, zip(*spent[1:], strict=True), strict=True)}


def measure(paths: list[Path], folder: Path, args: argparse.Namespace) -> dict:
    sizes = np.array([Image.open(path).size for path in paths])
    num_bytes = sum(path.stat().st_size for path in paths)
    considered = ways(paths, folder)
    datasets = {name: dataset_of(paths, transforms, folder) for name, (transforms, _) in considered.items()}
    speeds: dict[str, list[float]] = {name: [] for name in datasets}
    for number in range(args.rounds + 1):
        for name, dataset in datasets.items():
            speeds[name].append(one_round(dataset, number))
    rows, reference = [], delivered(datasets[BEFORE])
    for name, dataset in datasets.items():
        absolute, ratio = difference(delivered(dataset), reference)
        stored = sum(path.stat().st_size for path in considered[name][1])
        counted = speeds[name][1:]
        rows.append(dict(
            way=name, images_per_second=statistics.median(counted), slowest=min(counted), fastest=max(counted),
            kb_per_picture=stored / len(paths) / 1000, mean_difference=absolute, psnr=ratio,
        ))  # fmt: skip
    parts = {name: where_time_goes(paths, considered[name][0], folder, args.rounds) for name in list(considered)[:2]}
    return dict(
        num_pictures=len(paths), mean_width=sizes[:, 0].mean(), mean_height=sizes[:, 1].mean(),
        bytes_per_pixel=num_bytes / sizes.prod(1).sum(), rows=rows, milliseconds=parts,
    )  # fmt: skip


# ---- report


def table(result: dict, target: int) -> list[str]:
    lines = [
        f'| way | pictures/s per core | slowest to fastest round | cores for {target:,}/s | kB per picture | '
        'mean difference | PSNR, dB |',
        '|---|---:|---:|---:|---:|---:|---:|',
    ]
    for row in result['rows']:
        same = 'reference | ' if row['way'] == BEFORE else f'{row["mean_difference"]:.2f} | {row["psnr"]:.1f}'
        lines.append(
            f'| {row["way"]} | {row["images_per_second"]:.0f} | {row["slowest"]:.0f} to {row["fastest"]:.0f} | '
            f'{target / row["images_per_second"]:.1f} | {row["kb_per_picture"]:.0f} | {same} |'
        )
    lines += ['', 'Milliseconds per picture:', '']
    for name, parts in result['milliseconds'].items():
        spent = ', '.join(f'{part} {value:.2f}' for part, value in parts.items())
        lines.append(f'* {name.strip("*")}: {spent}; together {sum(parts.values()):.2f}')
    return lines


def main() -> None:
    args = parse_args()
    sources = sorted(path for path in args.folder.absolute().iterdir() if path.suffix.lower() in ('.jpg', '.jpeg'))
    if not sources:
        raise ValueError(f"'{args.folder}' holds no .jpg; give a folder of photographs")
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    settings = dict(
        machine=machine(),
        versions={
            **versions('pillow', 'opencv-python-headless', 'simplejpeg', 'webdataset'),
            'libjpeg-turbo of Pillow': features.version_feature('libjpeg_turbo') or 'none',
        },
        finished=str(date.today()), rounds=args.rounds,
        crop=dict(side=SIDE, areas=AREAS, ratios=RATIOS), target=args.target,
    )  # fmt: skip
    lines = [
        f'# Input speed, {settings["finished"]}', '',
        f'{provenance(settings)} One core is used. Medians of {args.rounds} interleaved rounds; crops of {SIDE} px, '
        f'{AREAS[0]:.0%} to {AREAS[1]:.0%} of the area; files in the page cache. Differences are those of the crops, '
        'of 255, from the first way.',
    ]  # fmt: skip
    results = {}
    for size in args.sizes:
        num = min(len(sources), args.num or NUM_PICTURES.get(size, 24))
        chosen = sources[:: len(sources) // num][:num]
        with tempfile.TemporaryDirectory() as scratch:
            paths = chosen if size == 0 else write_photographs(chosen, size, Path(scratch))
            result = results[size] = measure(paths, Path(scratch), args)
        title = 'as they are' if size == 0 else f'shorter side made {size} px, with grain'
        lines += [
            '', f'## {result["num_pictures"]} photographs, {title}', '',
            f'{result["mean_width"]:.0f} x {result["mean_height"]:.0f} px on average, '
            f'{result["bytes_per_pixel"]:.2f} bytes per pixel.', '', *table(result, args.target),
        ]  # fmt: skip
    report = '\n'.join(lines) + '\n'
    print(report)
    if args.out:
        stem = f'{args.out}_cpu_{settings["finished"]}'
        write_atomically(f'{stem}.md', report)
        write_atomically(f'{stem}.json', json.dumps(dict(settings=settings, results=results), indent=2) + '\n')


if __name__ == '__main__':
    with explain_errors():
        main()
