"""The node's policy, read from a TOML file that only root (or this user) may write."""

import os
import stat
import tomllib
from pathlib import Path

from pydantic import ValidationError

from nebula_agent.decisions.policy import LocalPolicy
from nebula_core.errors import SettingsError


def read_policy(path: Path | None) -> LocalPolicy:
    """The policy; without a file the one that refuses only what is never allowed. Raises SettingsError."""
    if path is None:
        return LocalPolicy()
    try:
        facts = path.stat()
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(
            f"cannot read the policy {path}: {error.strerror}", hint="Write it, or leave policy_file out"
        ) from error
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or facts.st_uid not in {0, os.geteuid()}:
        raise SettingsError(
            f"the policy {path} may be written by others", hint=f"Run: chown root {path} && chmod 644 {path}"
        )
    try:
        values = tomllib.loads(text)
        unknown = sorted(set(values) - set(LocalPolicy.model_fields))
        if unknown:
            known = ", ".join(LocalPolicy.model_fields)
            raise SettingsError(f"the policy {path} has the unknown name {unknown[0]!r}", hint=f"Known are: {known}")
        return LocalPolicy.model_validate(values)
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise SettingsError(f"the policy {path} cannot be used: {error}", hint="Correct that line") from error
