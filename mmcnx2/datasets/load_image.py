"""Step 2 of unlabelled data: a picture file of any kind -> an array (H, W, C) whose channels always mean the same.

Every mistake of a file ends here, as `UnreadableImage` with the reason. Touch this file for how a kind of file is
read; not for augmentation (mmcv's and mmpretrain's transforms). Guarded by tests/datasets/test_load_image.py.
"""
from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from PIL import Image, ImageOps, ImageSequence

from mmcnx2.registry import TRANSFORMS

from .orientation import TURNS, Turn, orientation_of

NPY_MAGIC = b'\x93NUMPY'
PILLOW_MAX_PIXELS = 2 * 89_478_485  # Pillow itself refuses more
MAX_PIXELS = 89_478_485
BITS_PER_SAMPLE, ORIENTATION, SAMPLES_PER_PIXEL, EXTRA_SAMPLES = 258, 274, 277, 338  # tags of TIFF
CONTIGUOUS = 1  # in PlanarConfiguration
BLACK_IS_ZERO, RGB, CMYK, NOT_CONVERTED = 1, 2, 5, (6, 8, 9, 10)  # in PhotometricInterpretation; YCbCr and kinds of Lab
PREMULTIPLIED, STRAIGHT = 1, 2  # in ExtraSamples: alpha whose colours have been multiplied by it, or not
LUMINANCE_WEIGHTS = np.array([19595, 38470, 7471]) / 65536  # of R, G, B, as Pillow's


# What may be wrong with a file, in the order in which it is found out
KINDS = ('cannot be opened', 'empty', 'not a picture', 'too large', 'damaged', 'other channels than asked for',
         'values that are no pixels', 'rejected by a transform')


class UnreadableImage(ValueError):
    """A file cannot be delivered as a picture; the text is the reason, without the file's name; `kind` one of KINDS."""

    def __init__(self, reason: str, kind: str = 'damaged') -> None:
        super().__init__(reason)
        self.kind = kind


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """`img`, `img_shape` and `ori_shape` (both (H, W)) from `img_path`; the first transform of a pipeline.

    With in_channels=3 everything becomes 8-bit colour: gray and palette pictures are expanded, CMYK and other colour
    spaces converted (without colour profiles), what is transparent is laid on white, 16 bits are scaled to 8 (65535
    becomes 255, nothing is cut off), bands beside the colours are left out, animations give their first frame. Any
    other number: values as they stand in the file, as float32; 1 is luminance. Camera rotation (EXIF) is applied
    always. The kind of file is told by its content, not by its name.

    Pictures with other than 3 channels come as arrays in .npy files, (H, W, C) or (H, W), or as TIFF files with that
    many bands or that many single-band pages (bands through the package tifffile when Pillow does not know the
    combination or would change the values; compressed by other than Deflate, some of them need imagecodecs).

    Args:
        in_channels: C of the result, as the model's.
        channel_order: 'bgr' or 'rgb', for 3 channels only. 'bgr' (default) is what mmcv's own loader gives: the data
            preprocessor turns it with `to_rgb=True` (mmpretrain) or `bgr_to_rgb=True` (mmdet, mmseg).
        as_stored: True gives float32 values as in the file, False gives uint8 and accepts only files of 8 or 16 bits,
            where the full range is known. None: False for 3 channels, True for others.
        max_pixels: a file that claims a larger height times width is refused before it is decoded.

    Raises:
        UnreadableImage: from `transform`, with the reason.
        ValueError: a setting is out of its range.
    """

    def __init__(self, in_channels: int = 3, channel_order: str | None = None, as_stored: bool | None = None,
                 max_pixels: int = MAX_PIXELS) -> None:
        if in_channels < 1:
            raise ValueError(f'in_channels={in_channels}: a picture has at least 1 channel.')
        if channel_order not in (None, 'bgr', 'rgb'):
            raise ValueError(f"channel_order='{channel_order}' is not known; choose 'bgr' (mmcv's) or 'rgb'.")
        if channel_order and in_channels != 3:
            raise ValueError(f"channel_order='{channel_order}' has a meaning for 3 channels, not for in_channels="
                             f'{in_channels}, which keeps the order of the file; leave it out.')
        if not 1 <= max_pixels <= PILLOW_MAX_PIXELS:
            raise ValueError(f'max_pixels={max_pixels} must lie between 1 and {PILLOW_MAX_PIXELS}, the most that '
                             'Pillow opens; cut larger pictures into tiles.')
        self.in_channels = in_channels
        self.channel_order = channel_order or ('bgr' if in_channels == 3 else None)
        self.as_stored = in_channels != 3 if as_stored is None else as_stored
        self.max_pixels = max_pixels

    def transform(self, results: dict) -> dict:
        image_HWC = read_image(results['img_path'], self.in_channels, self.as_stored, self.max_pixels)
        if self.channel_order == 'bgr':
            image_HWC = cv2.cvtColor(image_HWC, cv2.COLOR_RGB2BGR)
        results['img'] = image_HWC if image_HWC.flags.writeable else image_HWC.copy()
        results['img_shape'] = results['ori_shape'] = image_HWC.shape[:2]
        return results

    def __repr__(self) -> str:
        return (f"{type(self).__name__}(in_channels={self.in_channels}, channel_order={self.channel_order!r}, "
                f'as_stored={self.as_stored}, max_pixels={self.max_pixels})')


def read_image(path: str | Path, in_channels: int = 3, as_stored: bool = False,
               max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The picture as (H, W, C): RGB, or the channels in the order of the file. Arguments and errors as LoadImage's."""
    with reasons(), open(path, 'rb') as file:
        if _is_array(file):
            values_HWC = _values_of_array(path, in_channels, max_pixels)
        else:
            values_HWC = _values_of_picture(file, path, in_channels, max_pixels)
    if values_HWC.shape[2] != in_channels:
        raise UnreadableImage(f'it has {values_HWC.shape[2]} channels, in_channels={in_channels} are asked for',
                              'other channels than asked for')
    if np.issubdtype(values_HWC.dtype, np.floating) and not np.isfinite(values_HWC).all():
        raise UnreadableImage('it holds values that are not finite', 'values that are no pixels')
    values_HWC = values_HWC if as_stored else _as_uint8(values_HWC)
    return np.ascontiguousarray(values_HWC, dtype=np.float32 if as_stored else np.uint8)


def check_header(path: str | Path, max_pixels: int = MAX_PIXELS) -> None:
    """Returns when the file begins as a picture of an allowed size, else raises UnreadableImage; decodes nothing."""
    with reasons(), open(path, 'rb') as file:
        if _is_array(file):
            check_size(np.load(path, mmap_mode='r', allow_pickle=False).shape[:2], max_pixels)
            return
        try:
            with Image.open(file) as image:
                check_size(image.size, max_pixels)
        except Image.UnidentifiedImageError:
            if not _is_tiff(file):
                raise


@contextlib.contextmanager
def reasons():
    """Whatever goes wrong inside, where a file is read and nothing else done, becomes UnreadableImage."""
    try:
        yield
    except UnreadableImage:
        raise
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage('it is not a picture of a known kind', 'not a picture') from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage(str(error), 'too large') from error
    except Exception as error:  # only file reading happens inside, and decoders raise almost anything on a broken file
        # decoders' OSErrors have no number
        kind = 'cannot be opened' if isinstance(error, OSError) and error.errno else 'damaged'
        reason = f'{type(error).__name__}: {error}' if str(error) else type(error).__name__
        raise UnreadableImage(reason, kind) from error


def _values_of_picture(file, path: str | Path, in_channels: int, max_pixels: int) -> np.ndarray:
    try:
        with Image.open(file) as image:
            check_size(image.size, max_pixels)
            if not _is_changed_by_pillow(image, in_channels):
                return _values_of_pillow(image, in_channels)
            if image.format != 'TIFF':
                return _values_of_opencv(image, file, in_channels)
    except (Image.UnidentifiedImageError, ValueError):
        if not _is_tiff(file):
            raise
    return _values_of_tiff(path, in_channels, max_pixels)


def _is_changed_by_pillow(image: Image.Image, in_channels: int) -> bool:
    """True for several channels that Pillow cuts to 8 bits, leaves out, or divides by the alpha, although they are
    asked for."""
    if image.format in ('PNG', 'PPM'):
        return len(image.getbands()) > 1 and _largest_value(image) > 255
    if image.format != 'TIFF':
        return False
    num_samples, extras = image.tag_v2.get(SAMPLES_PER_PIXEL, 1), image.tag_v2.get(EXTRA_SAMPLES, ())
    if num_samples == 1 or max(image.tag_v2.get(BITS_PER_SAMPLE, (1,))) > 8:
        return num_samples > 1
    return in_channels not in (1, 3) and (num_samples != len(image.getbands()) or PREMULTIPLIED in extras)


def _values_of_pillow(image: Image.Image, in_channels: int) -> np.ndarray:
    num_pages = getattr(image, 'n_frames', 1)
    if image.format == 'TIFF' and num_pages == in_channels > 1 and len(image.getbands()) == 1:
        return np.stack([np.asarray(page) for page in ImageSequence.Iterator(image)], axis=2)
    image.load()
    with contextlib.suppress(Exception):  # a broken EXIF block must not cost a sound picture
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith('I;16') or (image.mode == 'I' and image.format in ('PNG', 'PPM')):
        values = np.asarray(image).astype(np.uint16)
    elif image.mode in ('I', 'F'):
        values = np.asarray(image)
    elif in_channels == 3:
        return np.asarray(_on_white(image).convert('RGB'))
    elif in_channels == 1:
        values = np.asarray(_on_white(image).convert('L'))
    else:
        values = np.asarray(image)
    values_HWC = values[..., None] if values.ndim == 2 else values
    return np.repeat(values_HWC, 3, axis=2) if in_channels == 3 and values_HWC.shape[2] == 1 else values_HWC


def _largest_value(image: Image.Image) -> int:
    """What white has in a PNG or PPM that has been opened and not yet decoded."""
    how = image.tile[0][3] if image.tile else ''
    if isinstance(how, str):
        return 65535 if how.endswith(';16B') else 255
    return how[-1]


def _values_of_opencv(image: Image.Image, file, in_channels: int) -> np.ndarray:
    """Of a PNG or PPM with several channels of 16 bits, which Pillow would cut; 65535 is white."""
    white, is_gray = _largest_value(image), str(image.tile[0][3]).startswith('LA')
    image.load()  # says what is wrong with a damaged file, which OpenCV does not
    turn = TURNS[orientation_of(image)]
    file.seek(0)
    stored_HWC = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if stored_HWC is None:
        raise UnreadableImage('OpenCV cannot decode it')
    if white < 65535:
        stored_HWC = ((stored_HWC.astype(np.uint32) * 65535 + white // 2) // white).astype(np.uint16)
    is_opaque = stored_HWC.shape[2] == 3
    values_HWC = stored_HWC[..., [0, 3]] if is_gray else stored_HWC[..., [2, 1, 0] if is_opaque else [2, 1, 0, 3]]
    return turn.seen(_as_asked(values_HWC, in_channels, 1 if is_gray else 3, None if is_opaque else STRAIGHT))


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    white = Image.new('RGBA', image.size, 'white')
    return Image.alpha_composite(white, image.convert('RGBA'))


def _values_of_tiff(path: str | Path, in_channels: int, max_pixels: int) -> np.ndarray:
    try:
        import tifffile
    except ImportError as error:
        raise UnreadableImage('a TIFF file of this kind needs the package tifffile: pip install tifffile') from error
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        is_of_pages = page.samplesperpixel == 1  # whose channels, if it has several, are pages
        shown = tiff.series[0] if is_of_pages else page
        sizes = dict(zip(shown.axes, shown.shape, strict=True))
        others = [axis for axis in shown.axes if axis not in 'YX']
        if not {'Y', 'X'} <= set(sizes) or len(others) > 1:
            raise UnreadableImage(f'its axes {shown.axes} {shown.shape} are not height, width and channels',
                                  'other channels than asked for')
        check_size((sizes['Y'], sizes['X']), max_pixels)
        try:
            values = shown.asarray()
        except ValueError as error:
            if 'imagecodecs' not in str(error):
                raise
            values = _decoded_by_opencv(page, path)
            if values is None:
                raise UnreadableImage(f'{error}: pip install imagecodecs') from error
    values_HWC = values.transpose([shown.axes.index(axis) for axis in ('Y', 'X', *others)])
    values_HWC = values_HWC if others else values_HWC[..., None]
    if not is_of_pages and in_channels in (1, 3):
        values_HWC = _in_colours(page, values_HWC, in_channels)
    return TURNS.get(page.tags.valueof(ORIENTATION), Turn()).seen(values_HWC)


def _decoded_by_opencv(page, path: str | Path) -> np.ndarray | None:
    """(H, W, 3 or 4) of a page that tifffile alone cannot decompress; None when OpenCV would change the values."""
    if page.samplesperpixel not in (3, 4) or page.planarconfig != CONTIGUOUS or page.photometric != RGB:
        return None
    if page.dtype not in (np.uint8, np.uint16) or (page.dtype == np.uint8 and STRAIGHT in page.extrasamples):
        return None
    content = bytearray(Path(path).read_bytes())
    if ORIENTATION in page.tags:  # OpenCV turns some, and fails at others
        struct.pack_into(f'{page.parent.byteorder}H', content, page.tags[ORIENTATION].valueoffset, 1)
    values_HWC = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if values_HWC is None:
        raise UnreadableImage('OpenCV cannot decode it')
    if values_HWC.shape != page.shape or values_HWC.dtype != page.dtype:
        return None
    return values_HWC[..., [2, 1, 0, 3][:values_HWC.shape[2]]]


def _in_colours(page, values_HWC: np.ndarray, in_channels: int) -> np.ndarray:
    """RGB (3) or luminance (1) of a page with several samples per pixel; as they are when they are bands, no colours.

    Further bands beside colours are left out, as Pillow does.
    """
    kind, extras, num_samples = page.photometric, page.extrasamples, values_HWC.shape[2]
    if kind in NOT_CONVERTED:
        raise UnreadableImage(f'its colours, {kind!r} of {values_HWC.dtype}, cannot be converted; convert the file to '
                              'RGB', 'other channels than asked for')
    if kind == CMYK and num_samples >= 4:
        full = np.iinfo(values_HWC.dtype).max
        light_HWC = full - values_HWC[..., :4].astype(np.float32)
        values_HWC = (light_HWC[..., :3] * light_HWC[..., 3:] / full).round().astype(values_HWC.dtype)
        return _as_asked(values_HWC, in_channels, 3, None)
    if kind == BLACK_IS_ZERO and num_samples == 2 and extras and extras[0] in (STRAIGHT, PREMULTIPLIED):
        return _as_asked(values_HWC, in_channels, 1, extras[0])
    if kind != RGB:
        return values_HWC
    if not extras and num_samples == 4:
        extras = (STRAIGHT,)  # written without a word about the fourth, which is the alpha then
    place, alpha = next(((i, one) for i, one in enumerate(extras, 3) if one in (STRAIGHT, PREMULTIPLIED)), (3, None))
    channels = [0, 1, 2, place] if alpha else [0, 1, 2]
    return _as_asked(values_HWC[..., channels], in_channels, 3, alpha)


def _as_asked(values_HWC: np.ndarray, in_channels: int, num_colours: int, alpha: int | None) -> np.ndarray:
    """1 or 3 channels from the first `num_colours`, laid on white by the last when it is an alpha; others as they are.

    The same as Pillow does with 8 bits: the luminance by its weights, gray repeated.
    """
    if in_channels not in (1, 3):
        return values_HWC
    colours_HWC = values_HWC[..., :num_colours]
    dtype = values_HWC.dtype
    if alpha:
        full = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
        share_HW1 = values_HWC[..., -1:] / np.result_type(dtype, np.float32).type(full)
        visible_HWC = colours_HWC * share_HW1 if alpha == STRAIGHT else colours_HWC
        white_HWC = (visible_HWC + full * (1 - share_HW1)).clip(0, full)
        colours_HWC = (white_HWC.round() if full > 1 else white_HWC).astype(dtype)
    if in_channels == num_colours:
        return colours_HWC
    if in_channels == 3:
        return np.repeat(colours_HWC, 3, axis=2)
    luminance_HW1 = (colours_HWC.astype(np.float64) @ LUMINANCE_WEIGHTS)[..., None]
    return (luminance_HW1.round() if np.issubdtype(dtype, np.integer) else luminance_HW1).astype(dtype)


def _values_of_array(path: str | Path, in_channels: int, max_pixels: int) -> np.ndarray:
    array = np.load(path, mmap_mode='r', allow_pickle=False)
    if array.ndim not in (2, 3):
        raise UnreadableImage(f'an array of shape {array.shape}; (H, W, C) or (H, W) is needed',
                              'other channels than asked for')
    if array.ndim == 3 and array.shape[0] == in_channels != array.shape[2]:
        raise UnreadableImage(f'an array of shape {array.shape} that seems to be (C, H, W); store it as (H, W, C)',
                              'other channels than asked for')
    check_size(array.shape[:2], max_pixels)
    values_HWC = np.array(array if array.ndim == 3 else array[..., None])
    if not (np.issubdtype(values_HWC.dtype, np.number) or values_HWC.dtype == bool) or np.iscomplexobj(values_HWC):
        raise UnreadableImage(f'an array of {values_HWC.dtype}; numbers are needed', 'values that are no pixels')
    return values_HWC


def _as_uint8(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    raise UnreadableImage(f'values of type {values.dtype} have no agreed range to become 8 bits; set as_stored=True in '
                          'LoadImage', 'values that are no pixels')


def check_size(sizes: tuple[int, ...], max_pixels: int) -> None:
    """Raises UnreadableImage unless the sizes, height and width in any order, are allowed."""
    if min(sizes) < 1:
        raise UnreadableImage(f'its size is {sizes[0]} x {sizes[1]}', 'empty')
    if int(sizes[0]) * int(sizes[1]) > max_pixels:
        raise UnreadableImage(f'it claims {sizes[0]} x {sizes[1]} pixels, more than max_pixels={max_pixels}',
                              'too large')


def _is_array(file) -> bool:
    start = file.read(len(NPY_MAGIC))
    file.seek(0)
    if not start:
        raise UnreadableImage('the file is empty', 'empty')
    return start == NPY_MAGIC


def _is_tiff(file) -> bool:
    file.seek(0)
    return file.read(4) in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
