import urllib.error

import pytest
import segmentation_models_pytorch as smp
import timm

from project.errors import UserError
from project.models.classifier import EncoderClassifier
from project.models.downloads import explain_download, without_downloads


@pytest.fixture
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")


def explained(build):
    with pytest.raises(Exception) as error:  # noqa: PT011
        build()
    return str(explain_download(error.value))


@pytest.mark.usefixtures("offline")
def test_failed_downloads_of_smp_are_explained(tmp_path):
    text = explained(lambda: smp.Unet("resnet18", encoder_weights="imagenet"))
    assert text.startswith("the pretrained weights of the network could not be downloaded from https://")
    assert "resnet18" in text
    assert f"(rsync -a) to\n  {tmp_path}\n" in text
    assert "encoder_weights: null" in text
    assert "part: encoder}" in text
    assert "could not be downloaded" in explained(lambda: EncoderClassifier("tu-resnet10t", encoder_weights=True))


@pytest.mark.usefixtures("offline")
def test_failed_downloads_of_timm_are_explained():
    text = explained(lambda: timm.create_model("resnet10t", pretrained=True))
    assert "pretrained: false" in text


def raised(error, cause=None, hidden=False):
    try:
        try:
            raise cause or ValueError("x")
        except Exception as inner:
            if hidden:
                raise error from None
            raise error from inner
    except Exception as outer:
        return outer


def foreign(package, name):
    """An exception of a library that need not be installed."""
    return type(name, (Exception,), {"__module__": f"{package}._exceptions"})("no route")


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize(
    "cause",
    [
        urllib.error.URLError("no route"),
        ConnectionRefusedError("no route"),
        TimeoutError("no route"),
        foreign("requests", "ConnectionError"),
        foreign("httpx", "ConnectError"),
    ],
    ids=lambda error: f"{type(error).__module__}.{type(error).__name__}",
)
def test_causes_are_looked_through(cause, hidden):
    found = explain_download(raised(ValueError("does not validate"), cause, hidden))
    assert isinstance(found, UserError)
    assert "no route" in str(found)


def test_other_failures_are_not_taken_for_downloads():
    assert explain_download(raised(ValueError("x"), KeyError("encoder"))) is None
    assert explain_download(FileNotFoundError("w.pth")) is None
    assert explain_download(RuntimeError("size mismatch")) is None


def test_without_downloads_leaves_everything_else_and_the_original():
    def config(weights, pretrained, more, file):
        return {
            "net": {"class_path": "smp.Unet", "init_args": {"encoder_name": "a", "encoder_weights": weights}},
            "nets": [{"init_args": {"pretrained": pretrained}, "dict_kwargs": {"encoder_weights": more}}, 3, None],
            "pretrained": file,
            "pretrained_name": "kept",
        }

    given = "imagenet", True, True, {"file": "w.pth", "skip": ["fc"]}
    original = config(*given)
    assert without_downloads({"model": original}) == {"model": config(None, False, None, None)}
    assert original == config(*given)
