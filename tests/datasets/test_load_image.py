"""Guards mmcnx2/datasets/load_image.py: every kind of file gives the picture that a person would see, or a reason."""
import resource
import struct
import zlib

import cv2
import mmpretrain.datasets  # noqa: F401  (registers its transforms)
import numpy as np
import pytest
import tifffile
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import default_collate
from mmpretrain.models.utils.data_preprocessor import ClsDataPreprocessor, SelfSupDataPreprocessor
from mmpretrain.registry import TRANSFORMS
from PIL import Image

from mmcnx2.datasets.load_image import LoadImage, UnreadableImage, check_header, read_image

RED, GREEN = (255, 0, 0), (0, 255, 0)


@pytest.fixture
def rgb():
    """Left half red, right half green, a gray ramp below; H != W."""
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:12, :20], pixels[:12, 20:] = RED, GREEN
    pixels[12:] = np.linspace(0, 255, 40).astype(np.uint8)[None, :, None]
    return pixels


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 256, (40, 50, 12)).astype(np.uint8)


def saved(tmp_path, image, name, **options):
    path = tmp_path / name
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return path


@pytest.mark.parametrize('name', ['x.png', 'x.bmp', 'x.tif', 'x.ppm', 'x.webp', 'png_in_disguise.jpg'])
def test_lossless_kinds_give_the_pixels(tmp_path, rgb, name):
    options = dict(format='PNG') if 'disguise' in name else dict(lossless=True) if 'webp' in name else {}
    assert np.array_equal(read_image(saved(tmp_path, rgb, name, **options)), rgb)


def test_bgr_equals_the_loader_of_mmcv(tmp_path, rgb):
    path = str(saved(tmp_path, rgb, 'x.jpg', quality=95))
    ours, theirs = LoadImage()(dict(img_path=path)), LoadImageFromFile()(dict(img_path=path))
    assert np.array_equal(ours['img'], theirs['img'])
    assert ours['img_shape'] == ours['ori_shape'] == theirs['img_shape'] == (24, 40)


def test_channel_order_acts_and_the_result_is_writeable(tmp_path, rgb):
    path = str(saved(tmp_path, rgb, 'x.png'))
    bgr, in_rgb = LoadImage()(dict(img_path=path))['img'], LoadImage(channel_order='rgb')(dict(img_path=path))['img']
    assert tuple(in_rgb[0, 0]) == RED and tuple(bgr[0, 0]) == RED[::-1]
    bgr[0, 0] = in_rgb[0, 0] = 0


def test_sixteen_bits_are_scaled_not_cut(tmp_path):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(4, 0)
    for name in ('x.png', 'x.tif', 'x.pgm'):
        gray = read_image(saved(tmp_path, ramp, name))
        assert np.array_equal(gray, np.arange(256, dtype=np.uint8)[None, :, None].repeat(4, 0).repeat(3, 2)), name
    for name in ('colour.png', 'colour.tif', 'colour.ppm'):
        cv2.imwrite(str(tmp_path / name), np.stack([ramp] * 3, 2))
        assert np.array_equal(read_image(tmp_path / name)[0, :, 0], np.arange(256)), name
    np.save(tmp_path / 'x.npy', np.stack([ramp] * 3, 2))
    assert np.array_equal(read_image(tmp_path / 'x.npy')[0, :, 1], np.arange(256))


def test_gray_palette_bits_and_animation(tmp_path, rgb):
    gray = rgb[..., 0]
    assert np.array_equal(read_image(saved(tmp_path, gray, 'gray.png')), gray[..., None].repeat(3, 2))
    palette = read_image(saved(tmp_path, Image.fromarray(rgb).quantize(64), 'palette.png'))
    assert np.abs(palette.astype(int) - rgb).max() < 16
    bits = read_image(saved(tmp_path, Image.fromarray(gray > 100), 'bits.png'))
    assert np.array_equal(bits[..., 0], np.where(gray > 100, 255, 0))
    frames = [Image.new('RGB', (8, 8), colour) for colour in (RED, GREEN)]
    frames[0].save(tmp_path / 'x.gif', save_all=True, append_images=frames[1:])
    assert tuple(read_image(tmp_path / 'x.gif')[3, 3]) == RED


def test_what_is_transparent_is_laid_on_white(tmp_path):
    pixels = np.zeros((2, 4, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 200, [0, 255, 255, 51]  # the hidden red of the first column must not appear
    values = read_image(saved(tmp_path, pixels, 'x.png'))[0].tolist()
    assert values == [[255, 255, 255], [200, 0, 0], [200, 0, 0], [244, 204, 204]]
    palette = Image.new('P', (2, 1))
    palette.putpalette([0, 0, 200, 9, 9, 9])
    palette.putdata([0, 1])
    values = read_image(saved(tmp_path, palette, 'p.png', transparency=0))[0].tolist()
    assert values == [[255, 255, 255], [9, 9, 9]]


def test_cmyk_becomes_the_same_colours(tmp_path, rgb):
    values = read_image(saved(tmp_path, Image.fromarray(rgb).convert('CMYK'), 'x.jpg', quality=100, subsampling=0))
    assert np.abs(values.astype(int) - rgb)[:, 4:-4].mean() < 4
    assert np.abs(values[4, 4].astype(int) - RED).max() < 10


@pytest.mark.parametrize(('orientation', 'turn'), [(3, lambda x: x[::-1, ::-1]), (6, lambda x: np.rot90(x, -1)),
                                                   (8, np.rot90), (2, lambda x: x[:, ::-1])])
def test_camera_rotation_is_applied(tmp_path, rgb, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(read_image(saved(tmp_path, rgb, 'x.png', exif=exif)), turn(rgb))


def test_broken_exif_costs_no_picture(tmp_path, rgb):
    path = saved(tmp_path, rgb, 'x.jpg', exif=b'Exif\0\0MM\0*\xff\xff\xff\xff garbage')
    assert read_image(path).shape == rgb.shape


def bomb(path):
    """A PNG whose header claims 20000 x 20000."""
    def chunk(kind, content):
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))
    header = struct.pack('>IIBBBBB', 20000, 20000, 8, 2, 0, 0, 0)
    chunks = chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'0')) + chunk(b'IEND', b'')
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunks)


def make_bad(kind, path, rgb):
    good = path.parent / 'good.jpg'
    Image.fromarray(rgb).resize((200, 200)).save(good, quality=95)
    content = good.read_bytes()
    if kind == 'truncated':
        path.write_bytes(content[:len(content) // 2])
    elif kind == 'empty':
        path.write_bytes(b'')
    elif kind == 'text':
        path.write_text('<html>404 not found</html>')
    elif kind == 'zeros':
        path.write_bytes(bytes(5000))
    elif kind == 'header only':
        path.write_bytes(content[:30])
    elif kind == 'bomb':
        bomb(path)
    elif kind == 'broken png':
        Image.fromarray(rgb).save(path, 'PNG')
        raw = bytearray(path.read_bytes())
        raw[60:90] = bytes(30)
        path.write_bytes(raw)
    elif kind == 'pickled array':
        np.save(path.with_suffix('.npy'), np.array([{}], dtype=object), allow_pickle=True)
        path.with_suffix('.npy').rename(path)
    elif kind == 'cut array':
        np.save(path.with_suffix('.npy'), np.zeros((50, 50, 3), np.uint8))
        path.write_bytes(path.with_suffix('.npy').read_bytes()[:-100])
        path.with_suffix('.npy').unlink()
    elif kind == 'float tiff':
        Image.fromarray(np.zeros((9, 9), np.float32)).save(path, 'TIFF')
    elif kind == 'folder':
        path.mkdir()
    elif kind == 'dangling link':
        path.symlink_to(path.parent / 'nowhere')
    good.unlink()


BAD_KINDS = {'truncated': 'damaged', 'empty': 'empty', 'text': 'not a picture', 'zeros': 'not a picture',
             'header only': 'damaged', 'bomb': 'too large', 'broken png': 'damaged', 'pickled array': 'damaged',
             'cut array': 'damaged', 'float tiff': 'values that are no pixels', 'folder': 'cannot be opened',
             'dangling link': 'cannot be opened'}
SEEN_IN_THE_HEADER = ('empty', 'text', 'zeros', 'header only', 'bomb', 'pickled array', 'cut array', 'folder',
                      'dangling link')


@pytest.mark.parametrize('kind', BAD_KINDS)
def test_bad_files_have_a_reason(tmp_path, rgb, kind):
    make_bad(kind, tmp_path / 'x.jpg', rgb)
    with pytest.raises(UnreadableImage, match=r'.{5}') as caught:
        read_image(tmp_path / 'x.jpg')
    assert '\n' not in str(caught.value)
    assert caught.value.kind == BAD_KINDS[kind]
    if kind in SEEN_IN_THE_HEADER:
        with pytest.raises(UnreadableImage):
            check_header(tmp_path / 'x.jpg')


def test_a_bomb_is_refused_without_memory_for_it(tmp_path):
    """A quarter of its 1.2 GB would be noticed."""
    bomb(tmp_path / 'x.png')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnreadableImage, match='400000000 pixels'):
        read_image(tmp_path / 'x.png')
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_one_pixel_is_enough_for_a_crop(tmp_path):
    results = LoadImage()(dict(img_path=str(saved(tmp_path, np.full((1, 1, 3), 7, np.uint8), 'x.png'))))
    crop = dict(type='RandomResizedCrop', scale=64, crop_ratio_range=(0.2, 1.0), backend='pillow')
    image = TRANSFORMS.build(crop)(results)['img']
    assert image.shape == (64, 64, 3) and (image == 7).all()


def test_good_headers_pass(tmp_path, rgb, noise):
    tifffile.imwrite(tmp_path / 'x.tif', noise, photometric='minisblack', planarconfig='contig')
    np.save(tmp_path / 'x.npy', noise)
    for path in (saved(tmp_path, rgb, 'x.jpg'), tmp_path / 'x.tif', tmp_path / 'x.npy'):
        check_header(path)


def test_max_pixels_acts(tmp_path, rgb):
    path = saved(tmp_path, rgb, 'x.png')
    np.save(tmp_path / 'x.npy', rgb)
    for file in (path, tmp_path / 'x.npy'):
        assert read_image(file, max_pixels=24 * 40).shape == rgb.shape
        with pytest.raises(UnreadableImage, match='max_pixels=959'):
            read_image(file, max_pixels=24 * 40 - 1)


@pytest.mark.parametrize('in_channels', [1, 2, 4, 7, 12])
def test_arrays_and_tiffs_of_any_number_of_channels(tmp_path, noise, in_channels):
    values = noise[..., :in_channels].astype(np.uint16) * 100
    np.save(tmp_path / 'hwc.npy', values)
    written = {} if in_channels == 1 else dict(planarconfig='contig')
    tifffile.imwrite(tmp_path / 'bands.tif', values, photometric='minisblack', **written)
    written = {} if in_channels == 1 else dict(planarconfig='separate')
    tifffile.imwrite(tmp_path / 'planes.tif', values.transpose(2, 0, 1), photometric='minisblack', **written)
    pages = [Image.fromarray(np.ascontiguousarray(values[..., index])) for index in range(in_channels)]
    pages[0].save(tmp_path / 'pages.tif', save_all=True, append_images=pages[1:], compression='tiff_lzw')
    for name in ('hwc.npy', 'bands.tif', 'planes.tif', 'pages.tif'):
        image = LoadImage(in_channels=in_channels)(dict(img_path=str(tmp_path / name)))['img']
        assert image.dtype == np.float32 and np.array_equal(image, values), name


def test_three_pages_and_three_bands_are_channels(tmp_path, noise):
    values = np.ascontiguousarray(noise[..., :3])
    tifffile.imwrite(tmp_path / 'bands.tif', values, photometric='minisblack', planarconfig='contig')
    pages = [Image.fromarray(np.ascontiguousarray(values[..., index])) for index in range(3)]
    pages[0].save(tmp_path / 'pages.tif', save_all=True, append_images=pages[1:])
    for name in ('bands.tif', 'pages.tif'):
        assert np.array_equal(read_image(tmp_path / name), values), name


BANDS = {  # kinds of TIFF of 4 bands, whose first three are colours
    'alpha': dict(extrasamples=['unassalpha']),
    'premultiplied': dict(extrasamples=['assocalpha']),
    'infrared': dict(extrasamples=['unspecified']),
    'unsaid': dict(),
}


@pytest.mark.parametrize('layout', ['contig', 'separate'])
@pytest.mark.parametrize('kind', BANDS)
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('compression', [None, 'zlib'])
def test_bands_beside_colours_are_as_they_stand(tmp_path, noise, kind, dtype, layout, compression):
    values = noise[..., :4].astype(dtype) * (39 if dtype == np.uint16 else 1)
    written = dict(photometric='rgb', planarconfig=layout, compression=compression)
    for number in (3, 4):
        stored = values[..., :number] if layout == 'contig' else values[..., :number].transpose(2, 0, 1)
        extras = BANDS[kind] if number == 4 else {}
        tifffile.imwrite(tmp_path / 'x.tif', np.ascontiguousarray(stored), **written, **extras)
        assert np.array_equal(read_image(tmp_path / 'x.tif', number, as_stored=True), values[..., :number]), number


@pytest.mark.parametrize('orientation', [1, 3, 6])
def test_colours_of_16_bits_are_as_they_stand_in_files_of_other_programs(tmp_path, noise, orientation):
    """OpenCV compresses TIFF by LZW, which tifffile alone does not know."""
    values = noise[..., :4].astype(np.uint16) * 39
    stored = values[..., [2, 1, 0, 3]]
    for name in ('x.png', 'x.tif', 'x.ppm'):
        for number in (3, 4) if name != 'x.ppm' else (3,):
            cv2.imwrite(str(tmp_path / name), stored[..., :number])
            assert np.array_equal(read_image(tmp_path / name, number, as_stored=True), values[..., :number]), name
    turned = np.rot90(values, {1: 0, 3: 2, 6: -1}[orientation])
    tags = [(0x0112, 3, 1, orientation, True)]
    tifffile.imwrite(tmp_path / 'turned.tif', values, photometric='rgb', extratags=tags)
    assert np.array_equal(read_image(tmp_path / 'turned.tif', 4), _eight_bits(turned))
    content = (tmp_path / 'x.png').read_bytes()
    exif = Image.Exif()
    exif[0x0112] = orientation
    block = exif.tobytes().removeprefix(b'Exif\0\0')
    chunk = struct.pack('>I', len(block)) + b'eXIf' + block + struct.pack('>I', zlib.crc32(b'eXIf' + block))
    (tmp_path / 'turned.png').write_bytes(content[:33] + chunk + content[33:])
    assert np.array_equal(read_image(tmp_path / 'turned.png', 4, as_stored=True), turned)


def _eight_bits(values):
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def test_a_turned_tiff_that_opencv_decodes(tmp_path, noise):
    values = noise[..., :3].astype(np.uint16) * 39
    cv2.imwrite(str(tmp_path / 'x.tif'), values[..., ::-1])
    with tifffile.TiffFile(tmp_path / 'x.tif') as tiff:
        assert tiff.pages[0].compression.name == 'LZW'
        place = tiff.pages[0].tags['SampleFormat'].offset  # which becomes the orientation
    content = bytearray((tmp_path / 'x.tif').read_bytes())
    struct.pack_into('<HHII', content, place, 0x0112, 3, 1, 6)
    (tmp_path / 'x.tif').write_bytes(content)
    assert np.array_equal(read_image(tmp_path / 'x.tif', as_stored=True), np.rot90(values, -1))


def test_a_damaged_tiff_that_opencv_decodes(tmp_path, noise):
    cv2.imwrite(str(tmp_path / 'x.tif'), noise[..., :3].astype(np.uint16) * 39)
    content = bytearray((tmp_path / 'x.tif').read_bytes())
    content[1000:4000] = bytes(3000)
    (tmp_path / 'x.tif').write_bytes(content)
    with pytest.raises(UnreadableImage, match='OpenCV cannot decode it'):  # not: a package is missing
        read_image(tmp_path / 'x.tif')


def test_bands_of_files_that_pillow_compresses(tmp_path, noise):
    """LZW, 8 bits and a fourth band that is no alpha."""
    values = np.ascontiguousarray(noise[..., :4])
    image = Image.frombytes('RGBX', (50, 40), values.tobytes())
    image.save(tmp_path / 'x.tif', compression='tiff_lzw')
    assert np.array_equal(read_image(tmp_path / 'x.tif', 4, as_stored=True), values)
    assert np.array_equal(read_image(tmp_path / 'x.tif'), values[..., :3])


@pytest.mark.parametrize('kind', BANDS)
@pytest.mark.parametrize('layout', ['contig', 'separate'])
def test_16_bits_give_the_colours_of_8_bits(tmp_path, noise, kind, layout):
    """Every 8-bit value v is 257 v in 16 bits; alpha, luminance and what is left out are Pillow's."""
    for number in (3, 4):
        values = np.ascontiguousarray(noise[..., :number])
        extras = BANDS[kind] if number == 4 else {}
        if kind == 'premultiplied' and number == 4:
            values[..., :3] = values[..., :3].astype(int) * values[..., 3:] // 255
        stored = values.astype(np.uint16) * 257
        tifffile.imwrite(tmp_path / 'eight.tif', values, photometric='rgb', **extras)
        stored = stored if layout == 'contig' else np.ascontiguousarray(stored.transpose(2, 0, 1))
        tifffile.imwrite(tmp_path / 'x.tif', stored, photometric='rgb', planarconfig=layout, **extras)
        for in_channels in (1, 3):
            eight = read_image(tmp_path / 'eight.tif', in_channels).astype(int)
            assert np.abs(eight - read_image(tmp_path / 'x.tif', in_channels)).max() <= 1, (number, in_channels)


def test_gray_with_alpha_and_transparent_colour_of_16_bits(tmp_path, noise):
    gray_alpha = np.ascontiguousarray(noise[..., :2])
    eight = read_image(saved(tmp_path, Image.frombytes('LA', (50, 40), gray_alpha.tobytes()), 'eight.png')).astype(int)
    stored = gray_alpha.astype(np.uint16) * 257
    png_of_16_bits(tmp_path / 'x.png', stored, 4)
    tifffile.imwrite(tmp_path / 'x.tif', stored, photometric='minisblack', planarconfig='contig',
                     extrasamples=['unassalpha'])
    for name in ('x.png', 'x.tif'):
        assert np.abs(read_image(tmp_path / name).astype(int) - eight).max() <= 1, name
        assert np.abs(read_image(tmp_path / name, 1).astype(int) - eight[..., :1]).max() <= 1, name
        assert np.array_equal(read_image(tmp_path / name, 2, as_stored=True), stored), name


def png_of_16_bits(path, values_HWC, colour_type):
    def chunk(kind, content):
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))
    height, width, _ = values_HWC.shape
    lines = b''.join(b'\0' + line.astype('>u2').tobytes() for line in values_HWC)
    chunks = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 16, colour_type, 0, 0, 0))
    chunks += chunk(b'IDAT', zlib.compress(lines)) + chunk(b'IEND', b'')
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunks)


def test_printing_colours_of_16_bits(tmp_path, noise):
    values = np.ascontiguousarray(noise[..., :4])
    image = saved(tmp_path, Image.frombytes('CMYK', (50, 40), values.tobytes()), 'eight.tif')
    tifffile.imwrite(tmp_path / 'x.tif', values.astype(np.uint16) * 257, photometric='separated')
    assert np.abs(read_image(tmp_path / 'x.tif').astype(int) - read_image(image)).max() <= 1
    assert np.array_equal(read_image(tmp_path / 'x.tif', 4, as_stored=True), values.astype(np.uint16) * 257)
    tifffile.imwrite(tmp_path / 'lab.tif', values[..., :3].astype(np.uint16), photometric='cielab')
    with pytest.raises(UnreadableImage, match=r'CIELAB.*convert the file to RGB'):
        read_image(tmp_path / 'lab.tif')


def test_ppm_of_12_bits_reaches_white(tmp_path, noise):
    values = noise[..., :3].astype(np.uint16) * 16 + 15
    (tmp_path / 'x.ppm').write_bytes(b'P6\n50 40\n4095\n' + values.astype('>u2').tobytes())
    stored = read_image(tmp_path / 'x.ppm', as_stored=True)
    assert np.array_equal(stored, (values.astype(float) * 65535 / 4095).round())
    assert np.array_equal(read_image(tmp_path / 'x.ppm'), _eight_bits(stored))


@pytest.mark.parametrize('name', ['x.png', 'x.tif', 'x.ppm'])
def test_half_a_file_of_16_bits_is_damaged(tmp_path, noise, name):
    if name == 'x.tif':
        tifffile.imwrite(tmp_path / name, noise[..., :3].astype(np.uint16), photometric='rgb')
    else:
        cv2.imwrite(str(tmp_path / name), noise[..., :3].astype(np.uint16))
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:len(content) // 2])
    with pytest.raises(UnreadableImage) as caught:
        read_image(tmp_path / name)
    assert caught.value.kind == 'damaged'


def test_as_stored_acts(tmp_path, noise):
    np.save(tmp_path / 'x.npy', noise[..., :3].astype(np.float32) / 7)
    with pytest.raises(UnreadableImage, match='as_stored=True'):
        read_image(tmp_path / 'x.npy')
    assert np.array_equal(read_image(tmp_path / 'x.npy', as_stored=True), noise[..., :3].astype(np.float32) / 7)
    np.save(tmp_path / 'y.npy', noise.astype(np.uint16) * 257)
    loaded = LoadImage(in_channels=12, as_stored=False)(dict(img_path=str(tmp_path / 'y.npy')))['img']
    assert loaded.dtype == np.uint8 and np.array_equal(loaded, noise)


def test_one_channel_is_luminance(tmp_path, rgb):
    values = read_image(saved(tmp_path, rgb, 'x.png'), in_channels=1, as_stored=True)
    assert values.shape == (24, 40, 1) and np.array_equal(values[..., 0], np.asarray(Image.fromarray(rgb).convert('L')))


@pytest.mark.parametrize(('array', 'in_channels', 'said'), [
    (np.zeros((12, 40, 50)), 12, r'\(C, H, W\).*\(H, W, C\)'),
    (np.zeros((40, 50, 5)), 12, '5 channels.*in_channels=12'),
    (np.zeros(7), 3, 'shape'), (np.full((4, 4, 2), np.nan), 2, 'not finite'),
    (np.zeros((4, 4, 2), complex), 2, 'complex'), (np.zeros((0, 4, 3)), 3, 'size is 0 x 4')])
def test_arrays_that_do_not_fit_are_explained(tmp_path, array, in_channels, said):
    np.save(tmp_path / 'x.npy', array)
    with pytest.raises(UnreadableImage, match=said):
        read_image(tmp_path / 'x.npy', in_channels, as_stored=True)


@pytest.mark.parametrize('options', [dict(in_channels=0), dict(channel_order='gbr'), dict(max_pixels=0),
                                     dict(in_channels=4, channel_order='rgb'), dict(max_pixels=10 ** 10)])
def test_settings_out_of_range_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        LoadImage(**options)


@pytest.mark.parametrize('in_channels', range(1, 13))
def test_pipeline_of_mmpretrain_takes_any_number_of_channels(tmp_path, noise, in_channels):
    """Crop and flip move all channels alike, and the preprocessor normalises each by its own mean: with the whole
    picture cropped, unscaled and not flipped, exactly the file's values come out."""
    np.save(tmp_path / 'x.npy', noise[..., :in_channels])
    results = LoadImage(in_channels=in_channels)(dict(img_path=str(tmp_path / 'x.npy')))
    whole = dict(type='RandomResizedCrop', scale=(40, 50), crop_ratio_range=(1., 1.), aspect_ratio_range=(1.25, 1.25),
                 interpolation='bicubic')
    for config in (whole, dict(type='mmcv.RandomFlip', prob=1.), dict(type='PackInputs')):
        results = TRANSFORMS.build(config)(results)
    mean, std = list(range(in_channels)), list(range(1, in_channels + 1))
    # Three means belong to R, G, B while the picture is B, G, R; for other numbers to_rgb must change nothing.
    batch = ClsDataPreprocessor(mean=mean, std=std, to_rgb=True)(default_collate([results] * 2), True)['inputs']
    expected = torch.from_numpy(noise[:, ::-1, :in_channels].astype(np.float32)).permute(2, 0, 1)
    expected = (expected - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    assert batch.shape == (2, in_channels, 40, 50)
    torch.testing.assert_close(batch[1], expected, rtol=0, atol=1e-4)


def test_three_channels_arrive_as_rgb_in_the_preprocessor_of_pretraining(tmp_path, rgb):
    results = TRANSFORMS.build(dict(type='PackInputs'))(LoadImage()(dict(img_path=str(saved(tmp_path, rgb, 'x.png')))))
    preprocessor = SelfSupDataPreprocessor(mean=[0., 0., 0.], std=[1., 1., 1.], to_rgb=True)
    batch = preprocessor(default_collate([results]), True)['inputs']
    assert torch.equal(batch[0], torch.from_numpy(rgb).permute(2, 0, 1).float())
