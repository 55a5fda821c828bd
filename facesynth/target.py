"""A target in one of its spellings and the present counts -> how many images each class shall have. Real ones stay."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from facesynth.config import read_yaml
from facesynth.console import UsageError, did_you_mean, printable, warn
from facesynth.dataset import scan

MAX_TOTAL = 10_000_000
"""More images than this in a target are taken for a slip of the keyboard."""

FORMS = "uniform, uniform:N, a ratio of the largest class such as 0.5, disgust=2000,fear=5000, a YAML file, or like:DIR"

_SYNONYMS = {
    "angry": "anger angered mad",
    "disgust": "disgusted disgusting",
    "fear": "fearful afraid scared frightened",
    "happy": "happiness joy joyful smile smiling",
    "sad": "sadness sorrow unhappy",
    "surprise": "surprised surprising astonished",
    "neutral": "neutrality calm no_expression expressionless",
    "contempt": "contemptuous",
}
_CANONICAL = {word: label for label, words in _SYNONYMS.items() for word in [label, *words.split()]}


def canonical_label(name: str) -> str:
    """The field's usual name of an expression class: "anger", "Angry" and "0_angry" are all "angry".

    An unknown name comes back in lower case and without its numbering; a name that is only a number is kept.
    """
    plain = name.strip().lower()
    plain = re.sub(r"^\d+[\s._-]*(?=\D)", "", plain)
    return _CANONICAL.get(re.sub(r"[\s-]+", "_", plain), plain)


def match(name: str, classes: Sequence[str]) -> int | None:
    """Which of `classes` a name means: the one of that very name, else the first that names the same expression."""
    if name in classes:
        return classes.index(name)
    alike = [k for k, known in enumerate(classes) if canonical_label(known) == canonical_label(name)]
    return alike[0] if alike else None


def resolve(spec: str | Mapping[str, object] | Path, counts: Mapping[str, int]) -> dict[str, int]:
    """The final count of every class, in the order of `counts`.

    A mapping (or YAML file) of whole numbers gives final counts, classes that it leaves out keep theirs; one of
    fractions that sum to 1 gives shares, reached with as few images as possible. Raises UsageError where the target
    names an unknown class, lies below a present count (real images are never dropped), or makes no sense.
    """
    target = _from_text(spec, counts) if isinstance(spec, str) else _from_values(spec, counts)
    total = sum(target.values())
    if total > MAX_TOTAL:
        raise UsageError(f"the target asks for {total:,} images in all; the most is {MAX_TOTAL:,}: lower it.")
    for label, count in counts.items():
        if target[label] < count:
            raise UsageError(
                f"{printable(label)}: target {target[label]:,} is below the {count:,} real images; real images are "
                f"never dropped; ask for {count:,} or more."
            )
    return {label: target[label] for label in counts}


def deficits(counts: Mapping[str, int], target: Mapping[str, int]) -> dict[str, int]:
    """How many images each class lacks, in the order of `counts`."""
    return {label: target[label] - count for label, count in counts.items()}


def _from_text(spec: str, counts: Mapping[str, int]) -> dict[str, int]:
    spec = spec.strip()
    kind, _, argument = spec.partition(":")
    if kind == "uniform":
        size = _whole(spec, argument) if ":" in spec else max(counts.values())
        return dict.fromkeys(counts, size)
    if kind == "like" and argument:
        return _like(Path(argument), counts)
    if spec.lower().endswith((".yaml", ".yml")):
        return _from_values(Path(spec), counts)
    if "=" in spec:
        return _from_pairs(spec, counts)
    try:
        ratio = float(spec)
    except ValueError:
        raise UsageError(
            f"'{printable(spec)}' is no target.{did_you_mean(spec, ['uniform'])} A target is {FORMS}."
        ) from None
    return _from_ratio(spec, ratio, counts)


def _from_ratio(spec: str, ratio: float, counts: Mapping[str, int]) -> dict[str, int]:
    if not 0 < ratio <= 1:
        hint = f"; for a number of images say uniform:{int(ratio)}" if 1 < ratio <= MAX_TOTAL else ""
        raise UsageError(f"target {spec}: a ratio of the largest class must be above 0 and at most 1{hint}.")
    size = math.ceil(round(ratio * max(counts.values()), 6))
    return {label: max(count, size) for label, count in counts.items()}


def _from_pairs(spec: str, counts: Mapping[str, int]) -> dict[str, int]:
    pairs = [part.partition("=") for part in spec.split(",") if part.strip()]
    incomplete = next((name for name, equals, _ in pairs if not equals), None)
    if incomplete is not None:
        raise UsageError(f"target '{printable(incomplete.strip())}': say CLASS=COUNT, such as disgust=2000,fear=5000.")
    named = [name for name, _, _ in pairs]
    return _final({label: pairs[i][2] for i, label in enumerate(_match(named, counts))}, counts)


def _from_values(values: Mapping[str, object] | Path, counts: Mapping[str, int]) -> dict[str, int]:
    """A mapping, or a YAML file that holds one."""
    if isinstance(values, Path):
        values = read_yaml(values)
    labels = _match(list(values), counts)
    by_label = dict(zip(labels, values.values(), strict=True))
    if any(isinstance(value, float) for value in by_label.values()):
        return _from_shares({label: _share(label, value) for label, value in by_label.items()}, counts)
    return _final(by_label, counts)


def _final(named: Mapping[str, object], counts: Mapping[str, int]) -> dict[str, int]:
    return dict(counts) | {label: _whole(label, value) for label, value in named.items()}


def _from_shares(shares: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, int]:
    """The smallest dataset with these shares that holds every real image."""
    total = sum(shares.values())
    if abs(total - 1) > 1e-3:
        raise UsageError(f"the shares of the target sum to {total:.4g}, not to 1: correct them, or give whole counts.")
    for label, count in counts.items():
        if count and not shares.get(label):
            raise UsageError(
                f"the target gives no share to '{printable(label)}', which has {count:,} real images; real images are "
                "never dropped: give it a share."
            )
    size = max(count * total / shares[label] for label, count in counts.items() if count)
    return {label: max(count, round(size * shares.get(label, 0) / total)) for label, count in counts.items()}


def _like(folder: Path, counts: Mapping[str, int]) -> dict[str, int]:
    other = {label: count for label, count in scan(folder).counts().items() if count}
    known = {canonical_label(label) for label in counts}
    extra = [label for label in other if label not in counts and canonical_label(label) not in known]
    if extra:
        warn(f"{printable(folder)} has classes that the source lacks ({printable(', '.join(extra))}): left out.")
    kept = [label for label in other if label not in extra]
    total = sum(other[label] for label in kept)
    return _from_shares(
        {mine: other[name] / total for name, mine in zip(kept, _match(kept, counts), strict=True)}, counts
    )


def _match(names: list[str], counts: Mapping[str, int]) -> list[str]:
    """The class of the dataset that each name means: by its exact name, else by the expression that it names."""
    matched = [_match_one(name.strip(), counts) for name in names]
    twice = next((label for label in matched if matched.count(label) > 1), None)
    if twice is not None:
        raise UsageError(f"the target names class '{printable(twice)}' twice: name it once.")
    return matched


def _match_one(name: str, counts: Mapping[str, int]) -> str:
    if name in counts:
        return name
    alike = [label for label in counts if canonical_label(label) == canonical_label(name)]
    if len(alike) == 1:
        return alike[0]
    classes = ", ".join(printable(label) for label in counts)
    if alike:
        raise UsageError(f"target class '{printable(name)}' may mean {' or '.join(alike)}: give the exact name.")
    raise UsageError(
        f"unknown class '{printable(name)}' in the target.{did_you_mean(name, counts)} Classes: {classes}."
    )


def _whole(name: str, value: object) -> int:
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"[+-]?\d+", text):
        raise UsageError(f"target of {printable(name)}: '{printable(text)}' is not a whole number of images.")
    if int(text) < 0:
        raise UsageError(f"target of {printable(name)}: {text} is negative.")
    return int(text)


def _share(label: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UsageError(
            f"target of {printable(label)}: {printable(value)} is not a share from 0 to 1; "
            "give a share for every class, or whole counts, not both."
        )
    return float(value)
