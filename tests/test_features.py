"""Feature networks are read from what their makers ship, and a file can only be weights."""

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
from dallegan.evaluation import metrics
from dallegan.evaluation import networks as efficientnet
from dallegan.evaluation.features import CLIP, Features, make_features


def test_the_features_are_imagenets():
    """The network knows a photograph of a flower and one of a temple: its weights are read and its layers put together rightly."""
    arrays = efficientnet.read_tensors(efficientnet.weights_file().open("rb"))
    params, best = {"params": efficientnet.load_params(efficientnet.weights_file())}, []
    for name in ("flower.jpg", "china.jpg"):
        picture = np.asarray(ImageOps.fit(Image.fromarray(load_sample_image(name)), (224, 224)))
        features = efficientnet.EfficientNetLite0().apply(params, picture[None] / np.float32(127.5) - 1)
        logits = features[0] @ arrays["_fc.weight"].T + arrays["_fc.bias"]
        best.append(int(np.argmax(logits)))
    assert best == [985, 698]  # daisy, palace


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_weights_are_read_and_nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, data in {"evil": pickle.dumps(Evil()), "empty": b"", "text": b"hello", "number": pickle.dumps(1) * 5}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=r"not the weights of EfficientNet-Lite0"):
            efficientnet.load_params(tmp_path / name)
    whole = efficientnet.weights_file().read_bytes()
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"not the weights of EfficientNet-Lite0"):
        efficientnet.load_params(tmp_path / "half")
    assert not (tmp_path / "executed").exists()


def test_features_of_real_pictures_are_kept(tmp_path, monkeypatch):
    """Computed once; anew where they are damaged, of other weights, or cannot be kept; and not kept for ever."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    computed = []

    def make(scale):
        return Features("colours", 3, lambda images: computed.append(len(images)) or images.mean((1, 2), dtype=np.float32) * scale)

    images = np.random.default_rng(0).integers(0, 256, (120, 4, 4, 3), dtype=np.uint8)
    np.testing.assert_array_equal(make(1).of_real(images), images.mean((1, 2), dtype=np.float32))
    np.testing.assert_array_equal(make(1).of_real(images), images.mean((1, 2), dtype=np.float32))
    np.testing.assert_array_equal(make(2).of_real(images), images.mean((1, 2), dtype=np.float32) * 2)
    assert computed == [120, 50, 50, 120]
    (file,) = (tmp_path / "cache" / "dallegan" / "features").iterdir()
    for damaged in (b"", file.read_bytes()[:100], b"text", pickle.dumps(Evil())):
        file.write_bytes(damaged)
        computed.clear()
        make(2).of_real(images)
        assert computed[-1] == 120
    assert not pathlib.Path("executed").exists()
    monkeypatch.setattr("dallegan.evaluation.features.KEPT", 2 * file.stat().st_size)
    for i in range(4):
        make(2).of_real(images + np.uint8(i + 1))
    assert len(list(file.parent.iterdir())) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))  # a file, where a folder should be made
    assert make(2).of_real(images).shape == (120, 3)


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
    wrong = {None: "download", "none": "none is not there"} | dict.fromkeys(("evil", "evil2", "other"), "cannot be used")
    for file, message in wrong.items():
        with pytest.raises(UserError, match=message) as error:
            make_features(name, file and tmp_path / file)
        assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "executed").exists()


def test_inception_is_torch_fidelitys(tmp_path, monkeypatch):
    """The Fréchet distance of its features is the FID that it computes itself; random weights will do."""
    fidelity = pytest.importorskip("torch_fidelity")
    torch = pytest.importorskip("torch")
    network = fidelity.feature_extractor_inceptionv3.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:
        patch.setattr(network, "load_state_dict", lambda self, state: None)
        torch.save({}, tmp_path / "empty")
        torch.save(network("inception", ["2048"], str(tmp_path / "empty")).state_dict(), tmp_path / "random.pth")
    sets = []
    for name, split in {"a": "test", "b": "heldout"}.items():
        images = np.stack([Storybook(32, split).example(i).image for i in range(70)])
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{i}.png")
        sets.append(images)
    options = {"feature_extractor_weights_path": str(tmp_path / "random.pth"), "cuda": False, "verbose": False, "cache": False, "save_cpu_ram": True}
    theirs = fidelity.calculate_metrics(input1=str(tmp_path / "a"), input2=str(tmp_path / "b"), fid=True, **options)["frechet_inception_distance"]
    features = make_features("inception", tmp_path / "random.pth")
    a, b = (jnp.asarray(features.extract(x)) for x in sets)
    assert a.shape == (70, features.size)
    assert float(metrics.frechet_distance(a, b)) == pytest.approx(theirs, rel=1e-3)


def test_clip_embeds_as_open_clip_does(tmp_path):
    """Pictures and captions are embedded as open_clip embeds them; random weights will do."""
    open_clip = pytest.importorskip("open_clip")
    torch = pytest.importorskip("torch")
    network = open_clip.create_model(CLIP[0])
    torch.save(network.state_dict(), tmp_path / "random.pt")
    features = make_features("clip", tmp_path / "random.pt")
    examples = [Storybook(32).example(i) for i in range(3)]
    pictures, captions = features.extract(np.stack([e.image for e in examples])), features.read([e.caption for e in examples])
    assert pictures.shape == captions.shape == (3, features.size)
    np.testing.assert_allclose(np.linalg.norm(captions, axis=1), 1, rtol=1e-5)
    with torch.inference_mode():
        theirs = network.eval().encode_text(open_clip.get_tokenizer(CLIP[0])([f"A photo depicts {examples[1].caption}"]), normalize=True).numpy()
    np.testing.assert_allclose(captions[1:2], theirs, atol=1e-5)
