"""A deployment's `args` as options of a command line: `max-model-len = 8192` becomes `--max-model-len 8192`."""

from collections.abc import Collection, Mapping
from typing import Literal

from nebula_core.records.deployment import ArgValue

#: What `false` becomes: `--no-NAME` (argparse's BooleanOptionalAction), or nothing at all (a plain switch).
Falsehood = Literal["negate", "omit"]


def plain_name(name: str) -> str:
    return name.replace("_", "-")


def has_any(args: Mapping[str, ArgValue], names: Collection[str]) -> bool:
    return any(plain_name(name) in names for name in args)


def options(args: Mapping[str, ArgValue], *, falsehood: Falsehood) -> list[str]:
    """In the order of `args`. A value that begins with a dash is tied to its name, so that it cannot pass for an option."""
    words: list[str] = []
    for name, value in args.items():
        option = f"--{plain_name(name)}"
        if value is True:
            words.append(option)
        elif value is False:
            if falsehood == "negate":
                words.append(f"--no-{plain_name(name)}")
        else:
            text = str(value)
            words += [f"{option}={text}"] if text.startswith("-") else [option, text]
    return words
