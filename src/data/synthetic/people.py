"""People: walking and standing figures with clothes, and hair that ends in single strands."""

from __future__ import annotations

import numpy as np

from src.data.synthetic.canvas import Canvas, Material
from src.data.synthetic.view import Camera, Spot, Weather, pick

_SKIN = ((232, 190, 160), (214, 164, 130), (176, 122, 88), (122, 82, 60), (90, 60, 46))
_HAIR = ((52, 38, 30), (92, 64, 42), (160, 122, 74), (30, 28, 28), (120, 60, 36), (168, 164, 160))
_CLOTHES = (
    (40, 62, 108), (150, 40, 44), (226, 222, 212), (56, 84, 54), (34, 36, 42), (196, 150, 60),
    (120, 150, 176), (128, 126, 128), (150, 120, 92), (92, 60, 92), (70, 120, 124),
)  # fmt: skip
_TROUSERS = ((52, 66, 92), (44, 44, 48), (128, 116, 96), (88, 92, 96), (76, 84, 62))


def draw_person(
    canvas: Canvas, rng: np.random.Generator, weather: Weather, camera: Camera, spot: Spot, metres: float
) -> None:
    """One person, seen from the front, from behind or walking past, `metres` tall."""
    figure = Spot(spot.x, spot.y, spot.metre * metres / 1.72)
    distance = camera.distance(spot.y)
    skin, hair = pick(rng, _SKIN, 6), pick(rng, _HAIR, 8)
    top, legs = pick(rng, _CLOTHES), pick(rng, _TROUSERS)
    facing = rng.choice(("front", "back", "side"), p=(0.35, 0.4, 0.25))
    turn = 1.0 if rng.random() < 0.5 else -1.0
    breadth = (0.13 if facing == "side" else 0.2) * rng.uniform(0.9, 1.1)
    stride = rng.uniform(0.1, 0.38) if facing == "side" else rng.uniform(0.03, 0.14)

    def lit(colour: np.ndarray, shade: float = 1.0) -> np.ndarray:
        return weather.lit(colour * shade, distance)

    def rod(
        points: list[tuple[float, float]], radii: list[float], colour: np.ndarray, material: Material
    ) -> None:
        _rod(canvas, figure, points, radii, lit(colour), material, weather)

    swing = rng.uniform(-1, 1, 2)
    hip = 0.90
    skirt = rng.random() < 0.3
    for leg, side in enumerate((-1, 1)):
        x = side * breadth * 0.45
        foot = (x + side * stride * (0.5 + 0.5 * abs(swing[leg])) * (1 if facing == "side" else 0.5), 0.04)
        knee = ((x + foot[0]) / 2 + 0.04 * turn * (facing == "side"), 0.48)
        fabric = legs if not (skirt and leg >= 0 and rng.random() < 0.5) else skin
        material = Material.CLOTH if fabric is legs else Material.SKIN
        rod(
            [(x, hip), knee, (foot[0], 0.08)],
            [0.088, 0.065, 0.048],
            fabric * (0.86 if leg == 0 else 1.0),
            material,
        )
        toe = (foot[0] + turn * 0.13 if facing == "side" else foot[0] + side * 0.03, 0.03)
        rod([(foot[0], 0.05), toe], [0.05, 0.04], np.array((44, 40, 40)), Material.CLOTH)

    arms = []
    for side in (-1, 1):
        shoulder = (side * breadth * (0.9 if facing != "side" else 0.1), 1.38)
        angle = rng.normal(0.12, 0.22) * side
        raised = rng.random() < 0.12
        if raised:
            angle = side * rng.uniform(1.6, 2.6)
        elbow = (shoulder[0] + 0.29 * np.sin(angle), shoulder[1] - 0.29 * np.cos(angle))
        fore = angle + (rng.uniform(0.2, 1.2) * turn if facing == "side" else rng.normal(0, 0.4))
        hand = (elbow[0] + 0.27 * np.sin(fore), elbow[1] - 0.27 * np.cos(fore))
        arms.append((shoulder, elbow, hand))
    sleeve = rng.random() < 0.6

    def arm(joints: tuple[tuple[float, float], ...]) -> None:
        shoulder, elbow, hand = joints
        rod(
            [elbow, hand],
            [0.045, 0.034],
            top * 0.9 if sleeve else skin,
            Material.CLOTH if sleeve else Material.SKIN,
        )
        rod([shoulder, elbow], [0.062, 0.05], top * 0.92, Material.CLOTH)
        rod([hand, (hand[0], hand[1] - 0.05)], [0.042, 0.03], skin, Material.SKIN)

    arm(arms[0])
    hem = (0.55 if skirt else 0.84) * rng.uniform(0.96, 1.04)
    flare = rng.uniform(1.1, 1.8) if skirt else 1.0
    waist = breadth * 0.78
    torso = [
        (-breadth * 0.55, 1.47), (breadth * 0.55, 1.47), (breadth * 1.06, 1.36), (breadth * 0.95, 1.15), (waist, 1.02),
        (breadth * 0.92 * flare, hem), (-breadth * 0.92 * flare, hem), (-waist, 1.02), (-breadth * 0.95, 1.15),
        (-breadth * 1.06, 1.36),
    ]  # fmt: skip
    canvas.polygon(figure.place(torso), lit(top), Material.CLOTH)
    shaded = [(x * 0.45 - np.sign(weather.sun or 1) * breadth * 0.5 * abs(x) / breadth, y) for x, y in torso]
    canvas.polygon(figure.place(shaded), lit(top, 1 - 0.35 * weather.shadow), Material.CLOTH)
    folds = rng.uniform(-0.8, 0.8, 6) * breadth
    wrinkles = [
        [(x, y := rng.uniform(hem + 0.05, 1.3)), (x * 0.8, y - 0.06), (x * 0.9, y - 0.12)] for x in folds
    ]
    canvas.lines(figure.place(wrinkles), lit(top, 0.78), Material.CLOTH, 3)
    if facing != "back" and rng.random() < 0.5:
        opening = [(-0.035, 1.49), (0.035, 1.49), (0.0, 1.36)]
        canvas.convex([figure.place(opening)], lit(skin, 0.95), Material.SKIN)
    if facing == "back" and rng.random() < 0.4:
        _backpack(canvas, figure, lit(pick(rng, _CLOTHES)))
    rod([(0, 1.44), (0, 1.54)], [0.062, 0.055], skin * 0.86, Material.SKIN)
    _head(canvas, rng, figure, lit, skin, hair, facing, turn)
    arm(arms[1])


def _rod(
    canvas: Canvas,
    figure: Spot,
    points: list[tuple[float, float]],
    radii: list[float],
    colour: np.ndarray,
    material: Material,
    weather: Weather,
) -> None:
    """A jointed limb with a lit and a shaded half."""
    places = figure.place(points)
    widths = np.asarray(radii) * figure.metre
    lean = -np.sign(weather.sun or 1) * widths.mean() * 0.35
    for scale, shift, tone in ((1.0, 0.0, 1.0), (0.62, lean, 1 - 0.3 * weather.shadow)):
        for start in range(len(points) - 1):
            ends = places[start : start + 2] + (shift, 0)
            canvas.limb(ends[0], ends[1], widths[start : start + 2] * scale, colour * tone, material)


def _backpack(canvas: Canvas, figure: Spot, colour: np.ndarray) -> None:
    bag = [(-0.13, 1.42), (0.13, 1.42), (0.17, 1.3), (0.16, 1.0), (-0.16, 1.0), (-0.17, 1.3)]
    canvas.polygon(figure.place(bag), colour, Material.CLOTH)
    pocket = [(-0.11, 1.18), (0.11, 1.18), (0.11, 1.03), (-0.11, 1.03)]
    canvas.convex([figure.place(pocket)], colour * 0.82, Material.CLOTH)


def _head(canvas, rng, figure, lit, skin, hair, facing, turn) -> None:  # type: ignore[no-untyped-def]
    long = rng.random() < 0.55
    centre = np.array([0.02 * turn * (facing == "side"), 1.62])
    scale = figure.metre
    mane = 0.30 if long else 0.06
    _strands(canvas, rng, figure, centre, lit(hair), mane, 260, behind=True)
    if facing == "back":
        canvas.ellipse(figure.place(centre), (0.094 * scale, 0.122 * scale), lit(hair), Material.HAIR)
    else:
        canvas.ellipse(figure.place(centre), (0.082 * scale, 0.112 * scale), lit(skin), Material.SKIN)
        canvas.ellipse(
            figure.place(centre + (0.02, 0)), (0.055 * scale, 0.1 * scale), lit(skin * 1.05), Material.SKIN
        )
        _face(canvas, figure, lit, skin, hair, centre, facing, turn)
        cap = [(-0.088, 0.02), (-0.08, 0.09), (-0.04, 0.125), (0.02, 0.13), (0.07, 0.10), (0.09, 0.02), (0.06, 0.06), (0.0, 0.075), (-0.055, 0.055)]  # fmt: skip
        canvas.polygon(figure.place(np.array(cap) + centre), lit(hair), Material.HAIR)
        if facing == "side":
            back = centre - (turn * 0.045, -0.02)
            canvas.ellipse(figure.place(back), (0.06 * scale, 0.1 * scale), lit(hair), Material.HAIR)
    _strands(canvas, rng, figure, centre, lit(hair), mane, 160, behind=False)


def _face(canvas, figure, lit, skin, hair, centre, facing, turn) -> None:  # type: ignore[no-untyped-def]
    scale = figure.metre
    shift = 0.035 * turn if facing == "side" else 0.0
    for side in (-1, 1):
        eye = centre + (side * 0.032 + shift, 0.012)
        canvas.ellipse(
            figure.place(eye), (0.012 * scale, 0.006 * scale), lit(np.array((240, 236, 230))), Material.SKIN
        )
        canvas.ellipse(
            figure.place(eye), (0.006 * scale, 0.006 * scale), lit(np.array((46, 40, 38))), Material.SKIN
        )
        brow = [eye + (-0.016, 0.02), eye + (0.0, 0.026), eye + (0.016, 0.02)]
        canvas.lines([figure.place(brow)], lit(hair * 0.9), Material.SKIN, 3)
    nose = centre + (shift, -0.02)
    canvas.ellipse(figure.place(nose), (0.012 * scale, 0.018 * scale), lit(skin * 0.9), Material.SKIN)
    mouth = centre + (shift, -0.06)
    canvas.ellipse(
        figure.place(mouth), (0.025 * scale, 0.007 * scale), lit(skin * (0.86, 0.62, 0.6)), Material.SKIN
    )


def _strands(
    canvas: Canvas,
    rng: np.random.Generator,
    figure: Spot,
    centre: np.ndarray,
    colour: np.ndarray,
    length: float,
    count: int,
    behind: bool,
) -> None:
    """Single hairs from the crown of the head, falling, and blown to one side by the wind."""
    wind = rng.normal(0, 0.5)
    angle = rng.uniform(0, np.pi, count) if not behind else rng.uniform(-0.4, np.pi + 0.4, count)
    root = np.stack([np.cos(angle) * 0.085, np.sin(angle) * 0.115], 1) + centre
    if not behind:
        root[:, 1] += 0.004
        length = 0.05
    reach = length * rng.uniform(0.4, 1.25, count)
    t = np.linspace(0, 1, 7)[None, :]
    out = np.cos(angle)[:, None]
    sway = rng.normal(wind, 0.45, count)[:, None]
    x = root[:, :1] + out * 0.035 * np.sin(t * 2.2) + sway * reach[:, None] * t**2 * 0.8
    y = (
        root[:, 1:]
        + 0.025 * np.sin(np.clip(t * 3, 0, np.pi)) * np.sin(angle)[:, None]
        - reach[:, None] * t * 0.9
    )
    colours = colour * rng.uniform(0.7, 1.3, (count, 1))
    canvas.lines(figure.place(np.stack([x, y], -1)), np.clip(colours, 0, 255), Material.HAIR, 2)
