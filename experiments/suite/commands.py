"""One parser for every command: words and ``name=value`` settings, with a ``--help`` that teaches.

A command is a module with two names. ``COMMAND`` says what the command takes, ``main(given)`` does the work::

    COMMAND = Command(
        "publish",
        "Copies the small record of a finished run, to be committed.",
        words=Words("FOLDER", most=None, help="output folders of finished runs"),
        options=(Option("to", "results", "folder that receives the record", kind=Path),),
        examples=(("outputs/loo_linear/now", "writes results/loo_linear"),),
    )

    def main(given: Given) -> None:
        for folder in given.words:
            publish(Path(folder), given["to"])

    if __name__ == "__main__":
        COMMAND.run(main)

``given[name]`` is the value, converted by the option's ``kind``: ``str``, ``int``, ``float``, ``Path``,
``flag`` (true or false) or ``names`` (a list, separated by commas). It is None if the option has no default
and was not given. A wrong setting raises ConfigError (exit code 2) with one sentence. Every command also
takes ``debug=true``. ``run`` prints the help, parses, and turns errors into one sentence and an exit code.

Register a new command in ``COMMANDS`` below: its name then works after
``influence-experiments``, stands in the help and is completed by the tab key. The module must not import
torch before ``main`` runs.
"""

from __future__ import annotations

import importlib
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from experiments.records.errors import ConfigError
from experiments.records.machine import share_cores
from experiments.suite.ending import guarded

WIDTH = 80
EXIT_CODES = "0 done, 1 it failed, 2 a setting is wrong, 130 interrupted"


def flag(text: str) -> bool:
    """``true`` or ``false``."""
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


def names(text: str) -> list[str]:
    """Names separated by commas; brackets around them may stand."""
    return [name.strip() for name in text.strip("[]").split(",") if name.strip()]


KINDS: dict[Callable[[str], Any], str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    Path: "a path",
    flag: "true or false",
    names: "names with commas between them",
}


@dataclass(frozen=True)
class Option:
    """A setting ``name=value``. ``default`` is written as a user would write it; None: not set.

    ``shown`` stands in the help where there is no default. ``check`` turns a value into a reason why it is
    wrong, or None.
    """

    name: str
    default: str | None
    help: str
    kind: Callable[[str], Any] = str
    choices: tuple[str, ...] = ()
    shown: str = ""
    required: bool = False

    @property
    def sample(self) -> str:
        """The setting as the help shows it."""
        return f"{self.name}={self.default if self.default is not None else self.shown or self.name.upper()}"

    def value(self, text: str | None) -> Any:
        """What ``text`` or else the default means; None if there is neither."""
        text = self.default if text is None else text
        return None if text is None else self.convert(text)

    def convert(self, text: str) -> Any:
        """``text`` as a value.

        Raises:
            ConfigError: it is not of this kind, or not one of the choices.
        """
        try:
            value = self.kind(text)
        except ValueError:
            raise ConfigError(f"{self.name}={text}: give {KINDS.get(self.kind, 'another value')}.") from None
        for part in value if isinstance(value, list) else [text]:
            if self.choices and part not in self.choices:
                raise ConfigError(f"{self.name}={part} is unknown: choose from {', '.join(self.choices)}.")
        return value


@dataclass(frozen=True)
class Words:
    """What stands on the command line without ``=``: files or folders. ``most`` None: any number."""

    shown: str
    least: int = 1
    most: int | None = 1
    help: str = ""

    @property
    def usage(self) -> str:
        """How the usage line shows them."""
        text = f"{self.shown} [...]" if self.most is None else self.shown
        return text if self.least else f"[{text}]"


@dataclass(frozen=True)
class Given:
    """A parsed command line: ``given[name]`` for options; ``rest``: what followed ``--``, as it stood."""

    words: list[str]
    values: dict[str, Any]
    rest: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


DEBUG = Option("debug", "false", "true: errors with their full traceback", kind=flag)


@dataclass(frozen=True)
class Command:
    """What a command is called, takes and means. ``rest``: what may follow ``--`` (empty: nothing).

    ``examples``: pairs of arguments and what they do. ``notes``: paragraphs at the end of the help.
    """

    name: str
    summary: str
    words: Words | None = None
    options: tuple[Option, ...] = ()
    examples: tuple[tuple[str, str], ...] = ()
    notes: str = ""
    rest: str = ""
    exit_codes: str = EXIT_CODES

    @property
    def call(self) -> str:
        """How it is started without its arguments."""
        return f"python -m experiments.{self.name}"

    @property
    def known(self) -> dict[str, Option]:
        """Every option by name."""
        return {option.name: option for option in (*self.options, DEBUG)}

    @property
    def usage(self) -> str:
        """The command in one line."""
        parts = [self.call, self.words.usage if self.words else ""]
        parts += [option.sample for option in self.options if option.required]
        parts += ["[name=value ...]", f"-- {self.rest}" if self.rest else ""]
        return " ".join(part for part in parts if part)

    def help(self) -> str:
        """What ``--help`` prints."""
        lines = [*textwrap.wrap(self.summary, WIDTH), ""]
        lines += [*textwrap.wrap(f"usage: {self.usage}", WIDTH, subsequent_indent=" " * 7), ""]
        table = [(self.words.usage, f"{self.words.help.rstrip('.')}.")] if self.words else []
        table += [(option.sample, self._explained(option)) for option in (*self.options, DEBUG)]
        lines += columns(table)
        if self.examples:
            lines += [
                "",
                "Examples:",
                *columns([(f"{self.call} {left}", right) for left, right in self.examples]),
            ]
        for paragraph in self.notes.strip().split("\n\n") if self.notes else []:
            lines += ["", *textwrap.wrap(" ".join(paragraph.split()), WIDTH)]
        return "\n".join([*lines, "", *textwrap.wrap(f"Exit codes: {self.exit_codes}.", WIDTH)])

    def _explained(self, option: Option) -> str:
        choices = f" One of {', '.join(option.choices)}." if option.choices else ""
        return f"{option.help.rstrip('.')}.{choices}{' Required.' if option.required else ''}"

    def parse(self, arguments: Sequence[str]) -> Given:
        """The command line, checked.

        Raises:
            ConfigError: a setting is unknown, missing or wrong, or the number of words is.
        """
        own, rest = list(arguments), []
        if self.rest and "--" in own:
            split = own.index("--")
            own, rest = own[:split], own[split + 1 :]
        words, texts = [], {}
        for argument in own:
            name, sign, text = argument.partition("=")
            if argument.startswith("-"):
                raise ConfigError(f"{argument} is no setting: write name=value, or --help to see them all.")
            if not sign or "/" in name:
                words.append(argument)
            elif name in self.known:
                texts[name] = text
            else:
                raise ConfigError(self._unknown(name))
        self._count(words)
        values = {name: option.value(texts.get(name)) for name, option in self.known.items()}
        missing = [
            option.sample for option in self.options if option.required and values[option.name] is None
        ]
        if missing or (self.rest and not rest):
            absent = missing[0] if missing else f"-- {self.rest}"
            raise ConfigError(f"{absent} is missing. usage: {self.usage}")
        return Given(words, values, rest)

    def _unknown(self, name: str) -> str:
        close = get_close_matches(name, self.known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"there is no setting {name!r}: {hint}{self.name} has {', '.join(self.known)}."

    def _count(self, words: list[str]) -> None:
        least, most = (self.words.least, self.words.most) if self.words else (0, 0)
        if len(words) < least:
            raise ConfigError(f"{self.words.shown if self.words else ''} is missing. usage: {self.usage}")
        if most is not None and len(words) > most:
            raise ConfigError(
                f"{words[most]!r} is one word too many, and no setting (name=value). usage: {self.usage}"
            )

    def run(self, main: Callable[[Given], None], arguments: Sequence[str] | None = None) -> None:
        """Prints the help or runs ``main``; every error ends in one sentence and an exit code."""
        arguments = sys.argv[1:] if arguments is None else arguments
        own = list(arguments)[: list(arguments).index("--")] if "--" in arguments else arguments
        if {"--help", "-h"} & set(own):
            guarded(lambda: print(self.help(), flush=True))
            return
        share_cores()
        guarded(lambda: main(self.parse(arguments)), debug="debug=true" in own)


def columns(rows: Sequence[tuple[str, str]], least: int = 2) -> list[str]:
    """Two columns, the second wrapped; a long first cell has a line of its own."""
    longest = max((len(left) for left, _ in rows), default=0)
    width = min(longest, 28)
    lines = []
    for left, right in rows:
        wrapped = textwrap.wrap(right, WIDTH - width - least - 2) or [""]
        if len(left) > width:
            lines.append(" " * least + left)
            left = ""
        for index, text in enumerate(wrapped):
            lines.append((" " * least + (left if index == 0 else "").ljust(width) + "  " + text).rstrip())
    return lines


def plain(text: str) -> str:
    """Markup of docstrings and comments taken away: double backquotes."""
    return re.sub(r"``", "", text)


COMMANDS = {
    "verify": "experiments.verify",
    "sweep": "experiments.sweep",
    "figures": "experiments.figures",
    "table": "experiments.table",
    "export": "experiments.export",
    "publish": "experiments.publish",
    "across_ranks": "experiments.across_ranks",
    "scaling": "experiments.scaling",
    "workspace": "experiments.suite.workspace",
    "label_errors": "experiments.label_errors.__main__",
    "label_errors.evidence": "experiments.label_errors.evidence.__main__",
    "benchmark.profile": "experiments.benchmark.profile",
}


def command(name: str) -> Command:
    """The description of a command."""
    found: Command = importlib.import_module(COMMANDS[name]).COMMAND
    return found
