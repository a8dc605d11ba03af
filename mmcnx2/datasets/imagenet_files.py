"""ImageNet-1K and ImageNet-22K as class folders: whether a copy is complete, and how it comes out of the archives.

    imagenet/{train,val}/n01440764/*.JPEG ...          imagenet22k/n00004475/*.JPEG ...

The order of the folders' names is the order of the classes. Touch this file for what belongs to ImageNet; not for
downloads, which need an account (HOW_TO_GET says where). Guarded by tests/datasets/test_imagenet_files.py.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mmcnx2.atomic_write import write_atomically

from .annotation_checks import evenly_spread
from .download import Archive, Progress, Tell, check_free, no_progress, verify
from .folder_checks import Findings, files_in, folders_in, missing_sentence, named, unreadable_sentence

SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')  # of mmpretrain's datasets
WORDNET_ID = re.compile(r'n\d{8}')
NUM_CLASSES = 1000
# Images in all, and the fewest and the most of a class.
NUM_PUBLISHED = dict(train=(1_281_167, 732, 1_300), val=(50_000, 50, 50))
NUM_CLASSES_22K = 21_841  # of the release of fall 2011, which our configs are for; that of winter 2021 has fewer
# MD5 as in torchvision/datasets/imagenet.py; mmpretrain's notes on ImageNet give the same for train and val.
_URL = 'https://image-net.org/data/ILSVRC/2012'
TRAIN_ARCHIVE = Archive(f'{_URL}/ILSVRC2012_img_train.tar', 'md5:1d675b47d978889d74fa0da5fadfb00e')
VAL_ARCHIVE = Archive(f'{_URL}/ILSVRC2012_img_val.tar', 'md5:29b22e2961454d5413ddabcf34fc5622')
DEVKIT_ARCHIVE = Archive(f'{_URL}/ILSVRC2012_devkit_t12.tar.gz', 'md5:fa75699e90414af021442c21a62c3abf')

HOW_TO_GET = """\
ImageNet cannot be fetched without an account. Make one at https://image-net.org (for research; it has to be granted),
take these three files from "ILSVRC 2012" and put them into one folder:
    ILSVRC2012_img_train.tar       138 GB
    ILSVRC2012_img_val.tar         6.3 GB
    ILSVRC2012_devkit_t12.tar.gz   2.5 MB, says which class each validation image has
Then: python tools/prepare_data.py imagenet --from-archives FOLDER"""
HOW_TO_GET_22K = """\
ImageNet-22K cannot be fetched without an account. Make one at https://image-net.org (for research; it has to be
granted) and take the whole release of fall 2011 (fall11_whole.tar, 21,841 classes, 1.3 TB). That of winter 2021
(winter21_whole.tar.gz, 19,167 classes) serves as well, with another number of classes.
Then: python tools/prepare_data.py imagenet22k --from-archives FILE_OR_FOLDER"""


def training_sets(root: str | Path) -> dict[str, dict]:
    """The training sets of our configs by task, as far as a share of them depends on it.

    Without class folders the list meta/train.txt says which image has which class.
    """
    train, listed = Path(root, 'train'), 'meta/train.txt'
    by_list = train.is_dir() and not folders_in(train) and Path(root, listed).is_file()
    options = dict(ann_file=listed) if by_list else {}
    return dict(
        classification=dict(type='ImageNet', data_root=str(root), data_prefix='train', **options),
        pretraining=dict(type='mmcnx2.UnlabelledImages', source=str(Path(root, 'train'))),
    )


def training_sets_22k(root: str | Path) -> dict[str, dict]:
    """As training_sets, of ImageNet-22K."""
    return dict(classification=dict(type='CustomDataset', data_root=str(root)))


# ---- checks


def check_imagenet(root: str | Path, num_spot_checks: int = 48) -> Findings:
    """What a copy of ImageNet-1K lacks; `num_spot_checks` pictures per split are looked at."""
    root, found, notes = Path(root), Findings(), []
    folders = {split: _class_folders(root / split) for split in NUM_PUBLISHED}
    for split, (num_images, fewest, most) in NUM_PUBLISHED.items():
        folder, list_file = root / split, root / 'meta' / f'{split}.txt'
        if not folder.is_dir():
            found.problems.append(
                f"folder '{folder}' with {num_images:,} images is missing. `prepare_data.py imagenet --download` says "
                'how to get it'
            )
        elif folders[split]:
            other = folders['val' if split == 'train' else 'train']
            found.problems += _class_problems(folder, folders[split], other, num_images, fewest, most)
            found.problems += _look_into(folder, folders[split], num_spot_checks)
        elif list_file.is_file():
            found.problems += _list_problems(list_file, folder, num_images, num_spot_checks)
            notes.append(f'{split} by its list: --cfg-options {_loader(split)}.dataset.ann_file=meta/{split}.txt')
        else:
            found.problems.append(
                f"'{folder}' holds {len(files_in(folder, SUFFIXES)):,} images and no class folders, and there is no "
                f"list '{list_file}' ('FILE CLASS_NUMBER' per line): which class an image has is unknown. Sort them "
                'with `prepare_data.py imagenet --from-archives`, or add the list'
            )
    numbers = ', '.join(f'{split} {num:,} images' for split, (num, _, _) in NUM_PUBLISHED.items())
    found.summary = '; '.join(
        [f'ImageNet-1K in {root} is complete: {numbers}; {num_spot_checks} pictures per split looked at', *notes]
    )
    return found


def check_imagenet22k(root: str | Path, num_spot_checks: int = 48) -> Findings:
    """What a copy of ImageNet-22K lacks. There are several releases: numbers are reported, not demanded."""
    root, found = Path(root), Findings()
    if not root.is_dir():
        found.problems.append(
            f"folder '{root}' is missing. `prepare_data.py imagenet22k --download` says how to get it"
        )
        return found
    folders = _class_folders(root)
    if not folders:
        found.problems.append(
            f"'{root}' holds no class folders: each class is a folder of pictures right in it. `prepare_data.py "
            'imagenet22k --from-archives` makes them'
        )
        return found
    found.problems += _strange_names(root, folders)
    if empty := [name for name, files in folders.items() if not files]:
        found.problems.append(
            f"'{root}': {len(empty):,} class folders hold no picture ({named(empty)}): unpack their archives again, or "
            'take the folders away; every folder counts as a class'
        )
    found.problems += _look_into(root, folders, num_spot_checks)
    num_images = sum(map(len, folders.values()))
    found.summary = (
        f'ImageNet-22K in {root}: {len(folders):,} classes, {num_images:,} images; {num_spot_checks} pictures looked at'
    )
    if len(folders) != NUM_CLASSES_22K:
        found.summary += (
            f'; our configs are for {NUM_CLASSES_22K:,} classes: --cfg-options model.head.num_classes={len(folders)} '
            f'model.data_preprocessor.num_classes={len(folders)}'
        )
    return found


def _loader(split: str) -> str:
    return f'{split}_dataloader'


def _class_folders(folder: Path) -> dict[str, list[str]]:
    """Folder name -> names of its pictures, sorted."""
    if not folder.is_dir():
        return {}
    return {name: files_in(folder / name, SUFFIXES) for name in folders_in(folder)}


def _look_into(folder: Path, folders: dict[str, list[str]], num_spot_checks: int) -> list[str]:
    """A sentence on pictures that cannot be read, of the first pictures of classes, spread evenly."""
    names = evenly_spread([name for name, files in folders.items() if files], num_spot_checks)
    return unreadable_sentence([folder / name / folders[name][0] for name in names], None, 'unpack them again')


def _strange_names(folder: Path, folders: dict[str, list[str]]) -> list[str]:
    strange = [name for name in folders if not WORDNET_ID.fullmatch(name)]
    if not strange:
        return []
    return [
        f"'{folder}': {len(strange):,} folders are not named like a class, n and eight digits ({named(strange)}): take "
        'them out, or every class behind them is counted wrongly'
    ]


def _class_problems(
    folder: Path, folders: dict[str, list[str]], other: dict[str, list[str]], num_images: int, fewest: int, most: int
) -> list[str]:
    problems = _strange_names(folder, folders)
    if len(folders) != NUM_CLASSES:
        absent = sorted(set(other) - set(folders))
        which = f'; those beside it have {named(absent)} more' if absent else ''
        problems.append(
            f"'{folder}' holds {len(folders):,} class folders, not {NUM_CLASSES:,}{which}: unpack the archive again "
            '(--from-archives)'
        )
    wrong = [f'{name}: {len(files):,}' for name, files in folders.items() if not fewest <= len(files) <= most]
    allowed = f'{fewest:,}' if fewest == most else f'{fewest:,} to {most:,}'
    num_there = sum(map(len, folders.values()))
    if num_there != num_images:
        which = f'; classes without their {allowed}: {named(wrong)}' if wrong else ''
        problems.append(
            f"'{folder}' holds {num_there:,} of {num_images:,} images{which}: unpack the archive again "
            '(--from-archives takes what is missing)'
        )
    elif wrong:
        problems.append(
            f"'{folder}': {len(wrong):,} classes have not their {allowed} images ({named(wrong)}): images lie in the "
            'wrong folders; unpack the archive again into an empty one'
        )
    return problems


def _list_problems(list_file: Path, folder: Path, num_images: int, num_spot_checks: int) -> list[str]:
    """Of a split that is a list of 'FILE CLASS_NUMBER' and a folder."""
    lines = list_file.read_text().splitlines()
    wrong = [
        f'line {number}' for number, line in enumerate(lines, start=1)
        if not re.fullmatch(r'\S.* \d{1,3}', line)
    ]  # fmt: skip
    if wrong:
        return [f"'{list_file}' has {len(wrong):,} lines that are not 'FILE CLASS_NUMBER' ({named(wrong)}): replace it"]
    problems = []
    if len(lines) != num_images:
        problems.append(f"'{list_file}' has {len(lines):,} lines, not {num_images:,}: replace it")
    names = [line.rsplit(' ', 1)[0] for line in lines]
    parents = {str(PurePosixPath(name).parent) for name in names}
    present = [
        file if parent == '.' else f'{parent}/{file}' for parent in parents if (folder / parent).is_dir()
        for file in files_in(folder / parent, SUFFIXES)
    ]  # fmt: skip
    missing = missing_sentence(folder, names, present, f"'{list_file}' lists them; unpack the archive again")
    if missing:
        return [*problems, missing]
    return problems + unreadable_sentence([folder / name for name in names], num_spot_checks, 'unpack them again')


# ---- archives


def unpack_imagenet(
    archives: str | Path,
    root: str | Path,
    checksums: bool = True,
    progress: Progress = no_progress,
    tell: Tell = print,
) -> int:
    """Class folders train/ and val/ out of the three archives of ILSVRC 2012; the number of images written.

    Images that are there with their size are left alone, so a call goes on where one ended.

    Args:
        archives: the folder that they lie in; see HOW_TO_GET.
        root: the folder to write train/ and val/ to.
        checksums: read the archives once more beforehand, and compare.
        progress: called with bytes done, and of how many.
        tell: takes a line per archive.

    Raises:
        ValueError: an archive is missing, damaged, or another file.
        OSError: the disk is full.
    """
    archives, root = Path(archives), Path(root)
    needed = (TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE)
    absent = [archive.name for archive in needed if not (archives / archive.name).is_file()]
    if absent:
        raise ValueError(f"'{archives}' lacks {', '.join(absent)}. {' '.join(HOW_TO_GET.split())}")
    if checksums:
        for archive in needed:
            tell(f'comparing the checksum of {archive.name}')
            verify(archives / archive.name, archive, progress)
    class_of_val = _classes_of_val(archives / DEVKIT_ARCHIVE.name)
    tell(f'unpacking {TRAIN_ARCHIVE.name}')
    written = unpack_class_archives(archives / TRAIN_ARCHIVE.name, root / 'train', progress)
    tell(f'unpacking {VAL_ARCHIVE.name}')
    return written + _unpack_val(archives / VAL_ARCHIVE.name, root / 'val', class_of_val, progress)


def unpack_imagenet22k(
    archives: str | Path, root: str | Path, progress: Progress = no_progress, tell: Tell = print
) -> int:
    """Class folders out of an archive of class archives, or a folder of class archives; the number of images written.

    Raises:
        ValueError: there is no such archive, or it is damaged or another file.
    """
    archives = Path(archives)
    if archives.is_file():
        return unpack_class_archives(archives, Path(root), progress)
    single = sorted(archives.glob('n*.tar')) if archives.is_dir() else []
    if not single:
        raise ValueError(
            f"--from-archives: '{archives}' is neither an archive nor a folder of class archives n########.tar. "
            f'{" ".join(HOW_TO_GET_22K.split())}'
        )
    tell(f'unpacking {len(single):,} class archives')
    written = 0
    for number, path in enumerate(single, start=1):
        with _opened(path) as archive:
            written += _unpack_class(archive, Path(root) / path.stem, path)
        progress(number, len(single))
    return written


def unpack_class_archives(path: Path, folder: Path, progress: Progress = no_progress) -> int:
    """Class folders out of an archive that holds one archive per class; read once, nothing is stored in between."""
    folder.mkdir(parents=True, exist_ok=True)
    written, total = 0, path.stat().st_size
    if tarfile.is_tarfile(path):
        check_free(folder, 0 if any(folder.iterdir()) else total, f"unpacking '{path}'")
    with _opened(path) as outer:
        for member in outer:
            name = PurePosixPath(member.name)
            if member.isdir():
                continue
            if not (member.isfile() and name.suffix == '.tar' and WORDNET_ID.fullmatch(name.stem)):
                raise ValueError(f"'{path}' holds '{member.name}', which is no class archive n########.tar. {_OTHER}")
            with tarfile.open(fileobj=outer.extractfile(member), mode='r:') as inner:
                written += _unpack_class(inner, folder / name.stem, path)
            progress(min(member.offset_data + member.size, total), total)
    return written


_OTHER = 'This is not the published archive; fetch it again.'


def _unpack_class(archive: tarfile.TarFile, folder: Path, path: Path) -> int:
    """The pictures of one class; their names hold the class, folders in them are dropped."""
    return sum(_write(archive, member, folder / name) for member, name in _pictures(archive, path))


def _unpack_val(path: Path, folder: Path, class_of_val: list[str], progress: Progress) -> int:
    written, total = 0, path.stat().st_size
    with _opened(path) as archive:
        for member, name in _pictures(archive, path):
            match = re.fullmatch(r'ILSVRC2012_val_(\d{8})\.JPEG', name)
            if match is None or not 1 <= int(match[1]) <= len(class_of_val):
                raise ValueError(f"'{path}' holds '{member.name}', of which the devkit says no class. {_OTHER}")
            written += _write(archive, member, folder / class_of_val[int(match[1]) - 1] / name)
            progress(min(member.offset_data + member.size, total), total)
    return written


def _pictures(archive: tarfile.TarFile, path: Path) -> Iterator[tuple[tarfile.TarInfo, str]]:
    """Members and their bare names: whatever folders an archive claims, nothing lands outside the class folder."""
    for member in archive:
        if member.isdir():
            continue
        name = PurePosixPath(member.name).name
        if not member.isfile() or not name.lower().endswith(SUFFIXES):
            raise ValueError(f"'{path}' holds '{member.name}', which is no picture. {_OTHER}")
        yield member, name


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> int:
    """1 when the picture was written, 0 when it was there."""
    if target.is_file() and target.stat().st_size == member.size:
        return 0
    write_atomically(target, archive.extractfile(member).read())
    return 1


class _opened:
    """A tar file whose damage is named with its path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> tarfile.TarFile:
        try:
            self.archive = tarfile.open(self.path, 'r:*')
        except (tarfile.TarError, EOFError) as error:
            raise self._damaged(error) from error
        return self.archive

    def __exit__(self, kind, error, trace) -> None:
        self.archive.close()
        if isinstance(error, tarfile.TarError | EOFError):
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> ValueError:
        return ValueError(f"'{self.path}' is no tar file, or a damaged one ({error}); fetch it anew.")


def _classes_of_val(devkit: Path) -> list[str]:
    """WordNet id of each validation image, in the order of their numbers.

    The devkit's own class numbers are not the order of the folders; its table of synsets links the two.
    """
    from scipy.io.matlab import MatReadError, loadmat  # used here only, and slow to import

    with _opened(devkit) as archive:
        content = {
            PurePosixPath(member.name).name: archive.extractfile(member) for member in archive if member.isfile()
        }
        try:
            synsets = loadmat(content['meta.mat'], squeeze_me=True)['synsets']
            numbers = [int(line) for line in content['ILSVRC2012_validation_ground_truth.txt'].read().split()]
            name_of = {int(row['ILSVRC2012_ID']): str(row['WNID']) for row in synsets}
            return [name_of[number] for number in numbers]
        except (KeyError, ValueError, TypeError, IndexError, MatReadError) as error:
            raise ValueError(f"'{devkit}' does not hold the devkit's tables ({error!r}). {_OTHER}") from error
