"""Every module imports only from the lines below its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import facesynth

LAYERS = """
__main__
cli
augmenting balancing demo evaluating training
fairness runner
groups readings uplift
safety
card fidelity near_copies pictures trials
imageset manifest
imagecache models pipeline
calibration extractors generators.joint recognizer synthesis
expression generators.diffusion generators.drawer generators.editor generators.embedder generators.gan generators.translator
screening
finetuning
labelled_faces
arms evaluation_page report runfolder training_data
loop
descent
action_units identity processes tracker
generators.img2img modelcard quality
likeness recipe target weights
generators.adversary
checkpoints classic curves dataset execute generators.losses generators.samples page
geometry
generators.translation
generators.latent
config device download evaluation_charts generators.residual hub output photo significance thresholds
evaluation generators.condition generators.denoiser generators.networks generators.proposal guard manifold plan
console
"""
RANK = {module: rank for rank, line in enumerate(LAYERS.split("\n")) for module in line.split()}
PACKAGE = Path(facesynth.__file__).parent


def _name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


FILES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"}


def _imports(node: ast.AST) -> Iterator[str]:
    """Modules of the package that are imported at run time, also within functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.ImportFrom) and (child.module or "").startswith("facesynth"):
            inside = str(child.module).removeprefix("facesynth").lstrip(".")
            for alias in child.names:
                below = f"{inside}.{alias.name}".lstrip(".")
                if below in FILES or inside in FILES:
                    yield below if below in FILES else inside
        yield from _imports(child)


def test_every_module_has_its_layer() -> None:
    assert sorted(RANK) == sorted(FILES)


@pytest.mark.parametrize("module", FILES)
def test_imports_run_downward_only(module: str) -> None:
    imported = set(_imports(ast.parse(FILES[module].read_text(encoding="utf-8"))))
    assert {other for other in imported if RANK[other] <= RANK[module]} == set()
