"""The command from photos to files: what it writes, what it skips, what it survives, what it needs."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from src.checkpoints.files import write
from src.checkpoints.network import build_network, load
from src.config import compose_config, to_plain
from src.errors import UserError, explained
from src.inference import Predictor
from src.inference.results.inputs import find_photos, names
from src.inference.results.outputs import OutputPlan, PhotoFiles
from src.inference.results.png import PngWriter
from src.inference.tiled import Tiling
from src.inference.whole import Band
from src.predict import predict

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nano model with random weights, seven classes."""
    torch.manual_seed(0)
    overrides = ["experiment=massformer", "model/size=nano", "data=mass13k", "run_dir=."]
    config = to_plain(compose_config("train", overrides))
    network = build_network(config)
    with torch.no_grad():  # queries and classes that differ from place to place
        for norm in (m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.momentum = None
        images = torch.nn.functional.interpolate(torch.randn(2, 3, 8, 8), (128, 128), mode="bicubic")
        network.train().pixel_features(images)
        decoder = network.eval().transformer_decoder
        network.pixel_decoder.mask_output.norm.bias.sub_(0.5)
        decoder.mask_head[-1].weight.mul_(4)
        decoder.class_head.weight.mul_(20)
        decoder.query_features.weight.mul_(20)
        decoder.class_head.bias.sub_(network(images[:1]).class_logits.mean((0, 1)))
    path = tmp_path_factory.mktemp("checkpoint") / "nano.ckpt"
    write(path, config, network.state_dict())
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos, one of them in a sub-folder."""
    folder = tmp_path / "photos"
    for index, name in enumerate(("a.jpg", "b.png", "trip/a.jpg")):
        save_photo(folder / name, 96 + 8 * index, 136)
    return folder


def save_photo(path: Path, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(len(path.name) + height).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


@pytest.fixture
def run(checkpoint: Path, photos: Path, tmp_path: Path) -> Callable[..., dict[Path, str]]:
    """Predicts the photos into ``tmp_path / "out"``; later overrides win."""

    def predict_with(*overrides: str) -> dict[Path, str]:
        common = [f"checkpoint={checkpoint}", f"input={photos}", f"output={tmp_path / 'out'}", "device=cpu"]
        return predict(to_plain(compose_config("predict", [*common, *overrides])))

    return predict_with


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Equal work in equal order, however busy the machine is: untrained networks answer rounding with flips."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_labels_and_overlays_of_a_folder(run: Any, checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    assert run() == {}
    out = tmp_path / "out"
    stems = ("a.png", "b.png", "trip/a.png")
    assert files(out) == sorted(f"{kind}/{stem}" for kind in ("labels", "overlays") for stem in stems)
    with Image.open(out / "labels/trip/a.png") as image:
        assert image.mode == "P"
        label = np.asarray(image)
        assert image.getpalette()[3:6] == [255, 0, 0]  # person
    photo = cv2.imread(str(photos / "trip/a.jpg"))[..., ::-1]
    direct = Predictor(load(checkpoint), limit=None)(np.ascontiguousarray(photo)).label
    assert (label == direct).mean() > 0.99
    found = [cv2.imread(str(out / f"labels/{stem}"), cv2.IMREAD_UNCHANGED) for stem in stems]
    assert len(np.unique(np.concatenate(found, axis=None))) > 1
    assert cv2.imread(str(out / "overlays/b.png")).shape == (104, 136, 3)


def test_masks_cutouts_and_edges_of_chosen_classes(
    run: Any, checkpoint: Path, photos: Path, tmp_path: Path, one_thread: None
) -> None:
    run("outputs=[masks,cutouts,edges]", "classes=[sky,person]", "mask_bits=16", f"input={photos / 'b.png'}")
    out = tmp_path / "out"
    assert files(out) == [
        f"{place}/b.png" for place in ("cutouts/1_person+5_sky", "edges", "masks/1_person", "masks/5_sky")
    ]
    photo = cv2.imread(str(photos / "b.png"))
    prediction = Predictor(load(checkpoint), limit=None)(np.ascontiguousarray(photo[..., ::-1]))
    assert prediction.scores is not None
    share = prediction.scores / prediction.scores.sum(0).clip(1e-6)  # no class, no share
    person, sky = (
        cv2.imread(str(out / f"masks/{name}/b.png"), cv2.IMREAD_UNCHANGED) for name in ("1_person", "5_sky")
    )
    assert person.dtype == np.uint16
    assert np.abs(person / 65535 - share[1]).max() < 1e-3
    assert np.abs(sky / 65535 - share[5]).max() < 1e-3
    cutout = cv2.imread(str(out / "cutouts/1_person+5_sky/b.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(cutout[..., :3], photo)
    cubes = prediction.scores**3
    opacity = (cubes[1] + cubes[5]) / cubes.sum(0).clip(1e-18)
    assert np.abs(cutout[..., 3] / 255 - opacity).max() < 3e-3
    assert prediction.edges is not None
    edges = cv2.imread(str(out / "edges/b.png"), cv2.IMREAD_UNCHANGED)
    assert np.abs(edges / 255 - prediction.edges).max() < 3e-3


def test_every_band_meets_its_rows_of_the_photo(
    run: Any, checkpoint: Path, tmp_path: Path, one_thread: None
) -> None:
    save_photo(tmp_path / "tall.png", 300, 136)
    windows = ["inference=tiled", "inference.window=[96,160]", "inference.overlap=32", "inference.margin=8"]
    run(f"input={tmp_path / 'tall.png'}", "outputs=[labels,cutouts]", "classes=[sky]", *windows)
    photo = cv2.imread(str(tmp_path / "tall.png"))
    cutout = cv2.imread(str(tmp_path / "out/cutouts/5_sky/tall.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(cutout[..., :3], photo)
    predictor = Predictor(load(checkpoint), mode="tiled", tiling=Tiling((96, 160), 32, 8))
    label = np.asarray(Image.open(tmp_path / "out/labels/tall.png"))
    assert np.array_equal(label, predictor(np.ascontiguousarray(photo[..., ::-1])).label)
    assert len(np.unique(label)) > 1


def test_finished_files_are_skipped(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    out = tmp_path / "out"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    (out / "labels/b.png").unlink()
    run()
    assert "2 of 3 photos are done already" in capsys.readouterr().out
    changed = [path.name for path, at in before.items() if path.stat().st_mtime_ns != at]
    assert set(changed) == {"b.png"}
    run("overwrite=true")
    assert all(path.stat().st_mtime_ns != at for path, at in before.items())


def test_results_of_another_network_are_told(
    run: Any, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    run()
    assert "another network" not in capsys.readouterr().out
    content = torch.load(checkpoint, weights_only=True)
    name = next(name for name in content["state_dict"] if name.endswith("class_head.bias"))
    content["state_dict"][name][0] += 1
    torch.save(content, tmp_path / "other.ckpt")
    run(f"checkpoint={tmp_path / 'other.ckpt'}", "outputs=[labels,masks]")
    assert "3 of these files were made by another network" in capsys.readouterr().out
    run("overwrite=true", f"checkpoint={tmp_path / 'other.ckpt'}")
    run(f"checkpoint={tmp_path / 'other.ckpt'}")
    assert "another network" not in capsys.readouterr().out


def test_files_that_stay_beside_new_ones_are_told(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run("outputs=[cutouts,masks]", "classes=[person]")
    assert "stay as an earlier" not in capsys.readouterr().out
    run("outputs=[cutouts,masks]", "classes=[sky]")
    assert (
        "stay as an earlier" not in capsys.readouterr().out
    )  # cut-outs of one class lie beside those of others
    run("outputs=[labels,masks]", "classes=[sky]")
    assert (
        "3 of the files asked for are there and stay as an earlier run has made them"
        in capsys.readouterr().out
    )


def test_one_class_alone_has_its_score_as_share(tmp_path: Path) -> None:
    plan = OutputPlan(("masks",), {"sky": [0, 0, 255]}, ("sky",))
    scores = torch.tensor([[[0.0, 0.25, 0.5, 1.5]]])
    with PhotoFiles(plan, plan.files(tmp_path, "a"), (1, 4)) as written:
        written.write(Band(0, scores, None), np.zeros((1, 4, 3), np.uint8))
    mask = np.array(Image.open(tmp_path / "masks/0_sky/a.png"))
    assert mask.tolist() == [[0, 64, 128, 255]]


def test_a_full_disk_ends_the_work(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = []

    def full(self: PngWriter, rows: Any) -> None:
        begun.append(self)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PngWriter, "write", full)
    (reason,) = run("outputs=[labels]").values()
    assert "photos not begun: 2" in reason
    assert "0 photos predicted, 1 failed" in capsys.readouterr().out
    assert len(begun) == 1
    assert files(tmp_path / "out") == []


def test_cutouts_keep_the_colour_profile(run: Any, photos: Path, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with Image.open(photos / "a.jpg") as photo:
        photo.save(photos / "a.jpg", icc_profile=profile)
    run("outputs=[labels,overlays,cutouts]", "classes=[sky]")
    for place, expected in (
        ("labels/a", None),
        ("overlays/a", profile),
        ("cutouts/5_sky/a", profile),
        ("cutouts/5_sky/b", None),
    ):
        with Image.open(tmp_path / "out" / f"{place}.png") as written:
            assert written.info.get("icc_profile") == expected, place


def test_pictures_of_other_formats_are_told(
    run: Any, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("trip/x.HEIC", "y.heic", "z.webp"):
        (photos / name).write_bytes(b"")
    run("outputs=[labels]")
    assert "left out: 2 .heic, 1 .webp" in capsys.readouterr().out


def test_results_of_another_photo_of_the_same_name_are_told(run: Any, tmp_path: Path) -> None:
    """Cameras give the same names again and again."""
    save_photo(tmp_path / "x" / "IMG_1.png", 80, 90)
    save_photo(tmp_path / "y" / "IMG_1.png", 80, 91)
    save_photo(tmp_path / "y" / "IMG_2.png", 80, 91)
    assert run(f"input={tmp_path / 'x'}") == {}
    first = (tmp_path / "out/labels/IMG_1.png").read_bytes()
    ((photo, reason),) = run(f"input={tmp_path / 'y'}").items()
    assert photo == tmp_path / "y" / "IMG_1.png"
    assert "labels/IMG_1.png was made of another photo" in reason
    assert (tmp_path / "out/labels/IMG_2.png").is_file()
    assert (tmp_path / "out/labels/IMG_1.png").read_bytes() == first
    assert run(f"input={tmp_path / 'y'}", "overwrite=true") == {}
    assert run(f"input={tmp_path / 'x'}", f"output={tmp_path / 'other'}") == {}


def test_edited_results_stay_while_they_have_the_photos_size(run: Any, tmp_path: Path) -> None:
    run()
    edited = tmp_path / "out/labels/a.png"
    Image.fromarray(np.ones((96, 136), np.uint8)).save(edited)
    assert run() == {}
    Image.fromarray(np.ones((90, 136), np.uint8)).save(edited)
    assert len(run()) == 1


def test_empty_results_are_made_again(run: Any, tmp_path: Path) -> None:
    """A power cut can leave a name without content."""
    run()
    (tmp_path / "out/labels/a.png").write_bytes(b"")
    assert run() == {}
    assert np.asarray(Image.open(tmp_path / "out/labels/a.png")).shape == (96, 136)


def test_files_of_others_stay(run: Any, tmp_path: Path) -> None:
    mine = tmp_path / "out" / "labels" / "b.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"drawn by hand")
    run()
    assert mine.read_bytes() == b"drawn by hand"
    assert (tmp_path / "out" / "overlays" / "b.png").is_file()
    run("overwrite=true")
    assert mine.read_bytes() != b"drawn by hand"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_photo_too_large_for_the_memory_is_passed_over(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    bands = Predictor.bands

    def fail_once(self: Predictor, photo: Any) -> Any:
        if photo.size == (104, 136):
            raise error
        return bands(self, photo)

    monkeypatch.setattr(Predictor, "bands", fail_once)
    (reason,) = run().values()
    assert "inference.memory_gb" in reason
    assert len(files(tmp_path / "out")) == 4


def test_an_error_that_nobody_expected_costs_one_photo(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bands = Predictor.bands

    def fail_once(self: Predictor, photo: Any) -> Any:
        if photo.size == (104, 136):
            raise RuntimeError("a mistake")
        return bands(self, photo)

    monkeypatch.setattr(Predictor, "bands", fail_once)
    assert list(run().values()) == ["RuntimeError: a mistake"]
    assert "in fail_once" in caplog.text  # with what it takes to report it
    assert len(files(tmp_path / "out")) == 4


def test_ctrl_c_is_no_traceback(
    run: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "bands", interrupt)
    with pytest.raises(SystemExit) as stopped, explained(after_interrupt="go on"):
        run()
    assert stopped.value.code == 130
    assert "interrupted; go on" in capfd.readouterr().err


def test_broken_photos_are_told_and_passed_over(
    run: Any, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (photos / "a.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.png").write_bytes(b"")
    (photos / "text.jpg").write_text("not a photo")
    failures = run()
    assert sorted(path.name for path in failures) == ["cut.jpg", "empty.png", "text.jpg"]
    out = capsys.readouterr().out
    assert all(name in out for name in ("cut.jpg", "empty.png", "text.jpg"))
    assert "3 photos predicted, 3 failed" in out
    assert len(files(tmp_path / "out")) == 6


def test_links_to_folders_are_followed_and_those_that_lead_nowhere_told(
    run: Any, photos: Path, tmp_path: Path
) -> None:
    save_photo(tmp_path / "elsewhere" / "c.png", 80, 90)
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    (photos / "trip" / "back").symlink_to(photos)
    (photos / "gone.jpg").symlink_to(tmp_path / "gone.jpg")
    assert [path.name for path in run("outputs=[labels]")] == ["gone.jpg"]
    assert files(tmp_path / "out") == [f"labels/{n}.png" for n in ("a", "b", "linked/c", "trip/a")]


def test_photos_that_results_would_replace_are_refused(run: Any, photos: Path, tmp_path: Path) -> None:
    photos.rename(tmp_path / "cutouts")
    before = (tmp_path / "cutouts" / "b.png").read_bytes()
    for source in ("cutouts", "cutouts/trip", "cutouts/b.png"):
        with pytest.raises(UserError, match="where results are written"):
            run(f"input={tmp_path / source}", f"output={tmp_path}", "outputs=[labels]", "overwrite=true")
    assert (tmp_path / "cutouts" / "b.png").read_bytes() == before


def test_names_are_safe_and_distinct(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for name in ("a.jpg", "a.png", "sub/a.jpg", "sub/A b;$(x).jpg", ".hidden/c.jpg", "sub/.c.jpg"):
        save_photo(source / name, 64, 64)
    photos = find_photos(source)
    found = names(source, photos)
    assert found == ["a.jpg", "a.png", "sub/A b;$(x)", "sub/a"]
    assert len(set(found)) == len(photos)
    save_photo(source / "a.jpg.png", 64, 64)  # without its suffix it would be called as a.jpg is
    assert names(source, find_photos(source))[:3] == ["a.jpg", "a.jpg.png", "a.png"]


def test_folders_of_classes_keep_letters_of_any_alphabet() -> None:
    classes = {"Bäume": [0, 1, 2], "Ba\u0308ume/../x": [0, 1, 3], "草" * 90: [0, 1, 4]}
    plan = OutputPlan(("masks", "cutouts"), classes, tuple(classes))
    assert plan.mask_places == ["masks/0_Bäume", "masks/1_Bäume_x", f"masks/2_{'草' * 60}"]
    assert re.fullmatch(r"cutouts/3_classes_[0-9a-f]{8}", plan.cutout_place)


def test_photos_of_the_same_stem_keep_their_suffix(run: Any, photos: Path, tmp_path: Path) -> None:
    save_photo(photos / "a.png", 80, 80)
    run("outputs=[labels]")
    assert files(tmp_path / "out") == [f"labels/{n}.png" for n in ("a.jpg", "a.png", "b", "trip/a")]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["classes=[dog]"], "dog"),
        (["+outpts=[labels]"], "nothing reads outpts; known are checkpoint"),
        (["+inference.windw=64"], r"nothing reads inference\.windw"),
        (["outputs=[label]"], "outputs"),
        (["mask_bits=12"], "8 or 16"),
        (["checkpoint=nowhere.ckpt"], "nowhere.ckpt"),
        (["input=nowhere"], "nowhere"),
        (["input=2024"], "input=2024: no such file or folder"),
        (["checkpoint=null"], "checkpoint is not given"),
        (["precision=half"], "float32"),
        (["device=abacus"], "abacus"),
        (["inference.memory_gb=0.1"], "too little"),
        (["inference.overlap=900"], "overlap"),
        (["inference.enlarge_to=[960]"], "two edge lengths"),
        (["inference.enlarge_to=large"], "two edge lengths"),
        (["inference.enlarge_to=[a,b]"], "two edge lengths"),
        (["inference.limit=4096"], "two edge lengths"),
        (["inference.window=1024"], "two edge lengths"),
        (["inference.overlap=wide"], "whole number"),
        (["inference.memory_gb=four"], "memory_gb=four: give a number"),
        (["inference.max_megapixels=null"], "give a number"),
        (["overwrite=no"], "true or false"),
        (["outputs=null"], "choose from"),
        (["outputs=[masks]", "classes=[]"], "name a class"),
        (["classes=[sky]"], "has neither"),
        (["outputs=[cutouts]"], "what is to be cut out"),
    ],
)
def test_mistakes_are_told_before_any_work(
    run: Any, tmp_path: Path, overrides: list[str], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        run(*overrides)
    assert not list(tmp_path.glob("out/*/*"))


def test_edges_are_refused_where_the_network_has_none(run: Any, tmp_path: Path) -> None:
    config = to_plain(compose_config("train", ["experiment=ablation_lse", "model/size=nano", "run_dir=."]))
    write(tmp_path / "plain.ckpt", config, build_network(config).state_dict())
    with pytest.raises(UserError, match="predicts no edges"):
        run(f"checkpoint={tmp_path / 'plain.ckpt'}", "outputs=[labels,edges]")
    assert not list(tmp_path.glob("out/*/*"))


def test_a_class_named_twice_counts_once(run: Any, photos: Path, tmp_path: Path, one_thread: None) -> None:
    def alpha(classes: str) -> np.ndarray:
        run(f"input={photos / 'b.png'}", "outputs=[cutouts]", classes, "overwrite=true")
        return cv2.imread(str(tmp_path / "out/cutouts/5_sky/b.png"), cv2.IMREAD_UNCHANGED)[..., 3]

    assert np.array_equal(alpha("classes=[sky,sky]"), alpha("classes=[sky]"))
    assert np.array_equal(alpha("classes=sky"), alpha("classes=[sky]"))


def test_names_in_brackets_and_of_other_encodings_are_told_as_they_are(
    checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    save_photo(folder / "a.jpg", 80, 90)
    (folder / "a.jpg").rename(folder / os.fsdecode(b"K\xfcste.jpg"))
    (folder / "b [edit].jpg").write_bytes(b"broken")
    done = subprocess.run(
        command(checkpoint, folder, tmp_path / "out"), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "b [edit].jpg" in done.stdout
    assert "1 photo predicted, 1 failed" in done.stdout


def test_photos_are_enlarged_as_the_checkpoint_was_evaluated(
    run: Any, photos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    stored = torch.load(checkpoint, weights_only=True)
    stored["config"]["data"] |= {"evaluation_limit": [320, 320], "enlarge": True}
    torch.save(stored, tmp_path / "enlarged.ckpt")

    def labels(*overrides: str) -> np.ndarray:
        run(f"input={photos / 'a.jpg'}", "overwrite=true", *overrides)
        return np.array(Image.open(tmp_path / "out/labels/a.png"))

    enlarged = labels(f"checkpoint={tmp_path / 'enlarged.ckpt'}")
    assert enlarged.shape == (96, 136)
    assert np.array_equal(enlarged, labels("inference.enlarge_to=[320,320]"))
    own_size = labels(f"checkpoint={tmp_path / 'enlarged.ckpt'}", "inference.enlarge_to=null")
    assert np.array_equal(own_size, labels())
    assert not np.array_equal(own_size, enlarged)


def test_results_inside_the_input_are_refused(run: Any, photos: Path) -> None:
    with pytest.raises(UserError, match="inside"):
        run(f"output={photos / 'results'}")


def command(checkpoint: Path, source: Path, out: Path, *overrides: str) -> list[str]:
    places = [f"checkpoint={checkpoint}", f"input={source}", f"output={out}", "device=cpu"]
    return [sys.executable, "-m", "src.predict", *places, *overrides]


@pytest.mark.slow
def test_a_kill_leaves_no_half_file_and_the_next_run_goes_on(checkpoint: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for number in range(2):  # so that it is at work when it is killed, however late that is
        save_photo(source / f"tall{number}.png", 1500, 512)
    tiled = ["inference=tiled", "inference.window=[192,256]", "inference.overlap=64"]
    process = subprocess.Popen(command(checkpoint, source, out, *tiled), cwd=ROOT, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while not any(out.rglob(".*")):  # until a file has begun
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()

    def whole() -> list[str]:
        found = [path for path in out.rglob("*.png") if not path.name.startswith(".")]
        for path in found:
            with Image.open(path) as image:
                image.load()
                assert image.size == (512, 1500)
        return sorted(path.relative_to(out).as_posix() for path in found)

    assert len(whole()) < 4
    assert subprocess.run(command(checkpoint, source, out, *tiled), cwd=ROOT).returncode == 0
    assert whole() == [f"{kind}/tall{number}.png" for kind in ("labels", "overlays") for number in range(2)]


_PEAK = """
import resource, sys
from src.config import compose_config, to_plain
from src.predict import predict
assert predict(to_plain(compose_config("predict", sys.argv[1:]))) == {}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_height(checkpoint: Path, tmp_path: Path) -> None:
    """Many more rows, in windows: hardly more than the photo, which decoding needs; scores take ten times it."""
    peaks, sizes = [], (1000, 4500)
    for height in sizes:
        source = tmp_path / f"{height}.png"
        save_photo(source, height, 512)
        arguments = [
            *command(checkpoint, source, tmp_path / "out")[3:],
            *(
                "inference=tiled",
                "inference.window=[384,512]",
                "inference.overlap=96",
                "inference.memory_gb=1.4",
            ),
        ]
        result = subprocess.run(
            [sys.executable, "-c", _PEAK, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
        peaks.append(int(result.stdout.splitlines()[-1]))
    extra_photo = (sizes[1] - sizes[0]) * 512 * 3
    assert peaks[1] - peaks[0] < 3 * extra_photo + 25 * 2**20
