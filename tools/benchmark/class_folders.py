"""Labelled pictures to measure features on, as class folders: coarse classes of ImageNet's, or objects of demo scenes.

    python tools/benchmark/class_folders.py photos FOLDER --out data/coarse [--most 90]
    python tools/benchmark/class_folders.py scenes data/demo --out data/objects

photos: FOLDER holds files named like ImageNet's classes, `n01514668_cock.jpg`. Animals are grouped by their WordNet
numbers, which run through the animal kingdom; vehicles and places by the lists below; what is in none of them
is an `object`. The folders hold links. At most --most pictures per class, spread evenly, so that no class is
half of the set. scenes: every annotated object of a folder of demo scenes, cut out as a square around its box, into
train/ and val/.

--out holds these pictures alone afterwards: links of an earlier call go, other files there are refused.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from PIL import Image

from mmcnx2.engine.user_errors import explain_errors

# first and last number of the ranges of a class
RANGES = {
    'bird': [(1514668, 1622779), (1791625, 1860187), (2002556, 2058221)],
    'reptile_or_fish': [(1440764, 1498041), (1629819, 1756291), (2514041, 2655020)],
    'invertebrate': [(1768244, 1790000), (1910747, 1990800), (2165105, 2321529)],
    'dog': [(2085620, 2120505)],  # wild ones, foxes and hyenas too
    'mammal': [(1871265, 1883070), (2062744, 2077923), (2123045, 2138441), (2325366, 2510455)],
    'food': [(7579787, 7932039), (11879895, 13133613)],  # fruit and mushrooms that nobody eats too
    'place': [(9193705, 9472597)],  # landscapes; buildings are added by name
}
NAMES = {
    'vehicle': (
        'aircraft_carrier airliner airship ambulance balloon bobsled bullet_train canoe catamaran container_ship '
        'convertible fireboat fire_engine freight_car garbage_truck golfcart gondola half_track harvester jeep '
        'jinrikisha liner lifeboat limousine minibus minivan missile mobile_home Model_T moped motor_scooter '
        'mountain_bike moving_van oxcart passenger_car pickup pirate police_van racer recreational_vehicle school_bus '
        'schooner snowmobile snowplow speedboat sports_car steam_locomotive streetcar submarine tank tow_truck tractor '
        'trailer_truck tricycle trimaran trolleybus warplane yawl cab beach_wagon go-kart bicycle-built-for-two'
    ),
    'place': (
        'bakery barn beacon bell_cote boathouse bookshop breakwater butcher_shop castle church cinema '
        'cliff_dwelling confectionery dam dock dome fountain greenhouse grocery_store home_theater library lumbermill '
        'monastery mosque obelisk palace patio planetarium prison restaurant shoe_shop stage steel_arch_bridge stupa '
        'suspension_bridge thatch tobacco_shop toyshop triumphal_arch viaduct water_tower yurt bannister birdhouse '
        'apiary'
    ),
}
OBJECT = 'object'
MARGIN = 0.15  # of the longer side of a box, added on each side


def coarse_class(file_name: str) -> str:
    """'bird' of 'n01514668_cock.jpg'."""
    match = re.fullmatch(r'n(\d{8})_(.+)\.\w+', file_name)
    if match is None:
        raise ValueError(f"'{file_name}' is not named like ImageNet's classes, n01514668_cock.jpg")
    number, name = int(match[1]), match[2]
    for group, ranges in RANGES.items():
        if any(first <= number <= last for first, last in ranges):
            return group
    return next((group for group, names in NAMES.items() if name in names.split()), OBJECT)


def make_room(out: Path, targets: Collection[Path]) -> None:
    """Takes the links of an earlier call out of its class folders; ValueError when there is anything else than
    `targets`, which are to be written."""
    there = [path for path in sorted(out.rglob('*')) if path.is_symlink() or not path.is_dir()]
    classes = {out / name for name in (*RANGES, *NAMES, OBJECT)}
    links = [path for path in there if path.is_symlink() and path.parent in classes]
    others = set(there) - set(links) - set(targets)
    if others:
        raise ValueError(
            f"'{out}' holds {len(others)} files that this call does not make, such as '{min(others)}': take them away, "
            'or choose another --out'
        )
    for path in links:
        path.unlink()
    for folder in classes:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def link_photos(folder: Path, out: Path, most: int) -> dict[str, int]:
    if most < 1:
        raise ValueError(f'--most {most}: each class has at least 1 photo')
    groups = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in ('.jpg', '.jpeg', '.png'):
            groups[coarse_class(path.name)].append(path)
    if not groups:
        raise ValueError(f"'{folder}' holds no .jpg or .png; give a folder of photos")
    for group, paths in groups.items():
        taken = min(most, len(paths))
        groups[group] = [paths[(2 * i + 1) * len(paths) // (2 * taken)] for i in range(taken)]
    make_room(out, ())
    for group, paths in groups.items():
        (out / group).mkdir(parents=True, exist_ok=True)
        for path in paths:
            (out / group / path.name).symlink_to(path.resolve())
    return {group: len(paths) for group, paths in sorted(groups.items())}


def cut_objects(demo: Path, out: Path) -> dict[str, int]:
    counts, cuts = defaultdict(int), {}
    for split in ('train', 'val'):
        content = json.loads((demo / 'coco' / 'annotations' / f'instances_{split}.json').read_text())
        names = {one['id']: one['name'] for one in content['categories']}
        files = {one['id']: one['file_name'] for one in content['images']}
        for one in content['annotations']:
            x, y, width, height = one['bbox']
            side = max(width, height) * (1 + 2 * MARGIN)
            left, top = x + width / 2 - side / 2, y + height / 2 - side / 2
            target = out / split / names[one['category_id']] / f'{one["image_id"]:06d}_{one["id"]:06d}.png'
            box = tuple(round(value) for value in (left, top, left + side, top + side))
            cuts[target] = demo / 'coco' / split / files[one['image_id']], box
            counts[f'{split}/{names[one["category_id"]]}'] += 1
    make_room(out, cuts)
    for target, (source, box) in cuts.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(source) as image:
            inside = max(box[0], 0), max(box[1], 0), min(box[2], image.width), min(box[3], image.height)
            image.crop(inside).save(target)
    return dict(sorted(counts.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('kind', choices=('photos', 'scenes'))
    parser.add_argument('folder', type=Path)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--most', type=int, default=90, help='photos of a class; default %(default)s')
    args = parser.parse_args()
    counts = (
        link_photos(args.folder, args.out, args.most) if args.kind == 'photos' else cut_objects(args.folder, args.out)
    )
    print(f'{sum(counts.values())} pictures in {args.out}: ' + ', '.join(f'{n} {name}' for name, n in counts.items()))


if __name__ == '__main__':
    with explain_errors():
        main()
