"""Networks as folders and as repositories of the Hugging Face hub: constructor arguments, weights and a model card.

The methods are those of `huggingface_hub.PyTorchModelHubMixin`, with refusals in place of guesses: nothing foreign is
overwritten, a folder of another class, damaged or incomplete is named, and pickles are not read.
"""

from __future__ import annotations

import inspect
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from torch import nn

import fadeup
from fadeup.checkpoint import check_shapes, load_weights, read_about, save_weights
from fadeup.models.card import MARK, model_card
from fadeup.models.weights import needed
from fadeup.reading import read_json
from fadeup.upsamplers import Upsampler

if TYPE_CHECKING or find_spec("huggingface_hub") is not None:
    from huggingface_hub import PyTorchModelHubMixin
else:

    class PyTorchModelHubMixin:
        """In its place where it is missing: networks are made as ever, and cannot be shared."""

        def __init_subclass__(cls, **about: Any):
            super().__init_subclass__()

        def __new__(cls, *args: Any, **arguments: Any) -> Self:
            """As any object; the constructor gets the arguments."""
            return super().__new__(cls)


CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
KIND, VERSION, CLASSES = "_class", "_fadeup", "_classes"
"""What a `config.json` says beside the constructor's arguments: the class, who wrote it, names of classes."""
Network = TypeVar("Network", bound=nn.Module)


class Pretrained(PyTorchModelHubMixin, nn.Module, library_name="fadeup", tags=["fadeup", "upsampling"]):
    """Base of the networks: `save_pretrained`, `from_pretrained` and `push_to_hub`.

    Raises:
        ModuleNotFoundError: One of them is called, and huggingface_hub is missing.
    """

    in_channels: int = 3
    """Of the input."""
    classes: list[str] | None = None
    """Names of the classes, where they are known."""
    record: dict[str, Any] | None = None
    """What the file of the weights says of their training, for the model card; `train()` forgets it, since what is
    trained on has other scores."""
    _odd_arguments: tuple[str, ...] = ()

    def __new__(cls, *args: Any, **arguments: Any) -> Self:
        """Keeps the constructor's arguments, as the mixin does, and the names of those that are not plain data."""
        network = super().__new__(cls, *args, **arguments)
        given = dict(zip(list(inspect.signature(cls.__init__).parameters)[1:], args, strict=False)) | arguments
        network._odd_arguments = tuple(name for name, value in given.items() if not _is_plain(value))
        return network

    def train(self, mode: bool = True) -> Self:
        """As any module's; `record` is forgotten in training."""
        if mode:
            self.record = None
        return super().train(mode)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write `config.json` (constructor arguments), `model.safetensors` and `README.md` (the model card).

        Each is written whole or not at all. A card that somebody has edited stays as it is.

        Args:
            save_directory: Folder, made where it is missing.
            config: None; the constructor's arguments are kept.
            repo_id: Name on the hub, by default the folder's.
            push_to_hub: Upload the same.
            model_card_kwargs: `license`, an identifier of the hub's, and `model_id`, the name in the card's examples.
            **push_to_hub_kwargs: As `push_to_hub` takes them.

        Returns:
            Where it was uploaded; None where it was not.

        Raises:
            ValueError: The folder holds files of that name that are not a network's of fadeup, or the network is
                another than its constructor makes.
            ModuleNotFoundError: huggingface_hub is missing.
        """
        needed("huggingface_hub", "save_pretrained")
        if config is not None:
            raise ValueError(f"config must be None: a network's own arguments are saved, got {config!r}")
        folder = Path(os.path.abspath(save_directory))
        _check_free(folder)
        self._check_rebuilds()
        folder.parent.mkdir(parents=True, exist_ok=True)
        name = (repo_id or folder.name) if push_to_hub else folder.name
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder.parent) as parent:
            whole = Path(parent) / folder.name
            card = {"model_id": name} | (model_card_kwargs or {})
            super().save_pretrained(whole, config=self._config(), model_card_kwargs=card)
            _move(whole, folder)
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or folder.name, model_card_kwargs=model_card_kwargs, **push_to_hub_kwargs)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes to a repository of the Hugging Face hub, made where it is missing.

        Args:
            repo_id: `"user/name"`.
            **options: Of `huggingface_hub.PyTorchModelHubMixin.push_to_hub`: `private`, `token`, `commit_message`, …

        Returns:
            Where it is now.

        Raises:
            ValueError: The network is another than its constructor makes, or the name is none.
            OSError: The hub is not within reach, or refuses.
            ModuleNotFoundError: huggingface_hub is missing.
        """
        needed("huggingface_hub", "push_to_hub")
        self._check_rebuilds()  # before a repository is made that would stay empty
        card = {"model_id": repo_id} | (options.pop("model_card_kwargs", None) or {})
        try:
            return super().push_to_hub(repo_id, model_card_kwargs=card, **options)
        except ValueError:  # a name that the hub does not take
            raise
        except Exception as error:  # libraries fail in many ways without a network or a login
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise OSError(
                f"repo_id must be a repository within reach that you may write, got {repo_id!r}: {reason}; connect, or "
                "log in by hf auth login"
            ) from error

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        name: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **arguments: Any,
    ) -> Self:
        """The network that `save_pretrained` or `push_to_hub` has written, in evaluation mode.

        All weights come from there: no others are looked for, but for those that the file says it leaves out.

        Args:
            name: Folder, or name on the Hugging Face hub.
            force_download: Download again what is in the cache.
            token: For private repositories; by default the one that `hf auth login` has left.
            cache_dir: Of downloads.
            local_files_only: Use the cache alone.
            revision: Branch, tag or commit.
            **arguments: Of the constructor, in place of those saved.

        Raises:
            FileNotFoundError: There is no such folder, a file is missing in it, or it could not be downloaded.
            ValueError: It is of another class or version, damaged, or the weights do not fit.
            ModuleNotFoundError: huggingface_hub is missing.
        """
        needed("huggingface_hub", "from_pretrained")
        where = {"force_download": force_download, "token": token, "cache_dir": cache_dir}
        where |= {"local_files_only": local_files_only, "revision": revision}
        if "weights" in arguments:
            raise ValueError(f"weights must be left out: {name} has its own, got {arguments['weights']!r}")
        config = _read_config(_fetched(name, CONFIG, where), str(name))
        if config[KIND] != cls.__name__:
            held = config[KIND]
            raise ValueError(f"{name} must hold the class {cls.__name__}, got {held}; {held}.from_pretrained loads it")
        path = _fetched(name, WEIGHTS, where)
        about = read_about(path)
        given = {key: tuple(x) if isinstance(x, list) else x for key, x in config.items() if key[0] != "_"} | arguments
        given.pop("weights", None)

        def build(weights: str | None) -> Self:
            return cls._built(given | ({"weights": weights} if weights else {}), str(name))

        network = rebuilt(path, about, build)
        network.classes = class_names(config.get(CLASSES), str(name))
        network.record = about if "recipe" in about else None
        return network

    def generate_model_card(self, *args: Any, **kwargs: Any) -> Any:
        """The model card, a `huggingface_hub.ModelCard`; arguments as `model_card_kwargs` of `save_pretrained`."""
        for package in ("huggingface_hub", "jinja2"):
            needed(package, "a model card")
        return model_card(self, self._config(), self._hub_mixin_info.model_card_data.to_dict(), **kwargs)

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments as plain data, without `weights`: they are in the file of weights.

        Raises:
            ValueError: They cannot be told.
        """
        given = self._hub_mixin_config
        if not isinstance(given, dict):
            raise ValueError(f"{type(self).__name__} must be made with huggingface_hub installed to be saved, got none")
        current = self.current()
        odd = [name for name in self._odd_arguments if name not in ("weights", *current)]
        if odd:
            raise ValueError(
                f"{odd[0]} must be plain data (a text, a number, True, None) for {type(self).__name__} to be saved, "
                "got another object; make the network with such"
            )
        return {name: value for name, value in (given | current).items() if name != "weights"}

    def current(self) -> dict[str, Any]:
        """Arguments that may have changed since the call, or that the call got as other objects than plain data."""
        return {}

    def _config(self) -> dict[str, Any]:
        """What `config.json` holds."""
        told = {KIND: type(self).__name__, VERSION: fadeup.__version__}
        return self.arguments() | told | ({CLASSES: list(self.classes)} if self.classes else {})

    def _save_pretrained(self, save_directory: Path) -> None:
        """The weights, and in their metadata what is known of their training."""
        record = self.record or {"network": type(self).__name__}
        about = {"fadeup": fadeup.__version__} | {key: x for key, x in record.items() if key != "without"}
        save_weights(save_directory / WEIGHTS, self, about)

    @classmethod
    def _built(cls, arguments: dict[str, Any], name: str) -> Self:
        """The network of those arguments; the global random state is left as it was."""
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices):
            try:
                return cls(**arguments)
            except (FileNotFoundError, ModuleNotFoundError):  # of a trunk's weights, or of a package
                raise
            except ValueError as error:
                raise ValueError(str(error) if name in str(error) else f"{error!s:.500} (of {name})") from error
            except Exception as error:  # arguments that make no network fail in many ways
                rule = f"{name} must hold arguments of {cls.__name__} in this version"
                raise ValueError(f"{rule}, got {str(error)[:500] or type(error).__name__}") from error

    def _check_rebuilds(self) -> None:
        """Refuse a network whose parts were replaced, which could be uploaded and never loaded."""
        with torch.device("meta"):
            twin = _parts(self._built(self.arguments(), type(self).__name__))
        own = _parts(self)
        for key in sorted(own.keys() | twin.keys()):
            here, there = own.get(key, "nothing"), twin.get(key, "nothing")
            if here != there:
                raise ValueError(
                    f"{type(self).__name__} must be as its constructor makes it to be saved, got {key} of {here} in "
                    f"place of {there}; save the state_dict instead"
                )


def rebuilt(path: Path, about: Mapping[str, Any], build: Callable[[str | None], Network]) -> Network:
    """The network of a file of weights, in evaluation mode.

    Args:
        path: Of the file.
        about: What it says.
        build: Makes the network, with weights of the name that it is given for those that the file leaves out.

    Raises:
        ValueError: The file holds other tensors than the network.
    """
    left_out = without(path, about)
    prefix = left_out.get("prefix", "")
    # What the file asks for takes no memory until it is known to be what it holds.
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # of layers without channels
        check_shapes(path, build(None), without=prefix)
    network = build(left_out.get("weights"))
    load_weights(path, network, without=prefix)
    return network.eval()


def without(path: Path, about: Mapping[str, Any]) -> dict[str, str]:
    """What a file of weights says that it leaves out: the beginning of the names, and the weights that are there.

    These are weights that a library provides: the file of somebody else names no files of this machine.

    Raises:
        ValueError: It says something else.
    """
    held = about.get("without") or {}
    known = isinstance(held, dict) and all(isinstance(value, str) for value in held.values())
    if not known or (held and (held.keys() != {"prefix", "weights"} or held["weights"] not in ("imagenet", "hed"))):
        raise ValueError(f"{path} must leave out a trunk of 'imagenet' or 'hed' weights or nothing, got {held!r:.80}")
    return held


def class_names(names: Any, name: str) -> list[str] | None:
    """Names of classes that a file tells.

    Raises:
        ValueError: They are no list of texts.
    """
    if names is not None and not (isinstance(names, list) and all(isinstance(x, str) for x in names)):
        raise ValueError(f"{name} must name its classes by a list of texts, got {names!r:.80}")
    return names


def is_pretrained(name: str | Path) -> bool:
    """Whether `save_pretrained` wrote that folder, or that repository in the hub's cache; nothing is downloaded."""
    folder = Path(name)
    try:
        path = folder / CONFIG if folder.is_dir() else _cached(str(name), CONFIG)
        return path is not None and KIND in read_json(path)
    except (OSError, ValueError, TypeError):
        return False


def downloaded_weights(name: str) -> Path | None:
    """The file of weights of a network's repository, where it is in the hub's cache."""
    return _cached(name, WEIGHTS) if is_pretrained(name) else None


def _cached(name: str, file: str) -> Path | None:
    if find_spec("huggingface_hub") is None:
        return None
    found = needed("huggingface_hub", name).try_to_load_from_cache(name, file)
    return Path(found) if isinstance(found, str) else None


def _fetched(name: str | Path, file: str, where: Mapping[str, Any]) -> Path:
    """A file of the folder, or of the repository."""
    folder = Path(name)
    if folder.is_dir():
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{name} must hold {file}, as save_pretrained writes it, got none")
        return folder / file
    rule = f"{str(name)!r} must be a folder that save_pretrained wrote or a name on the Hugging Face hub"
    if str(name).count("/") != 1 or str(name).startswith((".", "~", "/")) or folder.parent.is_dir() or folder.exists():
        raise FileNotFoundError(f"{rule}, user/name, got {'no folder' if folder.exists() else 'no such folder'}")
    try:
        return Path(needed("huggingface_hub", str(name)).hf_hub_download(str(name), file, **where))
    except Exception as error:  # libraries fail in many ways without a network; the user's next step is the same
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"{rule}, in its cache or within reach, got {reason} for {file}; connect, or name a folder"
        ) from error


def _read_config(path: Path, name: str) -> dict[str, Any]:
    try:
        config = read_json(path)
    except ValueError as error:
        raise ValueError(f"{CONFIG} of {name} must be JSON, got {error}; save the network again") from error
    if not isinstance(config, dict) or not isinstance(config.get(KIND), str):
        held = "another kind"
        if isinstance(config, dict) and "model_type" in config:
            held = f"a network of transformers ({config['model_type']}); SegFormer.from_pretrained loads SegFormers"
        if isinstance(config, dict) and "task" in config:
            held = "a run folder of fadeup train; fadeup share makes such a folder of it"
        raise ValueError(f"{name} must be a folder that save_pretrained wrote, got {held}")
    return config


def _parts(network: nn.Module) -> dict[str, Any]:
    """Shapes of tensors and classes of upsamplers, some of which have no tensors, by name."""
    upsamplers = {key: type(x).__name__ for key, x in network.named_modules() if isinstance(x, Upsampler)}
    return upsamplers | {key: tuple(x.shape) for key, x in network.state_dict().items()}


def _check_free(folder: Path) -> None:
    """Refuse to write over what is not ours."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"save_directory must be a folder, got the file {folder}")
    there = [name for name in (CONFIG, WEIGHTS, CARD) if (folder / name).exists()]
    if there and not is_pretrained(folder):
        raise ValueError(
            f"save_directory must be a new folder, or one of a network that was saved before, got {folder} with "
            f"{there[0]} of something else; choose another"
        )


def _move(whole: Path, folder: Path) -> None:
    """Put a folder in its place, or its files in theirs, but not over a card that was edited."""
    if not folder.exists():
        whole.rename(folder)
        return
    for name in (WEIGHTS, CONFIG, CARD):
        place = folder / name
        edited = name == CARD and place.exists() and MARK not in place.read_text(encoding="utf-8", errors="replace")
        if not edited:
            (whole / name).replace(place)


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
