"""Settings of a program: one TOML file, every value also as `NEBULA_<PROGRAM>_…`; an unknown name is an error.

A misspelt setting that is silently ignored costs an evening; so each unknown key names its nearest neighbour. The
environment wins over the file; nested names are joined by `__` (`NEBULA_AGENT_STORE__URL`).
"""

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, TypeVar, Union, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from nebula_core.errors import SettingsError

_DELIMITER = "__"


class NebulaSettings(BaseModel):
    """Base of a program's settings. Built directly, or from JSON, it reads no file and no environment."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    #: Of its names in the environment, such as `NEBULA_AGENT_`.
    program_prefix: ClassVar[str] = "NEBULA_"


Settings = TypeVar("Settings", bound=NebulaSettings)


def load_settings(cls: type[Settings], path: Path | None, env: Mapping[str, str] | None = None) -> Settings:
    """Reads file and environment (None: the process's own). Raises SettingsError naming what is wrong and where."""
    environment = os.environ if env is None else env
    values = {} if path is None else _read_toml(path)
    for name in _unknown(cls, values):
        raise SettingsError(f"unknown setting {name!r} in {path}", hint=_nearest(name, _names(cls)))
    own = {name: value for name, value in environment.items() if name.upper().startswith(cls.program_prefix)}
    known = {f"{cls.program_prefix}{name.replace('.', _DELIMITER)}".upper() for name in _names(cls)}
    open_ended = tuple(
        f"{cls.program_prefix}{name.replace('.', _DELIMITER)}{_DELIMITER}".upper() for name in _open_names(cls)
    )
    for name in own:
        if name.upper() not in known and not name.upper().startswith(open_ended or ("\0",)):
            raise SettingsError(f"unknown setting {name} in the environment", hint=_nearest(name.upper(), known))
    try:
        return cls(**_merged(values, _from_environment(cls, own)))
    except ValidationError as error:
        raise SettingsError(_told(error), hint=_place(path, cls.program_prefix)) from error
    except ValueError as error:
        raise SettingsError(str(error), hint=_place(path, cls.program_prefix)) from error


def _from_environment(cls: type[NebulaSettings], env: Mapping[str, str]) -> dict[str, Any]:
    """What these variables say, as nested values."""
    # Only who loads settings pays for the library (12 MB): a worker is handed them ready.
    from pydantic_settings import BaseSettings, EnvSettingsSource  # noqa: PLC0415

    class MappingSource(EnvSettingsSource):
        """pydantic-settings' reader of the environment, over a mapping that was handed in."""

        def _load_env_vars(self) -> Mapping[str, str | None]:
            return {name.lower(): value for name, value in env.items()}

    # It asks the class for its fields alone.
    source = MappingSource(
        cast(type[BaseSettings], cls),
        case_sensitive=False,
        env_prefix=cls.program_prefix,
        env_nested_delimiter=_DELIMITER,
    )
    return source()


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Table by table; a value that is no table replaces the other whole."""
    result = dict(under)
    for name, value in over.items():
        former = result.get(name)
        if isinstance(former, Mapping) and isinstance(value, Mapping):
            result[name] = _merged(former, value)
        else:
            result[name] = value
    return result


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"cannot read the settings {path}: {error.strerror}", hint="Check the path given to --config"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}", hint="Correct that line") from error


def _nested(annotation: Any) -> type[BaseModel] | None:
    """The model inside `X`, `X | None` or `Annotated[X, …]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in {Annotated, Union, UnionType}:
        for part in get_args(annotation):
            found = _nested(part)
            if found is not None:
                return found
    return None


def _names(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every setting's dotted name, those of tables included."""
    for name, field in cls.model_fields.items():
        yield f"{prefix}{name}"
        inner = _nested(field.annotation)
        if inner is not None:
            yield from _names(inner, f"{prefix}{name}.")


def _open_names(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Settings whose keys are the operator's own (`labels`, tables of programs)."""
    for name, field in cls.model_fields.items():
        inner = _nested(field.annotation)
        if inner is not None:
            yield from _open_names(inner, f"{prefix}{name}.")
        elif _is_mapping(field.annotation):
            yield f"{prefix}{name}"


def _is_mapping(annotation: Any) -> bool:
    origin = get_origin(annotation)
    if origin in {Annotated, Union, UnionType}:
        return any(_is_mapping(part) for part in get_args(annotation))
    kind = origin or annotation
    return isinstance(kind, type) and issubclass(kind, Mapping)


def _unknown(cls: type[BaseModel], values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        field = cls.model_fields.get(name)
        if field is None:
            yield f"{prefix}{name}"
            continue
        inner = _nested(field.annotation)
        if inner is not None and isinstance(value, Mapping):
            yield from _unknown(inner, value, f"{prefix}{name}.")


def _nearest(name: str, known: Iterator[str] | set[str]) -> str:
    candidates = sorted(known)
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.5)
    if not close:
        # The same last word in another table is the likeliest slip of all.
        last = name.rpartition(".")[2]
        close = [candidate for candidate in candidates if candidate.rpartition(".")[2] == last][:1]
    return f"Did you mean {close[0]!r}?" if close else "Remove it; `check` prints every setting"


def _told(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in item['loc']) or 'settings'}: {item['msg']}" for item in error.errors()
    )


def _place(path: Path | None, prefix: str) -> str:
    return f"Correct it in {path} or in {prefix}…" if path is not None else f"Set it with --config FILE or {prefix}…"
