"""Feature networks are read from what their makers ship, and reading a file executes no code."""

import os
import pathlib
import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from dallegan.data.storybook.scenes import Storybook
from dallegan.errors import UserError
from dallegan.evaluation import metrics, networks
from dallegan.evaluation.features import CLIP_NAME, FeatureNetwork, make_features


def test_the_features_are_imagenets():
    """The network knows a flower and a temple: weights and layers are in their places."""
    arrays = networks.read_tensors(networks.weights_file().open("rb"))
    params, best = {"params": networks.load_params(networks.weights_file())}, []
    for name in ("flower.jpg", "china.jpg"):
        photograph = np.asarray(ImageOps.fit(Image.fromarray(load_sample_image(name)), (224, 224)))
        features = networks.EfficientNetLite0().apply(params, photograph[None] / np.float32(127.5) - 1)
        logits = features[0] @ arrays["_fc.weight"].T + arrays["_fc.bias"]
        best.append(int(np.argmax(logits)))
    assert best == [985, 698]  # daisy, palace


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_weights_are_read_and_nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, data in {
        "evil": pickle.dumps(Evil()),
        "empty": b"",
        "text": b"hello",
        "number": pickle.dumps(1) * 5,
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=r"not the weights of EfficientNet-Lite0"):
            networks.load_params(tmp_path / name)
    whole = networks.weights_file().read_bytes()
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"not the weights of EfficientNet-Lite0"):
        networks.load_params(tmp_path / "half")
    assert not (tmp_path / "executed").exists()


def test_weights_that_are_no_file_or_claim_too_much(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, said in (
        (tmp_path / "pipe", "not a regular file"),
        (pathlib.Path("/dev/zero"), "not a regular"),
    ):
        with pytest.raises(UserError, match=rf"^{path}: not the weights of EfficientNet-Lite0 .{said}"):
            networks.load_params(path)
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", 2**40)
    with pytest.raises(UserError, match=r"larger than 67"):
        networks.load_params(tmp_path / "huge")
    word = lambda text: b"X" + len(text).to_bytes(4, "little") + text.encode()
    storage = b"(" + word("storage") + b"ctorch\nFloatStorage\n" + word("0") + word("cpu") + b"K\x01tQ"
    shape = (b"J" + (2**20).to_bytes(4, "little")) * 2 + b"\x86"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + shape + b"K\x00K\x00\x86tR"
    tensors, one = b"\x80\x02}" + word("a") + tensor + b"s.", (1).to_bytes(8, "little") + bytes(4)
    (tmp_path / "wide").write_bytes(pickle.dumps(1) * 3 + tensors + pickle.dumps(["0"]) + one)
    with pytest.raises(UserError, match=r"ValueError: a has more elements than its storage"):
        networks.load_params(tmp_path / "wide")


def test_features_of_real_images_are_cached(tmp_path, monkeypatch):
    """They are computed again if the file is damaged, of other weights or cannot be written; old files go."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    computed = []

    mean = lambda images: images.mean((1, 2), dtype=np.float32)

    def make(scale):
        return FeatureNetwork("colours", 3, lambda x: computed.append(len(x)) or mean(x) * scale)

    images = np.random.default_rng(0).integers(0, 256, (120, 4, 4, 3), dtype=np.uint8)
    np.testing.assert_array_equal(make(1).extract_cached(images), mean(images))
    np.testing.assert_array_equal(make(1).extract_cached(images), mean(images))
    np.testing.assert_array_equal(make(2).extract_cached(images), mean(images) * 2)
    assert computed == [120, 50, 50, 120]
    (file,) = (tmp_path / "cache" / "dallegan" / "features").iterdir()
    for damaged in (b"", file.read_bytes()[:100], b"text", pickle.dumps(Evil())):
        file.write_bytes(damaged)
        computed.clear()
        make(2).extract_cached(images)
        assert computed[-1] == 120
    assert not pathlib.Path("executed").exists()
    monkeypatch.setattr("dallegan.evaluation.features.CACHE_BYTES", 2 * file.stat().st_size)
    for i in range(4):
        make(2).extract_cached(images + np.uint8(i + 1))
    assert len(list(file.parent.iterdir())) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))  # a file: no folder can be made in it
    assert make(2).extract_cached(images).shape == (120, 3)


@pytest.mark.parametrize(("name", "module"), [("inception", "torch_fidelity"), ("clip", "open_clip")])
def test_weights_of_others(name, module, tmp_path, monkeypatch):
    pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "evil").write_bytes(pickle.dumps(Evil()))
    torch.save(Evil(), tmp_path / "evil2")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other")
    wrong = {None: "download", "none": "none is not there"}
    wrong |= dict.fromkeys(("evil", "evil2", "other"), "cannot be used")
    for file, message in wrong.items():
        with pytest.raises(UserError, match=message) as error:
            make_features(name, file and tmp_path / file)
        assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "executed").exists()


def test_inception_is_torch_fidelitys(tmp_path, monkeypatch):
    """The Fréchet distance of its features is torch-fidelity's FID; random weights will do."""
    fidelity = pytest.importorskip("torch_fidelity")
    torch = pytest.importorskip("torch")
    network = fidelity.feature_extractor_inceptionv3.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:
        patch.setattr(network, "load_state_dict", lambda self, state: None)
        torch.save({}, tmp_path / "empty")
        torch.save(
            network("inception", ["2048"], str(tmp_path / "empty")).state_dict(), tmp_path / "random.pth"
        )
    sets = []
    for name, split in {"a": "test", "b": "heldout"}.items():
        images = np.stack([Storybook(32, split).example(i).image for i in range(70)])
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{i}.png")
        sets.append(images)
    options = {"cuda": False, "verbose": False, "cache": False, "save_cpu_ram": True}
    options |= {"feature_extractor_weights_path": str(tmp_path / "random.pth"), "fid": True}
    theirs = fidelity.calculate_metrics(input1=str(tmp_path / "a"), input2=str(tmp_path / "b"), **options)
    features = make_features("inception", tmp_path / "random.pth")
    a, b = (jnp.asarray(features.extract(x)) for x in sets)
    assert a.shape == (70, features.size)
    assert float(metrics.frechet_distance(a, b)) == pytest.approx(
        theirs["frechet_inception_distance"], rel=1e-3
    )


def test_clip_embeds_as_open_clip_does(tmp_path):
    """Images and captions are embedded as open_clip embeds them; random weights will do."""
    open_clip = pytest.importorskip("open_clip")
    torch = pytest.importorskip("torch")
    network = open_clip.create_model(CLIP_NAME)
    torch.save(network.state_dict(), tmp_path / "random.pt")
    features = make_features("clip", tmp_path / "random.pt")
    examples = [Storybook(32).example(i) for i in range(3)]
    images = features.extract(np.stack([example.image for example in examples]))
    captions = features.embed_captions([example.caption for example in examples])
    assert images.shape == captions.shape == (3, features.size)
    np.testing.assert_allclose(np.linalg.norm(captions, axis=1), 1, rtol=1e-5)
    with torch.inference_mode():
        tokens = open_clip.get_tokenizer(CLIP_NAME)([f"A photo depicts {examples[1].caption}"])
        theirs = network.eval().encode_text(tokens, normalize=True).numpy()
    np.testing.assert_allclose(captions[1:2], theirs, atol=1e-5)
