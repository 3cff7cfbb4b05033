"""The catalog of images: the operator's file before the one that comes with Nebula."""

import tomllib
from importlib.resources import files
from pathlib import Path

from pydantic import ValidationError

from nebula_agent.decisions.catalog import CatalogEntry
from nebula_core.errors import SettingsError
from nebula_core.records.image_ref import parse_image


def read_catalog(path: Path | None) -> tuple[CatalogEntry, ...]:
    """Entries in the order in which they are tried. Raises SettingsError naming the entry that cannot be used."""
    own = (files("nebula_agent") / "catalog.toml").read_text(encoding="utf-8")
    if path is None:
        return _entries(own, "catalog.toml")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"cannot read the catalog {path}: {error}", hint="Write it, or leave docker.catalog_file out"
        ) from error
    return _entries(text, str(path)) + _entries(own, "catalog.toml")


def _entries(text: str, where: str) -> tuple[CatalogEntry, ...]:
    hint = "Each entry is [[image]] with engine, image and program; hardware, model, version, env as needed"
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"the catalog {where} is no TOML: {error}", hint=hint) from error
    unknown = sorted(set(tables) - {"image"})
    if unknown:
        raise SettingsError(f"the catalog {where} has the unknown name {unknown[0]!r}", hint=hint)
    found: list[CatalogEntry] = []
    for number, table in enumerate(tables.get("image", ()), 1):
        strange = sorted(set(table) - set(CatalogEntry.model_fields))
        if strange:
            raise SettingsError(f"entry {number} of {where} has the unknown name {strange[0]!r}", hint=hint)
        try:
            entry = CatalogEntry.model_validate(table)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise SettingsError(f"entry {number} of {where}: {place}: {first['msg']}", hint=hint) from error
        if parse_image(entry.image) is None:
            raise SettingsError(f"entry {number} of {where}: {entry.image!r} is no name of an image", hint=hint)
        found.append(entry)
    return tuple(found)
