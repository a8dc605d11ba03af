"""The 150 classes of the ADE20K scene-parsing challenge: their names with synonyms, and what they are in the full
release.

Touch this file to correct a name or a number; not for files (ade20k_files.py). Guarded by
tests/datasets/test_ade20k_classes.py, which compares with mmsegmentation's order.

Sources: objectInfo150.txt and convertFromADE/mapFromADE.txt of CSAILVision/sceneparsing, made for the release of 2016.
That of 2021 has the same numbers: in its list that facebookresearch/MaskFormer uses, 147 of the 153 numbers stand
beside the same name, five beside those of NAMES_IN_RELEASE, and one (246) is not in it.
"""

from __future__ import annotations

# (names separated by commas, object numbers in the full release); class 1 first, in the order of the label maps
CLASSES: tuple[tuple[str, tuple[int, ...]], ...] = (
    ('wall', (2978,)),
    ('building, edifice', (312,)),
    ('sky', (2420,)),
    ('floor, flooring', (976,)),
    ('tree', (2855,)),
    ('ceiling', (447,)),
    ('road, route', (2131,)),
    ('bed', (165,)),
    ('windowpane, window', (3055,)),
    ('grass', (1125,)),
    ('cabinet', (350,)),
    ('sidewalk, pavement', (2377,)),
    ('person, individual, someone, somebody, mortal, soul', (1831,)),
    ('earth, ground', (838,)),
    ('door, double door', (774, 783)),
    ('table', (2684,)),
    ('mountain, mount', (1610,)),
    ('plant, flora, plant life', (1910,)),
    ('curtain, drape, drapery, mantle, pall', (687,)),
    ('chair', (471,)),
    ('car, auto, automobile, machine, motorcar', (401,)),
    ('water', (2994,)),
    ('painting, picture', (1735,)),
    ('sofa, couch, lounge', (2473,)),
    ('shelf', (2329,)),
    ('house', (1276,)),
    ('sea', (2264,)),
    ('mirror', (1564,)),
    ('rug, carpet, carpeting', (2178,)),
    ('field', (913,)),
    ('armchair', (57,)),
    ('seat', (2272,)),
    ('fence, fencing', (907,)),
    ('desk', (724,)),
    ('rock, stone', (2138,)),
    ('wardrobe, closet, press', (2985, 533)),
    ('lamp', (1395,)),
    ('bathtub, bathing tub, bath, tub', (155,)),
    ('railing, rail', (2053,)),
    ('cushion', (689,)),
    ('base, pedestal, stand', (137,)),
    ('box', (266,)),
    ('column, pillar', (581,)),
    ('signboard, sign', (2380,)),
    ('chest of drawers, chest, bureau, dresser', (491,)),
    ('counter', (627,)),
    ('sand', (2212,)),
    ('sink', (2388,)),
    ('skyscraper', (2423,)),
    ('fireplace, hearth, open fireplace', (943,)),
    ('refrigerator, icebox', (2096,)),
    ('grandstand, covered stand', (1121,)),
    ('path', (1788,)),
    ('stairs, steps', (2530,)),
    ('runway', (2185,)),
    ('case, display case, showcase, vitrine', (420,)),
    ('pool table, billiard table, snooker table', (1948,)),
    ('pillow', (1869,)),
    ('screen door, screen', (2251,)),
    ('stairway, staircase', (2531,)),
    ('river', (2128,)),
    ('bridge, span', (294,)),
    ('bookcase', (239,)),
    ('blind, screen', (212,)),
    ('coffee table, cocktail table', (571,)),
    ('toilet, can, commode, crapper, pot, potty, stool, throne', (2793,)),
    ('flower', (978,)),
    ('book', (236,)),
    ('hill', (1240,)),
    ('bench', (181,)),
    ('countertop', (629,)),
    ('stove, kitchen stove, range, kitchen range, cooking stove', (2598,)),
    ('palm, palm tree', (1744,)),
    ('kitchen island', (1374,)),
    (
        'computer, computing machine, computing device, '
        'data processor, electronic computer, information processing system',
        (591,),
    ),
    ('swivel chair', (2679,)),
    ('boat', (223,)),
    ('bar', (123,)),
    ('arcade machine', (47,)),
    ('hovel, hut, hutch, shack, shanty', (1282,)),
    ('bus, autobus, coach, charabanc, double-decker, jitney, motorbus, motorcoach, omnibus, passenger vehicle', (327,)),
    ('towel', (2821,)),
    ('light, light source', (1451,)),
    ('truck, motortruck', (2880,)),
    ('tower', (2828,)),
    ('chandelier, pendant, pendent', (480,)),
    ('awning, sunshade, sunblind', (77,)),
    ('streetlight, street lamp', (2616,)),
    ('booth, cubicle, stall, kiosk', (246, 247)),
    ('television, television receiver, television set, tv, tv set, idiot box, boob tube, telly, goggle box', (2733,)),
    ('airplane, aeroplane, plane', (14,)),
    ('dirt track', (738,)),
    ('apparel, wearing apparel, dress, clothes', (38,)),
    ('pole', (1936,)),
    ('land, ground, soil', (1401,)),
    ('bannister, banister, balustrade, balusters, handrail', (120,)),
    ('escalator, moving staircase, moving stairway', (868,)),
    ('ottoman, pouf, pouffe, puff, hassock', (1702,)),
    ('bottle', (249,)),
    ('buffet, counter, sideboard', (308,)),
    ('poster, posting, placard, notice, bill, card', (1969,)),
    ('stage', (2526,)),
    ('van', (2928,)),
    ('ship', (2337,)),
    ('fountain', (1023,)),
    ('conveyer belt, conveyor belt, conveyer, conveyor, transporter', (609,)),
    ('canopy', (389,)),
    ('washer, automatic washer, washing machine', (2989,)),
    ('plaything, toy', (1930,)),
    ('swimming pool, swimming bath, natatorium', (2668,)),
    ('stool', (2586,)),
    ('barrel, cask', (131,)),
    ('basket, handbasket', (146,)),
    ('waterfall, falls', (3016,)),
    ('tent, collapsible shelter', (2739,)),
    ('bag', (95,)),
    ('minibike, motorbike', (1563,)),
    ('cradle', (642,)),
    ('oven', (1708,)),
    ('ball', (103,)),
    ('food, solid food', (1002,)),
    ('step, stair', (2569,)),
    ('tank, storage tank', (2704,)),
    ('trade name, brand name, brand, marque', (2833,)),
    ('microwave, microwave oven', (1551,)),
    ('pot, flowerpot', (1981,)),
    ('animal, animate being, beast, brute, creature, fauna', (29,)),
    ('bicycle, bike, wheel, cycle', (187,)),
    ('lake', (1393,)),
    ('dishwasher, dish washer, dishwashing machine', (747,)),
    ('screen, silver screen, projection screen', (2254,)),
    ('blanket, cover', (206,)),
    ('sculpture', (2262,)),
    ('hood, exhaust hood', (1260,)),
    ('sconce', (2243,)),
    ('vase', (2932,)),
    ('traffic light, traffic signal, stoplight', (2836,)),
    ('tray', (2850,)),
    ('ashcan, trash can, garbage can, wastebin, ash bin, ash-bin, ashbin, dustbin, trash barrel, trash bin', (64,)),
    ('fan', (894,)),
    ('pier, wharf, wharfage, dock', (1858,)),
    ('crt screen', (3109,)),
    ('plate', (1919,)),
    ('monitor, monitoring device', (1583,)),
    ('bulletin board, notice board', (318,)),
    ('shower', (2356,)),
    ('radiator', (2046,)),
    ('glass, drinking glass', (1098,)),
    ('clock', (530,)),
    ('flag', (954,)),
)

# Objects that are called otherwise in the full release, with their class. Others are equal letter by letter. A first
# name alone decides nothing: 'pot' is no 'pot, flowerpot', 'basket, basketball hoop, hoop' no 'basket, handbasket'.
NAMES_IN_RELEASE = {
    'door': 15,
    'double door': 15,
    'closet': 36,
    'television receiver, television, television set, tv, tv set, idiot box, boob tube, telly, goggle box': 90,
    'screen, crt screen': 142,
}


def normalised(name: str) -> str:
    """A name as it is compared: lower case, one blank between words and after commas."""
    return ', '.join(' '.join(part.split()) for part in name.lower().split(','))


CLASS_OF_NAME = {
    **{normalised(names): number for number, (names, _) in enumerate(CLASSES, start=1)},
    **NAMES_IN_RELEASE,
}
CLASS_OF_OBJECT = {one: number for number, (_, objects) in enumerate(CLASSES, start=1) for one in objects}


def class_of(name: str | None, number: int, trust_number: bool = True) -> int:
    """Class 1 to 150 of an object in the full release, 0 for everything else.

    Args:
        name: as the release gives it; it decides where it is among the names of a class.
        number: of the object in the release; asked when the name says nothing.
        trust_number: False when the release numbers its objects otherwise.
    """
    by_name = None if name is None else CLASS_OF_NAME.get(normalised(name))
    if by_name is not None:
        return by_name
    return CLASS_OF_OBJECT.get(number, 0) if trust_number else 0
