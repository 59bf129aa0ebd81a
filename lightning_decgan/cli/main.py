"""The command `decgan`: finds the sub-command and hands it the rest of the line.

It imports nothing that a sub-command needs, so that `decgan --help` answers at once, and it holds no logic beyond the
way from an error to an exit code: 0 done, 1 failed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module, metadata

from lightning_decgan.cli.errors import UsageError, torchvision_mismatch

COMMANDS = {
    "train": "train a GAN on several workers that average with their neighbours (a Hydra application)",
    "sample": "draw images from a checkpoint: a grid, class by class, or worker by worker",
    "interpolate": "walk through a checkpoint's latent space, as a strip of images or an animation",
    "evaluate": "score a checkpoint's samples against real images",
    "curves": "draw the losses, scores and distances of a run",
    "timeline": "make an animation of a run's sample grids",
    "topology": "show who talks to whom, how fast it mixes and what it costs",
}

HELP = """usage: decgan [--help] [--version] COMMAND ...

Decentralized training of GANs: workers average with a few neighbours instead of all-reducing with everybody.

commands:
{commands}

`decgan COMMAND --help` says more. The demonstration: decgan train experiment=digits"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `decgan`.

    Args:
        argv: the words after `decgan`; None: those of the process.

    Returns:
        The exit code.

    Example:
        >>> main(["paint"])
        2
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP.format(commands="\n".join(f"  {name:<11} {text}" for name, text in COMMANDS.items())))
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"decgan {metadata.version('lightning_decgan')}")
        return 0
    command = words[0]
    if command not in COMMANDS:
        print(f"decgan: error: unknown command {command!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        return int(import_module(f"lightning_decgan.cli.{command}").main(words[1:]))
    except UsageError as error:
        print(f"decgan {command}: error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        advice = torchvision_mismatch(error)
        if advice is None:
            raise
        print(f"decgan {command}: error: {advice}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"decgan {command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader, such as head, has seen enough; nothing may be flushed into the pipe at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
