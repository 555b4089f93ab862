"""List the commands: `python -m pipelines`. `python -m pipelines NAME …` is `python -m pipelines.NAME …`."""

from __future__ import annotations

import runpy
import sys

from pipelines.command import refuse
from pipelines.command_line import nearest
from pipelines.commands import COMMANDS
from pipelines.terminal import open_streams, say


def main() -> None:
    """Run the command that is named, or print the list. It takes no time: nothing else is imported."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        del sys.argv[1]
        runpy.run_module(f"pipelines.{name}", run_name="__main__", alter_sys=True)
        return
    open_streams()
    if name not in ("-h", "--help"):
        cure = nearest(name, COMMANDS) or "python -m pipelines lists them"
        refuse(f"{name!r} is not a command; {cure}")
    width = max(map(len, COMMANDS))
    say("python -m pipelines.NAME --help shows the flags of a command. In the order of use:")
    say("")
    for name, does in COMMANDS.items():
        say(f"  {name:{width}}  {does}")


if __name__ == "__main__":
    main()
