"""Fine-tuning: a training that begins with finished weights, on classes of its own, with some layers held still.

The network is built as the weights were, but for its classes: those that the weights know come first, then those that only
the dataset has. A class that the dataset lacks is kept, and nothing is learned of it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from facesynth import console
from facesynth.console import UsageError, did_you_mean, printable
from facesynth.generators.condition import CLASS, Group, Vocabulary
from facesynth.labelled_faces import LabelledFaces
from facesynth.recipe import WITHOUT_CRITIC, TrainConfig
from facesynth.target import canonical_label, match
from facesynth.training_data import Faces
from facesynth.weights import Weights

RATE = 1 / 3
"""Share of a preset's learning rate that weights are trained on with.

A judge that reads 66 % of FER2013's test faces and 49 % of some LFW faces was trained on 300 others of those for 6,400 images:
at the whole rate it then reads 86 % of them and 54 % of FER2013's, at a third 82 % and 59 %, at a tenth 76 % and 62 %.
"""

WARMUP = 1000
"""Images over which it rises: the weights are no chance, and the optimisers' moments need few steps."""

CRITIC_FIRST = 5000
"""Images that a critic, which starts anew, learns from before what it says moves the weights."""

SECTIONS = {"gan": "gan", "joint": "gan", "translator": "translator", "diffusion": "diffusion"}
"""Where the settings of a recipe hold the arguments of its network, if not in `network`."""

FREE = {"dropout"}
"""Arguments of a network that no weight hangs on."""


# --- settings ---------------------------------------------------------------------------------------------------------


def settle(config: TrainConfig, kind: str, loaded: Weights, given: Mapping[str, Any]) -> TrainConfig:
    """The settings under which a training of `kind` begins with `loaded` weights.

    `given` is what the user said, where a built-in preset says the rest. That of a preset which is about a network that
    knows nothing yet is replaced: its network by that of the weights, `RATE`, `WARMUP`, `CRITIC_FIRST`, and losses that weigh
    as at the end of its stages. Raises UsageError where the weights are of another network, or what is given says another.
    """
    if loaded.kind != kind:
        raise UsageError(
            f"--init {printable(config.init)} is a {loaded.kind}, but recipe {config.recipe} trains a {kind}; choose a preset "
            f"that trains a {loaded.kind}, or other weights."
        )
    section = SECTIONS.get(config.recipe, "network")
    new: dict[str, Any] = {section: _network(config, section, loaded, dict(given.get(section) or {}))}
    if "learning_rate" not in given:
        new["learning_rate"] = config.learning_rate * RATE
    if "warmup_images" not in given:
        new["warmup_images"] = min(config.warmup_images, WARMUP)
    if "stages" not in given:
        last = max(config.stages, default=0)
        new |= {"losses": config.loss_weights(last), "stages": {}}
    if "critic_first" not in given and config.recipe not in WITHOUT_CRITIC:
        new["critic_first"] = CRITIC_FIRST
    settled = config.model_copy(update=new)
    _say(settled, given)
    return settled


def _say(config: TrainConfig, given: Mapping[str, Any]) -> None:
    chosen = []
    if "learning_rate" not in given:
        chosen.append(f"learning rate {config.learning_rate:.2g}, a third of the preset's")
    if "critic_first" not in given and config.critic_first:
        chosen.append(f"its critic starts anew and learns alone for {config.critic_first:,} images")
    chosen = chosen or ["settings as given"]
    console.note(f"fine-tuning {printable(config.init)}: {'; '.join(chosen)}.", once=True)


def _network(config: TrainConfig, section: str, loaded: Weights, given: Mapping[str, Any]) -> Any:
    """The settings of the network that the weights are of."""
    built: dict[str, Any] = {name: value for name, value in loaded.module.config.items() if name != "classes"}
    asked = getattr(config, section)
    _require_same(config, section, dict(asked), built)
    for name, value in given.items():
        if name not in built and section == "network":
            raise UsageError(
                f"network: {loaded.kind}s have no argument {printable(name)}.{did_you_mean(name, built)} "
                f"Arguments: {', '.join(built)}."
            )
        if name in built and value is not None and name not in FREE and _plain(value) != _plain(built[name]):
            raise UsageError(
                f"--init {printable(config.init)} was built with {name} {built[name]}, but {section}.{name} {value} is given; "
                "leave that out, as the network comes with the weights, or train without --init."
            )
    if not isinstance(asked, BaseModel):
        return built | {name: value for name, value in given.items() if name in FREE}
    new = {name: value for name, value in built.items() if name in type(asked).model_fields}
    if "transition" in type(asked).model_fields and "transition" not in given:
        new["transition"] = (0, 0)  # the weights know the condition already
    return asked.model_copy(update=new)


def _require_same(config: TrainConfig, section: str, asked: Mapping[str, Any], built: Mapping[str, Any]) -> None:
    """Raise UsageError where another architecture is asked for, or a conditional network in place of one that is not."""
    for name in ("network", "architecture"):
        if asked.get(name, built.get(name)) != built.get(name):
            raise UsageError(
                f"--init {printable(config.init)} is of network {built[name]}, but {asked[name]} is to be trained; choose "
                f"other weights, or a preset, which may be a file of yours, with {section}: {{{name}: {built[name]}}}."
            )
    if "condition" in asked and "conditional" in built and (asked["condition"] != "none") != built["conditional"]:
        knows, other = ("classes", "no classes") if built["conditional"] else ("no classes", "classes")
        raise UsageError(
            f"--init {printable(config.init)} knows {knows}, but with condition {asked['condition']} a network is trained "
            f"that knows {other}; choose another preset, or other weights."
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# --- classes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """Weights to begin with, and the faces as the network will know them.

    `rows` says for each of its classes (of a translator: for each number in a condition) which ones of the weights it
    starts as the mean of: the class itself, all for a new class, none for what nothing is known of.
    """

    loaded: Weights
    faces: Faces
    rows: list[list[int]]

    def give(self, network: nn.Module) -> None:
        """Load the weights into a network for these classes."""
        state = self.loaded.module.state_dict()
        for name, (axis, first) in self.loaded.module.class_axes.items():
            state[name] = _spread(state[name], axis, first, self.rows)
        network.load_state_dict(state)

    @property
    def absent(self) -> list[str]:
        """Classes and other labels of the network that no face has."""
        if not isinstance(self.faces, LabelledFaces):
            present = self.faces.present.tolist()
            return [name for k, name in enumerate(self.faces.classes) if k not in present]
        found = [
            label for groups in self.faces.elsewhere for group in groups for label in _unsaid(group, torch.zeros(0))
        ]
        for part in (self.faces, *self.faces.also):
            for group, span in Vocabulary((part.groups,)).spans(0):
                found += _unsaid(group, part.values[:, span])
        return found

    def complete(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """The figures of a training, with those of the weights for classes without faces to measure them on."""
        found = dict(figures)
        for name, value in figures.items():
            before = self.loaded.info.get(name)
            if isinstance(value, dict) and isinstance(before, dict):
                found[name] = value | {k: before[k] for k in self.absent if k in before and k not in value}
        if isinstance(self.faces, LabelledFaces):  # whether a translator may be asked for less than everything
            here = 1 + len(self.faces.also)
            found["left"] = figures["left"][:here] + self.loaded.info["left"][here:]
        return found


def start(loaded: Weights, faces: Faces) -> Start:
    """Bring the classes of the weights and those of the faces together.

    Raises UsageError where two classes of the dataset are one to the weights, or an attribute is of another kind.
    """
    if not loaded.module.class_axes:
        return Start(loaded, faces, [])
    if isinstance(faces, LabelledFaces):
        return _start_translator(loaded, faces)
    known: list[str] = loaded.module.config["classes"]
    classes, places = _joined(known, faces.classes)
    new = len(classes) - len(known)
    rows = [[k] for k in range(len(known))] + [list(range(len(known)))] * new
    return Start(loaded, faces.among(classes, places), rows)


def _joined(known: Sequence[str], own: Sequence[str]) -> tuple[tuple[str, ...], list[int]]:
    """The known classes with the new ones behind them, and which of these each own one is."""
    classes, places = list(known), list[int]()
    for name in own:
        place = match(name, classes)
        if place is None:
            place = len(classes)
            classes.append(canonical_label(name))
        if place in places:
            raise UsageError(
                f"classes '{printable(own[places.index(place)])}' and '{printable(name)}' are both '{classes[place]}' to the "
                "weights of --init; put their images into one folder."
            )
        places.append(place)
    return tuple(classes), places


def _spread(tensor: Tensor, axis: int, first: int, rows: list[list[int]]) -> Tensor:
    """A tensor whose part for each class, from `first` on along `axis`, is the mean of those that `rows` says; 0 for none."""
    known = 1 + max(max(row, default=-1) for row in rows)
    before, old = tensor.narrow(axis, 0, first), tensor.narrow(axis, first, known)
    after = tensor.narrow(axis, first + known, tensor.shape[axis] - first - known)
    parts = [old.new_zeros(old.select(axis, 0).shape) if not row else _mean(old, axis, row) for row in rows]
    return torch.cat([before, torch.stack(parts, axis), after], axis)


def _mean(tensor: Tensor, axis: int, places: list[int]) -> Tensor:
    return tensor.index_select(axis, torch.tensor(places)).mean(axis)


# --- the conditions of translators --------------------------------------------------------------------------------------


def _start_translator(loaded: Weights, faces: LabelledFaces) -> Start:
    known = Vocabulary.of(loaded.info["vocabulary"])
    parts = (faces, *faces.also)
    before = (*known.datasets, *[()] * len(parts))
    found, *also = (_with_groups(part, groups) for part, groups in zip(parts, before, strict=False))
    found.also, found.elsewhere = tuple(also), known.datasets[len(parts) :]
    places = {key: k for k, key in enumerate(_numbers(known))}
    rows = [
        [places[key]] if key in places else [place for other, place in places.items() if other[:2] == key[:2]]
        for key in _numbers(found.vocabulary)
    ]
    return Start(loaded, found, rows)


def _with_groups(faces: LabelledFaces, known: tuple[Group, ...]) -> LabelledFaces:
    """Faces of one dataset in the groups that the weights know, their labels first, and then in those that they do not."""
    own = {group.name: (group, faces.values[:, span]) for group, span in Vocabulary((faces.groups,)).spans(0)}
    groups, values = [], []
    for group in known:
        if group.name not in own:
            groups.append(group)
            values.append(torch.zeros(len(faces.values), group.width))
            continue
        extended, places = _extended(group, own[group.name][0])
        groups.append(extended)
        values.append(torch.zeros(len(faces.values), extended.width))
        values[-1][:, places] = own.pop(group.name)[1]
    groups += [group for group, _ in own.values()]
    values += [value for _, value in own.values()]
    found = copy.copy(faces)
    found.groups, found.values = tuple(groups), torch.cat(values, 1)
    return found


def _extended(known: Group, own: Group) -> tuple[Group, list[int]]:
    """A group with the labels of both, and where the numbers of the second are in it."""
    if known.kind != own.kind or (known.kind != "choice" and known.labels != own.labels):
        raise UsageError(
            f"{printable(own.name)} is one of {printable(', '.join(own.labels))} here, but one of "
            f"{printable(', '.join(known.labels))} to the weights of --init; give the column another name."
        )
    if known.kind != "choice":
        return known, list(range(known.width))
    if known.name == CLASS:
        labels, places = _joined(known.labels, own.labels)
    else:
        labels = tuple(dict.fromkeys(known.labels + own.labels))
        places = [labels.index(label) for label in own.labels]
    return Group(known.name, labels, known.kind), places


def _unsaid(group: Group, values: Tensor) -> list[str]:
    """The labels of a group that no row of its values (N, width) says; of a switch its name, where no row says anything."""
    if group.kind != "choice":
        return [] if values.any() else [group.name]
    said = values.reshape(-1, group.width).any(0).tolist()
    return [label for label, there in zip(group.labels, said, strict=True) if not there]


def _numbers(vocabulary: Vocabulary) -> list[tuple[int, str, str | int]]:
    """What each number in a condition says: (dataset, group, label), then the mask's (dataset, "", "")."""
    found: list[tuple[int, str, str | int]] = [
        (dataset, group.name, label)
        for dataset, groups in enumerate(vocabulary.datasets)
        for group in groups
        for label in (group.labels if group.kind == "choice" else range(group.width))
    ]
    masks = vocabulary.size - vocabulary.labels
    return found + [(dataset, "", "") for dataset in range(masks)]


# --- frozen layers ----------------------------------------------------------------------------------------------------


def freeze(network: nn.Module, names: Sequence[str]) -> None:
    """Hold the layers of these names still, with all that is in them; batch norm there goes by its running statistics."""
    for key, parameter in network.named_parameters():
        if _within(key, names):
            parameter.requires_grad_(False)
    for key, module in network.named_modules():
        if isinstance(module, _BatchNorm) and _within(key, names):
            module.eval()


def require_layers(network: nn.Module, names: Sequence[str]) -> None:
    """Raise UsageError for a name that no layer with weights has, and where freezing them all leaves nothing to learn."""
    keys = [key for key, _ in network.named_parameters()]
    for name in names:
        if not any(_within(key, [name]) for key in keys):
            layers = [".".join(parts[:k]) for parts in (key.split(".") for key in keys) for k in range(1, len(parts))]
            raise UsageError(
                f"--freeze {printable(name)}: the network has no such layer.{did_you_mean(name, layers)} Layers: "
                f"{', '.join(_outermost(keys))}."
            )
    if all(_within(key, names) for key in keys):
        raise UsageError(f"--freeze {printable(','.join(names))} leaves nothing to learn; take a layer out of it.")


def _within(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _outermost(keys: list[str]) -> list[str]:
    """The shortest names that tell the layers of a network apart."""
    depth = 1
    while len(found := list(dict.fromkeys(".".join(key.split(".")[:depth]) for key in keys))) == 1 < len(keys):
        depth += 1
    return found
