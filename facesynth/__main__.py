"""`python -m facesynth`, which `accelerate launch -m facesynth train ...` starts in each process."""

from facesynth.cli import main

main()
