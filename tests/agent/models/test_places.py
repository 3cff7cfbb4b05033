"""What every place of models holds to, whichever it is: a list with sizes, bytes from an offset on, a word on what is missing."""

import pytest

from nebula_agent.adapters.model_place import FetchFailed
from nebula_agent.adapters.model_places import open_place
from nebula_agent.decisions.policy import LocalPolicy
from tests.agent.models.conftest import source_of
from tests.support.hub import tensors

FILES = {"config.json": b"{}", "model.safetensors": tensors(200_000), "sub/merges.txt": b"a b\n"}


@pytest.fixture(params=["hub", "modelscope", "s3", "folder"])
def where(request, tmp_path, monkeypatch):
    """The name of a model there, of one that is not, and the environment that leads there."""
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    if request.param == "s3":
        objects = request.getfixturevalue("objects")
        objects.put("team", {f"model/{name}": body for name, body in FILES.items()})
        return "s3:team/model", "s3:team/none", objects.env
    if request.param == "folder":
        for name, body in FILES.items():
            path = tmp_path / "model" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
        return f"nfs+copy:{tmp_path}/model", f"nfs+copy:{tmp_path}/none", {}
    hub = request.getfixturevalue("hub")
    hub.files["team/model"] = FILES
    scheme = "modelscope:" if request.param == "modelscope" else ""
    return f"{scheme}team/model", f"{scheme}team/none", hub.env


def test_it_lists_what_is_there_and_gives_the_bytes_from_anywhere_on(where):
    there, _, env = where
    place = open_place(source_of(there), LocalPolicy(), env)
    try:
        listing = place.listing()
        assert {file.path: file.size for file in listing.files} == {name: len(body) for name, body in FILES.items()}
        again = place.listing()
        assert {file.same_as for file in again.files} == {file.same_as for file in listing.files}
        for file in listing.files:
            body = FILES[file.path]
            for offset in {0, 1, len(body) - 1}:
                with place.open(listing, file, offset) as part:
                    assert part.starts_at == offset
                    assert b"".join(part) == body[offset:]
            with place.open(listing, file, 0) as part:
                assert next(iter(part))  # whoever has enough goes
    finally:
        place.close()


def test_what_is_not_there_is_named_and_not_asked_for_again(where):
    _, missing, env = where
    place = open_place(source_of(missing), LocalPolicy(), env)
    try:
        with pytest.raises(FetchFailed, match="none") as failed:
            place.listing()
        assert failed.value.final
        assert failed.value.hint
    finally:
        place.close()
