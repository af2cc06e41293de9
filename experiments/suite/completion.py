"""Tab completion of ``influence-experiments`` in bash, zsh and fish: its words come from conf/ and the
commands.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.records.errors import ConfigError
from experiments.records.places import CONF
from experiments.suite.commands import COMMANDS, Command, command
from experiments.suite.ending import guarded

NAME = "influence-experiments"
SHELLS = {
    "bash": f"""\
_influence_experiments() {{
  local line="${{COMP_LINE:0:COMP_POINT}}" earlier word cut
  word="${{line##* }}"  # bash also splits words at = and :, so COMP_WORDS is of no use
  IFS=' ' read -ra earlier <<< "${{line% *}}"
  local IFS=$'\\n'
  COMPREPLY=($({NAME} --complete "$word" "${{earlier[@]:1}}" 2>/dev/null))
  cut="${{word%"${{word##*[=:]}}"}}"  # only what follows the last = or : is replaced
  COMPREPLY=("${{COMPREPLY[@]#"$cut"}}")
  [[ "${{COMPREPLY[0]}}" == *= ]] && compopt -o nospace
}}
complete -o default -F _influence_experiments {NAME}""",
    "zsh": f"""\
_influence_experiments() {{
  local -a found
  found=(${{(f)"$({NAME} --complete "$PREFIX" "${{(@)words[2,CURRENT-1]}}" 2>/dev/null)"}})
  compadd -Q -S '' -- $found || _files
}}
compdef _influence_experiments {NAME}""",
    "fish": f"""\
complete -c {NAME} -a '({NAME} --complete (commandline -ct) (commandline -opc)[2..-1])'""",
}
SETTINGS = (
    "seed=",
    "threads=",
    "device=cpu",
    "device=cuda",
    "output=",
    "debug=true",
    "tracking=none",
    "data.mirror=",
)


def main(arguments: Sequence[str]) -> None:
    """``completion SHELL`` prints a script for the shell; ``--complete WORD [EARLIER ...]`` the words that
    fit.
    """
    if arguments[0] == "completion":
        guarded(lambda: print(script(arguments[1:])))
        return
    word = arguments[1] if len(arguments) > 1 else ""
    print("\n".join(candidates(word, [text for text in arguments[2:] if text])))


def script(arguments: Sequence[str]) -> str:
    """The script of the shell named.

    Raises:
        ConfigError: no shell, or one that is unknown, is named.
    """
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        raise ConfigError(f"name a shell: {NAME} completion {'|'.join(SHELLS)}.")
    return SHELLS[arguments[0]]


def candidates(word: str, earlier: Sequence[str]) -> list[str]:
    """What may stand in place of ``word`` after the words ``earlier``."""
    if earlier and earlier[0] in COMMANDS:
        found = of_command(command(earlier[0]))
    else:
        found = of_run(word, earlier)
        found += [] if earlier else [*COMMANDS, "completion"]
    return sorted(text for text in dict.fromkeys([*found, "--help"]) if text.startswith(word))


def of_command(command: Command) -> list[str]:
    """The settings of a command, with their choices."""
    found = []
    for option in command.known.values():
        found += [f"{option.name}={choice}" for choice in option.choices if choice] or [f"{option.name}="]
    return found


def of_run(word: str, earlier: Sequence[str]) -> list[str]:
    """Settings of a run: groups with their options, and the settings of the experiment named before."""
    groups = sorted(
        path.name for path in CONF.iterdir() if path.is_dir() and path.name not in ("variant", "hydra")
    )
    found = [
        f"{group}={path.stem}"
        for group in groups
        for path in (CONF / group).glob("*.yaml")
        if path.parent.name != "claims"
    ]
    found += [*SETTINGS, "--multirun", "--cfg"]
    named = [text.partition("=")[2] for text in earlier if text.startswith("experiment=")]
    if named and "." in word and (CONF / "experiment" / f"{named[-1]}.yaml").is_file():
        from experiments.suite.teaching import composed, setting_names

        found += [f"{name}=" for name in setting_names(composed([text for text in earlier if "=" in text]))]
    return found
