"""The command line of the simulated engine: what is understood, and what a mistake is told."""

import pytest

from nebula_agent.simulator.arguments import parse_arguments
from nebula_agent.simulator.faults import KINDS, Faults, RequestFault, parse_faults, parse_request_fault
from nebula_agent.simulator.pipe import Abort, Submit, Unframer, frame, to_child_decoder
from nebula_agent.simulator.timing import PRESETS


def parse(*arguments, **environment):
    return parse_arguments(arguments, environment)


def test_the_preset_gives_what_is_not_said():
    settings = parse("--preset", "h100-8b", "--max-num-seqs", "4")
    preset = PRESETS["h100-8b"]
    assert settings.limits.max_num_seqs == 4
    assert settings.limits.max_num_batched_tokens == preset.max_num_batched_tokens
    assert settings.limits.num_blocks == preset.num_blocks - 1
    assert settings.names == ("sim",)


def test_names_come_apart_at_blanks_and_commas():
    assert parse("--served-model-name", "a,b", "c").names == ("a", "b", "c")
    assert parse("path/to/model").names == ("path/to/model",)


def test_keys_come_from_the_file_and_the_environment(tmp_path):
    file = tmp_path / "keys"
    file.write_text("one\ntwo\n")
    assert parse("--api-key-file", str(file), VLLM_API_KEY="three").api_keys == ("three", "one", "two")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--num-gpu-blocks", "2"), "raise --num-gpu-blocks to 17"),
        (("--fault", "nonsense"), "unknown fault 'nonsense'; there are: slow-start"),
        (("--fault", "slow-start"), "slow-start=SECONDS"),
        (("--fault", "slow-start=soon"), "is no number"),
        (("--fault", "freeze=3"), "takes no argument"),
        (("--fault", "error-frame", "--fault", "crash-at-token=3"), "only one of"),
        (("--speed", "0"), "--speed must be above 0"),
        (("--max-num-seqs", "0"), "is not above 0"),
        (("--api-key-file", "nowhere"), "--api-key-file"),
    ],
)
def test_a_mistake_is_named(capsys, arguments, told):
    with pytest.raises(SystemExit) as ended:
        parse(*arguments)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_every_fault_is_understood():
    given = [kind if wants is None else f"{kind}=2" for kind, wants in KINDS.items()]
    alone = {"crash-at-token=2", "freeze-at-token=2", "error-frame"}
    faults = parse_faults([one for one in given if one not in alone])
    assert faults == Faults(
        slow_start_seconds=2.0,
        failed_start_seconds=2.0,
        freeze=True,
        sigterm_hang=True,
        orphan_child=True,
        orphan_after_seconds=2.0,
        shm_leak=True,
        scrape_slow_seconds=2.0,
        every_request=RequestFault(kind="error", at_token=2),
    )
    assert parse_faults(["crash-at-token=2"]).every_request == RequestFault(kind="crash", at_token=2)
    assert parse_faults(["error-frame"]).every_request == RequestFault(kind="error", at_token=0)
    assert parse_faults(["orphan-child"]).orphan_after_seconds is None


def test_faults_of_one_request():
    assert parse_request_fault("crash@5") == RequestFault(kind="crash", at_token=5)
    assert parse_request_fault("error") == RequestFault(kind="error", at_token=0)
    with pytest.raises(ValueError, match="none of crash@K"):
        parse_request_fault("explode@1")


def test_messages_survive_any_cut_of_the_pipe():
    messages = [
        Submit("a", [1, 2, 3], 5, 0, False, [], None, None, True, ("crash", 3)),
        Abort(["a", "b"]),
    ]
    data = b"".join(frame(message) for message in messages)
    for size in (1, 2, 7, len(data)):
        unframer = Unframer(to_child_decoder)
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        assert [message for piece in pieces for message in unframer.feed(piece)] == messages


def test_a_step_takes_longer_with_more_in_it():
    preset = PRESETS["tiny"]
    assert preset.step_seconds(1, 0) == pytest.approx(0.0032)
    assert preset.step_seconds(32, 0) == pytest.approx(0.0094)
    assert preset.step_seconds(0, 1510) == pytest.approx(0.0408, abs=0.001)
