"""What a person types: settings that are checked, a preflight table, the simulated engine."""

import json
import os
import re
import subprocess
import sys

import pytest
from pydantic import ValidationError

from nebula_agent.loops.preflight import object_store_findings
from nebula_agent.settings import AgentSettings
from nebula_core.errors import SettingsError
from nebula_core.runtime.settings import load_settings
from nebula_core.security.envelope import SigningKey


def agent(*words, env=None):
    return subprocess.run(
        [sys.executable, "-m", "nebula_agent", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **(env or {})},
    )


def test_version():
    done = agent("version")
    assert done.returncode == 0
    assert re.match(r"nebula-agent \d+\.\d+", done.stdout)


def test_an_unknown_setting_names_the_nearest_one(tmp_path):
    config = tmp_path / "agent.toml"
    config.write_text('nod = "a"\n')
    done = agent("run", "--config", str(config))
    assert done.returncode == 2
    assert "unknown setting 'nod'" in done.stderr
    assert "Did you mean 'node'?" in done.stderr
    assert "Traceback" not in done.stderr
    done = agent("check", env={"NEBULA_AGENT_PORTRANGE": "[1, 2]"})
    assert "NEBULA_AGENT_PORT_RANGE" in done.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('gpus = "simulated"', "simulated:N"),
        ("port_range = [5, 4]", "must be above 0 and not above the last"),
        ('node = "Not A Name"', "node"),
        ("term_seconds = 0", "greater than 0"),
    ],
)
def test_impossible_values_are_told_by_name(tmp_path, line, said):
    config = tmp_path / "agent.toml"
    config.write_text(line)
    with pytest.raises(SettingsError, match=re.escape(said)):
        load_settings(AgentSettings, config, {})


def test_engines_listen_on_the_address_proxies_use():
    assert AgentSettings(address="10.1.2.3").engine_host == "10.1.2.3"
    assert AgentSettings(address="gpu-a1.example").engine_host == "0.0.0.0"
    assert AgentSettings(address="localhost").engine_host == "127.0.0.1"
    assert AgentSettings(address="10.1.2.3", listen_host="0.0.0.0").engine_host == "0.0.0.0"


def test_without_verify_keys_it_does_not_start(tmp_path):
    done = agent("run", env={"NEBULA_AGENT_DATA_DIR": str(tmp_path)})
    assert done.returncode == 2
    assert "verify_keys is not set" in done.stderr


def test_check_says_what_is_there_and_what_is_missing(tmp_path, store_url):
    key = tmp_path / "verify.keys"
    key.write_text(SigningKey.generate().public_base64)
    config = tmp_path / "agent.toml"
    config.write_text(
        f'data_dir = "{tmp_path}"\nverify_keys = "{key}"\ngpus = "simulated:2"\n[store]\nurl = "{store_url}"\n'
    )
    done = agent("check", "--config", str(config))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^ok +store", done.stdout, re.MULTILINE)
    assert re.search(r"^ok +engine simulated", done.stdout, re.MULTILINE)
    assert re.search(r"^warn +sealing_public_key", done.stdout, re.MULTILINE)
    assert re.search(r"^ok +clock +0\.\d s from the store's", done.stdout, re.MULTILINE)
    rows = {
        row["name"]: row for row in json.loads(agent("check", "--config", str(config), "-o", "json").stdout)["items"]
    }
    assert {"node", "policy", "store", "clock", "docker", "gpus", "port_range", "shared_memory"} <= rows.keys()
    assert rows["clock"]["verdict"] == "ok"
    # Doors that have something to log, as where there is no driver, log nothing into the answer.
    config.write_text(config.read_text().replace('"simulated:2"', '"auto"'))
    assert json.loads(agent("check", "--config", str(config), "-o", "json").stdout)["items"]
    config.write_text(f'data_dir = "{tmp_path}"\n[store]\nurl = "unix:///nowhere/s"\n')
    done = agent("check", "--config", str(config))
    assert done.returncode == 1
    assert re.search(r"^FAIL +store", done.stdout, re.MULTILINE)
    assert re.search(r"^FAIL +verify_keys", done.stdout, re.MULTILINE)
    assert "→" in done.stdout


def test_check_speaks_of_an_object_store_where_settings_or_policy_do(tmp_path):
    settings, policy, keys = {"data_dir": str(tmp_path)}, tmp_path / "policy.toml", tmp_path / "keys"

    def row(sources, **s3):
        policy.write_text(f"sources = {json.dumps(sources)}\n")
        said = AgentSettings(**settings, policy_file=policy, model_cache={"s3": s3})
        return next(((each.verdict, each.detail, each.hint) for each in object_store_findings(said)), None)

    assert row(["Qwen/*"]) is None
    assert row(["s3:models/*"]) == ("ok", "the endpoint of the environment, else AWS: s3:models/*", None)
    assert row([], endpoint="https://minio.example:9000")[0] == "warn"
    keys.write_text("[default]\n")
    keys.chmod(0o644)
    verdict, detail, hint = row(["s3:models/*"], credentials_file=keys)
    assert (verdict, "may be read or written by other users" in detail) == ("FAIL", True)
    assert "chmod 600" in hint
    with pytest.raises(ValidationError, match="endpoint"):
        row([], endpoint="minio:9000")


def test_the_simulated_engine_is_a_command_of_the_agent():
    done = agent("simulate-engine", "--help")
    assert done.returncode == 0
    assert "--fault" in done.stdout
