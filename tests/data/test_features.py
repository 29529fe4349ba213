"""Every published layout is read as declared; whatever is missing or broken is named before training."""

import json
import pickle
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from vmr_zoo.config.compose import compose, config_dir
from vmr_zoo.data.annotations.records import Protocol, Query, Split
from vmr_zoo.data.features.feature_set import FeatureSet
from vmr_zoo.data.features.files import FileFeatures, QueryFiles, VideoFiles
from vmr_zoo.data.features.manifest import compare_manifests, same_sources
from vmr_zoo.data.features.problems import FeatureError
from vmr_zoo.data.features.queries import WordVectorQueries
from vmr_zoo.data.features.store import FileStore, Hdf5Store
from vmr_zoo.errors import VmrError

T, L = 6, 4
VIDEO, QUERY = "s30-d52", "q7"

# Configuration: (video files in the order of the concatenation, text file or None). As layouts are published,
# written down here a second time on purpose. `file:key` names an array inside a file.
CLIP_TEXT = ("clip_text_features/qid{q}.npz:last_hidden_state", (L, 512))
LAYOUTS = {
    "slowfast_clip": (
        [("slowfast_features/{v}.npz:features", (T + 1, 2304)), ("clip_features/{v}.npz:features", (T, 512))],
        CLIP_TEXT,
    ),
    "slowfast_clip_1s": (  # TACoS names, and no qid prefix
        [
            ("slowfast_features/{v}-cam-002.npz:features", (T, 2304)),
            ("clip_features/{v}-cam-002.npz:features", (T, 512)),
        ],
        ("clip_text_features/{q}.npz:last_hidden_state", (77, 512)),
    ),
    "clip_slowfast": (
        [("clip/{v}.npz:features", (T, 512)), ("slowfast/{v}.npz:features", (T, 2304))],
        ("clip_text/qid{q}.npz:last_hidden_state", (L, 512)),
    ),
    "resnet_lighthouse": ([("resnet/{v}.npz:features", (T, 2048))], None),
    "pann_lighthouse": ([("pann/{v}.npy", (T, 2048))], None),
    "vgg_1s": ([("vgg_features/{v}.npy", (T, 4096))], CLIP_TEXT),
    "vgg": ([("vgg_features/rgb_features/{v}.npy", (T, 4096))], None),
    "c3d": ([("c3d_features/{v}.npy", (T, 1024))], CLIP_TEXT),
    "c3d_activitynet": ([("c3d_features/{v}.npy", (T, 1024))], CLIP_TEXT),
    "c3d_tacos": ([("c3d_features/{v}.avi.npy", (T, 1024))], CLIP_TEXT),
    "i3d": ([("i3d_features/{v}.npy", (T, 1024))], CLIP_TEXT),
    "internvideo2": (
        [("qvhighlight_6b/{v}.pt", (T, 768))],
        ("qvhighlight_llama_text_feature/qid{q}.pt", (L, 4096)),
    ),
    "internvideo2_charades": (
        [("charade_sta_internvideo2_videoclip_6b_w1s/{v}.pt", (T, 768))],
        ("charade_sta_internvideo2_llama_text_feature/qid{q}.pt", (L, 4096)),
    ),
    "internvideo2_1b_charades": (
        [("charade_sta_internvideo2_videoclip_1b_w1s/{v}.pt", (T, 768))],
        ("charade_sta_internvideo2_llama_text_feature/qid{q}.pt", (L, 4096)),
    ),
    "causalvtg": (
        [("internvideo2_videoclip_6b_w2s/{v}.pt", (T, 768))],
        ("internvideo2_llama_text_feature/qid{q}.pt", (L, 4096)),
    ),
    "causalvtg_charades": (
        [("internvideo2_videoclip_6b_w1s/{v}.pt", (T, 768))],
        ("internvideo2_llama_text_feature/qid{q}.pt", (L, 4096)),
    ),
    "causalvtg_activitynet": (
        [("internvideo2_w2s_activitynet/{v}.pt", (T, 768))],
        ("internvideo2_llama_text_feature_activitynet/qid{q}.pt", (L, 4096)),
    ),
    "nlvl_activitynet_c3d": ([("anet_c3d_v0.hdf5:{v}", (T, 500))], None),
    "nlvl_activitynet_i3d": ([("anet_i3d_v1.hdf5:{v}", (T, 1024))], None),
    "nlvl_charades_vgg": ([("charades_vgg_v0.hdf5:{v}", (T, 4096))], None),
    "nlvl_charades_i3d": ([("charades_i3d_v0.hdf5:{v}", (T, 1024))], None),
    "nlvl_tacos_c3d": ([("tacos_c3d_v0.hdf5:{v}", (T, 4096))], None),
    "nlvl_tacos_i3d": ([("tacos_i3d_v0.hdf5:{v}", (T, 1024))], None),
    "univtg": (
        [("vid_slowfast/{v}.npz:features", (T, 2304)), ("vid_clip/{v}.npz:features", (T, 512))],
        ("txt_clip/{q}.npz:last_hidden_state", (L, 512)),
    ),
    "mesm": ([("clip_image.hdf5:{v}", (T, 512)), ("slowfast.hdf5:{v}", (T, 2304))], None),
    "mesm_vgg": ([("vgg.hdf5:{v}", (T, 4096))], None),
    "mesm_i3d": ([("i3d.hdf5:{v}", (T, 1024))], None),
    "mesm_c3d": ([("c3d.hdf5:{v}.avi", (T, 4096))], None),
    "mmn_charades": ([("vgg_rgb_features.hdf5:{v}", (T, 4096))], None),
    "mmn_activitynet": ([("sub_activitynet_v1-3.c3d.hdf5:{v}/c3d_features", (T, 500))], None),
    "mmn_tacos": ([("tall_c3d_features.hdf5:{v}.avi", (T, 4096))], None),
    "emb": ([("{v}.npy", (T, 1024))], None),
    "emb_c3d": ([("{v}.npy", (T, 500))], None),
}
TESTED_BELOW = {
    "r2_tuning",
    "univtg_hdf5",
    "clip_slowfast_1s",
    "mesm_1s",
}  # the last two differ in clip length
ELSEWHERE = {
    "synthetic",
    "action_labels",
    "shapes",
    "shapes_clip",
    "shapes_clip_grid",
    "default",
    "extracted",
}


def write(root: Path, layout: str, shape: tuple[int, ...], dtype=np.float32, seed=0) -> np.ndarray:
    array = np.random.default_rng(seed).normal(size=shape).astype(dtype)
    name, _, key = layout.format(v=VIDEO, q=QUERY).partition(":")
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    match path.suffix:
        case ".npz":
            np.savez(path, **{key: array, "pooler_output": array[0]})
        case ".npy":
            np.save(path, array)
        case ".pt":
            torch.save(torch.from_numpy(array).half(), path)
            array = array.astype(np.float16)
        case ".hdf5":
            with h5py.File(path, "a") as file:
                file[key] = array
    return array.astype(np.float32)


def unit(x: np.ndarray) -> np.ndarray:
    return x / (np.sqrt((x**2).sum(-1, keepdims=True)) + 1e-5)


def query(text="a person runs", query_id=QUERY, video_id=VIDEO, duration=6.0) -> Query:
    return Query(query_id, video_id, text, ((0.0, 1.0),), duration)


def protocol(*queries: Query) -> Protocol:
    empty = Split("selection", ())
    return Protocol("toy", Split("train", queries), empty, {}, "published")


def configured(name: str, root: Path, *overrides: str) -> FeatureSet:
    cfg = compose("train", ["data=charades_cd", f"features={name}", f"paths.features={root}", *overrides])
    return instantiate(cfg.features)


def test_every_configuration_is_covered() -> None:
    names = {path.stem for path in (config_dir() / "features").glob("*.yaml")}
    assert names - ELSEWHERE == LAYOUTS.keys() | TESTED_BELOW


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name: str, tmp_path: Path) -> None:
    videos, text = LAYOUTS[name]
    stored = [write(tmp_path, layout, shape, seed=i) for i, (layout, shape) in enumerate(videos)]
    without_download = ["features/query=minilm"] if name == "mesm" else []
    features = configured(name, tmp_path, *without_download)
    expected = np.concatenate([unit(array)[:T] for array in stored], axis=1)
    loaded = features.video.load(VIDEO)
    assert loaded.dtype == np.float32
    np.testing.assert_allclose(loaded, expected, atol=1e-6)
    assert features.video.missing([VIDEO]) == []
    if text is not None:
        words = write(tmp_path, *text, seed=9)
        rows = 5 if len(words) == 77 else 32  # "a person runs" with start and end
        np.testing.assert_allclose(features.query.load(query()), unit(words)[:rows], atol=1e-6)
        assert features.query.missing([query()]) == []
    json.dumps(features.manifest())


def test_layers_and_patch_tokens(tmp_path: Path) -> None:
    stored = write(tmp_path, "clip_b32_vid_k4/{v}.npy", (T, 4, 50, 768), np.float16)
    words = write(tmp_path, "clip_b32_txt_k4/{q}.npy", (L, 4, 512), np.float16)
    features = configured("r2_tuning", tmp_path)
    np.testing.assert_allclose(features.video.load(VIDEO), unit(stored[:, 3, 0]), atol=1e-6)
    assert features.patches is not None
    np.testing.assert_allclose(features.patches.load(VIDEO), unit(stored[:, 3, 1:]), atol=1e-6)
    np.testing.assert_allclose(features.query.load(query()), unit(words[:, 3]), atol=1e-6)


def test_sources_normalised_on_disk_stay_as_they_are(tmp_path: Path) -> None:
    stored = [
        write(tmp_path, f"h5py/{n}.hdf5:{{v}}", (T, d))
        for n, d in (("vid_slowfast", 2304), ("vid_clip", 512))
    ]
    loaded = configured("univtg_hdf5", tmp_path).video.load(VIDEO)
    np.testing.assert_array_equal(loaded, np.concatenate(stored, axis=1))


def test_first_name_that_exists_wins(tmp_path: Path) -> None:
    for value, name in enumerate((f"{VIDEO}-cam-002", f"{VIDEO}.avi", VIDEO)):
        np.save(tmp_path / f"{name}.npy", np.full((T, 3), value, np.float32))
    source = FileFeatures("x", 3, FileStore(tmp_path, ".npy"), normalise=False)
    assert source.read(VIDEO)[0, 0] == 2


def test_overlong_videos(tmp_path: Path) -> None:
    np.save(tmp_path / f"{VIDEO}.npy", np.arange(7, dtype=np.float32)[:, None])
    source = FileFeatures("x", 1, FileStore(tmp_path, ".npy"), normalise=False)
    cut = VideoFiles([source], max_clips=3).load(VIDEO)
    pooled = VideoFiles([source], max_clips=3, overlong="mean_pool").load(VIDEO)
    np.testing.assert_array_equal(cut[:, 0], [0, 1, 2])
    np.testing.assert_array_equal(pooled[:, 0], [0.5, 2.5, 5.0])  # of clips 01, 23, 456


def a_set(root: Path, clip_seconds: float | None = 1.0, suffix=".npy", **video) -> FeatureSet:
    source = FileFeatures(
        "x", 3, FileStore(root, suffix, key="features" if suffix == ".npz" else None), normalise=True
    )
    words = WordVectorQueries(root / "words.npz", 2, normalise=True)
    np.savez(
        root / "words.npz", words=np.array(["<PAD>", "a", "runs"]), vectors=np.array([[0, 0], [3, 4], [0, 2]])
    )
    return FeatureSet("toy", "real", 3, 2, clip_seconds, VideoFiles([source], **video), words)


def test_pooled_videos_have_no_fixed_clip_length(tmp_path: Path) -> None:
    with pytest.raises(VmrError, match="clip_seconds=null"):
        a_set(tmp_path, max_clips=2, overlong="mean_pool")
    assert a_set(tmp_path, None, max_clips=2, overlong="mean_pool").clip_length(30.0, 12) == 2.5


def test_truncation_needs_a_clip_length(tmp_path: Path) -> None:
    with pytest.raises(VmrError, match="clip_seconds"):
        a_set(tmp_path, None, max_clips=2)


def test_missing_files_are_all_counted_before_training(tmp_path: Path) -> None:
    np.save(tmp_path / "v0.npy", np.ones((6, 3), np.float32))
    queries = [query(query_id=f"q{i}", video_id=f"v{i}") for i in range(13)]
    with pytest.raises(VmrError) as raised:
        a_set(tmp_path).prepare(protocol(*queries))
    message = str(raised.value)
    assert "v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, … (12 in all)" in message
    assert str(tmp_path) in message
    assert "v0" not in message
    assert "`vmr train data.missing_videos=dropped` leaves out sentences" in message
    with pytest.raises(VmrError) as raised:
        a_set(tmp_path).prepare(protocol(*queries[1:]))
    assert "dropped" not in str(raised.value), "nothing would be left"


class Trap:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(("on_disk", "own"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_file_whose_accents_are_encoded_in_another_way_is_named(
    tmp_path: Path, on_disk: str, own: str
) -> None:
    np.save(tmp_path / f"{unicodedata.normalize(on_disk, 'Tür')}.npy", np.ones((T, 4), np.float32))
    source = VideoFiles([FileFeatures("i3d", 4, FileStore(tmp_path, ".npy"), normalise=True)])
    video = unicodedata.normalize(own, "Tür")
    expected = f"has the Unicode form {on_disk}, the id {own}: rename it to {own}"
    with pytest.raises(FeatureError, match=expected):
        source.load(video)
    (problem,) = source.missing(["other", video])
    assert expected in problem.detail


def test_broken_files_are_named_and_never_unpickled(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    good = np.ones((6, 3), np.float32)
    np.savez(tmp_path / "good.npz", features=good)
    np.savez(tmp_path / "nan.npz", features=np.where(np.eye(6, 3), np.nan, good))
    np.savez(tmp_path / "wide.npz", features=np.ones((6, 4)))
    np.savez(tmp_path / "flat.npz", features=np.ones(3))
    np.savez(tmp_path / "empty.npz", features=np.ones((0, 3)))
    np.savez(tmp_path / "key.npz", other=good)
    np.savez(tmp_path / "trap.npz", features=np.array([Trap(sprung)], object))
    (tmp_path / "half.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:150])
    ids = ["good", "nan", "wide", "flat", "empty", "key", "trap", "half"]
    problems = a_set(tmp_path, suffix=".npz").check(protocol(*(query("a", i, i) for i in ids)), "all")
    kinds = {identifier: problem.kind for problem in problems for identifier in problem.ids}
    assert kinds == {
        "nan": "not finite",
        "wide": "dimension",
        "flat": "dimension",
        "empty": "empty",
        "key": "unreadable",
        "trap": "unreadable",
        "half": "unreadable",
    }
    assert all(problem.fatal for problem in problems)
    assert not sprung.exists()


@pytest.mark.parametrize("identifier", ["../secret", "sub/secret", "/etc/passwd", "a\0b", "..", "a\nb", ""])
def test_an_id_never_becomes_a_path(tmp_path: Path, identifier: str) -> None:
    (tmp_path / "store" / "sub").mkdir(parents=True)
    for place in ("secret.npy", "store/sub/secret.npy"):
        np.save(tmp_path / place, np.ones((2, 3)))
    with h5py.File(tmp_path / "f.hdf5", "w") as file:
        file["sub/secret"] = np.ones((2, 3))
    for store in (FileStore(tmp_path / "store", ".npy"), Hdf5Store(tmp_path / "f.hdf5")):
        with pytest.raises(FeatureError, match="found none"):
            store.read(identifier)


def test_hdf5_group_needs_a_key(tmp_path: Path) -> None:
    write(tmp_path, "f.hdf5:{v}/c3d_features", (T, 5))
    with pytest.raises(FeatureError, match="c3d_features"):
        Hdf5Store(tmp_path / "f.hdf5").read(VIDEO)
    with pytest.raises(FeatureError, match="expected key=i3d"):
        Hdf5Store(tmp_path / "f.hdf5", key="i3d").read(VIDEO)


def test_wrong_clip_length_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    queries = [query("a", f"q{i}", f"v{i}", duration=30.0) for i in range(5)]
    for i in range(5):
        np.save(tmp_path / f"v{i}.npy", np.ones((30 if i else 12, 3), np.float32))
    (odd,) = a_set(tmp_path).check(protocol(*queries), "all")
    assert (odd.kind, odd.ids, odd.fatal) == ("length", ("v0",), False)
    a_set(tmp_path).prepare(protocol(*queries))
    assert "length for 1 id: v0. 'v0' has 12 clips; about 30 were expected" in caplog.text
    with pytest.raises(VmrError, match=r"Most videos differ: compare features\.clip_seconds=2\.0"):
        a_set(tmp_path, clip_seconds=2.0).prepare(protocol(*queries))


@pytest.mark.parametrize("clip_seconds", [1.0, None])
def test_sources_of_other_rates_are_refused(
    tmp_path: Path, clip_seconds: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    queries = [query("a", f"q{i}", f"v{i}", duration=20.0) for i in range(5)]
    for folder in ("fast", "slow"):
        (tmp_path / folder).mkdir()
    features = a_set(tmp_path, clip_seconds)
    features.video = VideoFiles(
        [FileFeatures(x, 3, FileStore(tmp_path / x, ".npy"), normalise=True) for x in ("fast", "slow")]
    )

    def save(lengths: list[int]) -> None:
        for i, length in enumerate(lengths):
            np.save(tmp_path / "slow" / f"v{i}.npy", np.ones((20, 3), np.float32))
            np.save(tmp_path / "fast" / f"v{i}.npy", np.ones((length, 3), np.float32))

    save([40, 20, 21, 22, 20])
    features.prepare(protocol(*queries))
    assert "length for 1 id: v0. 'v0' has 40 clips of fast, 20 clips of slow" in caplog.text
    save([40] * 5)
    with pytest.raises(VmrError, match=r"v0, v1, v2, v3, v4.*give all sources clips of the same length"):
        features.prepare(protocol(*queries))


@pytest.mark.parametrize(("unit", "fatal"), [(1.0, False), (1000.0, True)])
def test_narrations_in_milliseconds_are_refused(tmp_path: Path, unit: float, fatal: bool) -> None:
    np.save(tmp_path / "v.npy", np.ones((30, 3), np.float32))
    spoken = SimpleNamespace(
        computed=False,
        prepare=lambda protocol: None,
        missing=lambda ids: [],
        load=lambda video_id: (
            np.ones((4, 2)),
            unit * np.array([[0, 5], [4, 9], [8, 20], [25, 40]], np.float32),
        ),
    )
    features = a_set(tmp_path)
    features.narration = spoken
    problems = features.check(protocol(query("a", "q", "v", duration=30.0)), "all")
    assert [(one.part, one.kind, one.fatal) for one in problems] == [("narration", "length", True)] * fatal


def test_word_vectors(tmp_path: Path) -> None:
    features = a_set(tmp_path)
    np.testing.assert_array_equal(features.query.token_ids(query("A dog runs!")), [1, 2])
    np.testing.assert_allclose(features.query.load(query("A dog runs!")), [[0.6, 0.8], [0, 1]], atol=1e-5)
    (problem,) = features.query.missing([query("A dog runs!"), query("a", "q8")])
    assert (problem.ids, problem.fatal) == ((QUERY,), False)
    assert "dog" in problem.detail
    with pytest.raises(FeatureError, match="knows no word"):
        features.query.load(query("<PAD>"))


@pytest.mark.parametrize("after_end", ["dropped", "kept"])
def test_positions_after_clip_s_end_token_are_no_words(tmp_path: Path, after_end: str) -> None:
    for name, length in (("whole", 77), ("cut", 9)):
        np.save(tmp_path / f"{name}.npy", np.ones((length, 3)))
    source = FileFeatures("x", 3, FileStore(tmp_path, ".npy"), normalise=True)
    texts = QueryFiles(source, after_end=after_end)
    words = {"a person runs": 5, "a " * 20: 22, "a " * 90: 32}  # with start and end
    for text, length in words.items():
        assert len(texts.load(query(text, "whole"))) == (length if after_end == "dropped" else 32)
        assert len(texts.load(query(text, "cut"))) == 9  # nothing is known about its end
    assert QueryFiles(source).manifest() == QueryFiles(source, after_end="kept").manifest()
    assert ("after_end" in texts.manifest()) == (after_end == "dropped")


def test_text_stores_with_their_own_numbering(tmp_path: Path) -> None:
    (tmp_path / "index.jsonl").write_text(
        json.dumps({"qid": 12, "vid": VIDEO, "query": " a person runs "}) + "\n"
    )
    np.save(tmp_path / "qid12.npy", np.ones((2, 3)))
    source = FileFeatures("x", 3, FileStore(tmp_path, ".npy", ["qid{id}"]), normalise=True)
    texts = QueryFiles(source, index=[tmp_path / "index.jsonl"])
    assert texts.load(query()).shape == (2, 3)
    (problem,) = texts.missing([query(), query("another", "q8")])
    assert problem.ids == ("q8",)


def manifest(order: tuple[str, ...]) -> dict:
    sources = [FileFeatures(name, 512, FileStore("x", ".npy"), normalise=True) for name in order]
    words = WordVectorQueries("x", 2, normalise=True)
    return FeatureSet("-".join(order), "real", 1024, 2, 1.0, VideoFiles(sources), words).manifest()


def test_manifests(tmp_path: Path) -> None:
    stored = json.loads(json.dumps(manifest(("slowfast", "clip"))))
    compare_manifests(
        stored, {**manifest(("slowfast", "clip")), "name": "other", "narration": {"narrator": "x"}}
    )
    with pytest.raises(VmrError, match=r"another order: concatenate them as slowfast \| clip"):
        compare_manifests(stored, manifest(("clip", "slowfast")))
    with pytest.raises(VmrError, match=r"- clip_seconds: trained on 2.0, now 1.0"):
        compare_manifests({**stored, "clip_seconds": 2.0}, manifest(("slowfast", "clip")))
    with pytest.raises(VmrError, match="narration"):
        compare_manifests({**stored, "narration": {"narrator": "x"}}, manifest(("slowfast", "clip")))


def test_networks_that_differ_have_different_names(tmp_path: Path) -> None:
    """Whatever two layouts have in common, they cannot be exchanged unless the network is the same."""
    moment_detr, univtg, ours, other = (
        configured(name, tmp_path).manifest()
        for name in ("slowfast_clip_1s", "univtg", "internvideo2", "internvideo2_1b_charades")
    )
    for one, two in ((moment_detr, univtg), (ours, other)):
        two["clip_seconds"] = one["clip_seconds"]
        two["video"] |= {key: one["video"][key] for key in ("max_clips", "overlong")}
        with pytest.raises(VmrError, match=r"- video.order: .* now"):
            compare_manifests(json.loads(json.dumps(one)), two)


def test_former_names_of_backbones_are_accepted(tmp_path: Path) -> None:
    def renamed(manifest: dict) -> dict:
        text = json.dumps(manifest)
        for new, old in (
            ("clip_vit_b32_text", "clip_text"),
            ("clip_univtg_text", "clip_text"),
            ("clip_vit_b32", "clip"),
            ("clip_univtg", "clip"),
            ("slowfast_r50", "slowfast"),
            ("i3d_vslnet", "i3d"),
        ):
            text = text.replace(f'"{new}"', f'"{old}"')
        return json.loads(text)

    names = ("slowfast_clip", "clip_slowfast", "univtg", "emb")
    now = {name: configured(name, tmp_path).manifest() for name in names}
    former = {name: renamed(manifest) for name, manifest in now.items()}
    for name in names:
        assert former[name]["video"]["order"] != now[name]["video"]["order"]
        compare_manifests(former[name], now[name])
        compare_manifests({**former[name], "name": f"{name} in float16"}, now[name])
        assert same_sources(former[name]["video"], json.loads(json.dumps(now[name]["video"])))
    assert not same_sources(former["emb"]["video"], json.loads(json.dumps(now["univtg"]["video"])))
    # The old names were the same; the configuration tells which network it was.
    with pytest.raises(VmrError, match="clip_vit_b32"):
        compare_manifests(former["univtg"], now["slowfast_clip"])
    with pytest.raises(VmrError, match=r"another order: concatenate them as slowfast_r50 \| clip_vit_b32"):
        compare_manifests(former["slowfast_clip"], now["clip_slowfast"])


def test_declared_dimensions_must_be_true(tmp_path: Path) -> None:
    with pytest.raises(VmrError, match="video_dim=4, but its source yields 3"):
        FeatureSet("toy", "real", 4, 2, 1.0, a_set(tmp_path).video, a_set(tmp_path).query)


def test_stores_survive_pickling(tmp_path: Path) -> None:
    write(tmp_path, "f.hdf5:{v}", (T, 5))
    store = Hdf5Store(tmp_path / "f.hdf5")
    store.read(VIDEO)
    assert pickle.loads(pickle.dumps(store)).read(VIDEO)[0].shape == (T, 5)
