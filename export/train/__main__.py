"""Train `toonlet` from what `prepare` wrote: `python -m toonstream.export.train --data DATA --output RUN`.

The stages run one after the other, each picking up where it stopped, so the command may be interrupted
and given again at any time. `--stage pack` alone makes a model folder of what the run has so far.
"""

import argparse
from pathlib import Path

from diffusers import AutoencoderTiny

from toonstream.export.train.autoencoder import train_autoencoder
from toonstream.export.train.data import Pictures
from toonstream.export.train.decoder import train_decoder
from toonstream.export.train.diffusion import train_motion, train_pictures
from toonstream.export.train.pack import pack

STAGES = ("autoencoder", "pictures", "motion", "decoder", "pack")


def main() -> None:
    """Run the stages from the command line."""
    parser = argparse.ArgumentParser(prog="python -m toonstream.export.train", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that `prepare` wrote")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of the run: checkpoints, curves, samples"
    )
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this one; may be repeated")
    parser.add_argument(
        "--start", type=Path, help="a model folder to begin with, such as export/models/toonlet"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--autoencoder-steps", type=int, default=10000)
    parser.add_argument("--pictures-steps", type=int, default=6000)
    parser.add_argument("--motion-steps", type=int, default=2000)
    parser.add_argument("--decoder-steps", type=int, default=1000)
    arguments = parser.parse_args()
    run: Path = arguments.output
    seed: int = arguments.seed
    start: Path | None = arguments.start
    stages = arguments.stage or STAGES
    pictures = Pictures(arguments.data)
    drawn = run / "pictures"
    if "autoencoder" in stages:
        train_autoencoder(
            pictures, run / "autoencoder", steps=arguments.autoencoder_steps, size=16, seed=seed, start=start
        )
    if "pictures" in stages:
        autoencoder = AutoencoderTiny.from_pretrained(run / "autoencoder" / "vae")
        train_pictures(
            pictures,
            autoencoder,
            drawn,
            steps=arguments.pictures_steps,
            size=10,
            seed=seed,
            start=start,
        )
    if "motion" in stages:
        autoencoder = AutoencoderTiny.from_pretrained(drawn / "vae")
        steps = arguments.motion_steps
        train_motion(
            pictures, autoencoder, drawn, run / "motion", steps=steps, size=8, seed=seed, start=start
        )
    if "decoder" in stages:
        autoencoder = AutoencoderTiny.from_pretrained(run / "motion" / "vae")
        steps = arguments.decoder_steps
        train_decoder(pictures, autoencoder, drawn, run / "decoder", steps=steps, size=10, seed=seed)
    if "pack" in stages:
        pack(run, run / "toonlet")


if __name__ == "__main__":
    main()
