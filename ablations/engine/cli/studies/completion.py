"""Shell completion of the command `ablations`: options, commands, and the names of the studies that MLflow has."""

import argparse
import os
from typing import Any

from resnet_core.fields import reject

HELP = "print the code that completes this command in bash, zsh or fish"
SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_ARGCOMPLETE"
"""Environment variable that a shell sets while it asks for completions."""
NAMED = ("name", "names", "study", "base", "changed")
"""Arguments that are names of studies."""
ZSH_HEADER = "#compdef ablations\n"
ZSH_SET_UP = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }\n"
"""Line that starts the completion of zsh, which a new `~/.zshrc` does not."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = (
        'Print the code that completes this command, also the names of studies. For bash: eval "$(ablations completion bash)" in '
        "~/.bashrc; for zsh the same with zsh in ~/.zshrc; for fish: ablations completion fish | source, in its config.fish."
    )
    parser.add_argument("shell", metavar="bash|zsh|fish", help="shell to complete in")


def run(given: argparse.Namespace) -> int:
    """Print the code; return the exit code."""
    if given.shell not in SHELLS:
        raise reject("completion", given.shell, f"accepted: {', '.join(SHELLS)}")
    from argcomplete.shell_integration import shellcode

    code = shellcode(["ablations"], True, given.shell)
    print(code.replace(ZSH_HEADER, ZSH_HEADER + ZSH_SET_UP, 1) if given.shell == "zsh" else code)
    return 0


def answer_shell(parser: argparse.ArgumentParser) -> None:
    """Answer the shell if it asks for completions, and exit; otherwise do nothing."""
    if VARIABLE not in os.environ:
        return
    import argcomplete

    _add_completers(parser)
    argcomplete.autocomplete(parser)


def _add_completers(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _add_completers(command)
        elif action.dest in NAMED and not action.option_strings:
            action.completer = _study_names  # type: ignore[attr-defined]


def _study_names(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Return the names of the studies, as far as they can be read quickly."""
    from ablations.engine.cli.studies import catalog
    from ablations.engine.cli.studies.reader import Reader, tracking_uri
    from ablations.engine.submission.planning.quick_client import QuickClient

    uri = tracking_uri(parsed_args)
    try:
        entries = catalog.list_studies(Reader(uri, QuickClient(uri)))
    except Exception:  # a completion prints no errors
        return []
    return list(dict.fromkeys([*(each.name for each in entries), *catalog.selectors(entries).values()]))
