"""``litefs completion``: scripts that complete the command line, made of the tables that parse it."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Iterable, Iterator, Sequence

from litefs.cli.flags import Flag, Spec, UsageError, parse_flags
from litefs.cli.main import COMMANDS

SHELLS = ("bash", "zsh", "fish")

USAGE = {
    "completion": "Usage:\n\n  litefs completion bash|zsh|fish\n\n"
    "Prints a script that completes commands, flags and files.\n\n"
    "  bash:  source <(litefs completion bash)      in ~/.bashrc\n"
    '  zsh:   litefs completion zsh > "${fpath[1]}/_litefs"\n'
    "  fish:  litefs completion fish > ~/.config/fish/completions/litefs.fish"
}
SPECS = {"completion": Spec(words=SHELLS)}

_FILES, _DIRECTORIES = ("PATH",), ("DIR",)
"""What flags want whose values are completed; other values nobody knows."""


def completion(argv: Sequence[str]) -> int:
    """``litefs completion``. Raises UsageError."""
    rest = parse_flags((), argv).rest
    if len(rest) != 1 or rest[0] not in SHELLS:
        raise UsageError(f"required: one of {', '.join(SHELLS)}")
    script = {"bash": _bash, "zsh": _zsh, "fish": _fish}[rest[0]]
    print("\n".join(script(specs())))
    return 0


def specs() -> dict[str, Spec]:
    """What every command takes, by its name."""
    return {one.name: importlib.import_module(one.module).SPECS[one.name] for one in COMMANDS}


def _names(flags: Iterable[Flag]) -> str:
    return " ".join(f"-{flag.name}" for flag in flags)


def _wanting(spec: Spec, metavars: Sequence[str]) -> str:
    return _names(flag for flag in spec.flags if flag.metavar in metavars)


def _bash(commands: dict[str, Spec]) -> Iterator[str]:
    """Needs bash 4.4 and nothing else, also not the package bash-completion."""
    yield "# bash completion for litefs, made by `litefs completion bash`"
    yield "_litefs() {"
    yield "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}"
    yield "    local flags= files= directories= values= words= paths="
    yield "    COMPREPLY=()"
    yield "    if (( COMP_CWORD == 1 )); then"
    yield f'        mapfile -t COMPREPLY < <(compgen -W "{" ".join(commands)}" -- "$cur")'
    yield "        return"
    yield "    fi"
    yield '    case "${COMP_WORDS[1]}" in'
    for name, spec in commands.items():
        values = _names(flag for flag in spec.flags if flag.metavar not in (None, *_FILES, *_DIRECTORIES))
        yield f'    {name}) flags="{_names(spec.flags)}" files="{_wanting(spec, _FILES)}"'
        yield f'        directories="{_wanting(spec, _DIRECTORIES)}" values="{values}"'
        yield f'        words="{" ".join(spec.words)}" paths={int(spec.paths)} ;;'
    yield "    *) return ;;"
    yield "    esac"
    yield "    prev=${prev#-} prev=-${prev#-}"
    yield '    if [[ " $files " == *" $prev "* ]]; then'
    yield "        compopt -o filenames 2>/dev/null"
    yield '        mapfile -t COMPREPLY < <(compgen -f -- "$cur")'
    yield '    elif [[ " $directories " == *" $prev "* ]]; then'
    yield "        compopt -o filenames 2>/dev/null"
    yield '        mapfile -t COMPREPLY < <(compgen -d -- "$cur")'
    yield '    elif [[ " $values " == *" $prev "* ]]; then'
    yield "        return"
    yield "    elif [[ $cur == --* ]]; then"
    yield '        mapfile -t COMPREPLY < <(compgen -P - -W "$flags" -- "${cur#-}")'
    yield "    elif [[ $cur == -* ]]; then"
    yield '        mapfile -t COMPREPLY < <(compgen -W "$flags" -- "$cur")'
    yield "    elif [[ -n $words ]] && (( COMP_CWORD == 2 )); then"
    yield '        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")'
    yield "    elif (( paths )); then"
    yield "        compopt -o filenames 2>/dev/null"
    yield '        mapfile -t COMPREPLY < <(compgen -f -- "$cur")'
    yield "    fi"
    yield "}"
    yield "complete -F _litefs litefs"


def _zsh(commands: dict[str, Spec]) -> Iterator[str]:
    yield "#compdef litefs"
    yield "# zsh completion for litefs, made by `litefs completion zsh`"
    yield "_litefs() {"
    yield "    local -a commands=("
    for one in COMMANDS:
        yield f"        {shlex.quote(f'{one.name}:{one.summary}')}"
    yield "    )"
    yield "    if (( CURRENT == 2 )); then"
    yield "        _describe command commands"
    yield "        return"
    yield "    fi"
    yield "    local command=$words[2]"
    yield "    shift words"
    yield "    (( CURRENT-- ))"
    yield "    case $command in"
    for name, spec in commands.items():
        arguments = [shlex.quote(_zsh_flag(flag)) for flag in spec.flags]
        if spec.words:
            arguments.append(shlex.quote(f"1:action:({' '.join(spec.words)})"))
        if spec.paths:
            arguments.append("'*:file:_files'")
        yield f"    {name}) " + (f"_arguments {' '.join(arguments)} ;;" if arguments else ";;")
    yield "    esac"
    yield "}"
    yield '_litefs "$@"'


def _zsh_flag(flag: Flag) -> str:
    usage = "".join(f"\\{char}" if char in "[]:\\" else char for char in flag.usage)
    if flag.metavar is None:
        return f"-{flag.name}[{usage}]"
    action = "_files" if flag.metavar in _FILES else "_files -/" if flag.metavar in _DIRECTORIES else " "
    return f"-{flag.name}[{usage}]:{flag.metavar}:{action}"


def _fish(commands: dict[str, Spec]) -> Iterator[str]:
    yield "# fish completion for litefs, made by `litefs completion fish`"
    yield "complete -c litefs -f"
    for one in COMMANDS:
        yield f"complete -c litefs -n __fish_use_subcommand -a {one.name} -d {_fish_text(one.summary)}"
    for name, spec in commands.items():
        seen = f"complete -c litefs -n '__fish_seen_subcommand_from {name}'"
        for flag in spec.flags:
            files = flag.metavar in (*_FILES, *_DIRECTORIES)
            wants = "" if flag.metavar is None else " -r -F" if files else " -x"
            yield f"{seen} -o {flag.name}{wants} -d {_fish_text(flag.usage)}"
        if spec.words:
            yield f"{seen} -a {_fish_text(' '.join(spec.words))}"
        if spec.paths:
            yield f"{seen} -F"


def _fish_text(text: str) -> str:
    """In single quotes, within which fish knows two escapes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
